r"""The one loop that every fixed-step sampler runs, and what a step rule has to say.

A sampler visits times :math:`t_0 > t_1 > \dots`. Its rule turns the state at one time into the state at the next. With
`denoise=True` (the default) `steps=N` means N times, N-1 steps between them, and a last step that returns the model's
denoised estimate at :math:`t_{N-1}` (Tweedie's formula), so a first-order rule calls the network N times. With
`denoise=False` it means N steps over N+1 times, and the state at the last of them.

Coefficients are formed in float64 for the whole grid before the loop and enter it as Python numbers; the loop does
nothing but call the network and apply one or two fused updates.
"""

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_gen import checks as check
from sde_gen.errors import ConfigError, NonFiniteError
from sde_gen.model import ScoreModel, halves, wrong_shape
from sde_gen.parameterizations import half_log_snr
from sde_gen.perturbations import Perturbation
from sde_gen.perturbations.discrete import Chain
from sde_gen.samplers.grids import ChainNodes, TimeGrid, UniformTime, as_grid
from sde_gen.samplers.noise import NoiseSource, SeededNoise
from sde_gen.samplers.sampler import Job, Sampler

#: A rule's step: (k, x, memory) -> (x at the next time, memory); memory is None at the first step.
Step = Callable[[int, Tensor, Any], tuple[Tensor, Any]]

#: (k, x, raw, out) -> what a rule keeps of a network call, up to a scale (see `Evaluation.scaled`).
Estimate = Callable[..., Tensor]


class Evaluation:
    """The model at every time of a grid: `raw(k, x)` with x0hat = skip[k] x + out[k] raw, and a count of the calls."""

    def __init__(self, model: ScoreModel, times: Tensor, like: Tensor, condition: Mapping[str, Any]) -> None:
        p = model.perturbation
        self.alpha, self.sigma = p.alpha(times), p.sigma(times)
        coefficients = model.coefficients(self.alpha, self.sigma)
        self.skip, self.out = coefficients.skip, coefficients.out
        self.scale, self.kept = self.scaled(self.skip, self.out)
        self._counter = [0]
        self._like = torch.empty((), dtype=like.dtype, device=like.device).expand(like.shape)
        self._skip, self._out = self.skip.tolist(), self.out.tolist()
        self._condition = dict(condition)
        self.model = model
        self._network = model.network
        self.learned_variance = model.learned_variance
        if self._network is None:
            alphas, sigmas = (c.to(like.device).unbind(0) for c in (self.alpha, self.sigma))
            self._levels, self._coefficients = list(zip(alphas, sigmas, strict=True)), coefficients
            return
        model._warn_between_nodes(half_log_snr(self.alpha, self.sigma))
        # alpha^2 + sigma^2 = 1 up to rounding needs no scaling, and is spared it.
        self._input = [1.0 if abs(c - 1) < 1e-12 else c for c in coefficients.input.tolist()]
        noise = coefficients.noise.to(torch.float32).to(like.device)
        self._noise = noise[:, None].expand(len(times), len(like)).unbind(0)
        dtype = model.network_dtype
        self._cast = dtype if dtype is not None and dtype != like.dtype else None

    @property
    def calls(self) -> int:
        """Network calls made so far, those at other times (`at`) included."""
        return self._counter[0]

    def at(self, times: Tensor) -> "Evaluation":
        """The same model at other times, for rules that leave the grid; one count of calls for both."""
        other = Evaluation(self.model, times, self._like, self._condition)
        other._counter = self._counter
        return other

    def raw(self, k: int, x: Tensor) -> Tensor:
        """F at time k, in the dtype of x; a learned variance is dropped."""
        raw = self.output(k, x)
        return halves(raw, x)[0] if self.learned_variance else raw

    def output(self, k: int, x: Tensor) -> Tensor:
        """All that the network says at time k, in the dtype of x."""
        self._counter[0] += 1
        network = self._network
        if network is None:
            alpha, sigma = self._levels[k]
            return self.model.raw(x, alpha, sigma, self._coefficients, self._condition)
        scale = self._input[k]
        scaled = x if scale == 1.0 else x * scale
        if self._cast is not None:
            scaled = scaled.to(self._cast)
        raw = network(scaled, self._noise[k], **self._condition)
        if raw.shape != x.shape and not self.learned_variance:  # else `halves` looks at the shape
            raise wrong_shape(raw, x)
        return raw if raw.dtype == x.dtype else raw.to(x.dtype)

    def denoised(self, k: int, x: Tensor, out: Tensor | None = None) -> Tensor:
        """x0hat at time k."""
        return combine(x, self._skip[k], self.raw(k, x), self._out[k], out)

    def scaled(self, of_x: Tensor, of_raw: Tensor) -> tuple[Tensor, Estimate]:
        """A scale (K,) and a function (k, x, raw, out) that gives (of_x[k] x + of_raw[k] raw)/scale[k] at time k.

        One operation, for rules that keep an estimate and scale it anyway: the larger coefficient is divided out.
        """
        by_x = of_x.abs() >= of_raw.abs()
        scale = torch.where(by_x, of_x, of_raw)
        ratio = torch.where(by_x, of_raw, of_x) / scale
        ratios, led = torch.where(scale == 0, 0.0, ratio).tolist(), by_x.tolist()

        def estimate(k: int, x: Tensor, raw: Tensor, out: Tensor | None = None) -> Tensor:
            first, second = (x, raw) if led[k] else (raw, x)
            return torch.add(first, second, alpha=ratios[k], out=out)

        return scale, estimate


def combine(x: Tensor, a: float, y: Tensor, b: float, out: Tensor | None = None) -> Tensor:
    """a x + b y in two element-wise operations, without touching x or y (a network may return its input)."""
    return torch.mul(x, a, out=out).add_(y, alpha=b)


class Scratch:
    """Two buffers used in turn for a state: fresh memory at each step costs more than the arithmetic on it.

    Switched off where somebody may keep the states, as a callback does. A network that keeps its input must copy it.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._pair: tuple[Tensor, Tensor] | None = None

    def other(self, x: Tensor) -> Tensor | None:
        """A buffer like x that is not x; None when switched off, for fresh memory."""
        if not self._enabled:
            return None
        if self._pair is None:
            self._pair = (torch.empty_like(x), torch.empty_like(x))
        first, second = self._pair
        return second if x is first else first


@dataclass
class Run:
    """What a rule knows of one run."""

    perturbation: Perturbation
    times: Tensor
    """Times visited, descending, float64, on the CPU."""
    evaluation: Evaluation
    noise: NoiseSource
    reuse: bool = False
    """Whether states may be overwritten two steps later."""

    _drawn: Tensor | None = None

    def draw(self, like: Tensor, step: int, draw: int, out: Tensor | None = None) -> Tensor:
        """Noise for one use: the next draw may overwrite it. It lies in `out` if that is given and the source can."""
        source = self.noise
        if not isinstance(source, SeededNoise):
            return source(like, step, draw)
        if out is not None and out.is_contiguous():
            return source(like, step, draw, out)
        if self._drawn is None:
            self._drawn = torch.empty_like(like, memory_format=torch.contiguous_format)
        return source(like, step, draw, self._drawn)

    def scratch(self) -> Scratch:
        """Buffers for one kind of state of this run."""
        return Scratch(self.reuse)


@dataclass(frozen=True)
class GridSampler(Sampler):
    """A sampler that visits a fixed grid of times.

    Args:
        steps: number of steps >= 1; by default `default_steps`, or all nodes of a chain for a chain's own rule.
        grid: a `TimeGrid`, a name ("uniform", "lambda", "karras", "quadratic", "nodes", "lambda-nodes") or a list of
            descending times.
        denoise: whether the last step returns the denoised estimate instead of the state at the last time.

    Attributes:
        order: convergence order in the number of steps (strong for ODE rules, weak for SDE rules); None if the rule is
            not a convergent discretisation.
    """

    steps: int | None = None
    grid: Any = None
    denoise: bool = True

    default_steps: ClassVar[int] = 1000
    uses_chain_nodes: ClassVar[bool] = False  # steps=None means every node of a chain

    def __post_init__(self) -> None:
        where = type(self).__name__
        if self.steps is not None:
            check.integer(where, "steps", self.steps)
        if self.grid is not None:
            object.__setattr__(self, "grid", as_grid(self.grid))
            fixed = self.grid.length
            if fixed is not None and self.steps is not None:
                raise ConfigError(f"{where}: give steps or a list of times, not both; this grid has {fixed} times")
        if not isinstance(self.denoise, bool):
            raise ConfigError(f"{where}: denoise must be True or False, got {self.denoise!r}")

    # -- what a rule says --------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def stepper(self, run: Run) -> Step:
        """The step function of this rule on `run.times`; called once a run."""

    def last_stepper(self, run: Run) -> Step | None:
        """What is done at the last time: the denoised estimate, or nothing."""
        last = len(run.times) - 1
        if not self.denoise or float(run.evaluation.sigma[last]) == 0:
            return None
        return lambda k, x, memory: (run.evaluation.denoised(last, x), memory)

    @property
    def acts_on_last_time(self) -> bool:
        """Whether a step is taken at the last time too, so that N steps mean N times and not N + 1."""
        return self.denoise

    def default_grid(self, perturbation: Perturbation) -> TimeGrid:
        """The grid used when none is given."""
        return ChainNodes() if perturbation.is_chain else UniformTime()

    # -- the grid ----------------------------------------------------------------------------------------------------

    def times(self, model: ScoreModel) -> Tensor:
        p = model.perturbation
        low, high = model.times_within()
        grid: TimeGrid = self.grid if self.grid is not None else self.default_grid(p)
        times = grid.times(p, grid.length or self._number_of_times(p), low, high)
        if len(times) < 2 and not self.acts_on_last_time:
            raise ConfigError(f"{type(self).__name__}: a list of times needs at least two with denoise=False")
        return times

    def _number_of_times(self, p: Perturbation) -> int:
        extra = 0 if self.acts_on_last_time else 1
        if self.steps is not None:
            return self.steps + extra
        if isinstance(p, Chain):
            return p.length if self.uses_chain_nodes else min(self.default_steps + extra, p.length)
        return self.default_steps + extra

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _solve(self, job: Job) -> tuple[Tensor, int, Tensor | None]:
        model, x, callback = job.model, job.x, job.callback
        times = self.times(model)
        evaluation = Evaluation(model, times, x, job.condition)
        run = Run(model.perturbation, times, evaluation, job.noise, reuse=callback is None)
        listed, intervals = times.tolist(), len(times) - 1
        step, last = self.stepper(run), self.last_stepper(run)
        total = intervals + (last is not None)
        # A sum is finite only if every term is (up to overflow, itself a fault), and costs a third of an update.
        wide = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else None
        sums: list[Tensor] = []
        memory: Any = None
        if callback is not None:
            callback(0, listed[0], x[: job.count])
        for k in _with_progress(range(total), job.progress, type(self).__name__):
            rule = step if k < intervals else last
            x, memory = rule(k, x, memory)  # pyright: ignore[reportOptionalCall]
            sums.append(x.sum(dtype=wide))
            if callback is not None:
                callback(k + 1, listed[k + 1] if k < intervals else 0.0, x[: job.count])
        _refuse_non_finite(sums, x[: job.count], listed, job.first)
        return x, run.evaluation.calls, None


@dataclass(frozen=True)
class OneStepSampler(GridSampler):
    """A sampler whose step is x_s = a x_t + b x0hat(x_t, t) + c z with numbers a, b, c of (t, s)."""

    @abc.abstractmethod
    def coefficients(self, p: Perturbation, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(a, b, c) of the steps t -> s (s < t), float64 tensors of one shape."""

    def stepper(self, run: Run) -> Step:
        t, s = run.times[:-1], run.times[1:]
        a, b, c = self.coefficients(run.perturbation, t, s)
        require_finite(self, run.perturbation, t, a, b, c)
        e = run.evaluation
        # x0hat = skip x + out raw is folded in, which also removes the cancellation that a detour through x0hat has.
        of_x, of_raw = (a + b * e.skip[:-1]).tolist(), (b * e.out[:-1]).tolist()
        of_z, raw, noise, scratch = c.tolist(), e.raw, run.draw, run.scratch()

        def step(k: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
            f, new = raw(k, x), scratch.other(x)
            if not of_z[k]:
                return combine(x, of_x[k], f, of_raw[k], new), None
            # The noise is drawn where the new state will lie, which keeps a buffer out of the cache.
            new = torch.mul(noise(x, k, 0, new), of_z[k], out=new)
            return new.add_(x, alpha=of_x[k]).add_(f, alpha=of_raw[k]), None

        return step


def require_finite(sampler: Sampler, p: Perturbation, t: Tensor, *coefficients: Tensor) -> None:
    """Refuse a grid on which a rule's coefficients have no finite value."""
    for c in coefficients:
        wrong = ~c.isfinite()
        if bool(wrong.any()):
            at = t.expand_as(c)[wrong][0].item()
            raise ConfigError(
                f"{type(sampler).__name__}: its step from t = {at:.6g} has no finite coefficients under {p} "
                f"(alpha or sigma is zero there); keep the grid within [{p.t_min:.6g}, {p.t_max:.6g}]"
            )


def _refuse_non_finite(sums: list[Tensor], x: Tensor, times: list[float], first: int) -> None:
    """Raise for the first step whose state was not finite; one synchronisation, at the end."""
    if not sums:
        return
    finite = torch.stack(sums).isfinite()
    if not bool(finite.all()):
        step = int((~finite).nonzero()[0])
        rows = (~x.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
        raise NonFiniteError(step, times[min(step, len(times) - 1)], [first + row for row in rows])


def _with_progress(items: Sequence[int], progress: bool, name: str) -> Iterable[int]:
    if not progress:
        return items
    from tqdm import tqdm

    return tqdm(items, desc=name, leave=False)
