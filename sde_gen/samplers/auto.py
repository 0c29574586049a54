r"""`Auto`: the sampler that is best for a model at a budget, by measurement on the model itself.

At first use with a model it draws a calibration batch, solves it finely, and tries, on one part of it,

1. multistep rules (orders 1 to 4; data, noise or velocity; with and without corrector) on grids of the model's own
   local-error densities and of the classical families, to several last noise levels;
2. the grids of the best of them, and of the rule that is best most often, moved to where their error is least;
3. up to `_WHOLE` calls, all numbers of a solver (`Fitted`), by least squares from there.

What is kept is what errs least on the rest of the batch: the rule that is best most often, unless another is better by
a tenth. All is deterministic, and depends on the model, the sample's shape and the fields of `Auto` alone: not on what
is sampled.
"""

import json
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_gen import _checks as check
from sde_gen.errors import ConfigError, SolverError
from sde_gen.model import ScoreModel
from sde_gen.samplers.base import GridSampler
from sde_gen.samplers.calibration import (
    Calibration,
    calibrate,
    cut,
    densities,
    fit_levels,
    keep,
    key_of,
    last_levels,
    placed,
    refine,
)
from sde_gen.samplers.fitted import Fitted, expand, fit
from sde_gen.samplers.grids import GivenLambdas
from sde_gen.samplers.multistep import AdamsBashforth, UniPC
from sde_gen.samplers.sampler import Job, Sampler

#: Budgets that a tolerance is tried with, in turn.
BUDGETS = (5, 7, 10, 14, 20, 30, 50, 75, 100, 150, 250)
#: Most calls for which every number of the solver is fitted: they grow with the square.
_WHOLE = 24
#: Most calls for which order 3 is the usual rule: steps have to be short for order 4 to pay, and for the call it takes.
_FEW = 16
#: What another finalist must be better by than the usual rule, so that noise decides less.
_USUAL, _MARGIN = "the usual rule on its own grid", 1.1
_CLASSES = {c.__name__: c for c in (AdamsBashforth, UniPC, Fitted)}


@dataclass(frozen=True)
class Choice:
    """What `Auto` chose for a model.

    Attributes:
        sampler: the sampler.
        nfe: network calls it makes.
        error: its root mean square error, per number, on the part of the calibration batch it was not chosen on.
        calibration_nfe: network calls that the calibration made (of up to one batch each; gradients count as two).
        calibration_seconds: its wall-clock time.
        tried: (description, error) of the finalists.
    """

    sampler: GridSampler
    nfe: int
    error: float
    calibration_nfe: int
    calibration_seconds: float
    tried: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Auto(Sampler):
    """Chooses family, order, prediction, noise levels and, for few calls, every coefficient, by measurement.

    Args:
        nfe: network calls for each sample, >= 1.
        tolerance: instead of nfe: root mean square error, per number, against a fine solution of the same model; the
            fewest calls of `BUDGETS` that reach it are used.
        count: starts in the calibration batch, >= 4; by default 192 to 4096, fewer for larger samples and more calls.
        effort: how long to search: 1 is the default; below 0.1 few rules and grids are looked at, 0 refines none.
        seed: of the calibration batch.
        folder: where choices are kept as JSON, under names that depend on the model's content and all of this.

    Raises:
        ConfigError: unless exactly one of nfe and tolerance is given, or for values outside these; when run with a
            condition that has a row for each sample, unless `choose` was called before with a condition to calibrate
            with (the choice must not depend on the batch).
        SolverError: when run, if no budget reaches the tolerance.
    """

    nfe: int | None = None
    tolerance: float | None = None
    count: int | None = None
    effort: float = 1.0
    seed: int = 0
    folder: str | None = None

    def __post_init__(self) -> None:
        if self.nfe is None and self.tolerance is None:
            object.__setattr__(self, "nfe", 20)
        if self.nfe is not None and self.tolerance is not None:
            raise ConfigError("Auto: give nfe or tolerance, not both")
        if self.nfe is not None:
            check.integer("Auto", "nfe", self.nfe)
        if self.tolerance is not None:
            check.number("Auto", "tolerance", self.tolerance, low=0.0, open_low=True)
        if self.count is not None:
            check.integer("Auto", "count", self.count, low=4)
        check.number("Auto", "effort", self.effort, low=0.0)
        check.integer("Auto", "seed", self.seed, low=0)

    @property
    def order(self) -> None:
        """None: it is chosen."""
        return None

    def times(self, model: ScoreModel) -> Tensor:
        low, high = model.times_within()
        return torch.tensor([high, low], dtype=torch.float64)

    def choose(self, model: ScoreModel, shape: Sequence[int], condition: Mapping[str, Any] | None = None) -> Choice:
        """The choice for a model and the shape of one sample, measured at first and kept while the model is unchanged.

        Args:
            condition: keyword arguments of the network in the calibration; tensors with rows are repeated.
        """
        key = (self, tuple(shape), _version(model), _settings(condition))
        with _LOCK:
            kept = _KEPT.setdefault(model, {})
            if key not in kept:
                kept.clear() if any(k[2] != key[2] for k in kept) else None
                kept[key] = self._load_or_measure(model, tuple(shape), condition)
            return kept[key]

    def _solve(self, job: Job) -> tuple[Tensor, int, Tensor | None]:
        shape = tuple(job.x.shape[1:])
        key = (self, shape, _version(job.model), _settings(job.condition))
        with _LOCK:
            known = key in _KEPT.get(job.model, {})
        rows = [k for k, v in job.condition.items() if isinstance(v, Tensor) and v.ndim]
        if rows and not known:
            raise ConfigError(
                f"Auto: the condition {rows[0]!r} has a row for each sample, but the choice must not depend on the "
                "samples; call choose(model, shape, condition=...) first, with a condition to calibrate with"
            )
        return self.choose(job.model, shape, job.condition).sampler._solve(job)

    # -- measuring -----------------------------------------------------------------------------------------------------

    def _load_or_measure(
        self, model: ScoreModel, shape: tuple[int, ...], condition: Mapping[str, Any] | None
    ) -> Choice:
        path = None
        if self.folder is not None:
            path = Path(self.folder) / f"auto-{key_of(model, replace(self, folder=None), shape, condition)}.json"
            if path.is_file():
                return _read(path)
        was_training = model.training
        model.eval()
        try:
            choice = self._measure(model, shape, condition)
        finally:
            model.train(was_training)
        if path is not None:
            fields = {k: v for k, v in asdict(choice.sampler).items() if k != "grid"}
            if not isinstance(choice.sampler, Fitted):
                fields["grid"] = list(choice.sampler.grid.values)
            body = {**asdict(choice), "sampler": {"name": type(choice.sampler).__name__, **fields}}
            keep(path, body)
        return choice

    def _measure(self, model: ScoreModel, shape: tuple[int, ...], condition: Mapping[str, Any] | None) -> Choice:
        began = time.perf_counter()
        with torch.no_grad():
            c = calibrate(model, shape, condition, self.seed, self.count, self.nfe or BUDGETS[-1])
        last = None
        for nfe in BUDGETS if self.nfe is None else (self.nfe,):
            sampler, error, tried = search(c, nfe, self.effort)
            seconds = time.perf_counter() - began
            last = Choice(sampler, nfe, error, c.calls, seconds, tuple(tried))
            if self.tolerance is None or error <= self.tolerance:
                return last
        raise SolverError(
            f"Auto: tolerance={self.tolerance:g} is not reached within {BUDGETS[-1]} network calls"
            + ("" if last is None else f" (error {last.error:.3g})") + "; raise the tolerance, or use ProbabilityFlow"
        )  # fmt: skip


def rules(nfe: int) -> dict[str, tuple[GridSampler, int]]:
    """Rules to try, and how many times each visits with this many calls."""
    out: dict[str, tuple[GridSampler, int]] = {}
    for prediction in ("data", "noise", "velocity"):
        for order in (1, 2, 3, 4):
            if order > nfe:
                break
            times = nfe - 1 if order == 4 and nfe > 3 else nfe  # its start-up takes a call
            out[f"AdamsBashforth({order}, {prediction})"] = AdamsBashforth(order=order, prediction=prediction), times
            if order > 1 and prediction != "noise":
                out[f"UniPC({order}, {prediction})"] = UniPC(order=order, prediction=prediction), times
    return out


def usual(nfe: int) -> tuple[GridSampler, int]:
    """The rule that is best most often on a grid that fits, and how many times it visits with this many calls."""
    order = 3 if nfe <= _FEW else 4
    return UniPC(order=order, prediction="velocity"), nfe if order == 3 else nfe - 1


def search(c: Calibration, nfe: int, effort: float) -> tuple[GridSampler, float, list[tuple[str, float]]]:
    """The best sampler found for a budget, its error on the rows not chosen on, and the finalists' errors."""
    known, refines = rules(nfe), effort > 0
    best: dict[str, tuple[float, GridSampler]] = {}
    for error, rule, name, last in _screen(c, known, effort)[: 3 if refines else 6]:
        sampler, times = known[rule]
        density, label = densities(c)[name], f"{rule} on {name} to {last:.2f}"
        if refines and times > 1:
            grid, error = refine(c, sampler, times, density, last, round(40 * effort))
            label = f"{label}, refined"
        else:
            grid = GivenLambdas(placed(c.lambdas.numpy(), density, times, last))
            error = c.error(replace(sampler, grid=grid), c.checked)
        best[label] = error, replace(sampler, grid=grid)
    if refines and nfe > 2:
        sampler, times = usual(nfe)
        grid, error = fit_levels(c, sampler, times, round(120 * effort))
        best[_USUAL] = error, replace(sampler, grid=grid)
    if refines and 1 < nfe <= _WHOLE:
        if nfe > _FEW:  # order 4 looks twice at one time, which is not in the set; order 3 is the better start anyway
            sampler = usual(_FEW)[0]
            grid, error = fit_levels(c, sampler, nfe, round(120 * effort))
            best["order 3 on its own grid"] = error, replace(sampler, grid=grid)
        begin = min((error, name) for name, (error, s) in best.items() if s.order != 4)[1]
        found, error = _fit_whole(c, best[begin][1], round(150 * effort))
        best["every number fitted"] = error, found
    label = min(best, key=lambda k: best[k][0] * (1.0 if k == _USUAL else _MARGIN))
    tried = [(k, v[0]) for k, v in best.items()]
    return best[label][1], best[label][0], tried


def _screen(
    c: Calibration, known: dict[str, tuple[GridSampler, int]], effort: float
) -> list[tuple[float, str, str, float]]:
    """(error on some rows, rule, density, last level), best first, one for each rule.

    All densities and levels are looked at with a few rules, and all rules on what was good with those.
    """
    lam, shapes, few = c.lambdas.numpy(), densities(c), slice(0, max(2, c.chosen_on // 4))
    levels = last_levels(c)
    scouts = [k for k in known if k in ("AdamsBashforth(1, data)", "AdamsBashforth(3, velocity)", "UniPC(3, data)")]
    if effort < 0.1:  # a look at a few
        known = {k: v for k, v in known.items() if isinstance(v[0], UniPC) or k == "AdamsBashforth(1, data)"}
        shapes, scouts = {k: shapes[k] for k in ("local2", "lambda")}, list(known)

    def error(rule: str, name: str, last: float) -> float:
        sampler, times = known[rule]
        return c.error(replace(sampler, grid=GivenLambdas(placed(lam, shapes[name], times, last))), few)

    if max(times for _, times in known.values()) == 1:
        levels = [float(lam[-1])]
    found = {(rule, name, last): error(rule, name, last) for rule in scouts for name in shapes for last in levels}
    places = list(dict.fromkeys(key[1:] for key in sorted(found, key=lambda key: found[key])))[:6]
    for rule in known:
        for place in places:
            if (rule, *place) not in found:
                found[rule, *place] = error(rule, *place)
    ranked: dict[str, tuple[float, str, str, float]] = {}
    for key in sorted(found, key=lambda key: found[key]):
        ranked.setdefault(key[0], (found[key], *key))
    return list(ranked.values())


def _fit_whole(c: Calibration, sampler: Any, evaluations: int) -> tuple[GridSampler, float]:
    p, model = c.model.perturbation, c.model
    lambdas = torch.tensor(sampler.grid.values, dtype=torch.float64)
    of_start, of_estimates = expand(p, sampler, lambdas)
    t = p.time(lambdas[0])
    u = c.start / float((p.alpha(t) ** 2 + p.sigma(t) ** 2) ** 0.5)
    batch, other = ((u[rows], c.sample[rows], cut(c.condition, rows)) for rows in (slice(0, c.chosen_on), c.checked))
    solver, error, calls = fit(model, (lambdas, of_start, of_estimates), batch, other, evaluations)
    c.calls += calls
    return solver, error


def _read(path: Path) -> Choice:
    body = json.loads(path.read_text())
    fields = dict(body["sampler"])
    kind = _CLASSES[fields.pop("name")]
    if "grid" in fields:
        fields["grid"] = GivenLambdas(tuple(fields["grid"]))
    tried = tuple((label, error) for label, error in body["tried"])
    return Choice(**{**body, "sampler": kind(**fields), "tried": tried})


def _settings(condition: Mapping[str, Any] | None) -> tuple[Any, ...]:
    """The part of a condition that is the same for all samples."""
    rows = {k: isinstance(v, Tensor) and v.ndim for k, v in (condition or {}).items()}
    return tuple((k, None if rows[k] else repr(v)) for k, v in sorted((condition or {}).items()))


def _version(model: ScoreModel) -> tuple[Any, ...]:
    """Changes when a weight does: optimisers and loading write in place."""
    return tuple((id(p), p._version) for p in model.parameters()) + (repr(model.perturbation),)


_KEPT: weakref.WeakKeyDictionary[ScoreModel, dict[Any, Choice]] = weakref.WeakKeyDictionary()
_LOCK = threading.RLock()
