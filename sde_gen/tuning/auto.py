r"""`Auto`: the sampler that is best for a model at a budget, by measurement on the model itself.

At first use with a model it draws a calibration batch, solves it finely, tries rules, grids and whole solvers on one
part of it (`search.py`), and keeps what errs least on the rest. All is deterministic, and depends on the model, the
sample's shape and the fields of `Auto` alone: not on what is sampled.
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

from sde_gen import checks as check
from sde_gen.errors import ConfigError, SolverError
from sde_gen.model import ScoreModel
from sde_gen.samplers.grid_sampler import GridSampler
from sde_gen.samplers.grids import GivenLambdas
from sde_gen.samplers.multistep import AdamsBashforth, UniPC
from sde_gen.samplers.sampler import Job, Sampler
from sde_gen.tuning.fitted import Fitted
from sde_gen.tuning.reference import calibrate, keep, key_of
from sde_gen.tuning.search import search

#: Budgets that a tolerance is tried with, in turn.
BUDGETS = (5, 7, 10, 14, 20, 30, 50, 75, 100, 150, 250)
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
            Of an exact score 4160 to 6144.
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
