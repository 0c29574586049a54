r"""Is a network read as it was trained? Its denoising error at nine noise levels, and that of the best linear denoiser.

A network that is given another number for the time than it knows, states of another scale, or whose output means
something else, still answers, and its samples are merely bad. Against data it shows: a trained denoiser is better than
the best linear one of data of this variance sd^2, whose error is sd^2 sigma^2/(alpha^2 sd^2 + sigma^2). At lambda below
-2.5 a prediction of noise says little of the data, and the error of the noise is judged instead,
:math:`e^{2\lambda}` times that of the data.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.conventions import Convention
from sde_gen.errors import BetweenNodesWarning, ConfigError
from sde_gen.model import ScoreModel, evaluating
from sde_gen.parameterizations import (
    DataPrediction,
    NoisePrediction,
    Parameterization,
    ScorePrediction,
    VelocityPrediction,
    VPrediction,
)
from sde_gen.perturbations import Chain, FlowMatching
from sde_gen.rng import keyed_generator

__all__ = ["Diagnosis", "diagnose"]

_LEVELS, _WIDEST = 9, 5.0
#: Half log-SNR below which the noise is judged, and above which nothing is: there the data is all but known.
_OF_NOISE, _JUDGED = -2.5, 4.0
#: Largest error over the linear denoiser's, and largest mean square of the noise's.
_MOST, _MOST_NOISE = 1.1, 0.02


class Row(NamedTuple):
    """One noise level."""

    half_log_snr: float
    error: float
    """Mean square of x0hat - x0."""
    linear: float
    """That of the best linear denoiser."""
    badness: float
    """How far it is from what passes; above 1 is wrong, NaN is not judged."""


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What `diagnose` found; prints as a table.

    Attributes:
        rows: half log-SNR, error, that of the best linear denoiser, and badness (above 1 is wrong) of each level.
        is_sound: whether no level is wrong.
        likely: the reading that fits instead, in words; None if the model is sound, or none of those tried fits.
        tried: how many other readings were tried.
    """

    rows: tuple[Row, ...]
    is_sound: bool
    likely: str | None
    tried: int

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.is_sound:
            return "the network denoises as one does that is read as it was trained"
        if self.likely is None:
            return ("the network denoises worse than a linear denoiser: it is not trained, or not read as it was, and "
                    f"none of {self.tried} other readings fits")  # fmt: skip
        return f"the network is not read as it was trained; likely {self.likely}"

    def __repr__(self) -> str:
        lines = [f"{'lambda':>8} {'error':>10} {'linear':>10} {'ratio':>8}"]
        for row in self.rows:
            mark = "  wrong" if row.badness > 1 else ""
            lines.append(
                f"{row.half_log_snr:8.2f} {row.error:10.3g} {row.linear:10.3g} {row.error / row.linear:8.2f}{mark}"
            )
        return "\n".join([*lines, self.verdict])


@torch.no_grad()
def diagnose(model: ScoreModel, x0: Tensor, *, seed: int = 0, condition: Mapping[str, Any] | None = None) -> Diagnosis:
    """Compare a model's denoising error with the best linear denoiser's, and name the reading that fits if it is wrong.

    It sees what is grossly wrong: lambda or t told for an index, time turned round, v taken for noise, data on another
    scale; not an index that is off by one.

    Args:
        model: any; its own parameterization is judged.
        x0: data on the model's scale, (B, *shape) with B >= 2; a few hundred are plenty.
        seed: of the noise.
        condition: keyword arguments of the network, with rows for x0.

    Raises:
        ConfigError: for what is no model, or no such data.
    """
    if not isinstance(model, ScoreModel):
        raise ConfigError(f"diagnose: model must be a ScoreModel, got {type(model).__name__}")
    if not isinstance(x0, Tensor) or not x0.is_floating_point() or x0.ndim < 2 or len(x0) < 2:
        what = f"{x0.dtype} {tuple(x0.shape)}" if isinstance(x0, Tensor) else type(x0).__name__
        raise ConfigError(f"diagnose: x0 must be a floating tensor (B, *shape) with B >= 2, got {what}")
    if not bool(x0.isfinite().all()) or float(x0.var()) == 0:
        raise ConfigError("diagnose: x0 must be finite and not all the same")
    checks.integer("diagnose", "seed", seed, low=0)
    noise = torch.randn(x0.shape, generator=keyed_generator(seed, 0, 0, 0), dtype=torch.float64)
    noise = noise.to(dtype=x0.dtype, device=x0.device)
    with warnings.catch_warnings(), evaluating(model):
        warnings.simplefilter("ignore", BetweenNodesWarning)
        rows = _rows(model, x0, noise, condition)
        if _worst(rows) <= 1:
            return Diagnosis(rows, True, None, 0)
        found: list[tuple[float, str]] = []
        tried = 0
        for words, other, data in _readings(model, x0):
            tried += 1
            their = _rows(other, data, noise, condition)
            if _worst(their) <= 1:
                found.append((sum(math.log(row.error / row.linear) for row in their), words))
    return Diagnosis(rows, False, min(found)[1] if found else None, tried)


def _rows(model: ScoreModel, x0: Tensor, noise: Tensor, condition: Mapping[str, Any] | None) -> tuple[Row, ...]:
    p = model.perturbation
    low, high = model.times_within(p.t_min)
    first, last = (float(p.half_log_snr(t)) for t in (high, low))
    times = p.time(torch.linspace(max(first, -_WIDEST), min(last, _WIDEST), _LEVELS, dtype=torch.float64))
    if isinstance(p, Chain):
        times = ((times * p.length).round().clamp_min(1) / p.length).unique().flip(0)
    variance, rows = float(x0.double().var()), []
    for t in times.tolist():
        alpha, sigma = (float(c) for c in p.curves(t))
        lam = math.log(alpha / sigma)
        answer = model(alpha * x0 + sigma * noise, t, condition).denoised
        error = float((answer - x0).double().square().mean())
        linear = variance * sigma**2 / (alpha**2 * variance + sigma**2)
        badness = error / linear / _MOST if lam >= _OF_NOISE else math.exp(2 * lam) * error / max(
            _MOST_NOISE, 3 * math.exp(2 * lam) * linear)  # fmt: skip
        badness = math.inf if math.isnan(error) else badness if lam <= _JUDGED else math.nan
        rows.append(Row(lam, error, linear, badness))
    return tuple(rows)


def _worst(rows: tuple[Row, ...]) -> float:
    return max((row.badness for row in rows if not math.isnan(row.badness)), default=0.0)


def _readings(model: ScoreModel, x0: Tensor) -> Iterator[tuple[str, ScoreModel, Tensor]]:
    """Other ways to read the same network: what in words, the model, and the data for it."""
    low, high = float(x0.min()), float(x0.max())
    if low >= 0:
        yield "it was trained on data in [-1, 1], and x0 is not: give 2 x0 - 1", model, 2 * x0 - 1
    elif low >= -1.001 and high <= 1.001:
        yield "it was trained on data in [0, 1], and x0 is not: give (x0 + 1)/2", model, (x0 + 1) / 2
    if type(model) is not ScoreModel or model.network is None:
        return
    for words, parameterization in _parameterizations(model):
        other = ScoreModel(model.network, model.trained_under, parameterization)
        yield words, other.under(model.perturbation), x0


def _parameterizations(model: ScoreModel) -> Iterator[tuple[str, Parameterization]]:
    now: Any = model.parameterization
    told: Convention | None = getattr(now, "convention", None)
    for kind in (NoisePrediction, DataPrediction, VPrediction, ScorePrediction):
        if type(now) is not kind:
            yield f"its output is {kind.__name__}, not {type(now).__name__}", kind(told)
    if not isinstance(now, VelocityPrediction):
        through = told if told is not None and told.process is not None else Convention(FlowMatching(), "t")
        yield "its output is VelocityPrediction", VelocityPrediction(through)
    if isinstance(now, VelocityPrediction):
        yield "its velocity has the other sign: sign=-1", replace(now, sign=-now.sign)
    if not hasattr(now, "convention"):
        return
    process = told.process if told is not None and told.process is not None else model.trained_under
    for convention in _conventions(process, isinstance(process, Chain)):
        if convention != told:
            number = f"{convention.scale:g} {convention.time}" + (
                f" + {convention.offset:g}" if convention.offset else ""
            )
            yield f"it was told {number} for the time: {convention!r}", replace(now, convention=convention)


def _conventions(process: Any, is_chain: bool) -> Iterator[Convention]:
    if is_chain:
        yield Convention(process, "index")
        yield Convention(process, "index", -1.0, process.length - 1.0)
    for scale in (1.0, 999.0, 1000.0):
        yield Convention(process, "t", scale)
        yield Convention(process, "t", -scale, scale)
    for time, scale in (("half_log_snr", 1.0), ("sigma", 1.0), ("log_sigma", 1.0), ("log_sigma", 0.25)):
        yield Convention(process, time, scale)
