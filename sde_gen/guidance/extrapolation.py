r"""Two models, and what lies beyond the first as seen from the second.

With raw outputs :math:`F_c` (of what is wanted) and :math:`F_u` (of what is not), and a scale w,

.. math:: F_w = F_u + w\,(F_c - F_u),

so that x0hat, noise, score and v are combined alike, whatever the network predicts: w = 0 is the second model and w = 1
the first, bit for bit and at the price of one. For w > 1 samples do not follow :math:`p_c^w\,p_u^{1-w}`, whose noisy
scores are others; particles (`TwistedSMC`) correct them to it.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.conditions import Condition
from sde_gen.errors import ConfigError
from sde_gen.guidance.guided import Guided, GuidedLevels, Scale, checked_interval, checked_scale, scales
from sde_gen.model import Levels, ScoreModel
from sde_gen.parameterizations import Parameterization
from sde_gen.shapes import trailing


class Extrapolated(Guided):
    """A pair of models with a scale, an interval and a rescale; a subclass says which two."""

    def __init__(
        self,
        base: ScoreModel,
        scale: Scale,
        interval: tuple[float, float] | None,
        rescale: float,
        parameterization: Parameterization | None = None,
    ) -> None:
        super().__init__(base, parameterization)
        where = type(self).__name__
        self.scale = checked_scale(where, scale)
        self.interval = checked_interval(where, interval)
        self.rescale = checks.number(where, "rescale", rescale, low=0.0, high=1.0)

    def pair(self, alpha: Tensor, sigma: Tensor, like: Tensor, condition: Condition) -> tuple[Levels, Levels]:
        """The model that is wanted and the other one."""
        raise NotImplementedError

    def doubled(self, alpha: Tensor, sigma: Tensor, like: Tensor, condition: Condition) -> Levels | None:
        """Both in one batch of twice the size, first the wanted one; None: they are asked in turn."""
        return None

    def levels(
        self, alpha: Tensor, sigma: Tensor, like: Tensor, condition: Mapping[str, Any] | Condition | None = None
    ) -> "ExtrapolatedLevels":
        return ExtrapolatedLevels(self, alpha, sigma, like, self.told(condition, len(like)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base!r}, scale={self.scale!r})"


class ExtrapolatedLevels(GuidedLevels):
    """An extrapolation at some noise levels."""

    def __init__(self, model: Extrapolated, alpha: Tensor, sigma: Tensor, like: Tensor, condition: Condition) -> None:
        super().__init__(model, alpha, sigma, like, condition)
        self._guided = model
        self._wanted, self._other = model.pair(alpha, sigma, like, condition)
        self._weights = self.listed(scales(type(model).__name__, model.scale, alpha, sigma, model.interval))
        self._turns = self.listed(self.skip / self.out)

    @cached_property
    def _both(self) -> Levels | None:
        return self._guided.doubled(self.alpha, self.sigma, self._like, self.condition)

    def output(self, k: int, x: Tensor) -> Tensor:
        raw, variance = self._said(k, x)
        return raw if variance is None else torch.cat([raw, variance], 1)

    def twist(self, k: int, x: Tensor) -> tuple[Tensor, Tensor, float, Tensor | float]:
        """D of the law that is corrected, D that moves particles, 0, and the rate of the log-weight in SNR, (B,).

        The rate is w(w-1)/2 |D_c - D_u|^2: Skreta et al. 2025, arXiv:2503.02819.

        Raises:
            ConfigError: for a scale that depends on the noise level or an interval, which aim at no law, and for a
                rescaled estimate, whose weights a few particles carry.
        """
        if callable(self._guided.scale) or self._guided.interval is not None:
            raise ConfigError(
                "particles correct guidance to p_c^w p_u^(1-w) for one w at all noise levels; give a number for scale, "
                "and no interval"
            )
        if self._guided.rescale:
            raise ConfigError("particles take guidance as it is, which they correct; leave rescale out")
        weight = self._weights[k]
        if weight in (0.0, 1.0):
            denoised = self.data(k, x, self._said(k, x)[0])
            return denoised, denoised, 0.0, 0.0
        wanted, other, _ = self._asked_both(k, x)
        denoised = self.data(k, x, torch.lerp(other, wanted, weight))
        apart = (float(self.out[k]) * (wanted - other)).flatten(1).square().sum(1, dtype=torch.float64)
        return denoised, denoised, 0.0, 0.5 * weight * (weight - 1) * apart

    def log_final(self, x: Tensor) -> float:
        """The law has no potential of the data besides."""
        return 0.0

    def _said(self, k: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        weight = self._weights[k]
        if self._single and weight in (0.0, 1.0):
            return self.asked(self._wanted if weight else self._other, k, x)
        wanted, other, variance = self._asked_both(k, x)
        return self._combined(k, x, wanted, other), variance

    def _asked_both(self, k: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """F_c, F_u, and what the model that is wanted says of the variance."""
        if self._both is None:
            wanted, variance = self.asked(self._wanted, k, x)
            return wanted, self.asked(self._other, k, x)[0], variance
        raw, variance = self.asked(self._both, k, torch.cat([x, x]), 2)
        wanted, other = raw.chunk(2)
        return wanted, other, None if variance is None else variance[: len(x)]

    def _combined(self, k: int, x: Tensor, wanted: Tensor, other: Tensor) -> Tensor:
        """F_w, rescaled if asked."""
        raw, share = torch.lerp(other, wanted, self._weights[k]), self._guided.rescale
        if not share:
            return raw
        # x0hat = out (F + (skip/out) x): its spread is that of the bracket, up to a factor that cancels.
        shift = x * self._turns[k]
        spread, aim = ((part + shift).flatten(1).std(1, correction=0) for part in (raw, wanted))
        factor = trailing(torch.where(spread > 0, 1 + share * (aim / spread - 1), 1.0), x.ndim)
        return factor * raw + (factor - 1) * shift
