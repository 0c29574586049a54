r"""Adaptive Runge-Kutta integration with a step size for each sample.

Every sample keeps its own time, step and error estimate, so its result does not depend on the others: one stiff sample
neither slows nor changes its batch mates. Finished samples leave the batch. Dormand & Prince 1980 (order 5(4), first
same as last), with the proportional-integral step control of Gustafsson 1991 and the dense output of Shampine 1986.

Beside the state, integrals of quantities along its path can be formed in float64,
:math:`q = \int r(u(s), s)\,ds`, as the log-density along a flow is. What a sample does is decided on its device; the
host looks at every step on a CPU and at every eighth elsewhere, so that a GPU is not waited for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sde_gen.errors import NonFiniteError, SDEGenError, SolverError
from sde_gen.shapes import trailing

#: du/ds at (u, s) for the rows of the batch: (u (n, *shape), s (n,) float64, rows (n,)) -> like u; with integrals, a
#: pair of that and of their rates, (n, K) float64.
Slope = Callable[[Tensor, Tensor, Tensor], Any]

#: What a `NonFiniteError` calls the right-hand side; its t is s then.
SLOPE = "slope of the probability-flow ODE"

_C = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_A = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
#: Fifth-order weights minus fourth-order ones.
_E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)

#: Dense output at s + theta h: u + h sum_i k_i sum_j P_ij theta^(j+1), fourth order.
_P = (
    (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
    (0.0, 0.0, 0.0, 0.0),
    (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
    (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
    (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
    (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
    (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
)

_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0
_I_GAIN, _P_GAIN = 0.7 / 5, 0.4 / 5


@dataclass(frozen=True)
class Solution:
    """What came out, a row for each sample.

    Attributes:
        u: state at the end, (B, *shape).
        calls: calls of the slope, (B,).
        q: integrals, (B, K), float64.
        at: states at the times asked for, (B, len(at), *shape); None if none were.
        failed: the samples that did not get there, index to error; their rows are NaN.
    """

    u: Tensor
    calls: Tensor
    q: Tensor
    at: Tensor | None = None
    failed: dict[int, SDEGenError] = field(default_factory=dict)


def dormand_prince(
    slope: Slope,
    u: Tensor,
    begin: float,
    end: float,
    *,
    rtol: float,
    atol: float,
    max_calls: int,
    first: int = 0,
    integrals: int = 0,
    at: Sequence[float] = (),
    keep_going: bool = False,
    look_every: int | None = None,
) -> Solution:
    """Integrate du/ds = slope from `begin` to `end` (either direction), each sample with its own steps.

    The local error of an accepted step, in root mean square over a sample's numbers (the mean of its integrals counts
    as one) and relative to atol + rtol max(|u|, |u_new|), is at most 1.

    Args:
        slope: right-hand side.
        u: state at `begin`, (B, *shape).
        begin, end: the interval.
        rtol, atol: tolerances, > 0.
        max_calls: most calls of the slope for any one sample.
        first: index of the first sample, for error messages.
        integrals: number K of integrals that `slope` gives the rates of.
        at: times between begin and end at which the state is wanted too.
        keep_going: whether samples that fail are noted in the solution; else the first failure is raised.
        look_every: steps between two looks of the host; changes no result.

    Raises:
        SolverError: if a sample runs out of calls, or its step becomes too small to change s.
        NonFiniteError: if the slope is NaN or infinite; its t is s.
    """
    march = _March(slope, u, begin, end, rtol, atol, max_calls, first, integrals, at)
    every = look_every or (1 if u.device.type == "cpu" else 8)
    while march.going:
        for _ in range(every):
            march.step()
        march.look(keep_going)
    return march.solution()


class _March:
    """The samples that are under way."""

    def __init__(
        self, slope: Slope, u: Tensor, begin: float, end: float, rtol: float, atol: float, max_calls: int, first: int,
        integrals: int, at: Sequence[float],
    ) -> None:  # fmt: skip
        count, device = len(u), u.device
        self.slope, self.begin, self.end, self.rtol, self.atol = slope, begin, end, rtol, atol
        self.max_calls, self.first, self.integrals, self.at = max_calls, first, integrals, tuple(at)
        self.direction = 1.0 if end >= begin else -1.0
        self.going = count > 0
        self.done_u, self.done_q = u.clone(), torch.zeros(count, integrals, dtype=torch.float64, device=device)
        self.done_at = u.new_full((count, len(self.at), *u.shape[1:]), torch.nan) if self.at else None
        self.calls = torch.zeros(count, dtype=torch.long, device=device)
        self.failed: dict[int, SDEGenError] = {}
        # Of the rows under way.
        self.rows = torch.arange(count, device=device)
        self.u, self.q = u, self.done_q.clone()
        self.s = torch.full((count,), begin, dtype=torch.float64, device=device)
        self.before = torch.ones_like(self.s)  # error of the step before
        self.active = torch.ones(count, dtype=torch.bool, device=device)
        self.arrived, self.bad = torch.zeros_like(self.active), torch.zeros_like(self.active)
        self.bad_call, self.bad_s = torch.zeros_like(self.rows), torch.zeros_like(self.s)
        if not self.going:
            return
        self.k, self.r = self._call(u, self.s)
        self.h = _first_step(u, self.k, rtol, atol, abs(end - begin))
        self.active = ~self.bad

    def _call(self, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        answer = self.slope(u, s, self.rows)
        k, r = answer if self.integrals else (answer, self.q)
        self.calls[self.rows] += self.active
        finite = k.flatten(1).isfinite().all(1) & r.isfinite().all(1)
        new = self.active & ~finite & ~self.bad
        self.bad_call = torch.where(new, self.calls[self.rows] - 1, self.bad_call)
        self.bad_s = torch.where(new, s, self.bad_s)
        self.bad = self.bad | new
        return k, r

    def step(self) -> None:
        """One attempt of each sample."""
        u, ndim, way = self.u, self.u.ndim, self.direction
        left = (self.end - self.s) * way
        last = self.h >= left * (1 - 1e-12)
        taken = torch.where(self.active, torch.where(last, left, self.h), 0.0)
        step, wide = trailing((taken * way).to(u.dtype), ndim), (taken * way)[:, None]
        stages, rates = [self.k], [self.r]
        new = u
        for c, weights in zip(_C, _A, strict=True):
            new = u + step * _sum(weights, stages)
            k, r = self._call(new, self.s + c * taken * way)
            stages.append(k)
            rates.append(r)
        error = (step * _sum(_E, stages)) / (self.atol + self.rtol * torch.maximum(u.abs(), new.abs()))
        square = error.flatten(1).square().mean(1).to(torch.float64)
        if self.integrals:
            new_q = self.q + wide * _sum(_A[-1], rates[:-1])
            mean = (wide * _sum(_E, rates)).mean(1)
            of_q = mean / (self.atol + self.rtol * torch.maximum(self.q.mean(1).abs(), new_q.mean(1).abs()))
            size = u[0].numel()
            square = (square * size + of_q.square()) / (size + 1)
        else:
            new_q = self.q
        norm = square.sqrt().clamp_min(1e-10)
        accepted = self.active & ~self.bad & (norm <= 1)
        # A rejected step forgets the step before it: plain control then.
        factor = _SAFETY * torch.where(norm <= 1, norm**-_I_GAIN * self.before**_P_GAIN, norm ** (-1 / 5))
        if self.done_at is not None:
            self._fill(accepted, step, stages, taken)
        self.h = torch.where(self.active, taken * factor.clamp(_SHRINK, _GROW), self.h)
        self.before = torch.where(accepted, norm, self.before)
        keep = trailing(accepted, ndim)
        self.u, self.k = torch.where(keep, new, u), torch.where(keep, stages[-1], self.k)
        self.q = torch.where(accepted[:, None], new_q, self.q)
        self.r = torch.where(accepted[:, None], rates[-1], self.r)
        self.s = torch.where(accepted, torch.where(last, self.end, self.s + taken * way), self.s)
        self.arrived = self.arrived | (accepted & last)
        self.active = self.active & ~self.bad & ~self.arrived & ~self._spent() & ~self._tiny()

    def _fill(self, accepted: Tensor, step: Tensor, stages: list[Tensor], taken: Tensor) -> None:
        """Dense output at the times that this step went over."""
        for j, time in enumerate(self.at):
            theta = (time - self.s) * self.direction / taken
            inside = accepted & (theta >= 0) & (theta <= 1)
            theta = torch.where(inside, theta, 0.0)
            change = torch.zeros_like(self.u)
            for row, k in zip(_P, stages, strict=True):
                weight = theta * (row[0] + theta * (row[1] + theta * (row[2] + theta * row[3])))
                change.add_(trailing(weight.to(self.u.dtype), self.u.ndim) * k)
            at = self.done_at[self.rows, j]  # pyright: ignore[reportOptionalSubscript]
            there = torch.where(trailing(inside, self.u.ndim), self.u + step * change, at)
            self.done_at[self.rows, j] = there  # pyright: ignore[reportOptionalSubscript]

    def _spent(self) -> Tensor:
        return self.calls[self.rows] + len(_C) > self.max_calls

    def _tiny(self) -> Tensor:
        return self.h < 1e-14 * self.s.abs().clamp_min(1e-3)

    def look(self, keep_going: bool) -> None:
        """Note who has arrived or failed, and go on with the others."""
        if not bool((~self.active).any()):
            return
        budget = f"more than max_nfe={self.max_calls} network calls are needed"
        failures = (
            (self.bad, ""),
            (self._spent() & ~self.bad & ~self.arrived, budget),
            (self._tiny() & ~self._spent() & ~self.bad & ~self.arrived, "the step became too small to go on"),
        )
        for which, why in failures:
            if bool(which.any()):
                self._fail(which, why, keep_going)
        self.done_u[self.rows], self.done_q[self.rows] = self.u, self.q
        on = self.active
        self.rows, self.u, self.q, self.k, self.r = (v[on] for v in (self.rows, self.u, self.q, self.k, self.r))
        self.s, self.h, self.before = self.s[on], self.h[on], self.before[on]
        self.arrived, self.bad, self.bad_call, self.bad_s = (
            v[on] for v in (self.arrived, self.bad, self.bad_call, self.bad_s)
        )
        self.active = self.active[on]
        self.going = len(self.rows) > 0

    def _fail(self, which: Tensor, why: str, keep_going: bool) -> None:
        everyone = (self.first + self.rows[which]).tolist()
        for indices in [[i] for i in everyone] if keep_going else [everyone]:
            row = int((self.first + self.rows == indices[0]).nonzero()[0])
            if not why:
                error: SDEGenError = NonFiniteError(int(self.bad_call[row]), float(self.bad_s[row]), indices, SLOPE)
            else:
                shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
                error = SolverError(
                    f"adaptive solver: {why} for samples [{shown}], stopped at lambda = {float(self.s[row]):.4g}; "
                    "loosen rtol and atol, or raise max_nfe"
                )
            if not keep_going:
                raise error
            self.failed[indices[0]] = error

    def solution(self) -> Solution:
        """All samples in their order."""
        for index in self.failed:
            for part in (self.done_u, self.done_q, self.done_at):
                if part is not None:
                    part[index - self.first] = torch.nan
        return Solution(self.done_u, self.calls, self.done_q, self.done_at, self.failed)


def _sum(weights: Sequence[float], parts: list[Tensor]) -> Tensor:
    """sum_i weights_i parts_i, over as many as there are."""
    total = torch.zeros_like(parts[0])
    for w, part in zip(weights, parts, strict=True):
        if w:
            total.add_(part, alpha=w)
    return total


def _first_step(u: Tensor, k: Tensor, rtol: float, atol: float, span: float) -> Tensor:
    """A hundredth of the state's own scale of change (Hairer, Norsett & Wanner 1993, II.4), within the span."""
    scale = atol + rtol * u.abs()
    size = (u / scale).flatten(1).square().mean(1).sqrt()
    slope = (k / scale).flatten(1).square().mean(1).sqrt()
    h = 0.01 * size / slope.clamp_min(1e-30)
    return h.to(torch.float64).clamp(1e-6 * span, 0.1 * span)
