r"""Several models as one: products, powers and quotients of their laws.

With experts :math:`p_i` and powers :math:`w_i` the target is :math:`p(x) \propto \prod_i p_i(x)^{w_i}`; the powers are
made to add up to one with a normal law :math:`N(0, S^2 I)`, which is taken away again at the data. Sampled with
is the estimate :math:`\bar D = \sum_i w_i D_i`. That is no denoiser of the target, but as the powers add up to one the
product of the experts' reverse steps is again a Gaussian step, with :math:`\bar D`, times a weight,

.. math:: \prod_i N(x_s; a x_t + b D_i, c^2)^{w_i} = N(x_s; a x_t + b\bar D, c^2)\,
          \exp\Big(-\tfrac12 (\mathrm{SNR}_s - \mathrm{SNR}_t) \sum_i w_i |D_i - \bar D|^2\Big),

and the product of the chains ends in the product of the laws: `TwistedSMC` carries the weight. Skreta et al. 2025,
arXiv:2503.02819; for several observations of one unknown, Geffner et al. 2023, arXiv:2209.14249.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sde_gen import checks
from sde_gen.conditions import Condition
from sde_gen.errors import ConfigError
from sde_gen.model import Levels, ScoreModel
from sde_gen.parameterizations import DataPrediction
from sde_gen.perturbations import Perturbation
from sde_gen.shapes import trailing


class Experts(ScoreModel):
    """A model made of several, which are asked under one perturbation.

    Args:
        models: one or more, under one perturbation.

    Raises:
        ConfigError: they are no models, or of several perturbations.
    """

    def __init__(self, models: Sequence[ScoreModel]) -> None:
        first = models[0]
        if not all(isinstance(m, ScoreModel) and m.perturbation == first.perturbation for m in models):
            raise ConfigError(f"{type(self).__name__}: the models must be ScoreModels under one perturbation; "
                              "see model.under(p)")  # fmt: skip
        super().__init__(None, first.perturbation, DataPrediction())
        self.models = nn.ModuleList(models)
        self.shape, self.classes, self.transform = first.shape, first.classes, first.transform
        self.trained_under = first.trained_under

    @property
    def experts(self) -> list[ScoreModel]:
        """The models."""
        return [m for m in self.models if isinstance(m, ScoreModel)]

    def times_within(self, t_low: float | None = None) -> tuple[float, float]:
        """Where all of them were trained."""
        lows, highs = zip(*(m.times_within(t_low) for m in self.experts), strict=True)
        return max(lows), min(highs)

    def warn_between_nodes(self, half_log_snr: Tensor) -> None:
        for model in self.experts:
            model.warn_between_nodes(half_log_snr)


class ExpertsLevels(Levels):
    """Several models at some noise levels."""

    def __init__(self, model: Experts, alpha: Tensor, sigma: Tensor, like: Tensor, condition: Condition) -> None:
        super().__init__(model, alpha, sigma, like, condition)
        self.experts = [m.levels(alpha, sigma, like, condition) for m in model.experts]


class Product(Experts):
    """A product of powers of the laws of several models.

    `Product([a, b])` is both at once, `Product([a], [2.0])` the square of a law (a temperature of 1/2),
    `Product([given_1, given_2, prior], [1, 1, -1])` two observations of one unknown from the models of each. Any
    sampler takes it, with a bias; `TwistedSMC` is right as steps grow (its `log_evidence`, log of the integral of the
    product, is off by about 0.03 with 100 steps).

    Args:
        models: under one perturbation; oracles, networks or others.
        powers: one for each, not zero; by default 1 each.
        spread: S, > 0, about the size of the data or more: where the powers add up to less than one it is the law
            of what no expert says, and where they add up to more, too small an S leaves no law at all.

    Raises:
        ConfigError: for arguments that do not fit together.
    """

    no_density = "a product of models is the denoiser of no data, so it has no likelihood"

    def __init__(
        self, models: Sequence[ScoreModel], powers: Sequence[float] | None = None, spread: float = 1.0
    ) -> None:
        models = list(models)
        powers = [1.0] * len(models) if powers is None else [checks.number("Product", "power", w) for w in powers]
        if not models or len(models) != len(powers) or 0.0 in powers:
            raise ConfigError(f"Product: give one model or more, and a power that is not 0 for each, got {powers}")
        super().__init__(models)
        self.powers = tuple(powers)
        self.spread = checks.number("Product", "spread", spread, low=0.0, open_low=True)

    @property
    def rest(self) -> float:
        """The power of the normal law."""
        rest = 1 - math.fsum(self.powers)
        return 0.0 if abs(rest) < 1e-12 else rest

    def under(self, perturbation: Perturbation) -> "Product":
        """The same product under another formulation."""
        other = Product([m.under(perturbation) for m in self.experts], self.powers, self.spread)
        other.training = self.training
        return other

    def levels(self, alpha: Tensor, sigma: Tensor, like: Tensor, condition: Any = None) -> "ProductLevels":
        if not isinstance(condition, Condition):
            condition = Condition.of("model", condition, len(like))
        return ProductLevels(self, alpha, sigma, like, condition)

    def __repr__(self) -> str:
        return "Product(" + ", ".join(f"{m!r} ** {w:g}" for m, w in zip(self.models, self.powers, strict=True)) + ")"


class ProductLevels(ExpertsLevels):
    """A product at some noise levels."""

    def __init__(self, model: Product, alpha: Tensor, sigma: Tensor, like: Tensor, condition: Condition) -> None:
        super().__init__(model, alpha, sigma, like, condition)
        self.powers, self.rest, self.spread = model.powers, model.rest, model.spread
        # Of the normal law: x0hat = alpha S^2 x/(alpha^2 S^2 + sigma^2).
        share = alpha * self.spread**2 / (alpha.square() * self.spread**2 + sigma.square())
        self._shares = share.tolist() if self._single else share.to(like.device).unbind(0)

    def output(self, k: int, x: Tensor) -> Tensor:
        return self._mean(k, x)[0]

    def twist(self, k: int, x: Tensor) -> tuple[Tensor, Tensor, float, Tensor]:
        """The mean estimate twice, no potential, and the log-weight for a unit of SNR, (B,), float64."""
        mean, each, powers = self._mean(k, x)
        rate = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for w, denoised in zip(powers, each, strict=True):
            rate = rate - 0.5 * w * (denoised - mean).flatten(1).square().sum(1, dtype=torch.float64)
        return mean, mean, 0.0, rate

    def log_final(self, x: Tensor) -> Tensor | float:
        """What takes the normal law away again, (B,)."""
        if not self.rest:
            return 0.0
        flat = x.to(torch.float64).flatten(1) / self.spread
        log_normal = -0.5 * flat.square().sum(1) - flat.shape[1] * (math.log(self.spread) + 0.5 * math.log(2 * math.pi))
        return -self.rest * log_normal

    def _mean(self, k: int, x: Tensor) -> tuple[Tensor, list[Tensor], list[float]]:
        """The mean estimate, and those it is made of with their powers."""
        powers = list(self.powers)
        each = [self.counted(expert, expert.denoised, k, x) for expert in self.experts]
        if self.rest:
            share = self._shares[k]
            each.append(x * (share if self._single else trailing(torch.as_tensor(share).to(x), x.ndim)))
            powers.append(self.rest)
        mean = powers[0] * each[0]
        for w, denoised in zip(powers[1:], each[1:], strict=True):
            mean = mean + w * denoised
        return mean, each, powers
