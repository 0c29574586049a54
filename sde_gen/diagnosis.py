r"""Is a network read as it was trained? Its denoising error, beside that of the best linear denoiser.

A network that came from elsewhere answers whatever it is asked, and a wrong time, sign or schedule shows only in its
samples. What shows it at once is its error on data it knows: at x = alpha x0 + sigma eps a trained denoiser does no
worse than the best linear one, which knows the mean m and the variance v of the data alone,

.. math:: \hat x_0 = m + \frac{\alpha v}{\alpha^2 v + \sigma^2}(x - \alpha m) .

Near pure noise a prediction of the noise amplifies its errors in x0hat, and the error of the noise,
:math:`(\alpha/\sigma)^2` times as large, is judged instead.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.conditions import NOTHING, Condition, gathered
from sde_gen.conventions import Convention
from sde_gen.errors import ConfigError
from sde_gen.model import ScoreModel, evaluating
from sde_gen.parameterizations import (
    DataPrediction,
    NoisePrediction,
    Parameterization,
    ScorePrediction,
    VelocityPrediction,
    VPrediction,
)
from sde_gen.perturbations import DDPM, EDM, VE, VP, Chain, Cosine, FlowMatching, Perturbation
from sde_gen.rng import SeededNoise

__all__ = ["Diagnosis", "diagnose"]

#: The half log-SNRs that are looked at, and between which the error of the data is judged.
_LOOKED_AT, _JUDGED = (-5.0, 5.0), (-2.5, 4.0)
#: What a right reading stays below: the error over the linear denoiser's, and that of the noise at lambda < -2.5.
_RATIO, _NOISE = 1.1, 0.02
#: What another reading reaches somewhere: an untrained network that says 0 is the linear denoiser, if it is read as v.
_LEARNT = 0.9


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What `diagnose` found; printing it shows a table.

    Attributes:
        half_log_snr: the noise levels, from noise to data.
        error: mean square error of x0hat, a value.
        linear: that of the best linear denoiser on the same draws.
        reading: how the network was read.
        likely: how it was probably trained, in words; "" where the reading is right, or no other fits better.
    """

    half_log_snr: tuple[float, ...]
    error: tuple[float, ...]
    linear: tuple[float, ...]
    reading: str
    likely: str = ""

    @property
    def ratio(self) -> tuple[float, ...]:
        """Error over that of the best linear denoiser; a trained network that is read right stays below 1.1."""
        return tuple(a / b for a, b in zip(self.error, self.linear, strict=True))

    @property
    def noise_error(self) -> tuple[float, ...]:
        """Mean square error of the noise, exp(2 lambda) times that of x0hat."""
        return tuple(math.exp(2 * lam) * a for lam, a in zip(self.half_log_snr, self.error, strict=True))

    @property
    def excess(self) -> float:
        """The largest error over what a right reading stays below: 1 and less is right."""
        found = [0.0]
        for lam, ratio, noise in zip(self.half_log_snr, self.ratio, self.noise_error, strict=True):
            if lam < _JUDGED[0]:  # 1.1 of the linear denoiser's own error, if that is more
                found.append(noise / max(_NOISE, _RATIO * noise / ratio) if noise > 0 else 0.0)
            elif lam <= _JUDGED[1]:
                found.append(ratio / _RATIO)
        return max(found)

    @property
    def is_right(self) -> bool:
        """Whether no gross misreading shows; an index that is off by one does not."""
        return self.excess <= 1

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.is_right:
            return "no misreading shows: it denoises at least as well as the best linear denoiser"
        least = f"its error is {self.excess:.2g} times what a network that is read right stays below"
        if self.likely:
            return f"it is probably misread: {least}; of other readings, what fits is {self.likely}"
        return f"{least}, and no other reading that was tried fits: it may be untrained, or trained on other data"

    def __repr__(self) -> str:
        rows = [("half log-SNR", "5.2f", self.half_log_snr), ("error/linear", "5.2f", self.ratio),
                ("noise error", "5.1g", self.noise_error)]  # fmt: skip
        shown = [f"{name:14}" + " ".join(f"{value:>8{form[1:]}}" for value in values) for name, form, values in rows]
        return "\n".join([f"{self.reading}: {self.verdict}", *shown])


class _Reading(NamedTuple):
    """One way to read a network: what is different, how it is asked, and what is done to the data first."""

    words: str
    parameterization: Parameterization
    rescaled: Callable[[Tensor], Tensor] = lambda x: x


def diagnose(
    model: ScoreModel,
    x0: Tensor,
    *,
    levels: int = 9,
    seed: int = 0,
    condition: Mapping[str, Any] | Condition | None = None,
    **named: Any,
) -> Diagnosis:
    """Whether a network is read as it was trained, by its denoising error on data that it knows.

    Where the error is too large, other readings are tried on the same draws, one change at a time: what the network
    predicts, the number it is told for the time, its schedule, the scale of the data. Of those that fit, the best is
    named; it need not be the right one where that is not among them. What is too small to be seen: an index that is off
    by one, schedules that are nearly the same.

    Args:
        model: a network under the perturbation and parameterization that it is to be read with.
        x0: data on the model's scale, (B, *shape), B >= 2; some 64 are enough for images.
        levels: noise levels that are looked at, >= 2: even in lambda within [-5, 5] and what was trained, on a chain
            its nodes.
        seed: of the noise.
        condition: what the network is told besides, such as labels.
        named: the same by name, `label=`.

    Raises:
        ConfigError: for data that are not finite or all equal, or arguments out of range.
    """
    levels = checks.integer("diagnose", "levels", levels, low=2)
    if not isinstance(model, ScoreModel):
        raise ConfigError(f"diagnose: model must be a ScoreModel, got {type(model).__name__}")
    if not isinstance(x0, Tensor) or not x0.is_floating_point() or x0.ndim < 2 or len(x0) < 2:
        raise ConfigError("diagnose: x0 must be a floating tensor (B, *shape) of two samples or more, got "
                          f"{tuple(x0.shape) if isinstance(x0, Tensor) else type(x0).__name__}")  # fmt: skip
    if not bool(x0.isfinite().all()) or not float(x0.var()) > 0:
        raise ConfigError("diagnose: x0 must be finite and not all the same; give data on the model's scale")
    told = gathered("diagnose", model.network, condition, named, diagnose)
    told = Condition.of("diagnose", told, len(x0)) if told else NOTHING
    lam = _levels(model, levels)
    noise = SeededNoise(seed)
    with torch.no_grad(), evaluating(model):
        found = _measured(model, x0, lam, noise, told)
        if found.is_right or model.network is None:  # an oracle, or a guided model: there is no other reading
            return found
        tried = []
        for other in _readings(model, x0):
            asked = model.under(model.perturbation)
            asked.parameterization = other.parameterization
            try:
                result = _measured(asked, other.rescaled(x0), lam, noise, told)
            except (ConfigError, RuntimeError, IndexError, ValueError):  # the network takes no such time
                continue
            if result.is_right and min(result.ratio) < _LEARNT:
                tried.append((sum(map(math.log, result.ratio)), len(tried), other.words))
    return replace(found, likely=min(tried)[2] if tried else "")


def _levels(model: ScoreModel, count: int) -> Tensor:
    p = model.trained_under
    low, high = (float(p.half_log_snr(t)) for t in (p.t_max, p.t_min))
    lam = torch.linspace(max(low, _LOOKED_AT[0]), min(high, _LOOKED_AT[1]), count, dtype=torch.float64)
    if isinstance(p, Chain):
        nodes = p.half_log_snr(p.nodes)
        lam = nodes[(nodes[None] - lam[:, None]).abs().argmin(1)]
    return lam


def _measured(model: ScoreModel, x0: Tensor, lam: Tensor, noise: SeededNoise, condition: Condition) -> Diagnosis:
    alpha, sigma = (2 * lam).sigmoid().sqrt(), (-2 * lam).sigmoid().sqrt()
    asked = model.levels(alpha, sigma, x0, condition)
    wide = x0.double()
    mean, variance = wide.mean(), wide.var(correction=0)
    error, linear = [], []
    for k, (a, s) in enumerate(zip(alpha.tolist(), sigma.tolist(), strict=True)):
        x = a * x0 + s * noise(x0, k, 0)
        best = mean + a * variance / (a * a * variance + s * s) * (x.double() - a * mean)
        error.append(float((asked.denoised(k, x).double() - wide).square().mean().nan_to_num(math.inf)))
        linear.append(float((best - wide).square().mean()))
    return Diagnosis(tuple(lam.tolist()), tuple(error), tuple(linear), repr(model.parameterization))


def _readings(model: ScoreModel, x0: Tensor) -> Iterator[_Reading]:
    """What else it may be, one change at a time."""
    given = model.parameterization
    convention = getattr(given, "convention", None)
    process = (convention and convention.process) or model.trained_under
    seen = replace(convention or Convention(), process=process)
    for other in (
        NoisePrediction(convention), DataPrediction(convention), VPrediction(convention), ScorePrediction(convention),
        ScorePrediction(convention, of="score"), VelocityPrediction(seen), VelocityPrediction(seen, sign=-1),
    ):  # fmt: skip
        if other != given:
            yield _Reading(f"another prediction, {other}", other)
    for words, other in (*_times(convention, process), *_schedules(seen, process)):
        velocity = isinstance(given, VelocityPrediction) and other.process is None  # which is that of a process
        if hasattr(given, "convention") and other != convention and not velocity:
            changed = replace(given, convention=other)  # pyright: ignore[reportCallIssue, reportArgumentType]
            yield _Reading(f"{words}, {changed}", changed)
    low, high = float(x0.min()), float(x0.max())
    if low >= 0 and high <= 1:
        yield _Reading("data on the scale [-1, 1], 2 x0 - 1", given, lambda x: 2 * x - 1)
    if low >= 0 and high > 1:
        yield _Reading("data on the scale [-1, 1], x0/127.5 - 1", given, lambda x: x / 127.5 - 1)
        yield _Reading("data on the scale [0, 1], x0/255", given, lambda x: x / 255)
    if low < 0 and low >= -1 and high <= 1:
        yield _Reading("data on the scale [0, 1], (x0 + 1)/2", given, lambda x: (x + 1) / 2)


def _times(convention: Convention | None, process: Perturbation) -> Iterator[tuple[str, Convention]]:
    seen = replace(convention or Convention(process), process=process)
    last = process.length - 1.0 if isinstance(process, Chain) else 0.0
    if isinstance(process, Chain):
        yield "another time", replace(seen, time="index", scale=1.0, offset=0.0)
        yield "time the other way round", replace(seen, time="index", scale=-1.0, offset=last)
    if seen.time in ("index", "t"):
        end = last if seen.time == "index" else 1.0
        yield "time the other way round", replace(seen, scale=-seen.scale, offset=seen.offset + seen.scale * end)
    if seen.rounded:  # such a network may have a table of times, which nothing else may be looked up in
        return
    for scale in (1.0, 999.0, 1000.0):
        yield "another time", replace(seen, time="t", scale=scale, offset=0.0)
        yield "time the other way round", replace(seen, time="t", scale=-scale, offset=scale)
    for time, scale in (("sigma", 1.0), ("log_sigma", 1.0), ("log_sigma", 0.25), ("half_log_snr", 1.0)):
        yield "another time", replace(seen, time=time, scale=scale, offset=0.0)
    yield "another time", Convention()


def _schedules(seen: Convention, process: Perturbation) -> Iterator[tuple[str, Convention]]:
    others: list[Perturbation] = [VP(), Cosine(), FlowMatching(), VE(), EDM()]
    if isinstance(process, Chain):
        k = process.length
        others = [DDPM(k, "cosine")]
        if k > 20:  # with fewer nodes a beta would reach 1
            others += [DDPM(k, shape) for shape in ("linear", "quadratic", "sigmoid")]
            others += [DDPM(k, "quadratic", 8.5e-4, 0.012)]
    for other in others:
        if other != process:
            yield "another schedule", replace(seen, process=other)
