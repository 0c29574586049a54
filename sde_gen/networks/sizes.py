"""Sizes of networks: those of the papers, by name, and one for data of which only shape and number are known."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sde_gen import checks
from sde_gen.errors import ConfigError

Sizes = Mapping[str, Mapping[str, Any]]


def sized(owner: str, sizes: Sizes, size: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, in which None is what the size says.

    Args:
        owner: name used in error messages.
        sizes: name to settings; the first is the default.
        size: one of the names, or None.
        given: all settings that a size may say.

    Raises:
        ConfigError: there is no size of that name.
    """
    name = next(iter(sizes)) if size is None else checks.choice(owner, "size", size, list(sizes))
    return {key: sizes[name].get(key) if value is None else value for key, value in given.items()}


def fitting_unet(shape: Sequence[int], samples: int) -> dict[str, Any]:
    """Width, levels, blocks, attention and dropout of a U-Net for samples of a shape, by rule of thumb.

    Up to 16 pixels along a side it is the small network for digits. Above, there is one more level for each doubling,
    and twice the blocks. Images of more than 1,024 numbers have twice the width, with dropout, and as DDPM has it for
    CIFAR-10 (Ho et al. 2020, arXiv:2006.11239) from 20,000 samples on: 128. Their attention is at 16x16 places and
    fewer, that of smaller ones at 8x8.

    Args:
        shape: (C, *sides).
        samples: of the training set.
    """
    sides, side = shape[1:], max(shape[1:])
    if side <= 16:
        return {"width": 32, "multipliers": [1, 2, 2], "blocks": 1, "attention": [-1], "dropout": 0.0}
    levels = 3 + math.ceil(math.log2(side / 16))
    fit = {"width": 32, "multipliers": [1] + [2] * (levels - 1), "blocks": 2, "attention": [-1], "dropout": 0.0}
    if len(sides) != 2:  # of series and volumes there is no such experience
        return fit
    wide = math.prod(shape) > 1024
    few = 16 * 16 if wide else 8 * 8
    places = [math.prod(-(-n // 2**level) for n in sides) for level in range(levels)]
    fit["attention"] = [level for level in range(1, levels) if places[level] <= few] or [-1]
    if wide:
        fit |= {"width": 128 if samples >= 20_000 else 64, "dropout": 0.1}
    return fit


def fitting_even(shape: Sequence[int], samples: int) -> dict[str, Any]:
    """As `fitting_unet`, with as many levels as the sides can be halved."""
    fit = fitting_unet(shape, samples)
    halved = next(k for k in range(len(fit["multipliers"]), 0, -1) if all(n % 2 ** (k - 1) == 0 for n in shape[1:]))
    attention = [level for level in fit["attention"] if level < halved] or [-1]
    return fit | {"multipliers": fit["multipliers"][:halved], "attention": attention}


class Measures(NamedTuple):
    """The settings of a U-Net that a size may say, checked."""

    width: int
    widths: list[int]
    """Channels of each level."""
    blocks: int
    attends: set[int]
    """Levels with attention."""
    dropout: float


def measured(owner: str, scale: Mapping[str, Any]) -> Measures:
    """What `sized` gave a U-Net, checked.

    Raises:
        ConfigError: a value outside its range, no level at all, or attention at one that is not there.
    """
    width = checks.integer(owner, "width", scale["width"], low=4)
    widths = [width * m for m in checks.integers(owner, "multipliers", scale["multipliers"], low=1)]
    blocks = checks.integer(owner, "blocks", scale["blocks"], low=1)
    dropout = checks.number(owner, "dropout", scale["dropout"], low=0.0, high=1.0, open_high=True)
    if not widths:
        raise ConfigError(f"{owner}: multipliers must name at least one level, got an empty list; try (1, 2)")
    return Measures(width, widths, blocks, levels(owner, scale["attention"], len(widths)), dropout)


def levels(owner: str, attention: object, count: int) -> set[int]:
    """The levels that attend, negative ones counted from the end; a ConfigError for a level that is not there."""
    named = checks.integers(owner, "attention", attention, low=-count)
    for level in named:
        if level >= count:
            raise ConfigError(f"{owner}: attention names level {level}, but multipliers give levels 0..{count - 1}")
    return {level % count for level in named}
