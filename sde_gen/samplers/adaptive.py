r"""Adaptive Runge-Kutta integration with a step size for each sample.

Every sample keeps its own time, step and error estimate, so its result does not depend on the others: one stiff sample
neither slows nor changes its batch mates. Finished samples leave the batch. Dormand & Prince 1980 (order 5(4), first
same as last), with the proportional-integral step control of Gustafsson 1991.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_gen.errors import NonFiniteError, SolverError
from sde_gen.perturbations.base import _left

#: du/ds at (u, s) for the rows of the batch: (u (n, *shape), s (n,) float64, rows (n,)) -> like u.
Slope = Callable[[Tensor, Tensor, Tensor], Tensor]

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

_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0
_I_GAIN, _P_GAIN = 0.7 / 5, 0.4 / 5


@dataclass(frozen=True)
class Solution:
    """State at the end, and calls of the slope for each sample (B,)."""

    u: Tensor
    calls: Tensor


def dormand_prince(
    slope: Slope, u: Tensor, begin: float, end: float, *, rtol: float, atol: float, max_calls: int, first: int = 0
) -> Solution:
    """Integrate du/ds = slope from `begin` to `end` (either direction), each sample with its own steps.

    The local error of an accepted step, in root mean square over a sample's numbers and relative to
    atol + rtol max(|u|, |u_new|), is at most 1.

    Args:
        slope: right-hand side.
        u: state at `begin`, (B, *shape).
        begin, end: the interval.
        rtol, atol: tolerances, > 0.
        max_calls: most calls of the slope for any one sample.
        first: index of the first sample, for error messages.

    Raises:
        SolverError: if a sample runs out of calls, or its step becomes too small to change s.
        NonFiniteError: if the slope is NaN or infinite; its t is s.
    """
    count = len(u)
    device = u.device
    calls = torch.zeros(count, dtype=torch.long, device=device)
    done_u = u.clone()
    rows = torch.arange(count, device=device)
    span = end - begin
    s = torch.full((count,), begin, dtype=torch.float64, device=device)

    def call(v: Tensor, at: Tensor) -> Tensor:
        k = slope(v, at, rows)
        calls[rows] += 1
        bad = ~k.flatten(1).isfinite().all(1)
        if bool(bad.any()):
            position = int(bad.nonzero()[0])
            raise NonFiniteError(
                int(calls[rows[position]]) - 1, float(at[position]), (first + rows[bad]).tolist(), SLOPE
            )
        return k

    k1 = call(u, s)
    h = _first_step(u, k1, rtol, atol, abs(span))
    before = torch.ones_like(h)  # error of the step before
    direction = 1.0 if span >= 0 else -1.0
    while len(rows):
        left = (end - s) * direction
        last = h >= left * (1 - 1e-12)
        taken = torch.where(last, left, h)
        step = _left((taken * direction).to(u.dtype), u.ndim)
        stages, new = [k1], u
        for c, weights in zip(_C, _A, strict=True):
            increment = torch.zeros_like(u)
            for w, k in zip(weights, stages, strict=True):
                if w:
                    increment.add_(k, alpha=w)
            new = u + step * increment
            stages.append(call(new, s + c * taken * direction))
        error = torch.zeros_like(u)
        for w, k in zip(_E, stages, strict=True):
            if w:
                error.add_(k, alpha=w)
        scale = atol + rtol * torch.maximum(u.abs(), new.abs())
        norm = (step * error / scale).flatten(1).square().mean(1).sqrt().to(torch.float64).clamp_min(1e-10)
        accepted = norm <= 1
        # A rejected step forgets the step before it: plain control then.
        factor = _SAFETY * torch.where(accepted, norm**-_I_GAIN * before**_P_GAIN, norm ** (-1 / 5))
        h = taken * factor.clamp(_SHRINK, _GROW)
        before = torch.where(accepted, norm, before)
        keep = _left(accepted, u.ndim)
        u, k1 = torch.where(keep, new, u), torch.where(keep, stages[-1], k1)
        s = torch.where(accepted, torch.where(last, end, s + taken * direction), s)

        finished = accepted & last
        if bool(finished.any()):
            done_u[rows[finished]] = u[finished]
            going = ~finished
            rows, u, k1, s, h, before = rows[going], u[going], k1[going], s[going], h[going], before[going]
        _refuse_stuck(rows, calls, s, h, max_calls, first)
    return Solution(done_u, calls)


def _refuse_stuck(rows: Tensor, calls: Tensor, s: Tensor, h: Tensor, max_calls: int, first: int) -> None:
    spent = calls[rows] + len(_C) > max_calls
    tiny = h < 1e-14 * s.abs().clamp_min(1e-3)
    for stuck, why in (
        (spent, f"more than max_nfe={max_calls} network calls are needed"),
        (tiny, "the step became too small to go on"),
    ):
        if bool(stuck.any()):
            which = (first + rows[stuck]).tolist()
            shown = ", ".join(map(str, which[:8])) + (", ..." if len(which) > 8 else "")
            raise SolverError(
                f"adaptive solver: {why} for samples [{shown}], stopped at lambda = {float(s[stuck][0]):.4g}; "
                "loosen rtol and atol, or raise max_nfe"
            )


def _first_step(u: Tensor, k: Tensor, rtol: float, atol: float, span: float) -> Tensor:
    """A hundredth of the state's own scale of change (Hairer, Norsett & Wanner 1993, II.4), within the span."""
    scale = atol + rtol * u.abs()
    size = (u / scale).flatten(1).square().mean(1).sqrt()
    slope = (k / scale).flatten(1).square().mean(1).sqrt()
    h = 0.01 * size / slope.clamp_min(1e-30)
    return h.to(torch.float64).clamp(1e-6 * span, 0.1 * span)
