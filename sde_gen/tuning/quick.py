r"""Calibration within some hundred batch calls: weights of a multistep rule, fitted step by step along a fine solution.

In :math:`u = x/\sqrt{\alpha^2+\sigma^2}` a rule that interpolates the velocity N steps by
:math:`u_{k+1} = u_k + \sum_j w_{kj} N_{k-j}`. One run over a batch of starts fits all of its weights: at each step they
are what takes the states the run itself has come to nearest to those of a fine solution, in least squares with a pull
towards the rule they begin from, in which a start that is on its way to another mode counts little. So noise levels are
tried with weights of their own at the price of one run, which is N calls, and one fine solution serves all of them.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from torch import Tensor

from sde_gen.conditions import Condition
from sde_gen.errors import ConfigError, NonFiniteError
from sde_gen.model import ScoreModel
from sde_gen.perturbations import Perturbation
from sde_gen.rng import SeededNoise
from sde_gen.samplers.flow import unit_curves
from sde_gen.samplers.grid_sampler import GridSampler
from sde_gen.samplers.grids import GivenLambdas
from sde_gen.samplers.multistep import Multistep, Table, UniPC
from sde_gen.tuning.uncalibrated import CENTRE, WIDTH, levels, order_for, uncalibrated

#: Starts, those of them that fit, and estimates that a step combines.
STARTS, _FITS, _DEPTH = 64, 44, 4
#: Pull towards the rule; what a start counts falls off beyond so many medians of the distance.
_RIDGE, _FAR = 1e-4, 4.0
#: What a fitted solver must err less by, in root mean square, on the starts it was not fitted on.
_BETTER = 0.95


@dataclass(frozen=True)
class FittedSteps(Multistep):
    """A multistep rule of the velocity with given noise levels and weights, for the model they were fitted to.

    Args:
        lambdas: N half log-SNRs, ascending; the first is that of the start.
        of_velocities: of each of the N - 1 steps the weights of its last 1 to 4 velocities, newest first.

    Raises:
        ConfigError: if the lengths do not fit, or steps, grid or denoise are given too.
    """

    lambdas: Sequence[float] = ()
    of_velocities: Sequence[Sequence[float]] = ()

    interpolates = "velocity"

    def __post_init__(self) -> None:
        lengths = [len(row) for row in self.of_velocities]
        if len(lengths) != len(self.lambdas) - 1 or any(not 1 <= v <= k + 1 for k, v in enumerate(lengths)):
            raise ConfigError(
                "FittedSteps: expected N lambdas and N - 1 rows of weights, of which row k has 1 to k + 1, got "
                f"{len(self.lambdas)} and rows of {lengths}"
            )
        grid = GivenLambdas(tuple(self.lambdas))
        if self.steps is not None or self.grid not in (None, grid) or self.denoise is not True:
            raise ConfigError("FittedSteps: its steps are its lambdas; give neither steps, nor grid, nor denoise")
        rows = tuple(tuple(map(float, row)) for row in self.of_velocities)
        for name, value in (("lambdas", grid.values), ("grid", grid), ("of_velocities", rows)):
            object.__setattr__(self, name, value)
        super().__post_init__()

    def table(self, p: Perturbation, times: Tensor) -> Table:
        size = p.size(times)
        weights = [[w * after for w in row] for row, after in zip(self.of_velocities, size[1:].tolist(), strict=True)]
        return Table((size[1:] / size[:-1]).tolist(), weights)


class _Batch:
    """Starts, their fine solution as a function of lambda, and the calls made."""

    def __init__(
        self, model: ScoreModel, shape: tuple[int, ...], condition: Condition, seed: int, fine: int, order: int
    ) -> None:
        self.order = order
        p = model.perturbation
        high = model.times_within()[1]
        self.model, self.condition = model, condition.tiled(STARTS)
        like = torch.empty((), dtype=torch.float64, device=model.device).expand(STARTS, *shape)
        self.start = SeededNoise(seed)(like, -1, 0) * float(p.sigma(high))
        grid, states = levels(model, max(2 * fine, 100), fine), []

        def record(step: int, t: float, x: Tensor) -> None:
            if step < fine:
                states.append((x / float(p.size(t))).flatten(1).cpu())

        rule = UniPC(order=4, prediction="velocity", grid=grid)
        result = rule(model, start=self.start, condition=self.condition, callback=record, chunk=STARTS)
        self.calls, self.sample = result.nfe, result.x
        self._path = make_interp_spline(np.array(grid.values), torch.stack(states).numpy(), k=5)

    def at(self, half_log_snr: float) -> Tensor:
        """u of the fine solution, (STARTS, *shape)."""
        return torch.from_numpy(self._path(half_log_snr)).to(self.start).reshape(self.start.shape)

    def distances(self, x: Tensor) -> Tensor:
        """Mean square of each start, per number."""
        return (x - self.sample).flatten(1).square().mean(1).nan_to_num(math.inf)

    def of(self, sampler: GridSampler) -> Tensor:
        """Distances of a sampler."""
        try:
            result = sampler(self.model, start=self.start, condition=self.condition, chunk=STARTS)
        except NonFiniteError:
            return torch.full((STARTS,), math.inf, dtype=torch.float64)
        self.calls += result.nfe
        return self.distances(result.x)

    def fitted(self, grid: GivenLambdas) -> tuple[FittedSteps, Tensor]:
        """The solver on these levels, and its distances, by one run."""
        p, lam = self.model.perturbation, torch.tensor(grid.values, dtype=torch.float64)
        times = p.time(lam)
        size, (alpha, sigma) = p.size(times), unit_curves(lam)
        begin = [UniPC(order=order, prediction="velocity").table(p, times).weights for order in (3, self.order)]
        begin = (
            begin[1][:1] + begin[0][1:2] + begin[1][2:]
        )  # order 4 looks twice at its second time, which a run cannot
        u = self.start / float(size[0])
        at = self.model.levels(alpha, sigma, u, self.condition)
        known: list[Tensor] = []
        rows: list[list[float]] = []
        for k in range(len(lam) - 1):
            known.insert(0, (float(alpha[k]) * u - at.denoised(k, u)) / float(sigma[k]))
            del known[_DEPTH:]
            weights = [w / float(size[k + 1]) for w in begin[k]]
            weights += [0.0] * (len(known) - len(weights))
            for w, velocity in zip(weights, known, strict=True):
                u = u.add(velocity, alpha=w)
            change = _least_squares(known, self.at(float(lam[k + 1])) - u)
            for w, velocity in zip(change, known, strict=True):
                u = u.add(velocity, alpha=w)
            rows.append([w + v for w, v in zip(weights, change, strict=True)])
        x = at.denoised(len(lam) - 1, u)
        self.calls += at.calls
        return FittedSteps(lambdas=grid.values, of_velocities=rows), self.distances(x)


def _least_squares(known: list[Tensor], missing: Tensor) -> list[float]:
    """Weights of the velocities that make up what is missing on the starts to fit on."""
    a = torch.stack([v[:_FITS].flatten(1) for v in known], -1)  # (starts, numbers, velocities)
    b = missing[:_FITS].flatten(1)
    share = b.square().mean(1)
    counts = 1 / (1 + share / (_FAR**2 * share.median().clamp_min(1e-300)))
    normal = torch.einsum("nik,nil,n->kl", a, a, counts)
    right = torch.einsum("nik,ni,n->k", a, b, counts)
    pull = _RIDGE * normal.diagonal().mean().clamp_min(1e-300)
    identity = torch.eye(len(known), dtype=normal.dtype, device=normal.device)
    return torch.linalg.solve(normal + pull * identity, right).tolist()


def quick(
    model: ScoreModel, shape: tuple[int, ...], condition: Condition, seed: int, nfe: int, calls: int,
    seconds: float | None,
) -> tuple[GridSampler, float, list[tuple[str, float]], int]:  # fmt: skip
    """The best sampler found within a budget, its error, the finalists' errors, and the batch calls made.

    It is the uncalibrated one unless another errs less by `_BETTER`, on the starts that were not fitted on and on all,
    in a mean that no single start decides; and no more than it in the plain mean over all.
    """
    began, usual = time.perf_counter(), uncalibrated(model, nfe)
    fine = min(max(40, 4 * nfe), max(calls - 3 * nfe, 0))
    if fine < max(40, 2 * nfe) or nfe < 2:
        return usual, math.nan, [("uncalibrated", math.nan)], 0
    c = _Batch(model, shape, condition, seed, fine, order_for(model, nfe))
    each = {"uncalibrated": c.of(usual)}
    found: dict[str, GridSampler] = {"uncalibrated": usual}
    cap = float(each["uncalibrated"].median()) * _FAR**2

    def score(label: str, rows: slice) -> float:
        """Root mean square in which one start in another mode is no more than far."""
        return float(each[label][rows].clamp_max(cap).mean().sqrt())

    def spent() -> bool:
        return c.calls + nfe > calls or (seconds is not None and time.perf_counter() - began > seconds)

    chosen = "uncalibrated"
    place, step, best = [CENTRE, math.log(WIDTH), 0.0], [0.5, 0.3, 0.5], math.inf
    tried: set[tuple[float, ...]] = set()
    queue: list[list[float]] = [place]
    while not spent():
        if not queue:
            step = [v / 2 for v in step]
            queue = [[v + s * step[i] * (i == j) for j, v in enumerate(place)] for i in (2, 0, 1) for s in (1, -1)]
            if step[0] < 0.02:
                break
        at = queue.pop(0)
        key = tuple(round(v, 6) for v in at)
        if key in tried:
            continue
        tried.add(key)
        grid = levels(model, nfe, nfe, at[0], math.exp(at[1]), at[2])
        label = f"fitted steps to {grid.values[-1]:.2f}, centre {at[0]:.2f}, width {math.exp(at[1]):.2f}"
        found[label], each[label] = c.fitted(grid)
        if (now := score(label, slice(0, STARTS))) < best:
            best, place, chosen = now, at, label
            queue = [] if len(tried) > 1 and len(queue) > 3 else queue
    final = "uncalibrated"
    held = slice(_FITS, STARTS)
    clear = all(score(chosen, rows) < _BETTER * score(final, rows) for rows in (held, slice(0, STARTS)))
    if clear and bool(each[chosen].mean() <= each[final].mean()):
        final = chosen
    finalists: list[Any] = sorted((float(v.mean().sqrt()), k) for k, v in each.items())[:6]
    return found[final], float(each[final].mean().sqrt()), [(k, v) for v, k in finalists], c.calls
