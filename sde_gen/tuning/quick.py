r"""Calibration within some hundred batch calls: noise levels for `LimitedUniPC`, and with few calls its weights.

Levels are those of `uncalibrated.py`, moved, widened, and bent towards the density of local errors that a fine
solution shows; each trial is one run, which is N calls, and one fine solution serves all of them, and all numbers of
calls. The same run may fit the weights of all steps (`FittedSteps`): at each step they are what takes the states the
run itself has come to nearest to those of the fine solution, in least squares with a pull towards the rule, in which a
start that is on its way to another mode counts little.
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
from sde_gen.samplers.limited import LimitedUniPC, Terms
from sde_gen.tuning.fitted_steps import FittedSteps
from sde_gen.tuning.reference import bend
from sde_gen.tuning.uncalibrated import begun, is_exact, levels, uncalibrated

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
#: Most calls for which weights of the terms are fitted to an exact score, and their share of the trials: with more, the
#: terms are small, and what is fitted to them is the error of the fine solution.
_FITTED, _SHARE = 12, 0.5
#: Of the density of local errors: their order, points that it is found at, and the least of it, as a share of its mean.
_ORDER, _POINTS, _LEAST = 3, 400, 0.1


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
        p = model.perturbation
        self.model, self.condition = model, condition.tiled(STARTS)
        like = torch.empty((), dtype=torch.float64, device=model.device).expand(STARTS, *shape)
        self.start = SeededNoise(seed)(like, -1, 0) * float(p.sigma(model.times_within()[1]))
        known = solved.get((seed, fine))
        self.spared = 0 if known is None else known.calls
        if known is None:
            known = self._solve(fine)
            if known.numbers <= _KEPT:
                solved[seed, fine] = known
        self.calls = known.calls
        self.sample, self._path = known.sample, known.path

    def _solve(self, fine: int) -> Solution:
        rule, states, p = uncalibrated(self.model, fine, self.start.shape[1:]), [], self.model.perturbation

        def record(step: int, t: float, x: Tensor) -> None:
            if step < fine:
                states.append((x / float(p.size(t))).flatten(1).cpu())

        start = begun(self.start, self.model, rule)
        result = rule(self.model, start=start, condition=self.condition, callback=record, chunk=STARTS)
        path = make_interp_spline(np.array(rule.grid.values), torch.stack(states).numpy(), k=5)
        return Solution(result.x, path, result.nfe, fine * self.start.numel())

    def at(self, half_log_snr: float) -> Tensor:
        """u of the fine solution, (STARTS, *shape)."""
        return torch.from_numpy(self._path(half_log_snr)).to(self.start).reshape(self.start.shape)

    def density(self, half_log_snr: np.ndarray) -> np.ndarray:
        """Of levels with equal local errors of order `_ORDER` (see `grid.py`), by the bend of the fine solution."""
        t = self._path.t
        lam = np.linspace(t[0], t[-1], _POINTS)
        local = bend(torch.from_numpy(self._path(lam)), lam)[_ORDER - 1] ** (1 / (_ORDER + 1))
        return np.interp(half_log_snr, lam, local + _LEAST * local.mean())

    def distances(self, x: Tensor) -> Tensor:
        """Mean square of each start, per number."""
        return (x - self.sample).flatten(1).square().mean(1).nan_to_num(math.inf)

    def of(self, sampler: GridSampler) -> Tensor:
        """Distances of a sampler."""
        try:
            start = begun(self.start, self.model, sampler)
            result = sampler(self.model, start=start, condition=self.condition, chunk=STARTS)
        except NonFiniteError:
            return torch.full((STARTS,), math.inf, dtype=torch.float64)
        self.calls += result.nfe
        return self.distances(result.x)

    def fitted(self, rule: LimitedUniPC) -> tuple[FittedSteps, Tensor]:
        """The solver on the levels of a rule, and its distances, by one run."""
        p, lam = self.model.perturbation, rule.grid.values
        times = p.time(torch.tensor(lam, dtype=torch.float64))
        size, plan = p.size(times).tolist(), rule.plan(p, times)
        at = self.model.levels(*p.curves(times), self.start, self.condition)
        of_step, x, rows = Terms(at, self.start, plan, rule.limit), begun(self.start, self.model, rule), []
        for k, of_x in enumerate(plan.carry):
            terms = [factor * (term if phi is None else term * phi) for term, factor, phi in of_step(k, x)]
            terms[0] *= size[k + 1]
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
    began, usual = time.perf_counter(), uncalibrated(model, nfe, shape)
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

    def try_at(place: tuple[float, ...], fits: bool) -> float:
        later, wider, deeper, bent = place
        grid = levels(model, nfe, nfe, shape, later, math.exp(wider), deeper, bent, c.density)
        rule = replace(usual, grid=grid)
        label = f"to {grid.values[-1]:.2f}, later {later:.2f}, wider {math.exp(wider):.2f}, bent {bent:.2f}"
        label = f"fitted steps {label}" if fits else label
        found[label] = c.fitted(rule) if fits else (rule, c.of(rule))
        return _robust(found[label][1], far)

    def late() -> bool:
        return seconds is not None and time.perf_counter() - began > seconds

    def spent(share: float = 1.0) -> bool:
        return late() or c.calls + price * nfe > begin + share * (calls - second - begin)

    begin, exact = c.calls, is_exact(model)
    if nfe <= _FITTED or not exact:
        _descend(lambda place: try_at(place, True), lambda: spent(_SHARE if exact else 1.0), (2, 0, 1))
    if exact:
        _descend(lambda place: try_at(place, False), spent, (0, 3, 2, 1), _robust(first, far))
    if not found:
        return usual, float(first.mean().sqrt()), [("uncalibrated", float(first.mean().sqrt()))], c.calls - c.spared
    label, (sampler, distances) = min(found.items(), key=lambda item: _robust(item[1][1], far))
    made, pairs = c.calls - c.spared, [(first[_FITS:], distances[_FITS:])]
    if second and not late():
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
    fine = min(max(_FINE, _FINER * nfe), max(calls - 5 * nfe, 2 * nfe), calls - 3 * nfe)
    return None if nfe < 2 or fine < max(40, 2 * nfe) else fine


def _robust(distances: Tensor, far: float) -> float:
    """Root mean square in which one start in another mode is no more than far."""
    return float(distances.clamp_max(far).mean().sqrt())


def _descend(
    try_at: Callable[[tuple[float, ...]], float], spent: Callable[[], bool], turns: tuple[int, ...],
    measured: float | None = None,
) -> None:  # fmt: skip
    """Steps along one number at a time, halved when none leads down; `measured` is what is known of the first place."""
    place: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    step = [0.5, 0.3, 0.6, 0.5]
    if spent():
        return
    tried: set[tuple[float, ...]] = {place}
    best = try_at(place) if measured is None else measured
    while step[0] > 0.02:
        moved = False
        for i in turns:
            for sign in (1, -1):
                at = tuple(round(v + sign * step[i] * (i == j), 6) for j, v in enumerate(place))
                if at in tried or not 0 <= at[3] <= 1:
                    continue
                if spent():
                    return
                tried.add(at)
                if (now := try_at(at)) < best:
                    best, place, moved = now, at, True
                    break
        step = step if moved else [v / 2 for v in step]
