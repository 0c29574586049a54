"""What models made of another model have in common: they move with it, and every call of a network is counted."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.conditions import NOTHING, Condition, gathered
from sde_gen.errors import ConfigError
from sde_gen.model import Levels, Prediction, ScoreModel
from sde_gen.parameterizations import Parameterization
from sde_gen.perturbations import Perturbation
from sde_gen.shapes import halves

#: A strength of guidance: a number, or a function of sigma/alpha, float64 in and out, of any shape.
Scale = float | Callable[[Tensor], Any]


class Guided(ScoreModel):
    """A model made of `base`, under its perturbation; a subclass states `under` and `levels`."""

    no_density = ("a guided model is the denoiser of no data, so it has no likelihood; ask for that of the model that "
                  "is guided")  # fmt: skip

    def __init__(self, base: ScoreModel, parameterization: Parameterization | None = None) -> None:
        where = type(self).__name__
        if not isinstance(base, ScoreModel):
            raise ConfigError(f"{where}: model must be a ScoreModel, got {type(base).__name__}")
        super().__init__(None, base.perturbation, parameterization or base.parameterization)
        self.base, self.given = base, base.given
        self.trained_under, self.training = base.trained_under, base.training
        self.shape, self.classes, self.transform = base.shape, base.classes, base.transform
        self.always_labelled = base.always_labelled

    def under(self, perturbation: Perturbation) -> "Guided":
        raise NotImplementedError

    def told(self, condition: Mapping[str, Any] | Condition | None, rows: int) -> Condition:
        """The condition with what the model itself holds; the names are those that its network takes.

        Raises:
            ConfigError: for a name that the network does not take.
        """
        if not isinstance(condition, Condition):
            condition = Condition.of("model", condition, rows) if condition else NOTHING
        gathered(type(self).__name__, self.base.network, None, condition.parts, lambda: None)
        return condition.beside(self.given, type(self).__name__, rows)

    def times_within(self, t_low: float | None = None) -> tuple[float, float]:
        return self.base.times_within(t_low)

    def warn_between_nodes(self, half_log_snr: Tensor) -> None:
        self.base.warn_between_nodes(half_log_snr)

    @property
    def learned_variance(self) -> bool:
        return self.base.learned_variance

    @property
    def network_dtype(self) -> torch.dtype | None:
        return self.base.network_dtype


class GuidedLevels(Levels):
    """A guided model at some noise levels."""

    def __init__(self, model: Guided, alpha: Tensor, sigma: Tensor, like: Tensor, condition: Condition) -> None:
        super().__init__(model, alpha, sigma, like, condition)
        self.learned_variance = model.learned_variance
        if self.learned_variance:  # which it is only of a network: F is then half of what is said
            del self.raw

    def asked(self, levels: Levels, k: int, x: Tensor, rows: int = 1) -> tuple[Tensor, Tensor | None]:
        """What `levels` says at level k, in the terms of this model, and of the variance of a step, if anything.

        Its calls and vector-Jacobian products count here, `rows` times for each sample.
        """
        said = self.counted(levels, levels.output, k, x, rows)
        self.is_cut = self.is_cut or levels.is_cut
        raw, variance = halves(said, x) if levels.learned_variance else (said, None)
        if levels.model.parameterization != self.model.parameterization:  # then it is data that this one speaks of
            raw = _data(levels, k, x, raw)
        return raw, variance

    def data(self, k: int, x: Tensor, raw: Tensor) -> Tensor:
        """x0hat where the model says `raw`."""
        return _data(self, k, x, raw)

    def listed(self, values: Tensor) -> list[Any]:
        """Float64 coefficients (K,) as numbers, (K, B) as columns beside a state; what a step multiplies with."""
        if self._single:
            return values.tolist()
        shape = (*values.shape, *[1] * (self._like.ndim - 1)) if values.ndim > 1 else values.shape
        return list(values.to(self._like.dtype).to(self._like.device).reshape(shape).unbind(0))


def _data(levels: Levels, k: int, x: Tensor, raw: Tensor) -> Tensor:
    return Prediction(x, raw, levels.alpha[k], levels.sigma[k], levels.skip[k], levels.out[k]).denoised


def refuse_cut(where: str, levels: Levels, k: int, x: Tensor) -> None:
    """Refuse a network whose output carries no gradient, though it says something of its input."""
    moved = x.detach() + 0.1 * (1 + x.detach().abs())
    there = levels.at(levels.alpha, levels.sigma)
    if not torch.equal(there.output(k, x), there.output(k, moved)):
        raise ConfigError(f"{where}: the network's output carries no gradient of its input; remove torch.no_grad, "
                          ".detach() or a compiled inference mode from its forward")  # fmt: skip


def checked_scale(where: str, scale: Any) -> Scale:
    """A finite number, or something to call."""
    return scale if callable(scale) else checks.number(where, "scale", scale)


def checked_interval(where: str, interval: Any) -> tuple[float, float] | None:
    """(low, high) of sigma/alpha, or None."""
    if interval is None:
        return None
    if not isinstance(interval, tuple | list) or len(interval) != 2:
        raise ConfigError(f"{where}: interval must be (low, high) of sigma/alpha, got {interval!r}")
    low = checks.number(where, "interval[0]", interval[0], low=0.0)
    return low, checks.number(where, "interval[1]", interval[1], low=low, open_low=True, infinite=True)


def scales(
    where: str, scale: Scale, alpha: Tensor, sigma: Tensor, interval: tuple[float, float] | None = None
) -> Tensor:
    """The strength at each level, float64, shaped like alpha; 1 outside of an interval.

    Raises:
        ConfigError: for a function that returns anything but finite numbers of that shape.
    """
    noise = sigma / alpha
    found = torch.as_tensor(scale(noise) if callable(scale) else scale, dtype=torch.float64).to(noise.device)
    if found.shape not in (noise.shape, ()) or not bool(found.isfinite().all()):
        raise ConfigError(f"{where}: scale(sigma/alpha) must return finite numbers of shape {tuple(noise.shape)}, got "
                          f"{found!r}")  # fmt: skip
    low, high = interval or (0.0, math.inf)
    return torch.where((noise > low) & (noise <= high), found, 1.0) if interval else found.expand_as(noise)
