"""The range of stored pictures: which raw values are black and white, and how many levels lie between them."""

import numpy as np
from numpy.typing import NDArray

from sde_gen.checks import number
from sde_gen.data.transform import Affine
from sde_gen.errors import ConfigError, DataError

_PIECE = 2**20


def unit_range(where: str, samples: NDArray, kind: str, low: float | None, high: float | None) -> Affine | None:
    """The transform to [-1, 1], None for what is to be standardised; refuses values outside [low, high].

    Raises:
        ConfigError: images whose range is not plain, bad values of low and high.  DataError: values outside of them.
    """
    if (low is None) != (high is None):
        raise ConfigError(f"{where}: low and high go together, got low={low}, high={high}")
    smallest, largest = samples.min(), samples.max()
    if low is None or high is None:
        if kind != "image":
            return None
        stated = stated_range(samples)
        if stated is None:
            raise ConfigError(
                f"{where}: the range of {samples.dtype} images with values in [{smallest}, {largest}] is not plain; "
                "set low and high (data.low, data.high) to the raw values of black and white"
                + ("; or, if these are series, layout (data.layout) to NCL or NLC" if samples.shape[1] == 1 else "")
            )
        low, high = stated
    low, high = number(where, "low", low), number(where, "high", high)
    if low >= high:
        raise ConfigError(f"{where}: low must be below high, got low={low:g}, high={high:g}")
    if smallest < low or largest > high:
        raise DataError(f"{where}: values lie in [{smallest}, {largest}], outside [low, high] = [{low:g}, {high:g}]")
    return Affine.to_unit(low, high, levels(samples, low, high) if kind == "image" else None)


def stated_range(samples: NDArray) -> tuple[float, float] | None:
    """Black and white of images that are stored as images usually are; None for others."""
    if samples.dtype == np.uint8:
        return 0, 255
    if samples.dtype == np.bool_:
        return 0, 1
    smallest, largest = samples.min(), samples.max()
    if samples.dtype.kind == "f" and smallest >= -1 and largest <= 1:
        return (0, 1) if smallest >= 0 else (-1, 1)
    if smallest >= 0 and 127 < largest <= 255 and _on_grid(samples, 0, 1, 0):
        return 0, 255
    return None


def levels(samples: NDArray, low: float, high: float) -> int | None:
    """How many evenly spaced values from `low` to `high` the samples keep to, as rounded as their type makes them.

    Whole numbers have all the whole levels there are; floats those of 1, 8 or 16 bits or of whole numbers, if every
    value is one of them. None: continuous.
    """
    whole = int(high - low) + 1 if float(low).is_integer() and float(high).is_integer() else None
    if samples.dtype.kind != "f":
        return whole
    for count in sorted({2, 256, 65536, whole or 2}):
        step, rounding = (high - low) / (count - 1), np.finfo(samples.dtype).eps * max(abs(low), abs(high))
        if rounding <= step / 4 and _on_grid(samples, low, step, min(4 * rounding, step / 4)):
            return count
    return None


def _on_grid(samples: NDArray, low: float, step: float, tolerance: float) -> bool:
    """Whether every sample is low + k * step, up to `tolerance`."""
    flat = samples.reshape(-1)
    pieces = (flat[i : i + _PIECE].astype(np.float64) - low for i in range(0, flat.size, _PIECE))
    return all(bool((np.abs(piece - np.rint(piece / step) * step) <= tolerance).all()) for piece in pieces)
