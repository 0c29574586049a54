"""A network of diffusers, called as each wants it."""

import inspect
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from sde_gen import checks
from sde_gen.errors import ConfigError
from sde_gen.interop.diffusers.library import checked_config, network_class, parameters

#: The strength of guidance that a distilled Flux network is told where nothing else is said, as in its own pipeline.
_FLUX_GUIDANCE = 3.5


class Network(nn.Module):
    """A network of diffusers as the library calls networks: network(x, c_noise, label=None, **condition) -> F.

    Needs `pip install 'sde_gen[diffusers]'`. Beside x, (B, *shape), and the number for the time, (B,), it takes
    `label`, (B,), where it has classes (without one, the class of no label where the network has one), and by their own
    names whatever else the class takes, such as encoder_hidden_states, pooled_projections, added_cond_kwargs; floating
    tensors among them are cast to the network's dtype. Flux is shown its states in patches, and told positions.

    Args:
        model: name of the class: UNet2DModel, UNet2DConditionModel, UNet1DModel, DiTTransformer2DModel,
            PixArtTransformer2DModel, SD3Transformer2DModel or FluxTransformer2DModel.
        config: what it is made with, by name, as in its config.json.
        scheduler: settings of the scheduler that it came with, its `_class_name` among them, for
            `own_sampler`.

    Raises:
        CheckpointError: a class that is not on this list, or absurd sizes.  ConfigError: an unknown setting.
        MissingInputError: diffusers is not installed.
    """

    def __init__(
        self,
        model: str = "UNet2DModel",
        config: Mapping[str, Any] | None = None,
        scheduler: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        settings = checked_config(model, config or {})
        self._hold(network_class(model)(**settings), model, settings, scheduler)

    @classmethod
    def around(cls, module: nn.Module, scheduler: Mapping[str, Any] | None = None) -> Self:
        """The wrapper of a network that is there already.

        Raises:
            CheckpointError: its class is not on the list.
        """
        name = type(module).__name__
        known = parameters(network_class(name))
        given = {key: value for key, value in vars(module)["_internal_dict"].items() if key in known}
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._hold(module, name, given, scheduler)
        return made

    def _hold(self, inner: Any, name: str, config: Mapping[str, Any], scheduler: Mapping[str, Any] | None) -> None:
        self.inner, self.name = inner, name
        self.scheduler = None if scheduler is None else dict(scheduler)
        self.arguments = {"model": name, "config": _plain(config), "scheduler": _plain(scheduler)}
        told = inner.config
        self._packs = name == "FluxTransformer2DModel"
        self.channels = told.in_channels // 4 if self._packs else told.in_channels
        seen, said = told.in_channels, getattr(told, "out_channels", None) or told.in_channels
        if said not in (seen, 2 * seen):
            raise ConfigError(
                f"{name}: in_channels={seen} and out_channels={said} do not go together; a score has the channels of "
                "its input, or twice as many with a learned variance"
            )
        self.learned_variance = said == 2 * seen
        # An embedding that is a table takes whole numbers alone.
        self._whole = getattr(told, "time_embedding_type", None) == "learned"
        self.num_classes: int = (
            int(told.num_embeds_ada_norm or 0) if name == "DiTTransformer2DModel"
            else int(getattr(told, "num_class_embeds", None) or 0) if name.startswith("UNet2D") else 0
        )  # fmt: skip
        self.null_label = self.num_classes if name == "DiTTransformer2DModel" else None

    @property
    def noise_dtype(self) -> torch.dtype:
        """Of the number for the time: an index of hundreds is not rounded where the network is in half precision."""
        first = next(self.inner.parameters()).dtype
        return first if first == torch.float64 else torch.float32

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample, () where its settings do not say."""
        size = getattr(self.inner.config, "sample_size", None)
        if self._packs or not size:
            return ()
        if self.name == "UNet1DModel":
            return (self.channels, int(size))
        return (self.channels, *((int(size),) * 2 if isinstance(size, int) else map(int, size)))

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None, **condition: Any) -> Tensor:
        told = {name: _cast(value, x.dtype) for name, value in condition.items()}
        if label is None and self.null_label is not None:
            label = torch.full((len(x),), self.null_label, dtype=torch.int64, device=x.device)
        if label is not None:
            told["class_labels"] = label
        elif self.num_classes:
            raise ConfigError(f"{self.name} was trained with {self.num_classes} classes and no class of none; "
                              "give label=, a number for each sample")  # fmt: skip
        time = noise.round().long() if self._whole else noise
        shown, (size, told) = (x, ((), told)) if not self._packs else (_packed(x), self._placed(x, told))
        self._check_names(told)
        said = self.inner(shown, timestep=time, return_dict=False, **told)[0]
        return _unpacked(said, size) if self._packs else said

    def _check_names(self, told: Mapping[str, Any]) -> None:
        known = _takes(type(self.inner))
        for name in told:
            if name not in known:
                near = checks.nearest(name, known)
                raise ConfigError(f"{self.name} takes no {name!r}; " + (f"did you mean {near!r}?" if near else
                                  f"it takes {', '.join(known)}"))  # fmt: skip

    def _placed(self, x: Tensor, told: dict[str, Any]) -> tuple[tuple[int, int], dict[str, Any]]:
        """Rows and columns of patches; the condition, and where each patch and each token of a text lies."""
        rows, columns = x.shape[2] // 2, x.shape[3] // 2
        places = torch.zeros(rows, columns, 3, dtype=x.dtype, device=x.device)
        places[..., 1] += torch.arange(rows, device=x.device)[:, None]
        places[..., 2] += torch.arange(columns, device=x.device)
        text = told.get("encoder_hidden_states")
        tokens = 0 if text is None else text.shape[1]
        added: dict[str, Any] = {"img_ids": places.flatten(0, 1), "txt_ids": x.new_zeros(tokens, 3)}
        if self.inner.config.guidance_embeds:
            added["guidance"] = x.new_full((len(x),), _FLUX_GUIDANCE)
        return (rows, columns), {**added, **told}


def _takes(cls: type) -> list[str]:
    given = list(inspect.signature(cls.forward).parameters)[2:]  # type: ignore[attr-defined]
    return [name for name in given if name not in ("timestep", "return_dict")]


def _packed(x: Tensor) -> Tensor:
    """(B, C, 2h, 2w) to (B, h w, 4 C)."""
    n, c, height, width = x.shape
    x = x.reshape(n, c, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(n, (height // 2) * (width // 2), 4 * c)


def _unpacked(x: Tensor, size: tuple[int, ...]) -> Tensor:
    n, _, c = x.shape
    rows, columns = size
    x = x.reshape(n, rows, columns, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(n, c // 4, 2 * rows, 2 * columns)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Mapping):
        return {key: _cast(inner, dtype) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_cast(inner, dtype) for inner in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _plain(value: Any) -> Any:
    """Plain data, as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items() if not str(key).startswith("_") or
                str(key) == "_class_name"}  # fmt: skip
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value.tolist() if hasattr(value, "tolist") else value
