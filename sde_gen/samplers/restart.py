r"""Restart sampling: a deterministic sampler that goes back up to more noise and comes down again.

In each interval [low, high] of noise levels sigma/alpha the state, once it has come down to low, is taken back by the
forward process itself, :math:`x_{high} = a\,x_{low} + b\,z` with its exact kernel, and down again by the deterministic
rule, K times. Adding noise keeps the marginals and contracts what errors the way down has left; between the intervals
the small discretisation error of an ODE rule is kept. Xu et al. 2023, arXiv:2306.14878, Algorithm 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.errors import ConfigError
from sde_gen.model import ScoreModel, combine
from sde_gen.perturbations import Perturbation
from sde_gen.samplers.grid_sampler import GridSampler, Run, Step
from sde_gen.samplers.grids import KarrasRho, TimeGrid
from sde_gen.samplers.heun import Heun

#: Levels of the grid closer than this to the end of an interval are taken for it.
_SAME = 1e-9


@dataclass(frozen=True)
class Restart(GridSampler):
    """Restart sampler on top of a deterministic rule.

    `steps` counts the times of the way down; each end of an interval that is not among them is added, and each restart
    adds its own steps, so the network calls of a run are those of `result.nfe`. Only the part of an interval within
    the grid's levels is used.

    Args:
        rule: a deterministic fixed-step sampler whose rule takes the steps; its memory starts anew after each restart.
        intervals: (low, high, repeats, steps) each: levels sigma/alpha with 0 < low < high, how often to go back up,
            and the number of steps down, uniform in (sigma/alpha)^(1/7) as in the paper, or None to visit the grid's
            own times again.

    Attributes:
        order: the rule's, as a weak order, if all `steps` are None; else None, since the error of a fixed number of
            steps in an interval does not fall with `steps`.

    Raises:
        ConfigError: for another rule, or values outside these.
    """

    rule: GridSampler = field(default_factory=Heun)
    intervals: Any = ((0.06, 0.2, 2, 3),)

    default_steps = 18

    def __post_init__(self) -> None:
        super().__post_init__()
        r = self.rule
        if not isinstance(r, GridSampler) or r.is_stochastic or isinstance(r, Restart):
            raise ConfigError(f"Restart: rule must be a deterministic fixed-step sampler such as Heun(), got {r!r}")
        if r.steps is not None or r.grid is not None:
            raise ConfigError(f"Restart: set steps and grid on the Restart, not on its rule {type(r).__name__}")
        if isinstance(self.intervals, str) or not isinstance(self.intervals, Sequence):
            raise ConfigError(
                f"Restart: intervals must be a list of (low, high, repeats, steps), got {self.intervals!r}"
            )
        object.__setattr__(self, "intervals", tuple(_interval(i) for i in self.intervals))

    @property
    def order(self) -> float | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.rule.order if all(steps is None for *_, steps in self.intervals) else None

    @property
    def is_stochastic(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return bool(self.intervals)

    def grid_for(self, perturbation: Perturbation) -> TimeGrid:
        return self.grid or self.rule.grid_for(perturbation)

    def times(self, model: ScoreModel) -> Tensor:
        """The times visited in turn: descending but for the jumps back up."""
        p, down = model.perturbation, super().times(model)
        first, last = (float(torch.exp(-p.half_log_snr(t))) for t in (down[0], down[-1]))
        used = [(max(low, last), min(high, first), repeats, steps) for low, high, repeats, steps in self.intervals]
        for low, high, _, _ in used:  # both ends become times of the grid
            if low < high:
                down = _with_level(p, _with_level(p, down, high), low)
        visited, levels = down.tolist(), torch.exp(-p.half_log_snr(down))
        for low, high, repeats, steps in sorted(used):  # from the end of the run, so that earlier places stay
            if low < high:
                top, bottom = (int((levels - level).abs().argmin()) for level in (high, low))
                lap = down[top : bottom + 1]
                if steps is not None:
                    lap = KarrasRho().times(p, steps + 1, float(down[bottom]), float(down[top]))
                place = visited.index(float(down[bottom])) + 1
                visited[place:place] = lap.tolist() * repeats
        return torch.tensor(visited, dtype=torch.float64)

    def stepper(self, run: Run) -> Step:
        p, times, e = run.perturbation, run.times, run.levels
        rises = [0, *(k + 1 for k, (t, s) in enumerate(pairwise(times.tolist())) if s > t), len(times)]
        laps: dict[tuple[float, ...], Step] = {}  # equal laps share their coefficients and buffers
        plan: list[tuple[Step | None, int]] = []
        for begin, end in pairwise(rises):
            part = times[begin:end]
            key = tuple(part.tolist())
            if key not in laps:
                laps[key] = self.rule.stepper(Run(p, part, e.at(*p.curves(part)), run.noise, run.state, run.reuse))
            plan += [(laps[key], j) for j in range(len(part) - 1)] + [(None, 0)]
        a, b = (c.tolist() for c in p.transition(torch.minimum(times[:-1], times[1:]), times[1:]))
        noise, scratch = run.draw, run.buffers()

        def step(k: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
            rule, j = plan[k]
            if rule is None:
                return combine(x, a[k], noise(x, k, 0), b[k], scratch[x is scratch[0]]), None
            return rule(j, x, memory)

        return step


def _interval(given: Any) -> tuple[float, float, int, int | None]:
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != 4:
        raise ConfigError(f"Restart: each interval must be (low, high, repeats, steps), got {given!r}")
    low, high, repeats, steps = given
    low = checks.number("Restart", "low end of an interval", low, low=0.0, open_low=True)
    high = checks.number("Restart", "high end of an interval", high, low=low, open_low=True)
    checks.integer("Restart", "repeats of an interval", repeats)
    if steps is not None:
        checks.integer("Restart", "steps of an interval", steps)
    return low, high, repeats, steps


def _with_level(p: Perturbation, down: Tensor, level: float) -> Tensor:
    """`down` with the time of this level sigma/alpha among them."""
    lam = -torch.tensor(level, dtype=torch.float64).log()
    known = p.half_log_snr(down)
    if bool(((known - lam).abs() < _SAME).any()):
        return down
    place = int((known < lam).sum())
    return torch.cat([down[:place], p.time(lam)[None], down[place:]])
