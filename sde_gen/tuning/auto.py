r"""`Auto`: the sampler that is best for a model at a budget, by measurement on the model itself.

At first use with a model it draws a calibration batch, solves it finely, tries noise levels with weights of their own
(`quick.py`), or with `effort=` rules, grids and whole solvers (`search.py`), on one part of it, and keeps what errs
least on the rest. Without calls for that it takes the rule of `uncalibrated.py`. With held-out data it asks these
whether noise does better (`noise_amount.py`). All is deterministic (but for `seconds=`), and depends on the model, the
sample's shape and the fields of `Auto` alone: not on what is sampled.
"""

import math
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from sde_gen import checks as check
from sde_gen.checks import checked
from sde_gen.conditions import Condition, Rows
from sde_gen.digests import digest, digest_here, parts
from sde_gen.errors import ConfigError, SolverError
from sde_gen.model import ScoreModel, evaluating
from sde_gen.samplers.grid_sampler import GridSampler
from sde_gen.samplers.grids import GivenLambdas
from sde_gen.samplers.limited import LimitedUniPC
from sde_gen.samplers.multistep import AdamsBashforth, UniPC
from sde_gen.samplers.sampler import Job, Sampler, Solved
from sde_gen.samplers.stochastic import SDEDPMSolverPP
from sde_gen.tuning.fitted import Fitted
from sde_gen.tuning.fitted_steps import FittedSteps
from sde_gen.tuning.kept import kept
from sde_gen.tuning.noise_amount import CALLS_FOR_EACH, Held, choose_noise
from sde_gen.tuning.quick import Solution, price_of, quick
from sde_gen.tuning.reference import calibrate
from sde_gen.tuning.search import search
from sde_gen.tuning.uncalibrated import begun, uncalibrated

#: Budgets that a tolerance is tried with, in turn.
BUDGETS = (5, 7, 10, 14, 20, 30, 50, 75, 100, 150, 250)
_CLASSES = {c.__name__: c for c in (AdamsBashforth, UniPC, Fitted, FittedSteps, LimitedUniPC, SDEDPMSolverPP)}
#: Changed where what is kept is no longer read or found as before.
_FORM = 3
#: Calls of the quick calibration, unless told otherwise.
CALLS = 300


@dataclass(frozen=True)
class Choice:
    """What `Auto` chose for a model.

    Attributes:
        sampler: the sampler.
        nfe: network calls it makes.
        error: its root mean square error, per number, on the part of the calibration batch it was not chosen on;
            where held-out data decided, that of the deterministic sampler they were asked about.
        calibration_nfe: network calls that the calibration made (of up to one batch each; gradients count as two).
            With 0, nothing was measured: the error is NaN.
        calibration_seconds: its wall-clock time.
        tried: (description, error) of the finalists.
        gain: by how much the energy distance to held-out data is less than that of the deterministic choice, for the
            best sampler found beside it, and the standard error, on starts and data that it was not chosen on. It is
            what was chosen where the gain is over two standard errors. None: not measured.
    """

    sampler: GridSampler
    nfe: int
    error: float
    calibration_nfe: int
    calibration_seconds: float
    tried: tuple[tuple[str, float], ...]
    gain: tuple[float, float] | None = None


@dataclass(frozen=True)
class Auto(Sampler):
    """Chooses family, order, prediction, noise levels and, for few calls, every coefficient, by measurement.

    Args:
        nfe: network calls for each sample, >= 1.
        tolerance: instead of nfe: root mean square error, per number, against a fine solution of the same model; the
            fewest calls of `BUDGETS` that reach it are used.
        calls: network calls on 64 starts that the calibration may make at most, by default 300; too few for a fine
            solution (some 40 + 3 nfe), or 0, and nothing is measured. What comes out is never worse, on the starts it
            is judged by, than what calls=0 gives.
        seconds: no new trial begins after so many; what is chosen then depends on the machine.
        count: starts in the calibration batch, >= 4; by default 192 to 4096, fewer for larger samples and more calls.
            Of an exact score 4160 to 6144.
        effort: instead of calls: search for as long as it takes, some thousands of calls at 1 (taken with tolerance);
            below 0.1 few rules and grids are looked at, 0 refines none.
        seed: of the calibration batch.
        folder: where choices are kept as JSON, under names that depend on all of this and on the model, by content.
        noise: "auto" chooses the amount of noise too, the levels between which it is added and the grid, by the energy
            distance of samples to `data`: networks gain by noise, exact scores do not. It makes some 88 nfe calls more,
            of 64 starts each; `calls` is then of both calibrations. Without data, or too few calls, there is none.
        data: held-out data on the model's scale, (n, *shape), n >= 64, that training did not see.

    Raises:
        ConfigError: unless exactly one of nfe and tolerance is given, for calls, seconds or noise beside effort, count
            or tolerance, for data without noise, or for values outside these; when run with a
            condition that has a row for each sample, unless `choose` was called before with a condition to calibrate
            with (the choice must not depend on the batch); with a folder, for a model or condition whose content
            cannot be told; for data of another shape.
        SolverError: when run, if no budget reaches the tolerance.
    """

    nfe: int | None = checked(None)
    tolerance: float | None = checked(None, above=0.0)
    count: int | None = checked(None, low=4)
    effort: float | None = checked(None, low=0.0)
    seed: int = checked(0, low=0)
    folder: str | None = None
    calls: int | None = checked(None, low=0)
    seconds: float | None = checked(None, above=0.0)
    noise: str | None = checked(None, choices=("auto",))
    data: Any = None

    def __post_init__(self) -> None:
        if self.nfe is not None and self.tolerance is not None:
            raise ConfigError("Auto: give nfe or tolerance, not both")
        check.fields(self)
        long = [name for name in ("tolerance", "effort", "count") if getattr(self, name) is not None]
        if long and not (self.calls is None and self.seconds is None and self.noise is None):
            raise ConfigError(
                f"Auto: calls, seconds and noise are of the quick calibration; give them or {long[0]}, not both"
            )
        if self.data is not None and self.noise is None:
            raise ConfigError("Auto: data are what noise='auto' is judged by; give both, or leave data out")
        if self.data is not None and not isinstance(self.data, Held):
            object.__setattr__(self, "data", Held(self.data))
        if self.nfe is None and self.tolerance is None:
            object.__setattr__(self, "nfe", 20)

    @property
    def most_calls(self) -> int | None:
        """Network calls, on 64 starts each, that the choice takes at most; None: with effort, count or tolerance."""
        if self.nfe is None or self.effort is not None or self.count is not None:
            return None
        return self.calls if self.calls is not None else CALLS + (self.data is not None) * CALLS_FOR_EACH * self.nfe

    def choose(self, model: ScoreModel, shape: Sequence[int], condition: Mapping[str, Any] | None = None) -> Choice:
        """The choice for a model and the shape of one sample, measured at first and kept while the model is unchanged.

        Args:
            condition: of the network in the calibration; its rows are repeated. Samples are then drawn with this choice
                under any condition that differs from it in its rows alone.
        """
        if self.calls == 0 and self.nfe is not None:
            return Choice(uncalibrated(model, self.nfe, shape), self.nfe, math.nan, 0, 0.0, ())
        return self._chosen(model, tuple(shape), Condition.of("Auto", condition, None), of_rows=True)

    def solve(self, job: Job) -> Solved:
        if self.calls == 0 and self.nfe is not None:
            sampler = uncalibrated(job.model, self.nfe, job.x.shape[1:])
        else:
            sampler = self._chosen(job.model, tuple(job.x.shape[1:]), job.condition, of_rows=False).sampler
        return sampler.solve(replace(job, x=begun(job.x, job.model, sampler)))

    def _chosen(self, model: ScoreModel, shape: tuple[int, ...], condition: Condition, of_rows: bool) -> Choice:
        """What is kept for these, or measured now; `of_rows` if it has to be measured with the condition's rows."""
        settings = (self, shape, id(model.network), digest(_shared(condition.parts)))
        rows = _rows(condition)
        given = shape if self.data is None else tuple(self.data.value.shape[1:])
        if given != shape:
            raise ConfigError(f"Auto: data has samples of shape {given}, and the model's are of shape {shape}")
        with _LOCK:
            choices, before = _KEPT.setdefault(model, {}), parts(model, digest_here)
            measured_with, decisive, choice = choices.get(settings, (None, {"": ""}, None))
            if choice is None or not decisive.items() <= before.items() or (of_rows and measured_with != digest(rows)):
                if rows and not of_rows:
                    raise ConfigError(
                        f"Auto: the condition {rows[0][0]!r} has a row for each sample, but the choice must not depend "
                        "on the samples; call choose(model, shape, condition=...) first, with a condition to calibrate "
                        "with"
                    )
                choice, passing = self._load_or_measure(model, shape, condition)
                decisive = {name: value for name, value in before.items() if name not in passing}
                choices[settings] = digest(rows), decisive, choice
            return choice

    # -- measuring -----------------------------------------------------------------------------------------------------

    def _load_or_measure(
        self, model: ScoreModel, shape: tuple[int, ...], condition: Condition
    ) -> tuple[Choice, list[str]]:
        """The choice, and the parts of the model that a call of it changes, such as a counter: no settings of it."""

        def measure() -> dict[str, Any]:
            before = parts(model, digest_here)
            solved = _SOLVED.get(model)
            if solved is None or solved[0] != before:  # fine solutions are of this very content
                solved = _SOLVED[model] = before, {}
            told = shape, digest(_shared(condition.parts)), digest(_rows(condition))
            with torch.inference_mode(False), torch.no_grad(), evaluating(model):
                choice = self._measure(model, shape, condition, solved[1].setdefault(told, {}))
            after = parts(model, digest_here)
            fields = {k: v for k, v in asdict(choice.sampler).items() if k != "grid"}
            if not isinstance(choice.sampler, Fitted | FittedSteps):
                fields["grid"] = list(choice.sampler.grid.values)
            sampler = {"name": type(choice.sampler).__name__, **fields}
            passing = [name for name, value in before.items() if after.get(name) != value]
            return {**asdict(choice), "sampler": sampler, "passing": passing}

        about = (_FORM, model, replace(self, folder=None), shape, condition)
        body = dict(kept("Auto", self.folder, "auto", about, measure))
        passing, fields = body.pop("passing"), dict(body["sampler"])
        kind = _CLASSES[fields.pop("name")]
        if "grid" in fields:
            fields["grid"] = GivenLambdas(tuple(fields["grid"]))
        tried = tuple((label, error) for label, error in body["tried"])
        gain = body.get("gain") and tuple(body["gain"])
        return Choice(**{**body, "sampler": kind(**fields), "tried": tried, "gain": gain}), passing

    def _measure(
        self, model: ScoreModel, shape: tuple[int, ...], condition: Condition, solved: dict[tuple[int, int], Solution]
    ) -> Choice:
        began = time.perf_counter()
        most = self.most_calls
        if self.nfe is not None and most is not None:
            few = most if self.data is None else min(most, CALLS)
            sampler, error, tried, made = quick(model, shape, condition, self.seed, self.nfe, few, self.seconds, solved)
            gain, more = None, 0
            if self.data is not None:
                left = None if self.seconds is None else self.seconds - (time.perf_counter() - began)
                sampler, gain, more = choose_noise(
                    model, condition, self.seed, self.nfe, sampler, self.data.value, most - few, left,
                    price_of(model, shape, condition),
                )  # fmt: skip
            seconds = time.perf_counter() - began
            return Choice(sampler, self.nfe, error, made + more, seconds, tuple(tried), gain)
        effort = 1.0 if self.effort is None else self.effort
        c = calibrate(model, shape, condition, self.seed, self.count, self.nfe or BUDGETS[-1])
        last = None
        for nfe in BUDGETS if self.nfe is None else (self.nfe,):
            sampler, error, tried = search(c, nfe, effort)
            seconds = time.perf_counter() - began
            last = Choice(sampler, nfe, error, c.calls, seconds, tuple(tried))
            if self.tolerance is None or error <= self.tolerance:
                return last
        raise SolverError(
            f"Auto: tolerance={self.tolerance:g} is not reached within {BUDGETS[-1]} network calls"
            + ("" if last is None else f" (error {last.error:.3g})") + "; raise the tolerance, or use ProbabilityFlow"
        )  # fmt: skip


def _rows(condition: Condition) -> list[tuple[str, Rows]]:
    return [(name, leaf) for name, leaf in condition.leaves() if isinstance(leaf, Rows)]


def _shared(value: Any) -> Any:
    """A condition in digests, without what differs between samples."""
    if isinstance(value, Mapping):
        return {name: _shared(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_shared(inner) for inner in value]
    return "a row for each sample" if isinstance(value, Rows) else digest_here(value)


#: For a model and settings: digest of the rows that it was measured with, the parts of the model that decide, a choice.
_KEPT: weakref.WeakKeyDictionary[ScoreModel, dict[Any, tuple[str, dict[str, str], Choice]]] = (
    weakref.WeakKeyDictionary()
)
#: The content of a model, and fine solutions of it by shape and condition, then seed and length.
_SOLVED: weakref.WeakKeyDictionary[ScoreModel, tuple[dict[str, str], dict[Any, dict[tuple[int, int], Solution]]]] = (
    weakref.WeakKeyDictionary()
)
_LOCK = threading.RLock()
