r"""The one loop that every fixed-step sampler runs, and what a step rule has to say.

A sampler visits times :math:`t_0 > t_1 > \dots`. Its rule turns the state at one time into the state at the next. With
`denoise=True` (the default) `steps=N` means N times, N-1 steps between them, and a last step that returns the model's
denoised estimate at :math:`t_{N-1}` (Tweedie's formula), so a first-order rule calls the network N times. With
`denoise=False` it means N steps over N+1 times, and the state at the last of them.

Coefficients are formed in float64 for the whole grid before the loop and enter it as Python numbers; the loop does
nothing but call the network and apply one or two fused updates.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.bars import shown
from sde_gen.errors import ConfigError, NonFiniteError
from sde_gen.model import Levels, ScoreModel
from sde_gen.perturbations import Chain, Perturbation
from sde_gen.samplers.grids import ChainNodes, TimeGrid, UniformTime, as_grid
from sde_gen.samplers.noise import NoiseSource, SeededNoise
from sde_gen.samplers.sampler import Job, Sampler, Solved

#: A rule's step: (k, x, memory) -> (x at the next time, memory); memory is None at the first step.
Step = Callable[[int, Tensor, Any], tuple[Tensor, Any]]

#: (k, x, raw, out) -> what a rule keeps of a network call, up to a scale (see `estimate`).
Estimate = Callable[..., Tensor]


def estimate(of_x: Tensor, of_raw: Tensor) -> tuple[Tensor, Estimate]:
    """A scale (K,) and a function (k, x, raw, out) that gives (of_x[k] x + of_raw[k] raw)/scale[k] at time k.

    One operation, for rules that keep an estimate and scale it anyway: the larger coefficient is divided out.
    """
    by_x = of_x.abs() >= of_raw.abs()
    scale = torch.where(by_x, of_x, of_raw)
    ratio = torch.where(by_x, of_raw, of_x) / scale
    ratios, led = torch.where(scale == 0, 0.0, ratio).tolist(), by_x.tolist()

    def kept(k: int, x: Tensor, raw: Tensor, out: Tensor | None = None) -> Tensor:
        first, second = (x, raw) if led[k] else (raw, x)
        return torch.add(first, second, alpha=ratios[k], out=out)

    return scale, kept


@dataclass
class Run:
    """What a rule knows of one run."""

    perturbation: Perturbation
    times: Tensor
    """Times visited, descending, float64, on the CPU."""
    levels: Levels
    """The model at these times."""
    noise: NoiseSource
    state: Tensor
    """What the states are like."""
    reuse: bool = False
    """Whether states may be overwritten two steps later."""
    drawn: Tensor | None = field(default=None, repr=False)

    def buffers(self) -> tuple[Tensor | None, Tensor | None]:
        """Two buffers like the state: `b[x is b[0]]` is the one that x is not in.

        Fresh memory at each step costs more than the arithmetic on it. Both are None, for fresh memory, where somebody
        may keep the states, as a callback does.
        """
        return (torch.empty_like(self.state), torch.empty_like(self.state)) if self.reuse else (None, None)

    def draw(self, like: Tensor, step: int, draw: int, out: Tensor | None = None) -> Tensor:
        """Noise for one use: the next draw may overwrite it. It lies in `out` if that is given and the source can."""
        source = self.noise
        if not isinstance(source, SeededNoise):
            return source(like, step, draw)
        if out is not None and out.is_contiguous():
            return source(like, step, draw, out)
        if self.drawn is None:
            self.drawn = torch.empty_like(like, memory_format=torch.contiguous_format)
        return source(like, step, draw, self.drawn)


@dataclass(frozen=True)
class GridSampler(Sampler):
    """A sampler that visits a fixed grid of times.

    A new one states `stepper`, what it does between two times; and as class attributes what it claims and prefers:
    `order`, `is_stochastic`, `default_steps`, `default_grid` and `chain_grid`.

    Args:
        steps: number of steps >= 1; by default `default_steps`, or all nodes of a chain for a chain's own rule.
        grid: a `TimeGrid`, a name ("uniform", "lambda", "karras", "quadratic", "nodes", "lambda-nodes") or a list of
            descending times.
        denoise: whether the last step returns the denoised estimate instead of the state at the last time.

    Attributes:
        order: convergence order in the number of steps (strong for ODE rules, weak for SDE rules); None if the rule is
            not a convergent discretisation.
        is_stochastic: whether noise is drawn after the start.
        default_grid, chain_grid: the grid used when none is given, and that on a chain.
        uses_chain_nodes: whether steps=None means every node of a chain.
    """

    steps: int | None = checks.checked(None, low=1)
    grid: Any = None
    denoise: bool = checks.checked(True)

    default_steps: ClassVar[int] = 1000
    default_grid: ClassVar[TimeGrid] = UniformTime()
    chain_grid: ClassVar[TimeGrid] = ChainNodes()
    uses_chain_nodes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checks.fields(self)
        if self.grid is not None:
            object.__setattr__(self, "grid", as_grid(self.grid))
            fixed = self.grid.length
            if fixed is not None and self.steps is not None:
                raise ConfigError(
                    f"{type(self).__name__}: give steps or a list of times, not both; this grid has {fixed} times"
                )

    # -- what a rule says --------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def stepper(self, run: Run) -> Step:
        """The step function of this rule on `run.times`; called once a run."""

    def last_stepper(self, run: Run) -> Step | None:
        """What is done at the last time: the denoised estimate, or nothing."""
        last = len(run.times) - 1
        if not self.denoise or float(run.levels.sigma[last]) == 0:
            return None
        return lambda k, x, memory: (run.levels.denoised(last, x), memory)

    @property
    def acts_on_last_time(self) -> bool:
        """Whether a step is taken at the last time too, so that N steps mean N times and not N + 1."""
        return self.denoise

    # -- the grid ----------------------------------------------------------------------------------------------------

    def grid_for(self, perturbation: Perturbation) -> TimeGrid:
        """The grid given, or the one this rule prefers."""
        return self.grid or (self.chain_grid if perturbation.is_chain else self.default_grid)

    def times(self, model: ScoreModel) -> Tensor:
        low, high = model.times_within(self.grid and self.grid.end)  # a grid that a rule prefers has no end of its own
        if high < 1 and self.is_finite_without_signal and not self.grid_for(model.perturbation).is_in_lambda:
            high = _first_time(model, high)
        return _times(self, model.perturbation, low, high)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def solve(self, job: Job) -> Solved:
        model, x, callback = job.model, job.x, job.callback
        times = self.times(model)
        levels = model.levels(*model.perturbation.curves(times), x, job.condition)
        if isinstance(model.trained_under, Chain):
            model.warn_between_nodes(levels.alpha.log() - levels.sigma.log())
        run = Run(model.perturbation, times, levels, job.noise, x, reuse=callback is None)
        listed, intervals = times.tolist(), len(times) - 1
        step, last = self.stepper(run), self.last_stepper(run)
        numbers = range(intervals + (last is not None))
        # A sum is finite only if every term is (up to overflow, itself a fault), and costs a third of an update.
        wide = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else None
        sums: list[Tensor] = []
        memory: Any = None
        if callback is not None:
            callback(0, listed[0], x[: job.count])
        title = f"{type(self).__name__}, sample {job.first + 1} to {job.first + job.count}"
        for k in shown(numbers, title) if job.progress else numbers:
            rule = step if k < intervals else last
            try:
                x, memory = rule(k, x, memory)  # pyright: ignore[reportOptionalCall]
            except (OverflowError, RuntimeError) as error:
                if "overflow" not in str(error):
                    raise
                raise ConfigError(
                    f"{type(self).__name__}: a coefficient of its step from t = {listed[k]:.6g} under "
                    f"{run.perturbation} is too large for {x.dtype}; use more steps, or dtype=torch.float64"
                ) from error
            sums.append(x.sum(dtype=wide))
            if callback is not None:
                callback(k + 1, listed[k + 1] if k < intervals else 0.0, x[: job.count])
        finite = torch.stack(sums).isfinite() if sums else torch.ones(1, dtype=torch.bool)
        if not bool(finite.all()):  # the one synchronisation, at the end
            first = int((~finite).nonzero()[0])
            rows = (~x[: job.count].flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
            raise NonFiniteError(first, listed[min(first, intervals)], [job.first + row for row in rows])
        job.products.append(levels.products)
        return x, levels.calls, None


def _first_time(model: ScoreModel, high: float) -> float:
    """1, where no signal is left there and the network has an answer to that; else `high`."""
    if model.network is None or high < model.perturbation.t_max:
        return high
    if any(float(p.alpha(1.0)) > 0 for p in (model.perturbation, model.trained_under)):
        return high
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    answer = torch.stack(model.parameterization.coefficients(zero, one))
    return 1.0 if bool(answer.isfinite().all()) else high


@lru_cache(maxsize=64)
def _times(sampler: GridSampler, p: Perturbation, low: float, high: float) -> Tensor:
    """The times of a sampler under a perturbation, found once for all chunks and runs; not to be written to."""
    grid, extra = sampler.grid_for(p), 0 if sampler.acts_on_last_time else 1
    n = grid.length
    if n is None and sampler.steps is not None:
        n = sampler.steps + extra
    elif n is None and isinstance(p, Chain):
        nodes = round(high * p.length) - max(1, round(low * p.length)) + 1
        n = nodes if sampler.uses_chain_nodes else min(sampler.default_steps + extra, nodes)
    times = grid.times(p, sampler.default_steps + extra if n is None else n, low, high)
    if len(times) < 2 and extra:
        raise ConfigError(f"{type(sampler).__name__}: a list of times needs at least two with denoise=False")
    return times


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
