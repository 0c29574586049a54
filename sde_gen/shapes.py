"""Numbers that stand beside a batch: times in float64, and dimensions to the right of them."""

import torch
from torch import Tensor

from sde_gen.errors import ConfigError

__all__ = ["float64", "trailing"]


def float64(value: Tensor | float, name: str) -> tuple[Tensor, torch.dtype, torch.device]:
    """`value` in float64, with the dtype and device the answer is due in.

    Raises:
        ConfigError: for what is no real number or tensor of them.
    """
    try:
        given = torch.as_tensor(value, dtype=torch.float64 if isinstance(value, float) else None)  # float32 by default
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{name} must be a real number or tensor, got {value!r}") from error
    if given.is_complex() or given.dtype == torch.bool:
        raise ConfigError(f"{name} must be a real number or tensor, got dtype {given.dtype}")
    dtype = given.dtype if isinstance(value, Tensor) and given.is_floating_point() else torch.float64
    device = given.device
    if device.type == "mps":  # no float64 there; these tensors hold one number a sample
        given = given.cpu()
    return given.to(torch.float64), dtype, device


def trailing(x: Tensor, ndim: int) -> Tensor:
    """x of shape () or (B,) with dimensions appended, so that it multiplies a tensor of `ndim` dimensions."""
    return x if x.ndim == 0 else x.reshape(x.shape + (1,) * (ndim - x.ndim))
