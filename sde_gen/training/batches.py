r"""What each optimiser step is given: data, times and noise, as functions of (seed, step, place in the batch).

Times are drawn for the whole batch and noise in fixed blocks of it, so that a process that works on rows a..b of a
batch, all at once or in several parts, has the numbers that one process would have for those rows.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from sde_gen.conditions import check_labels
from sde_gen.data import Affine, Dataset, batch_indices, batch_words, split_indices
from sde_gen.errors import ConfigError
from sde_gen.model import ScoreModel
from sde_gen.objectives import DenoisingScoreMatching
from sde_gen.rng import block_size, fill, keyed_generator
from sde_gen.training.ahead import Ahead

# Third key of the generators of a step: one stream for each kind of draw.
TIMES, NOISE, DROPOUT, HELD_OUT, LEVELS = range(5)
_HELD_OUT = 1024  # samples
_ON_DEVICE_BYTES = 2**31  # data sets up to this size live on the device


class Part(NamedTuple):
    """Some rows of a batch."""

    rows: slice
    """Which places of the process's share of the batch these are."""
    x0: Tensor
    condition: dict[str, Tensor]
    t: Tensor | None
    noise: Tensor | None
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
        conditional: whether labels, and what else is told of samples, are given.
        channels_last: memory layout of images.
        dequantise: whether discrete levels are spread out by uniform noise, new at each step.

    Attributes:
        share: as given.
        drawn: the times of this process's share of the newest batch, on the host.

    Raises:
        ConfigError: levels are to be spread out that the data does not have; labels that the network does not know.
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
        small = data.source is None and data.train.nbytes <= _ON_DEVICE_BYTES
        home = device if small else torch.device("cpu")
        self._samples = data.train.to(home)
        self._ahead = None if data.source is None else Ahead(self._read, data.source.workers)
        labels = data.train_labels if data.source is None else data.source.labels
        labels = labels if conditional else None
        check_labels("Trainer", model, labels)
        self._labels = None if labels is None else labels.to(home)
        self._told = {name: told.to(home) for name, told in data.train_told.items()} if conditional else {}
        self._objective, self._model, self._size, self._seed, self._device = objective, model, size, seed, device
        self._channels_last, self._data, self._conditional = channels_last, data, conditional
        self._numbers = data.train[0].numel()
        self._block = block_size(self._numbers)
        # On the model's scale; a number for each feature, or one for all.
        scale = torch.as_tensor(data.transform.scale, dtype=torch.float32)
        self._width = (data.transform.step or 0.0) / scale.to(device) if dequantise else None
        self.share = share
        count = share.stop - share.start
        cuts = [count * part // accumulate for part in range(accumulate + 1)]
        self._parts = [slice(a, b) for a, b in pairwise(cuts)]
        self.drawn = torch.empty(0, dtype=torch.float64)

    def indices(self, step: int) -> Tensor:
        """Which training samples the batch of 0-based `step` holds, in order."""
        return batch_indices(self._data.size, self._size, step, self._seed)

    def times(self, step: int) -> Tensor:
        """The times of the whole batch of `step`, float64, on the CPU."""
        generator = keyed_generator(self._seed, step, TIMES)
        return self._objective.times(self._model, self._size, generator=generator, device="cpu")

    def parts(self, step: int) -> Iterator[Part]:
        """This process's share of the batch of `step`, in as many parts as asked for."""
        indices = batch_indices(self._data.size, self._size, step, self._seed)[self.share]
        generator = keyed_generator(self._seed, step, TIMES)
        self.drawn = t = self._objective.times(self._model, self._size, generator=generator, device="cpu")[self.share]
        if self._device.type != "cpu":
            t = _sent(t, self._device)
            if self._samples.device.type != "cpu":
                indices = _sent(indices, self._device)
        read = None if self._ahead is None else self._ahead(step)
        for rows in self._parts:
            first, chosen = self.share.start + rows.start, indices[rows]
            x0 = self._samples[chosen] if read is None else read[rows]
            if x0.device != self._device:
                x0 = _sent(x0, self._device)
            if self._data.augment is not None and read is None:
                x0 = self._data.augment(x0, _sent(self._words(step)[rows], self._device))
            if self._width is not None:
                uniform = torch.special.ndtr(self._noise(step, first, x0, LEVELS))
                x0 = x0 + (uniform - 0.5) * self._width
            if self._channels_last and x0.ndim == 4:
                x0 = x0.contiguous(memory_format=torch.channels_last)
            condition = {} if self._labels is None else {"label": _sent(self._labels[chosen], self._device)}
            if self._told:
                condition |= {name: _sent(told[chosen], self._device) for name, told in self._told.items()}
            noise = self._noise(step, first, x0)
            generator = keyed_generator(self._seed, step, DROPOUT, 1)
            if first:  # of one number per sample: past those of the rows before
                torch.rand(first, generator=generator)
            yield Part(rows, x0, condition, t[rows], noise, generator)

    def _words(self, step: int) -> Tensor:
        return batch_words(self._data.size, self._size, step, self._seed)[self.share]

    def _read(self, step: int) -> Tensor:
        """This process's share of the batch of `step` as the source has it, augmented; on the CPU, in any thread."""
        source, augment = self._data.source, self._data.augment
        if source is None:
            return self._samples[self.indices(step)[self.share]]
        x0 = source.read(self.indices(step)[self.share])
        return x0 if augment is None else augment(x0, self._words(step))

    def held_out(self) -> Iterator[Part]:
        """At most 1,024 held-out samples, each with its own generator; times and noise are left to the objective."""
        test, labels, size = self._data.test, self._data.test_labels if self._conditional else None, self._size
        count = min(len(test), _HELD_OUT)
        for block, first in enumerate(range(0, count, size)):
            rows = slice(first, min(first + size, count))
            x0 = test[rows].to(self._device)
            if self._width is not None:
                x0 = self._data.transform.dequantise(x0, self._seed, first)
            condition = {} if labels is None else {"label": labels[rows].to(self._device)}
            if self._conditional:
                condition |= {name: told[rows].to(self._device) for name, told in self._data.test_told.items()}
            yield Part(rows, x0, condition, None, None, keyed_generator(self._seed, block, HELD_OUT))

    def dropout_of(self, step: int, rows: slice) -> AbstractContextManager[None]:
        """Inside the block torch's global generators, from which dropout draws, depend on the step and first row."""
        first = self.share.start + rows.start
        keys = (step, DROPOUT, 2, first + 1) if first else (step, DROPOUT)
        return _global_draws(self._seed, keys, self._device)

    def _noise(self, step: int, first: int, x0: Tensor, kind: int = NOISE) -> Tensor:
        """Standard normal numbers for the rows `first`, `first` + 1, ... of the batch, drawn where they are used."""
        drawn = torch.empty(x0.shape, device=x0.device)
        count, size, block, done = len(x0), self._numbers, self._block, 0
        flat = drawn.view(count, size)
        while done < count:
            index, offset = divmod(first + done, block)
            taken = min(block - offset, count - done)
            generator = keyed_generator(self._seed, step, kind, index, device=x0.device)
            fill(flat[done : done + taken], offset, block, size, generator)
            done += taken
        return drawn


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on the device, without waiting for what the device is doing."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@contextmanager
def _global_draws(seed: int, keys: tuple[int, ...], device: torch.device) -> Iterator[None]:
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.set_rng_state(keyed_generator(seed, *keys).get_state())
        if on_gpu:
            torch.cuda.set_rng_state(keyed_generator(seed, *keys, device=device).get_state(), device)
        yield


def data_set_of(samples: object) -> Dataset:
    """A tensor of samples as they are, a tenth of them (1,024 at most) held out.

    Raises:
        ConfigError: it is no tensor of two samples or more.
    """
    if not isinstance(samples, Tensor) or samples.ndim < 2 or len(samples) < 2:
        given = f"one of shape {tuple(samples.shape)}" if isinstance(samples, Tensor) else type(samples).__name__
        raise ConfigError(
            f"data must be a Dataset (see sde_gen.data), or a tensor (N, *shape) of two samples or more, got {given}"
        )
    samples = samples.detach().float().cpu()
    train, test = split_indices(len(samples), min(_HELD_OUT, max(1, len(samples) // 10)), seed=0)
    kind = {2: "vector", 3: "series", 5: "volume"}.get(samples.ndim, "image")
    return Dataset("tensor", kind, samples[train], samples[test], Affine())
