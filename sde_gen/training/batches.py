r"""What each optimiser step is given: data, times and noise, as functions of (seed, step, place in the batch).

Times are drawn for the whole batch and noise in fixed blocks of it, so that a process that works on rows a..b of a
batch, all at once or in several parts, has the numbers that one process would have for those rows.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from sde_gen.data import Dataset, batch_indices
from sde_gen.errors import ConfigError
from sde_gen.model import ScoreModel
from sde_gen.objectives import DenoisingScoreMatching
from sde_gen.rng import block_size, fill, keyed_generator

# Third key of the generators of a step: one stream for each kind of draw.
TIMES, NOISE, DROPOUT, HELD_OUT, LEVELS = range(5)
_ON_DEVICE_BYTES = 2**31  # data sets up to this size live on the device


class Part(NamedTuple):
    """Some rows of a batch."""

    rows: slice
    """Which places of the process's share of the batch these are."""
    x0: Tensor
    condition: dict[str, Tensor]
    t: Tensor
    noise: Tensor
    generator: torch.Generator
    """For what else an objective draws, such as the labels that are dropped."""


class Batches:
    """The batches of a run, as one process sees them.

    Args:
        data: samples, kept on `device` if they are at most 2 GiB.
        objective, model: draw the times.
        size: samples in a batch, over all processes.
        share: the rows of each batch that this process works on.
        accumulate: parts in which it does.
        seed: of everything.
        device: where the network is.
        conditional: whether labels are given.
        channels_last: memory layout of images.
        dequantise: whether discrete levels are spread out by uniform noise, new at each step.

    Raises:
        ConfigError: levels are to be spread out that the data does not have.
    """

    def __init__(
        self,
        data: Dataset,
        objective: DenoisingScoreMatching,
        model: ScoreModel,
        *,
        size: int,
        share: slice,
        accumulate: int,
        seed: int,
        device: torch.device,
        conditional: bool,
        channels_last: bool,
        dequantise: bool = False,
    ) -> None:
        if dequantise and data.transform.step is None:
            raise ConfigError(
                f"trainer.dequantise=true spreads out discrete levels, but {data.name} is continuous; leave it out"
            )
        home = device if data.train.nbytes <= _ON_DEVICE_BYTES else torch.device("cpu")
        self._samples = data.train.to(home)
        labels = data.train_labels if conditional else None
        self._labels = None if labels is None else labels.to(home)
        self._objective, self._model, self._size, self._seed, self._device = objective, model, size, seed, device
        self._channels_last = channels_last
        # On the model's scale; a number for each feature, or one for all.
        scale = torch.as_tensor(data.transform.scale, dtype=torch.float32)
        self._width = (data.transform.step or 0.0) / scale.to(device) if dequantise else None
        self.share = share
        count = share.stop - share.start
        cuts = [count * part // accumulate for part in range(accumulate + 1)]
        self._parts = [slice(a, b) for a, b in pairwise(cuts)]

    def indices(self, step: int) -> Tensor:
        """Which training samples the batch of 0-based `step` holds, in order."""
        return batch_indices(len(self._samples), self._size, step, self._seed)

    def times(self, step: int) -> Tensor:
        """The times of the whole batch of `step`, float64, on the CPU."""
        return self._objective.times(
            self._model, self._size, generator=keyed_generator(self._seed, step, TIMES), device="cpu"
        )

    def parts(self, step: int) -> Iterator[Part]:
        """This process's share of the batch of `step`, in as many parts as asked for."""
        indices, t = self.indices(step)[self.share], self.times(step)[self.share]
        if self._samples.device.type != "cpu":
            indices = self._send(indices)
        for rows in self._parts:
            first = self.share.start + rows.start
            x0 = self._send(self._samples[indices[rows]])
            if self._width is not None:
                uniform = torch.special.ndtr(self._noise(step, first, x0, LEVELS))
                x0 = x0 + (uniform - 0.5) * self._width
            if self._channels_last and x0.ndim == 4:
                x0 = x0.contiguous(memory_format=torch.channels_last)
            condition: dict[str, Tensor] = {}
            if self._labels is not None:
                condition = {"label": self._send(self._labels[indices[rows]])}
            yield Part(
                rows, x0, condition, self._send(t[rows]), self._noise(step, first, x0), self._others(step, first)
            )

    def _noise(self, step: int, first: int, x0: Tensor, kind: int = NOISE) -> Tensor:
        """Standard normal numbers for the rows `first`, `first` + 1, ... of the batch, drawn where they are used."""
        drawn = torch.empty(x0.shape, device=x0.device)
        count, size = len(x0), x0[0].numel()
        flat, block, done = drawn.view(count, size), block_size(size), 0
        while done < count:
            index, offset = divmod(first + done, block)
            taken = min(block - offset, count - done)
            generator = keyed_generator(self._seed, step, kind, index, device=x0.device)
            fill(flat[done : done + taken], offset, block, size, generator)
            done += taken
        return drawn

    def _others(self, step: int, first: int) -> torch.Generator:
        """The generator of one number per sample, moved on past the rows before `first`."""
        generator = keyed_generator(self._seed, step, DROPOUT, 1)
        if first:
            torch.rand(first, generator=generator)
        return generator

    def _send(self, tensor: Tensor) -> Tensor:
        """`tensor` on the device, without waiting for what the device is doing."""
        if tensor.device.type == "cpu" and self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)
