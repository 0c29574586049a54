r"""Calibration within some hundred batch calls: a weighted `LimitedUniPC`, fitted step by step along a fine solution.

One run over a batch of starts fits the weights of all steps (`FittedSteps`): at each step they are what takes the
states the run itself has come to nearest to those of a fine solution, in least squares with a pull towards the rule,
in which a start that is on its way to another mode counts little. So noise levels are tried with weights of their own
at the price of one run, which is N calls, and one fine solution serves all of them, and all numbers of calls.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.interpolate import BSpline, make_interp_spline
from torch import Tensor

from sde_gen.conditions import Condition
from sde_gen.errors import NonFiniteError
from sde_gen.model import ScoreModel
from sde_gen.rng import SeededNoise
from sde_gen.samplers.flow import unit_curves
from sde_gen.samplers.grid_sampler import GridSampler
from sde_gen.samplers.limited import LimitedUniPC, Velocities
from sde_gen.tuning.fitted_steps import FittedSteps
from sde_gen.tuning.uncalibrated import levels, uncalibrated

_LOG = logging.getLogger("sde_gen")
#: Starts, and those of them that fit.
STARTS, _FITS = 64, 44
#: Calls of the fine solution at least, and for each call of the sampler.
_FINE, _FINER = 60, 3
#: Numbers of a fine solution that is kept for other numbers of calls.
_KEPT = 2**24
#: Pull towards the rule, for each weight; what a start counts falls off beyond so many medians of the distance.
_RIDGE, _FAR = 0.1, 4.0
#: What a fitted solver must err less by, in root mean square, on the starts it was not fitted on, with a second batch
#: and without.
_BETTER, _SURE = 0.95, 0.75


@dataclass(frozen=True)
class Solution:
    """Where the starts of a seed end, and their way there, u as a spline in lambda."""

    sample: Tensor
    path: BSpline
    calls: int
    numbers: int


class _Batch:
    """Starts, their fine solution as a function of lambda, and the calls made.

    Attributes:
        calls: as if every solution had been made for this batch, so that one that is there changes nothing but time.
        spared: calls that were not made, since the solution was there.
    """

    def __init__(
        self, model: ScoreModel, shape: tuple[int, ...], condition: Condition, seed: int, fine: int,
        solved: dict[tuple[int, int], Solution],
    ) -> None:  # fmt: skip
        self.model, self.condition = model, condition.tiled(STARTS)
        like = torch.empty((), dtype=torch.float64, device=model.device).expand(STARTS, *shape)
        self.noise = SeededNoise(seed)(like, -1, 0)
        known = solved.get((seed, fine))
        self.spared = 0 if known is None else known.calls
        if known is None:
            known = self._solve(fine)
            if known.numbers <= _KEPT:
                solved[seed, fine] = known
        self.calls = known.calls
        self.sample, self._path = known.sample, known.path

    def start(self, sampler: GridSampler) -> Tensor:
        """What a sampler starts from: its first time may be a later one."""
        return self.noise * float(self.model.perturbation.sigma(sampler.times(self.model)[0]))

    def _solve(self, fine: int) -> Solution:
        rule, states, p = uncalibrated(self.model, fine), [], self.model.perturbation

        def record(step: int, t: float, x: Tensor) -> None:
            if step < fine:
                states.append((x / float(p.size(t))).flatten(1).cpu())

        result = rule(self.model, start=self.start(rule), condition=self.condition, callback=record, chunk=STARTS)
        path = make_interp_spline(np.array(rule.grid.values), torch.stack(states).numpy(), k=5)
        return Solution(result.x, path, result.nfe, fine * self.noise.numel())

    def at(self, half_log_snr: float) -> Tensor:
        """u of the fine solution, (STARTS, *shape)."""
        return torch.from_numpy(self._path(half_log_snr)).to(self.noise).reshape(self.noise.shape)

    def distances(self, x: Tensor) -> Tensor:
        """Mean square of each start, per number."""
        return (x - self.sample).flatten(1).square().mean(1).nan_to_num(math.inf)

    def of(self, sampler: GridSampler) -> Tensor:
        """Distances of a sampler."""
        try:
            result = sampler(self.model, start=self.start(sampler), condition=self.condition, chunk=STARTS)
        except NonFiniteError:
            return torch.full((STARTS,), math.inf, dtype=torch.float64)
        self.calls += result.nfe
        return self.distances(result.x)

    def fitted(self, rule: LimitedUniPC) -> tuple[FittedSteps, Tensor]:
        """The solver on the levels of a rule, and its distances, by one run."""
        p, lam = self.model.perturbation, rule.grid.values
        times = p.time(torch.tensor(lam, dtype=torch.float64))
        size, (carry, weights) = p.size(times).tolist(), rule.plan(p, times)
        x, rows = self.start(rule), []
        at = self.model.levels(*p.curves(times), x, self.condition)
        remember = Velocities(at, x, weights)
        for k, of_x in enumerate(carry):
            velocity, terms = remember(k, x, rule.limit)
            terms = [velocity * size[k + 1], *terms]
            x = of_x * x + sum(terms[1:])
            change = _least_squares(terms, self.at(lam[k + 1]) * size[k + 1] - x)
            for w, term in zip(change, terms, strict=True):
                x = x.add(term, alpha=w)
            rows.append([change[0], *(1 + w for w in change[1:])])
        x = at.denoised(len(lam) - 1, x)
        self.calls += at.calls
        return FittedSteps(
            lambdas=lam, of_terms=rows, least=rule.least, order=rule.order, limit=rule.limit
        ), self.distances(x)


def _least_squares(terms: list[Tensor], missing: Tensor) -> list[float]:
    """Weights of the terms that make up what is missing on the starts to fit on."""
    a = torch.stack([v[:_FITS].flatten(1) for v in terms], -1)  # (starts, numbers, terms)
    b = missing[:_FITS].flatten(1)
    share = b.square().mean(1)
    counts = 1 / (1 + share / (_FAR**2 * share.median().clamp_min(1e-300)))
    normal = torch.einsum("nik,nil,n->kl", a, a, counts)
    right = torch.einsum("nik,ni,n->k", a, b, counts)
    size = normal.diagonal().sqrt().clamp_min(1e-150)
    identity = torch.eye(len(terms), dtype=normal.dtype, device=normal.device)
    return (torch.linalg.solve(normal / size / size[:, None] + _RIDGE * identity, right / size) / size).tolist()


def quick(
    model: ScoreModel, shape: tuple[int, ...], condition: Condition, seed: int, nfe: int, calls: int,
    seconds: float | None, solved: dict[tuple[int, int], Solution],
) -> tuple[GridSampler, float, list[tuple[str, float]], int]:  # fmt: skip
    """The best sampler found within a budget, its error, the finalists' errors, and the batch calls made.

    Fine solutions are found in `solved`, by seed and calls, and left there.

    It is the uncalibrated one unless another errs less by `_BETTER`, on starts that were not fitted on (a second batch
    too, where the budget has room for its fine solution), in a mean that no single start decides; and no more than it
    in the plain mean.
    """
    began, usual = time.perf_counter(), uncalibrated(model, nfe)
    price = price_of(model, shape, condition)  # calls of a step
    fine = _fine(nfe, calls // price)
    if fine is None:
        return usual, math.nan, [("uncalibrated", math.nan)], 0
    _LOG.info("Auto: calibration makes at most %d network calls, of %d samples of shape %s each; Auto(nfe=%d, calls=0) "
              "makes none", calls, STARTS, shape, nfe)  # fmt: skip
    c = _Batch(model, shape, condition, seed, fine, solved)
    first = c.of(usual)
    far = _FAR**2 * float(first.median())
    second = price * (fine + 2 * nfe)  # held back for other starts
    second = second if calls - c.calls - second >= 2 * nfe * price else 0
    found: dict[str, tuple[LimitedUniPC, Tensor]] = {}

    def try_at(place: tuple[float, ...]) -> float:
        grid = levels(model, nfe, nfe, place[0], math.exp(place[1]), place[2])
        label = f"fitted steps to {grid.values[-1]:.2f}, later {place[0]:.2f}, wider {math.exp(place[1]):.2f}"
        found[label] = c.fitted(replace(usual, grid=grid))
        return _robust(found[label][1], far)

    def spent() -> bool:
        late = seconds is not None and time.perf_counter() - began > seconds
        return late or c.calls + price * nfe + second > calls

    _descend(try_at, spent)
    if not found:
        return usual, float(first.mean().sqrt()), [("uncalibrated", float(first.mean().sqrt()))], c.calls - c.spared
    label, (sampler, distances) = min(found.items(), key=lambda item: _robust(item[1][1], far))
    made, pairs = c.calls - c.spared, [(first[_FITS:], distances[_FITS:])]
    if second and not (seconds is not None and time.perf_counter() - began > seconds):
        other = _Batch(model, shape, condition, seed + 1, fine, solved)
        pairs.append((other.of(usual), other.of(sampler)))
        made += other.calls - other.spared
    margin = _BETTER if len(pairs) > 1 else _SURE
    before, after = (torch.cat(part) for part in zip(*pairs, strict=True))
    better = _robust(after, far) < margin * _robust(before, far) and float(after.mean()) <= float(before.mean())
    errors = {"uncalibrated": float(before.mean().sqrt()), label: float(after.mean().sqrt())}
    kept = label if better else "uncalibrated"
    tried = sorted(errors.items(), key=lambda item: item[0] != kept)
    return sampler if better else usual, errors[kept], tried, made


def price_of(model: ScoreModel, shape: tuple[int, ...], condition: Condition) -> int:
    """Network calls of a step: 1, or for a guided model what it makes at lambda = 0, of one sample."""
    if getattr(model, "base", None) is None:
        return 1
    like = torch.zeros((1, *shape), dtype=torch.float64, device=model.device)
    at = model.levels(*unit_curves(torch.zeros(1, dtype=torch.float64)), like, condition.tiled(1))
    at.denoised(0, like)
    return max(at.calls, 1)


def _fine(nfe: int, calls: int) -> int | None:
    """Calls of the fine solution; None where there are too few to judge by one."""
    fine = min(max(_FINE, _FINER * nfe), calls - 3 * nfe)
    return None if nfe < 2 or fine < max(40, 2 * nfe) else fine


def _robust(distances: Tensor, far: float) -> float:
    """Root mean square in which one start in another mode is no more than far."""
    return float(distances.clamp_max(far).mean().sqrt())


def _descend(try_at: Callable[[tuple[float, ...]], float], spent: Callable[[], bool]) -> None:
    """Steps along one number at a time, halved when none leads down."""
    place: tuple[float, ...] = (0.0, 0.0, 0.0)
    step = [0.5, 0.3, 0.6]
    if spent():
        return
    tried: set[tuple[float, ...]] = {place}
    best = try_at(place)
    while step[0] > 0.02:
        moved = False
        for i in (2, 0, 1):
            for sign in (1, -1):
                at = tuple(round(v + sign * step[i] * (i == j), 6) for j, v in enumerate(place))
                if at in tried:
                    continue
                if spent():
                    return
                tried.add(at)
                if (now := try_at(at)) < best:
                    best, place, moved = now, at, True
                    break
        step = step if moved else [v / 2 for v in step]
