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
The rules that have names are in `named_multistep.py`. Zhao et al. 2023, arXiv:2302.04867.
"""

import abc
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.checks import checked
from sde_gen.model import Levels, combine
from sde_gen.perturbations import Perturbation
from sde_gen.samplers.exponential import NATURAL, PREDICTIONS, VARIABLES, Points, from_state_and_data, integrals
from sde_gen.samplers.grid_sampler import Estimate, GridSampler, Run, Step, estimate, require_finite
from sde_gen.samplers.grids import ChainNodes, UniformLambda

#: Weights of one step, newest estimate first.
Weights = list[float]


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
    default_grid = UniformLambda()
    chain_grid = ChainNodes("lambda")
    #: What N is, of `exponential.PREDICTIONS`.
    interpolates: str = "data"

    @abc.abstractmethod
    def table(self, p: Perturbation, times: Tensor) -> Table:
        """The steps between these times."""

    def stepper(self, run: Run) -> Step:
        p, e, times, reuse = run.perturbation, run.levels, run.times, run.reuse
        table, raw = _table(self, p, tuple(times.tolist())), e.raw
        a, b = from_state_and_data(self.interpolates, e.alpha, e.sigma)
        in_x, in_raw = a + b * e.skip, b * e.out  # N = in_x x + in_raw raw
        scale, keep = estimate(in_x, in_raw)
        scales, again = scale.tolist(), table.again
        depth = max(map(len, table.weights), default=0)
        # Of the state, the raw output and the estimates kept so far: N_k itself is not needed for the step.
        steps = [(c + w[0] * u, w[0] * v, [w[j] * scales[k - j] for j in range(1, len(w))])
                 for k, (c, w, u, v) in enumerate(zip(table.carry, table.weights, in_x.tolist(), in_raw.tolist(),
                                                      strict=False))]  # fmt: skip
        sums = torch.tensor([u + v + sum(rest) for u, v, rest in steps], dtype=torch.float64)
        require_finite(self, p, times[: len(steps)], sums)

        def step(k: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
            known: list[Tensor] = [] if memory is None else memory  # newest first, each divided by its scale
            f = raw(k, x)
            if again is not None and k == 1:
                x, d = _twice(again, scales, e, keep, x, f, known[0])
                new = combine(x, table.carry[1], d, table.weights[1][0] * scales[1])
                return new.add_(known[0], alpha=steps[1][2][0]), [d, *known]
            of_x, of_raw, of_known = steps[k]
            if known and len(of_known) == len(known) == depth - 1:
                # The oldest estimate is not needed again, and gives its place to the new state ...
                new = known.pop().mul_(of_known[-1])
                for w, value in zip(of_known, known, strict=False):
                    new.add_(value, alpha=w)
                new.add_(x, alpha=of_x).add_(f, alpha=of_raw)
            else:
                new = combine(x, of_x, f, of_raw)
                for w, value in zip(of_known, known, strict=False):
                    new.add_(value, alpha=w)
            if depth > 1:
                # ... the old state (unless it is the caller's, or a callback may keep it) its own to the new estimate.
                # An output that is a view of the state in another layout would be overwritten while it is read.
                mine = reuse and k and f.stride() == x.stride()
                known.insert(0, keep(k, x, f, x if mine else None))
            return new, known

        return step


@lru_cache(maxsize=64)
def _table(rule: Multistep, p: Perturbation, times: tuple[float, ...]) -> Table:
    """`Multistep.table`, found once for all chunks and runs; not to be written to."""
    return rule.table(p, torch.tensor(times, dtype=torch.float64))


def _twice(
    again: tuple[float, float, float], scales: list[float], e: Levels, keep: Estimate,
    x: Tensor, f: Tensor, before: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Step 1 of an order-4 rule: (x_1, N_1) after N_1 was found again at the corrected state (see `Table.again`)."""
    first, second, third = again[0] * scales[1], again[1] * scales[0], again[2] * scales[1]
    d = keep(1, x, f)
    moved = combine(x, 1.0, d, first).add_(before, alpha=second)
    new = keep(1, moved, e.raw(1, moved))
    return moved.add_(new, alpha=third).sub_(d, alpha=third), new


def polynomial_table(
    p: Perturbation, times: Tensor, prediction: str, variable: str, order: int, corrector: bool, twice: bool = True
) -> Table:
    """The rule of this order: predictor through `order` values, or through one less and corrected.

    Without `twice` order 4 makes no second call at its start.
    """
    steps = len(times) - 1
    onto_data = steps if float(p.sigma(times[-1])) > 0 else steps - 1  # steps that do not land on sigma = 0
    inner = Points.of(p, times[: onto_data + 1])

    def rows(count: int, last: int) -> tuple[list[float], list[Weights]]:
        """Of steps count - 1 <= k < last: the integral through N_k ... N_{k-count+1}."""
        k = torch.arange(min(count - 1, last), last)
        nodes = inner.lam[k[:, None] - torch.arange(count)]
        carry, weight = integrals(p, prediction, variable, inner[k], inner[k + 1], nodes)
        return carry.tolist(), weight.tolist()

    most = order - 1 if corrector else order
    carry: list[float] = []
    predict: list[Weights] = []
    for count in range(1, most + 1):  # step k has min(k + 1, most) values
        a, w = rows(count, onto_data if count == most else min(count, onto_data))
        carry, predict = carry + a, predict + w
    weights = [list(row) for row in predict]
    again = None
    whole: list[Weights] = []  # of x_k in terms of N_k ... N_0, at the start
    for k in range(1, min(order - 1, onto_data)):
        _, taken = integrals(p, prediction, variable, inner[:1], inner[k : k + 1], inner.lam[: k + 1].flip(0)[None])
        before = [0.0, *(predict[0] if k == 1 else _plus(predict[k - 1], whole[-1], carry[k - 1]))]
        change = _plus(taken[0].tolist(), before, -1.0)
        whole.append(taken[0].tolist())
        if twice and k == 1 and order == 4:
            again = change[0], change[1], whole[0][0]
        else:
            weights[k] = _plus(predict[k], change, carry[k])
    if corrector and onto_data > order - 1:
        k = torch.arange(order - 1, onto_data)
        nodes = inner.lam[k[:, None] - torch.arange(order)]
        _, taken = integrals(p, prediction, variable, inner[k - 1], inner[k], nodes)
        known = torch.tensor(predict[order - 2 :], dtype=torch.float64)
        taken[:, 1:] -= known[:-1]
        taken *= torch.tensor(carry[order - 1 :], dtype=torch.float64)[:, None]
        taken[:, :-1] += known[1:]
        weights[order - 1 :] = taken.tolist()
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

    order: int = checked(3, low=1, high=4)  # pyright: ignore[reportIncompatibleVariableOverride]
    prediction: str = checked("data", choices=PREDICTIONS)
    variable: str | None = checked(None, choices=VARIABLES)

    least: ClassVar[int] = 1
    corrects: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.integer(type(self).__name__, "order", self.order, low=self.least, high=4)

    @property
    def interpolates(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
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
