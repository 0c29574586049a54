"""Which sample goes where: the held-out split and the order of training, as pure functions of a seed.

Both sort random 64-bit words from numpy's Philox bit generator, whose stream is fixed across numpy versions and
platforms. Nothing here has state or touches a global generator, so a resumed run, or any number of processes that take
slices of one batch, sees the same data. All 64 bits of a seed count.
"""

from functools import lru_cache
from numbers import Integral, Real

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sde_gen.checks import integer
from sde_gen.errors import ConfigError
from sde_gen.rng import check_seed

_SPLIT, _EPOCH, _TOY, _WORDS = 1, 2, 3, 4  # separate streams of one seed


def generator(seed: int, number: int = 0) -> np.random.Generator:
    """The numpy generator of toy data: stream `number` of `seed`."""
    return np.random.Generator(_philox(seed, number, _TOY))


def split_indices(count: int, held_out: int | float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the training and of the held-out samples, each ascending, together 0..count-1.

    Args:
        count: number of samples, at least 2.
        held_out: how many to hold out (a whole number in 1..count-1), or which fraction (in (0, 1); at least one sample
            is held out and at least one is left).
        seed: picks the samples.

    Raises:
        ConfigError: `held_out` or `seed` outside its range.
    """
    count = integer("split_indices", "count", count, low=2)
    if isinstance(held_out, Integral) and not isinstance(held_out, bool):
        if not 1 <= held_out < count:
            raise ConfigError(
                f"held_out must be a fraction in (0, 1) or a whole number in 1..{count - 1} for {count} samples, "
                f"got {held_out}"
            )
        take = int(held_out)
    elif isinstance(held_out, Real) and not isinstance(held_out, bool) and 0.0 < float(held_out) < 1.0:
        take = min(max(round(float(held_out) * count), 1), count - 1)
    else:
        raise ConfigError(f"held_out must be a fraction in (0, 1) or a whole number >= 1, got {held_out!r}")
    order = _permutation(count, check_seed(seed), 0, _SPLIT)
    return torch.from_numpy(np.sort(order[take:])), torch.from_numpy(np.sort(order[:take]))


def batch_indices(count: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Indices of the training samples of one optimiser step: a pure function of its arguments.

    The order is one endless line of epochs, each a permutation keyed by (seed, epoch); step k takes places
    k * batch_size .. (k + 1) * batch_size - 1 of it, across the end of an epoch where need be. So each sample is used
    once an epoch, none is dropped, and a batch may be larger than the data. Process r of R takes `[r::R]` of it.

    Args:
        count: number of samples, at least 1.
        batch_size: at least 1.
        step: 0-based optimiser step.
        seed: in [0, 2^64).

    Returns:
        (batch_size,) int64.

    Raises:
        ConfigError: an argument outside its range.
    """
    count = integer("batch_indices", "count", count)
    batch_size = integer("batch_indices", "batch_size", batch_size)
    step = integer("batch_indices", "step", step, low=0)
    seed = check_seed(seed)
    place, end = step * batch_size, (step + 1) * batch_size
    parts = []
    while place < end:
        epoch, offset = divmod(place, count)
        part = _epoch(count, seed, epoch)[offset : offset + end - place]
        parts.append(part)
        place += len(part)
    return torch.from_numpy(np.concatenate(parts))


def batch_words(count: int, batch_size: int, step: int, seed: int) -> Tensor:
    """A random word for each sample of `batch_indices`, (batch_size,) int64, uniform in [0, 2^63).

    The word of sample i in epoch e is a function of (seed, e, i), whatever comes before it in the order.
    """
    indices = batch_indices(count, batch_size, step, seed)
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    words = np.empty(batch_size, np.int64)
    for epoch in np.unique(places // count):
        chosen = places // count == epoch
        words[chosen] = _words(count, check_seed(seed), int(epoch))[indices[chosen]]
    return torch.from_numpy(words)


@lru_cache(maxsize=2)
def _words(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return (_philox(seed, epoch, _WORDS).random_raw(count) >> np.uint64(1)).astype(np.int64)


@lru_cache(maxsize=2)
def _epoch(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    order = _permutation(count, seed, epoch, _EPOCH)
    order.flags.writeable = False
    return order


def _permutation(count: int, seed: int, number: int, stream: int) -> NDArray[np.int64]:
    return np.argsort(_philox(seed, number, stream).random_raw(count), kind="stable").astype(np.int64)


def _philox(seed: int, number: int, stream: int) -> np.random.Philox:
    key = np.array([seed, number], dtype=np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], dtype=np.uint64))
