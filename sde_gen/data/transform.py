"""The map between raw data and the scale the model sees; a value of plain numbers, stored with the model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sde_gen.checks import integer, number
from sde_gen.errors import ConfigError, DataError
from sde_gen.rng import keyed_generator

Numbers = float | tuple[float, ...]

#: Key of the noise that spreads levels out.
_DEQUANTISE = 0x6465
_ENTRIES = ("shift", "scale", "low", "high", "levels")


@dataclass(frozen=True)
class Affine:
    """x = (raw - shift) / scale, one number for all features or one for each.

    Raw values that float32 would round more coarsely than x itself (times, coordinates, columns of tiny or huge
    numbers) are computed and returned in float64; others keep the dtype of x.

    Args:
        shift: subtracted from the raw value; a number, or D numbers for vectors of D features.
        scale: what one unit of x is in raw units, > 0; a number, or D numbers.
        low: smallest raw value there can be (0 for images), None where there is no bound.
        high: largest raw value there can be (16 for digits, 255 for 8-bit images), None where there is no bound.
        levels: number of discrete raw values, evenly spaced from `low` to `high` (17 for digits, 256 for 8-bit images);
            None for continuous data. Likelihoods need it for dequantisation and bits per dimension.
        axis: along which dimension of x the D numbers go: -1, or -2 for the channels of series (C, L), -3 for those of
            images (C, H, W), -4 for those of volumes (C, D, H, W).

    Raises:
        DataError: numbers that are not finite, scale <= 0, low >= high, levels < 2 or without bounds, another axis.
    """

    shift: Numbers = 0.0
    scale: Numbers = 1.0
    low: float | None = None
    high: float | None = None
    levels: int | None = None
    axis: int = -1

    def __post_init__(self) -> None:
        object.__setattr__(self, "shift", _numbers("shift", self.shift))
        object.__setattr__(self, "scale", _numbers("scale", self.scale))
        if np.min(self.scale) <= 0:
            raise DataError(f"data transform: scale must be > 0 everywhere, got {self.scale}")
        sizes = {len(v) for v in (self.shift, self.scale) if isinstance(v, tuple)}
        if len(sizes) > 1:
            raise DataError(f"data transform: shift and scale must have one length, got lengths {sorted(sizes)}")
        for name in ("low", "high"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _number(name, value))
        if (self.low is None) != (self.high is None):
            raise DataError(f"data transform: low and high go together, got low={self.low}, high={self.high}")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise DataError(f"data transform: low must be below high, got low={self.low}, high={self.high}")
        if self.levels is not None:
            try:
                object.__setattr__(self, "levels", integer("data transform", "levels", self.levels, low=2))
            except ConfigError as error:
                raise DataError(str(error)) from None
            if self.low is None:
                raise DataError(f"data transform: levels={self.levels} needs low and high")
        if self.axis not in (-1, -2, -3, -4) or isinstance(self.axis, bool):
            raise DataError(f"data transform: axis must be -1, -2, -3 or -4, got {self.axis!r}")

    @classmethod
    def to_unit(cls, low: float, high: float, levels: int | None = None) -> "Affine":
        """The transform that takes [low, high] to [-1, 1]."""
        low, high = _number("low", low), _number("high", high)
        if low >= high:
            raise DataError(f"data transform: low must be below high, got low={low}, high={high}")
        return cls((low + high) / 2, (high - low) / 2, low, high, levels)

    @property
    def step(self) -> float | None:
        """Distance of two neighbouring raw levels; None for continuous data."""
        if self.levels is None or self.low is None or self.high is None:
            return None
        return (self.high - self.low) / (self.levels - 1)

    def forward(self, raw: Tensor) -> Tensor:
        """Raw values to the model's scale, (raw - shift) / scale; integers become float32, floats keep their dtype."""
        dtype = raw.dtype if raw.is_floating_point() else torch.float32
        values = _float64(raw) if self._fine else raw.to(dtype)
        return ((values - self._like(self.shift, values)) / self._like(self.scale, values)).to(raw.device, dtype)

    def inverse(self, x: Tensor) -> Tensor:
        """The model's scale to raw values, x * scale + shift: the exact inverse, neither clipped nor rounded."""
        x = _float64(x) if self._fine else x
        return x * self._like(self.scale, x) + self._like(self.shift, x)

    def quantise(self, x: Tensor) -> Tensor:
        """The raw value that a person would store: `inverse`, clipped to [low, high], rounded to the nearest level."""
        raw = self.inverse(x)
        if self.low is not None and self.high is not None:
            raw = raw.clamp(self.low, self.high)
            if self.step is not None:
                raw = ((raw - self.low) / self.step).round() * self.step + self.low
        return raw

    def log_scale(self, shape: Sequence[int]) -> float:
        """log |d raw / d x| of one sample of `shape`, in nats: log p(raw) = log p(x) - log_scale(shape)."""
        count = math.prod(shape)
        if isinstance(self.scale, tuple):
            if len(shape) != -self.axis or shape[0] != len(self.scale):
                raise DataError(
                    f"data transform: has {len(self.scale)} features, but a sample has shape {tuple(shape)}"
                )
            return sum(math.log(value) for value in self.scale) * (count // len(self.scale))
        return count * math.log(self.scale)

    def log_volume(self, shape: Sequence[int]) -> float:
        """Log-probability of a raw sample of `shape`, minus log p(x) of it on the model's scale, in nats.

        Minus `log_scale`, plus the log-width of a level for each value where there are levels: the density of
        dequantised data is that of their cell, divided by its width.
        """
        return (0.0 if self.step is None else math.prod(shape) * math.log(self.step)) - self.log_scale(shape)

    def dequantise(self, x: Tensor, seed: int = 0, first: int = 0) -> Tensor:
        """x with its levels spread out evenly: uniform noise of one level's width, centred, added to each value.

        The mean log-density of such data bounds the mean log-probability of the levels from below (Theis et al. 2016,
        arXiv:1511.01844). Sample i depends only on (seed, first + i).

        Args:
            x: data with levels, on the model's scale, (B, *shape).
            seed: whole number in [0, 2^64).
            first: index of the first sample.

        Raises:
            DataError: the data has no levels.
        """
        if self.step is None:
            raise DataError("dequantise: this data has no levels (levels=None); it is continuous already")
        uniform = torch.stack(
            [torch.rand(x.shape[1:], dtype=x.dtype, generator=keyed_generator(seed, first + i, 0, _DEQUANTISE))
             for i in range(len(x))]
        ) if len(x) else x.cpu()  # fmt: skip
        width = self.step / torch.as_tensor(self._like(self.scale, x), dtype=x.dtype, device=x.device)
        return x + (uniform.to(x.device) - 0.5) * width

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values; `from_dict` gives back an equal transform."""
        plain = {name: getattr(self, name) for name in _ENTRIES} | ({} if self.axis == -1 else {"axis": self.axis})
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "Affine":
        """The transform stored by `to_dict`; raises DataError for unknown or missing entries and bad values."""
        if not isinstance(values, Mapping) or set(values) - {"axis"} != set(_ENTRIES):
            found = sorted(map(str, values)) if isinstance(values, Mapping) else repr(values)
            raise DataError(f"data transform: expected exactly the entries {sorted(_ENTRIES)}, got {found}")
        return cls(**values)  # type: ignore[arg-type]  # each value is checked in __post_init__

    @cached_property
    def _fine(self) -> bool:
        """Whether raw values need float64: float32 would add an error of more than a few roundings of x."""
        shift, scale = np.broadcast_arrays(self.shift, self.scale)
        size = np.abs(shift)
        return bool(((size / 16 > scale) | (scale < 1e-30) | (scale > 1e30) | ((size > 0) & (size < 1e-30))).any())

    def _like(self, value: Numbers, x: Tensor) -> Tensor | float:
        if not isinstance(value, tuple):
            return value
        if x.dim() < -self.axis or x.shape[self.axis] != len(value):
            raise DataError(f"data transform: has {len(value)} features, but the data has shape {tuple(x.shape)}")
        like = torch.tensor(value, dtype=x.dtype, device=x.device)
        return like.reshape(-1, *(1,) * (-self.axis - 1))


def standardising(raw: Tensor, axis: int = -1) -> Affine:
    """The transform to mean 0 and standard deviation 1 of each feature: of vectors (N, D), or channel: `Affine.axis`.

    A feature that does not vary is only shifted to 0: its scale is 1. Any offset and spread of float64 will do.
    """
    values = raw.detach().to(torch.float64).numpy()
    others = (0, *range(2, -axis + 1))
    # Divided by powers of two, which rounds nothing, so that no square or sum overflows or vanishes.
    exponent = np.frexp(np.abs(values).max(others, keepdims=True))[1]
    values = np.ldexp(values, -exponent)
    mean, std = values.mean(others, keepdims=True), values.std(others, keepdims=True)
    far, rest = std <= 1e-7 * np.abs(mean), values - mean  # far from zero the mean itself is rounded: once more
    mean = mean + np.where(far, rest.mean(others, keepdims=True), 0.0)
    std = np.where(far, rest.std(others, keepdims=True), std)
    mean, std = (np.ldexp(v, exponent).flatten() for v in (mean, std))
    varies = (np.ptp(values, axis=others) > 0) & (std > 0)
    shift = np.where(varies, mean, np.ldexp(values[:1], exponent).max(others))  # a mean of equal values may be rounded
    return Affine(tuple(map(float, shift)), tuple(map(float, np.where(varies, std, 1.0))), axis=axis)


def _float64(x: Tensor) -> Tensor:
    return (x.cpu() if x.device.type == "mps" else x).to(torch.float64)  # that device has no float64


def _number(name: str, value: object) -> float:
    try:
        return number("data transform", name, value)
    except ConfigError as error:
        raise DataError(str(error)) from None


def _numbers(name: str, value: object) -> Numbers:
    value = value.tolist() if isinstance(value, (np.ndarray, Tensor)) else value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if not value:
            raise DataError(f"data transform: {name} must hold at least one number, got an empty list")
        return tuple(_number(f"{name}[{i}]", v) for i, v in enumerate(value))
    return _number(name, value)
