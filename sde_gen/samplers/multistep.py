r"""Multistep exponential integrators: one network call a step, any order up to four, one engine.

A rule replaces the estimate N (data, noise or velocity; see `exponential.py`) by the polynomial through its last values
and integrates that exactly. Since the ODE is linear in x apart from N, every such rule is a table,

.. math:: x_{k+1} = a_k x_k + \sum_{j=0}^{m-1} w_{kj} N_{k-j} ,

found in float64 before the loop. A predictor takes the integral over the step from k to k+1 through N_k, ..., N_{k-p+1}
(Adams-Bashforth); a corrector takes the last step again, now through N_k as well, and adds the difference (no further
call, since N_k is not computed again). Both are linear in the N, so the pair is one table too.

Start-up. With k + 1 < p values known, the first steps are of lower order. That is undone when the values come in: for
k = 1 ... p-2 the state at time k is put right by the integral from time 0 through N_0 ... N_k, again without a call.
N_1 was found at a state that is off by O(h^2), which order 3 can bear; at order 4 it is found once more, at the
corrected state: one call beyond N, when there are at least two steps.
The named rules are in `dpm_solver.py` (data) and `deis.py` (noise). Zhao et al. 2023, arXiv:2302.04867.
"""

import abc
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_gen import _checks as check
from sde_gen.errors import ConfigError
from sde_gen.perturbations import Perturbation
from sde_gen.samplers.base import GridSampler, Run, Step, combine, require_finite
from sde_gen.samplers.exponential import NATURAL, PREDICTIONS, VARIABLES, from_state_and_data, integrals
from sde_gen.samplers.grids import ChainNodes, TimeGrid, UniformLambda

#: Weights of one step, newest estimate first.
Weights = list[float]


#: Estimates known, newest first, and a buffer for the next one.
_NOTHING: tuple[tuple[Tensor, ...], Tensor | None] = ((), None)


@dataclass(frozen=True)
class Table:
    """Steps x_{k+1} = carry[k] x_k + sum_j weights[k][j] N_{k-j}."""

    carry: list[float]
    weights: list[Weights]
    again: tuple[float, float, float] | None = None
    """At k = 1, x' = x + again[0] N_1 + again[1] N_0; N_1' is found there, and again[2] (N_1' - N_1) is added."""


class Multistep(GridSampler):
    """A rule that is a table: one network call a step."""

    default_steps = 20

    @property
    def interpolates(self) -> str:
        """What N is, of `exponential.PREDICTIONS`."""
        return "data"

    @abc.abstractmethod
    def table(self, p: Perturbation, times: Tensor) -> Table:
        """The steps between these times."""

    def default_grid(self, perturbation: Perturbation) -> TimeGrid:
        return ChainNodes() if perturbation.is_chain else self._continuous_grid()

    def _continuous_grid(self) -> TimeGrid:
        return UniformLambda()

    def stepper(self, run: Run) -> Step:
        p, e, times = run.perturbation, run.evaluation, run.times
        table = self.table(p, times)
        of_x, of_data = from_state_and_data(self.interpolates, e.alpha, e.sigma)
        scale, estimate = e.scaled(of_x + of_data * e.skip, of_data * e.out)
        scales, carry, reuse = scale.tolist(), table.carry, run.reuse
        weights = [[w * scales[k - j] for j, w in enumerate(row)] for k, row in enumerate(table.weights)]
        for k, row in enumerate(weights):
            require_finite(self, p, times[k], torch.tensor([carry[k], *row]))
        depth = max(map(len, weights), default=0)
        again = None if table.again is None else [table.again[0] * scales[1], table.again[1] * scales[0],
                                                  table.again[2] * scales[1]]  # fmt: skip

        def step(k: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
            known, free = _NOTHING if memory is None else memory
            d = estimate(k, x, free)
            if again is not None and k == 1:
                moved = combine(x, 1.0, d, again[0]).add_(known[0], alpha=again[1])
                d, stale = estimate(k, moved, None), d
                x = moved.add_(d, alpha=again[2]).sub_(stale, alpha=again[2])
            known = (d, *known)
            row = weights[k]
            # An estimate that is not needed again gives its place to the new state, and the old state (unless it is the
            # caller's, or a callback may keep it) gives its own to the next estimate.
            if len(known) == depth > 1:
                new = known[-1].mul_(row[depth - 1] if len(row) == depth else 0.0).add_(x, alpha=carry[k])
                for w, value in zip(row[: depth - 1], known, strict=False):
                    new.add_(value, alpha=w)
                return new, (known[:-1], x if reuse and k else None)
            new = combine(x, carry[k], d, row[0])
            for w, value in zip(row[1:], known[1:], strict=False):
                new.add_(value, alpha=w)
            return new, (known if depth > 1 else (), None)

        return step


def polynomial_table(
    p: Perturbation, times: Tensor, prediction: str, variable: str, order: int, corrector: bool
) -> Table:
    """The rule of this order: predictor through `order` values, or through one less and corrected."""
    steps = len(times) - 1
    onto_data = steps if float(p.sigma(times[-1])) > 0 else steps - 1  # steps that do not land on sigma = 0
    inner = times[: onto_data + 1]

    def rows(count: int, first: int) -> tuple[list[float], list[Weights]]:
        """Of steps k >= first: the integral through N_k ... N_{k-count+1}."""
        k = torch.arange(min(first, onto_data), onto_data)
        carry, weight = integrals(
            p, prediction, variable, inner[k], inner[k + 1], torch.stack([inner[k - j] for j in range(count)], -1)
        )
        return carry.tolist(), weight.tolist()

    most = order - 1 if corrector else order
    carry: list[float] = []
    predict: list[Weights] = []
    for count in range(1, most + 1):  # step k has min(k + 1, most) values
        a, w = rows(count, count - 1)
        single = slice(None) if count == most else slice(1)
        carry, predict = carry + a[single], predict + w[single]
    weights = [list(row) for row in predict]
    again = None
    whole: list[Weights] = []  # of x_k in terms of N_k ... N_0, at the start
    for k in range(1, min(order - 1, onto_data)):
        _, taken = integrals(p, prediction, variable, inner[:1], inner[k : k + 1], inner[: k + 1].flip(0)[None])
        before = [0.0, *(predict[0] if k == 1 else _plus(predict[k - 1], whole[-1], carry[k - 1]))]
        change = _plus(taken[0].tolist(), before, -1.0)
        whole.append(taken[0].tolist())
        if k == 1 and order == 4:
            again = change[0], change[1], whole[0][0]
        else:
            weights[k] = _plus(predict[k], change, carry[k])
    if corrector and onto_data > order - 1:
        k = torch.arange(order - 1, onto_data)
        nodes = torch.stack([inner[k - j] for j in range(order)], -1)
        _, taken = integrals(p, prediction, variable, inner[k - 1], inner[k], nodes)
        for i, row in zip(k.tolist(), taken.tolist(), strict=True):
            weights[i] = _plus(predict[i], _plus(row, [0.0, *predict[i - 1]], -1.0), carry[i])
    if onto_data < steps:
        # On sigma = 0 lies the denoised estimate itself, x0hat = (N - a x)/b.
        alpha, sigma = p.alpha(times[-2]), p.sigma(times[-2])
        a, b = from_state_and_data(prediction, alpha, sigma)
        end = p.alpha(times[-1])
        carry, weights = [*carry, float(-end * a / b)], [*weights, [float(end / b)]]
    return Table(carry, weights, again)


def _plus(a: Weights, b: Weights, factor: float) -> Weights:
    """a + factor b, the shorter padded with zeros."""
    size = max(len(a), len(b))
    a, b = ([*v, *[0.0] * (size - len(v))] for v in (a, b))
    return [u + factor * v for u, v in zip(a, b, strict=True)]


@dataclass(frozen=True)
class AdamsBashforth(Multistep):
    """Exponential Adams-Bashforth rule: the polynomial through the last `order` estimates, integrated exactly.

    With `denoise=True`, `steps=N` calls the network N times; order 4 once more from N = 3 on (its start-up).

    Args:
        order: 1 to 4; order 1 of data or noise is DDIM.
        prediction: what is interpolated, "data", "noise" or "velocity".
        variable: what the polynomial is in: "lambda", "rho" (sigma/alpha), "angle" (arctan of that) or "time"; by
            default lambda, or the angle for velocity.

    Raises:
        ConfigError: for values outside these.
    """

    order: int = 3  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    prediction: str = "data"
    variable: str | None = None

    least: ClassVar[int] = 1
    corrects: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        where = type(self).__name__
        check.integer(where, "order", self.order, low=self.least)
        if self.order > 4:
            raise ConfigError(f"{where}: order must be at most 4, got {self.order}")
        check.choice(where, "prediction", self.prediction, PREDICTIONS)
        if self.variable is not None:
            check.choice(where, "variable", self.variable, VARIABLES)

    @property
    def interpolates(self) -> str:
        return self.prediction

    def table(self, p: Perturbation, times: Tensor) -> Table:
        variable = self.variable or NATURAL[self.prediction]
        return polynomial_table(p, times, self.prediction, variable, self.order, self.corrects)


@dataclass(frozen=True)
class UniPC(AdamsBashforth):
    """Predictor-corrector multistep rule: predictor of one order less, and each step taken again with its new estimate.

    The correction costs no call. UniPC of Zhao et al. 2023 (arXiv:2302.04867), whose order p is p + 1 here, with the
    exact integrals in place of its B(h). Calls and arguments are those of `AdamsBashforth`; order is 2 to 4.
    """

    least = 2
    corrects = True
