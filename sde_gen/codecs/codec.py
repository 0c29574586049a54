"""What makes latents of data, and data of latents."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sde_gen.config.objects import describe
from sde_gen.data import Affine
from sde_gen.errors import ConfigError, DataError
from sde_gen.model import evaluating
from sde_gen.training.state import weights_digest

_NUMBERS = 2**20  # of data in a batch


class Pair(nn.Module):
    """A codec of two modules, which need not know of each other.

    Args:
        encoder: of data (B, *shape) to latents (B, *latent shape).
        decoder: of latents to data.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encode, self.decode = encoder, decoder


@dataclass(frozen=True, eq=False)
class Codec:
    """A module with `encode` and `decode`, each called in evaluation mode, in batches, without gradients.

    What `encode` returns is a tensor, or has a `latent_dist` (of which the mode is taken) or `latents`; what `decode`
    returns is a tensor, or has a `sample`. Data are on the scale that a `Dataset` has, images in [-1, 1]; latents are
    as the module has them, and `transform` or the standardisation of a `Dataset` brings them to a model's scale.

    Args:
        module: a torch module with both methods; numbers `scaling_factor` and `shift_factor` of it, where it has them,
            are the x = (z - shift_factor) scaling_factor that others train on.

    Raises:
        ConfigError: no such module.
    """

    module: Any

    def __post_init__(self) -> None:
        lacking = [name for name in ("encode", "decode") if not callable(getattr(self.module, name, None))]
        if not isinstance(self.module, nn.Module) or lacking:
            raise ConfigError(
                f"a codec must be a torch module with encode and decode, got {type(self.module).__name__} without "
                f"{' and '.join(lacking) or 'being one'}; of two modules make one by sde_gen.codecs.Pair"
            )

    def encode(self, x: Tensor) -> Tensor:
        """Latents (N, *latent shape), float32, on the CPU, of data (N, *shape).

        Raises:
            DataError: the module cannot take them, or what it returns is no finite latent for each.
        """
        return self._called(self.module.encode, x, "encode")

    def decode(self, z: Tensor) -> Tensor:
        """Data (N, *shape), float32, on the CPU, of latents (N, *latent shape).

        Raises:
            DataError: as `encode`.
        """
        return self._called(self.module.decode, z, "decode")

    @property
    def transform(self) -> Affine:
        """x = (z - shift_factor) scaling_factor, with 0 and 1 where the module says nothing."""
        shift, factor = (getattr(self.module, name, None) for name in ("shift_factor", "scaling_factor"))
        return Affine(float(shift or 0.0), 1 / float(factor or 1.0))

    @property
    def described(self) -> Any:
        """What the module is made of, as plain data.

        Raises:
            ConfigError: a module that does not say, such as one that was not built from a configuration.
        """
        return describe(self.module, "codec")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all names and values of the module's state."""
        return weights_digest(self.module)

    @torch.no_grad()
    def _called(self, function: Callable[[Tensor], Any], x: Tensor, what: str) -> Tensor:
        first = next(self.module.parameters(), torch.zeros(()))
        parts = []
        with evaluating(self.module):
            for part in x.split(max(1, _NUMBERS // max(1, math.prod(x.shape[1:])))):
                try:
                    said = _tensor(function(part.to(first.device, first.dtype)))
                except (RuntimeError, ValueError, TypeError, IndexError) as error:
                    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
                    raise DataError(
                        f"the codec cannot {what} samples of shape {tuple(x.shape[1:])}: {reason}"
                    ) from error
                if said is None or said.ndim < 2 or len(said) != len(part) or not bool(said.isfinite().all()):
                    got = "NaN or infinity" if said is not None and len(said) == len(part) else "something else"
                    raise DataError(f"the codec must {what} (B, ...) to (B, ...), finite numbers, but gave {got}")
                parts.append(said.float().cpu())
        return torch.cat(parts)


def _tensor(said: Any) -> Tensor | None:
    """The tensor in what a module returned."""
    if isinstance(said, list | tuple):
        said = said[0] if said else None
    for name in ("latent_dist", "latents", "sample"):
        if not isinstance(said, Tensor) and hasattr(said, name):
            said = getattr(said, name)
            break
    if not isinstance(said, Tensor) and callable(getattr(said, "mode", None)):
        said = said.mode()
    return said if isinstance(said, Tensor) else None
