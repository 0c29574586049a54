"""Autoencoders of diffusers, made of plain data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from sde_gen.interop.diffusers.folders import CONFIG, read_json, read_network
from sde_gen.interop.diffusers.library import CODECS, checked_config, network_class, parameters


class Autoencoder(nn.Module):
    """An autoencoder of diffusers; `pip install 'sde_gen[diffusers]'`.

    Args:
        model: name of the class, AutoencoderKL or AutoencoderTiny.
        config: what it is made with, by name, as in its config.json.

    Raises:
        CheckpointError: another class, or absurd sizes.  ConfigError: an unknown setting.
        MissingInputError: diffusers is not installed.
    """

    def __init__(self, model: str = "AutoencoderKL", config: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        settings = checked_config(model, config or {}, CODECS)
        self._hold(network_class(model, CODECS)(**settings), settings)

    @classmethod
    def around(cls, module: nn.Module) -> Self:
        """The wrapper of one that is there already.

        Raises:
            CheckpointError: its class is not on the list.
        """
        known = parameters(network_class(type(module).__name__, CODECS))
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._hold(module, {key: value for key, value in vars(module)["_internal_dict"].items() if key in known})
        return made

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """What `save_pretrained` of diffusers wrote; no code of the folder runs.

        Raises:
            CheckpointError, MissingInputError: another class, weights that are damaged or not there.
        """
        return cls.around(read_network(folder, read_json(folder / CONFIG), among=CODECS))

    def _hold(self, inner: Any, config: Mapping[str, Any]) -> None:
        self.inner = inner.eval()
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
        self.arguments = {"model": type(inner).__name__, "config": plain}
        self.scaling_factor, self.shift_factor = (
            getattr(inner.config, name, None) for name in ("scaling_factor", "shift_factor")
        )

    def encode(self, x: Tensor) -> Any:
        """Latents as the module has them: the mode of their law, or themselves."""
        return self.inner.encode(x)

    def decode(self, z: Tensor) -> Any:
        """Images in [-1, 1]."""
        return self.inner.decode(z)
