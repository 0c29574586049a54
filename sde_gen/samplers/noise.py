"""Where a sampler's Gaussian draws come from: a source that is injected, never global.

A source is called as `source(like, step, draw)` and returns standard normal numbers shaped like `like`. `step` counts
the sampler's steps from 0, with -1 for the state it starts from; `draw` counts the draws within a step. `SeededNoise`
(`rng.py`) is the source that samplers make of a seed.
"""

from typing import Protocol, runtime_checkable

from torch import Tensor

from sde_gen.rng import SeededNoise

__all__ = ["NoiseSource", "SeededNoise", "ShiftedNoiseSource"]


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
