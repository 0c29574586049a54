"""Where a sampler's Gaussian draws come from: a source that is injected, never global.

A source is called as `source(like, step, draw)` and returns standard normal numbers shaped like `like`. `step` counts
the sampler's steps from 0, with -1 for the state it starts from; `draw` counts the draws within a step.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sde_gen.rng import check_seed, keyed_generator

#: Samples per block for large samples; small ones share a block of about `_BLOCK_NUMBERS` numbers.
_BLOCK_SAMPLES = 64
_BLOCK_NUMBERS = 2**16
#: torch fills normal numbers in groups of 16; whole groups make a shorter draw a prefix of a longer one.
_GROUP = 16


class NoiseSource(Protocol):
    """A source of standard normal numbers: `source(like, step, draw) -> Tensor` shaped like `like`."""

    def __call__(self, like: Tensor, step: int, draw: int) -> Tensor: ...


@runtime_checkable
class ShiftedNoiseSource(Protocol):
    """A source that can serve a later part of the batch, which lets a sampler work in chunks."""

    def __call__(self, like: Tensor, step: int, draw: int) -> Tensor: ...

    def starting_at(self, first: int) -> "ShiftedNoiseSource":
        """The same source for samples `first`, `first` + 1, ..."""
        ...


class SeededNoise:
    """Noise as a pure function of (seed, sample, step, draw).

    Samples are drawn in fixed blocks keyed by (seed, block, step, draw), so sample i gets the same numbers whatever the
    batch around it. Numbers on a GPU differ from those on a CPU, and those in float64 from those in float32.

    Args:
        seed: whole number in [0, 2^64); all 64 bits count.
        first: index of the first sample of the batch.

    Raises:
        ConfigError: for a seed out of range.
    """

    def __init__(self, seed: int, first: int = 0) -> None:
        self.seed, self.first = check_seed(seed), int(first)

    def starting_at(self, first: int) -> "SeededNoise":
        """The same noise for samples `first`, `first` + 1, ..."""
        return SeededNoise(self.seed, first)

    def __call__(self, like: Tensor, step: int, draw: int, out: Tensor | None = None) -> Tensor:
        """Standard normal numbers shaped like `like`; in `out`, a contiguous tensor like it, if that is given."""
        rows = len(like)
        if rows == 0:
            return torch.empty_like(like)
        size = like.numel() // rows
        block = block_size(size)
        # Half precision is rounded from single; devices whose generator has no fixed order draw on the CPU.
        dtype = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
        device = like.device if like.device.type in ("cpu", "cuda") else torch.device("cpu")
        if out is None or out.dtype != dtype or out.device != device:
            out = torch.empty(like.shape, dtype=dtype, device=device)
        flat = out.view(rows, size)
        done = 0
        while done < rows:
            index, offset = divmod(self.first + done, block)
            count = min(block - offset, rows - done)
            generator = keyed_generator(self.seed, index, step + 1, draw, device=device)
            _fill(flat if count == rows else flat[done : done + count], offset, block, size, generator)
            done += count
        return out if out.dtype == like.dtype and device == like.device else out.to(like)


def block_size(size: int) -> int:
    """Samples per block, for samples of `size` numbers."""
    block = _BLOCK_SAMPLES
    while block * size < _BLOCK_NUMBERS:
        block *= 2
    return block


def _fill(rows: Tensor, offset: int, block: int, size: int, generator: torch.Generator) -> None:
    """Fill rows [offset, offset + len(rows)) of a block."""
    last = (offset + len(rows)) * size
    if rows.device.type != "cpu":  # a GPU's numbers depend on the size of the draw: always the whole block
        whole = torch.empty(block * size, dtype=rows.dtype, device=rows.device).normal_(generator=generator)
        rows.copy_(whole[offset * size : last].view_as(rows))
    elif offset == 0 and last % _GROUP == 0:
        rows.view(-1).normal_(generator=generator)
    else:
        padded = -(-last // _GROUP) * _GROUP
        drawn = torch.empty(padded, dtype=rows.dtype).normal_(generator=generator)
        rows.copy_(drawn[offset * size : last].view_as(rows))
