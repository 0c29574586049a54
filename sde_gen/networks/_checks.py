"""Argument checks shared by the networks; every message is one sentence that names the value and the allowed range."""

from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Tensor

from sde_gen.errors import ConfigError


def whole(owner: str, name: str, value: object, low: int) -> int:
    """`value` as an int of at least `low`; raises ConfigError (booleans and floats are refused)."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < low:
        raise ConfigError(f"{owner}: {name} must be a whole number >= {low}, got {value!r}")
    return int(value)


def wholes(owner: str, name: str, values: object, low: int) -> tuple[int, ...]:
    """`values` as a tuple of ints of at least `low`; raises ConfigError."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise ConfigError(f"{owner}: {name} must be a list of whole numbers >= {low}, got {values!r}")
    return tuple(whole(owner, f"{name}[{i}]", value, low) for i, value in enumerate(values))


def probability(owner: str, name: str, value: object) -> float:
    """`value` as a float in [0, 1); raises ConfigError, for NaN too."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 <= float(value) < 1.0:
        raise ConfigError(f"{owner}: {name} must be a number in [0, 1), got {value!r}")
    return float(value)


def switch(owner: str, name: str, value: object) -> bool:
    """`value` if it is True or False; raises ConfigError."""
    if not isinstance(value, bool):
        raise ConfigError(f"{owner}: {name} must be True or False, got {value!r}")
    return value


def noise_levels(owner: str, c_noise: Tensor, batch: int) -> Tensor:
    """`c_noise` of shape () or (B,) as a (B,) tensor; raises ConfigError for any other shape."""
    if c_noise.dim() == 0:
        return c_noise.expand(batch)
    if c_noise.dim() != 1 or c_noise.shape[0] != batch:
        raise ConfigError(
            f"{owner}: c_noise must have shape () or ({batch},), one number a sample, got {tuple(c_noise.shape)}"
        )
    return c_noise


def labels(owner: str, label: Tensor | None, num_classes: int, batch: int, device: torch.device) -> Tensor | None:
    """`label` as a (B,) int64 tensor, None where the network has no classes; raises ConfigError.

    A missing label becomes `num_classes`, which means "no label". The values themselves are not checked here, since
    that would wait for the device on every call; the embedding's own bounds check speaks up.
    """
    if num_classes == 0:
        if label is not None:
            raise ConfigError(f"{owner}: got a label, but was built with num_classes=0; build it with num_classes >= 1")
        return None
    if label is None:
        return torch.full((batch,), num_classes, dtype=torch.int64, device=device)
    if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise ConfigError(f"{owner}: label must hold whole numbers (int64), got {label.dtype}")
    if label.dim() == 0:
        label = label.expand(batch)
    if label.dim() != 1 or label.shape[0] != batch:
        raise ConfigError(f"{owner}: label must have shape () or ({batch},), got {tuple(label.shape)}")
    return label.to(torch.int64)
