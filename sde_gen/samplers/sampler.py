"""How every sampler is called: shapes, seeds, chunks, devices, and what comes back."""

import abc
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.conditions import NOTHING, Condition, check_labels, gathered
from sde_gen.errors import ConfigError, LateStartWarning
from sde_gen.model import ScoreModel, evaluating
from sde_gen.rng import SeededNoise, block_size
from sde_gen.samplers.noise import NoiseSource, ShiftedNoiseSource

#: Numbers of state held at once unless `chunk` says otherwise: 64 MiB in float32.
_CHUNK_NUMBERS = 2**24

#: alpha/sigma at the first time up to which the data may be left out of the start.
_SIGNAL = 0.2

Callback = Callable[[int, float, Tensor], None]

#: Samples, network calls, and calls for each sample where they differ.
Solved = tuple[Tensor, int, Tensor | None]


@dataclass(frozen=True)
class Samples:
    """What a sampler returns.

    Attributes:
        x: the samples, (B, *shape).
        nfe: network calls made for each sample (the largest count, where an adaptive solver makes them differ).
        seconds: wall-clock time of the run.
        nfe_per_sample: calls for each sample, (B,), where they differ; else None.
        products: vector-Jacobian products of the network made for each sample, which guidance by gradients takes; each
            costs about two calls.
    """

    x: Tensor
    nfe: int
    seconds: float
    nfe_per_sample: Tensor | None = None
    products: int = 0


@dataclass(frozen=True)
class Job:
    """One chunk of a run."""

    model: ScoreModel
    x: Tensor
    """State at the first time."""
    condition: Condition
    noise: NoiseSource
    callback: Callback | None
    progress: bool
    first: int
    """Index of the first sample."""
    count: int
    """Rows that are samples; those after them are padding."""
    products: list[int] = field(default_factory=list)
    """Where `solve` puts the vector-Jacobian products it made, if any."""


class Sampler(abc.ABC):
    """Turns noise into data. Immutable; safe to share between threads.

    A fixed-step one is a `GridSampler`; any other states `solve`, the way from one end of `times` to the other.

    Attributes:
        order: convergence order in the number of steps (strong for ODE rules, weak for SDE rules), or None.
        is_stochastic: whether noise is drawn after the start.
        is_annealed: whether it comes down from noise alone, which is then what it begins with.
        is_finite_without_signal: whether a step from alpha = 0 has finite coefficients, so that it may be the first.
    """

    order: float | None = None
    is_stochastic: bool = False
    is_annealed: bool = True
    is_finite_without_signal: bool = False

    def times(self, model: ScoreModel) -> Tensor:
        """The times visited with this model, descending, float64: the two ends, unless it says otherwise."""
        low, high = model.times_within()
        return torch.tensor([high, low], dtype=torch.float64)

    @abc.abstractmethod
    def solve(self, job: Job) -> Solved:
        """Samples of one chunk, the network calls it took, and those of each sample where they differ."""

    @torch.no_grad()
    def __call__(
        self,
        model: ScoreModel,
        shape: Sequence[int] | None = None,
        *,
        start: Tensor | None = None,
        seed: int = 0,
        noise: NoiseSource | None = None,
        condition: Mapping[str, Any] | Condition | None = None,
        callback: Callback | None = None,
        progress: bool = False,
        chunk: int | None = None,
        first: int = 0,
        deterministic: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **named: Any,
    ) -> Samples:
        """Draw samples.

        Args:
            model: the model to sample from.
            shape: (B, *shape) of the samples; left out if `start` is given.
            start: state at the first time, (B, *shape), instead of a draw from the prior.
            seed: whole number in [0, 2^64); with `first`, sample i depends only on (model, sampler, seed, first + i).
            noise: source of all Gaussian draws instead of the seed.
            condition: keyword arguments of the network: tensors with a row for each sample, `Whole` what they share.
            named: the same as keywords, such as label=labels.
            callback: called as `callback(step, t, x)` for the first state (step 0) and after each step; x must not be
                changed. With several chunks it is called for each in turn.
            progress: whether to show a progress bar on standard error.
            chunk: most samples held at once; by default chosen from their size. Halved when a GPU's memory runs out.
            first: index of the first sample, for jobs that share one seed.
            deterministic: always use chunks of one fixed size (padded), so that a network's rounding does not depend on
                the batch either.
            dtype, device: of the samples; by default those of `start`, else float32 on the model's device.

        Raises:
            ConfigError: for arguments that do not fit together.
            SolverError: when an adaptive solver cannot meet its tolerance.
            NonFiniteError: if a state becomes NaN or infinite.
        """
        began = time.perf_counter()
        source, like = self._begin(shape, start, seed, noise, first, dtype, device, model)
        if len(like) == 0:
            return Samples(like, 0, time.perf_counter() - began)
        told = NOTHING
        if condition or named or model.given is not NOTHING:
            where = type(self).__name__
            given = gathered(where, model.network, condition, named, Sampler.__call__)
            told = Condition.of(where, given, len(like)).beside(model.given, where, len(like))
            check_labels(where, model, told.parts.get("label"))
        few = chunk is None and not deterministic and like.numel() <= _CHUNK_NUMBERS
        size = len(like) if few else self._chunk_size(like, chunk, deterministic, source)
        parts: list[Tensor] = []
        counts: list[Tensor] = []
        calls, done = 0, 0
        products: list[int] = [0]
        with evaluating(model):
            while done < len(like):
                rows = slice(done, min(done + size, len(like)))
                try:
                    part, made, each = self._run_chunk(
                        model, like, start, rows, size if deterministic else None, source, told, callback, progress,
                        first, products,
                    )  # fmt: skip
                except torch.cuda.OutOfMemoryError:
                    if size <= 1 or deterministic or not isinstance(source, ShiftedNoiseSource):
                        raise
                    size = max(1, size // 2)
                    torch.cuda.empty_cache()
                    continue
                parts.append(part)
                if each is not None:
                    counts.append(each)
                calls = max(calls, made)
                done = rows.stop
        x = parts[0] if len(parts) == 1 else torch.cat(parts)
        return Samples(x, calls, time.perf_counter() - began, torch.cat(counts) if counts else None, max(products))

    def _run_chunk(
        self,
        model: ScoreModel,
        like: Tensor,
        start: Tensor | None,
        rows: slice,
        padded: int | None,
        source: NoiseSource,
        condition: Condition,
        callback: Callback | None,
        progress: bool,
        first: int,
        products: list[int],
    ) -> Solved:
        count, whole = rows.stop - rows.start, len(like)
        if isinstance(source, ShiftedNoiseSource) and (rows.start or padded):
            source = source.starting_at(first + rows.start)
        part = like[rows]
        x = None if start is None else start[rows].to(dtype=like.dtype, device=like.device)
        if count < whole and condition is not NOTHING:
            condition = condition[rows]
        if padded is not None and count < padded:
            part, x = _pad(part, padded), None if x is None else _pad(x, padded)
            condition = condition.padded(padded)
        if x is None:
            t, p = self.times(model)[0], model.perturbation
            if self.is_annealed and float(t) < model.times_within()[1]:
                _warn_of_late_start(model, float(t))
            x = source(part, -1, 0) * float(p.curves(t)[1] if self.is_annealed else p.size(t))
        job = Job(model, x, condition, source, callback, progress, first + rows.start, count, products)
        x, calls, each = self.solve(job)
        return x[:count], calls, None if each is None else each[:count]

    def _begin(
        self,
        shape: Sequence[int] | None,
        start: Tensor | None,
        seed: int,
        noise: NoiseSource | None,
        first: int,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
        model: ScoreModel,
    ) -> tuple[NoiseSource, Tensor]:
        """The noise source, and a tensor without storage that has the samples' shape, dtype and device."""
        where = type(self).__name__
        if not isinstance(model, ScoreModel):
            raise ConfigError(f"{where}: model must be a ScoreModel, got {type(model).__name__}")
        if (shape is None) == (start is None):
            raise ConfigError(f"{where}: give either shape=(B, ...) or start=, a state to begin from")
        if first:
            first = checks.integer(where, "first", first, low=0)
        if start is None and model.starts_late:
            raise ConfigError(f"{where}: this model begins from given data, noised in part: give start=, such as "
                              "edited.start(x0)")  # fmt: skip
        if start is not None:
            if not isinstance(start, Tensor) or not start.is_floating_point() or start.ndim < 2:
                what = f"{start.dtype} {tuple(start.shape)}" if hasattr(start, "dtype") else type(start).__name__
                raise ConfigError(f"{where}: start must be a floating tensor of shape (B, *shape), got {what}")
            size = tuple(start.shape)
            dtype, device = dtype or start.dtype, device or start.device
        else:
            try:
                size = tuple(index(n) for n in shape or ())
            except TypeError:
                size = ()
            if len(size) < 2 or min(size) < 0 or any(isinstance(n, bool) for n in shape or ()):
                raise ConfigError(f"{where}: shape must be (B, *shape) of whole numbers, got {shape!r}")
        dtype = dtype or torch.get_default_dtype()
        if not dtype.is_floating_point:
            raise ConfigError(f"{where}: dtype must be floating, got {dtype}")
        device = model.device if device is None else device
        like = torch.empty((), dtype=dtype, device=device).expand(size)
        return SeededNoise(seed, first) if noise is None else noise, like

    @staticmethod
    def _chunk_size(like: Tensor, chunk: int | None, deterministic: bool, source: NoiseSource) -> int:
        if chunk is not None:
            chunk = checks.integer("sampler", "chunk", chunk)
        if not isinstance(source, ShiftedNoiseSource):
            if (chunk is not None and chunk < len(like)) or deterministic:
                raise ConfigError(
                    "sampler: this noise source cannot serve chunks or deterministic=True; give it a method "
                    "starting_at(first), or use seed="
                )
            return len(like)
        if chunk is not None:
            return chunk
        each = max(1, like[0].numel())
        if deterministic:
            return min(block_size(each), 64)
        most = max(1, _CHUNK_NUMBERS // each)
        if most >= len(like):
            return most
        block = block_size(each)
        return most // block * block if most > block else most


def _warn_of_late_start(model: ScoreModel, t: float) -> None:
    """A draw of noise alone is the law of the process at its last time, not where a good part of the data is left."""
    latest = model.times_within()[1]
    alpha, sigma = map(float, model.perturbation.curves(t))
    last, least = map(float, model.perturbation.curves(latest))
    if alpha > _SIGNAL * sigma and alpha * least > 1.1 * last * sigma:
        warnings.warn(
            f"the grid begins at t = {t:.4g}, where the state is {alpha:.2g} x0 + {sigma:.2g} noise, and is started "
            f"from noise alone; give start=, a state at that time, or a grid from t = {latest:.4g} on",
            LateStartWarning,
            stacklevel=5,
        )


def _pad(x: Tensor, size: int) -> Tensor:
    return torch.cat([x, x[-1:].expand(size - len(x), *x.shape[1:])])
