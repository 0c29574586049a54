r"""The weights of denoising score matching, one class each: w(t) of the noise error, and how times are best drawn.

A weight of one's own is a class with `weight(p, t)`, given as `DenoisingScoreMatching(weighting=Mine())`.

The variational bound of a continuous process has the weight :math:`g^2/(2\sigma^2) = -\lambda'`, one half of the
likelihood weight (Kingma et al. 2021, arXiv:2107.00630, where the SNR is :math:`e^{2\lambda}`). That of a chain is a
sum of K terms :math:`L_k`, given in `sde_gen/bound_terms.py`; the loss at node k is :math:`K L_k / D`, so that its mean
over the nodes is the bound in nats per dimension, less the prior term, which no network changes. With a fixed variance
it is :math:`w\,|\hat\epsilon - \epsilon|^2/D` plus a constant, with

.. math:: w(t_k) = \tfrac K2\, \mathrm{expm1}(2(\lambda_{k-1} - \lambda_k)) \quad\text{for variance ``small''}, \qquad
          w(t_1) = \tfrac K2 ,

and :math:`\sigma_{k-1}^2/\sigma_k^2` times that for "large". "hybrid" is :math:`L_{simple} + \gamma K L_k/D` with
the mean held fixed in the second term, which so trains the variance alone (arXiv:2102.09672; their code measures the
second term in bits, which makes their factor larger by 1/ln 2).
"""

import abc
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde_gen import bound_terms as bound
from sde_gen import checks
from sde_gen.checks import checked
from sde_gen.errors import ConfigError
from sde_gen.model import Prediction, ScoreModel
from sde_gen.perturbations import Chain, Perturbation

__all__ = ["EDMWeight", "Hybrid", "LikelihoodWeight", "MinSNR", "Simple", "VariationalTerms", "Weighting"]


class Weighting(abc.ABC):
    """w(t), the factor of |eps_hat - eps|^2 in the loss.

    Attributes:
        law: the law of times that "auto" takes on a continuous process.
        is_one: whether w is 1 at all times, and nothing else is asked of the model.
        by_importance: whether times may be drawn in proportion to w, which then states `mean` too.
    """

    law: ClassVar[str] = "stratified"
    is_one: ClassVar[bool] = False
    by_importance: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checks.fields(self)

    @abc.abstractmethod
    def weight(self, p: Perturbation, t: Tensor) -> Tensor:
        """w(t), float64 in and out."""

    def mean(self, p: Perturbation) -> Tensor:
        """Mean of w under the uniform law of times, float64."""
        raise NotImplementedError

    def factor(self, p: Perturbation, t: Tensor, mean: Tensor | None) -> Tensor:
        """w(t) over the density of t: `mean`, that of w, at times drawn by w, where it is given."""
        return self.weight(p, t) if mean is None else mean.to(t.device).expand(t.shape)

    def refuse(self, model: ScoreModel) -> None:  # noqa: B027 - most go with every model
        """Raise a `ConfigError` for a model that this weight does not go with."""

    def constant(self, p: Perturbation, t: Tensor) -> Tensor:
        """What is added to the weighted error, float64: nothing that a network can change."""
        return torch.zeros_like(t)

    def loss(
        self, model: ScoreModel, out: Prediction, x0: Tensor, noise: Tensor, t: Tensor, mean: Tensor | None
    ) -> Tensor:
        """Losses (B,) of predictions at times t; `mean` is that of w where times were drawn by it, else None."""
        error = (out.noise - noise).square().flatten(1).mean(1)
        return self.factor(model.perturbation, t, mean).to(x0.dtype).to(x0.device) * error


@dataclass(frozen=True)
class Simple(Weighting):
    """w = 1: L_simple, sigma^2 |score - target|^2, and (alpha/sigma)^2 |x0hat - x0|^2, which are one loss."""

    is_one = True

    def weight(self, p: Perturbation, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class LikelihoodWeight(Weighting):
    """w = g^2/sigma^2 = -2 lambda': g^2 |score - target|^2. Song et al. 2021, arXiv:2101.09258."""

    law = "importance"
    by_importance = True
    share: ClassVar[float] = 2.0
    """Of -lambda' dt."""

    def weight(self, p: Perturbation, t: Tensor) -> Tensor:
        return (p.diffusion(t) / p.sigma(t)).square()

    def mean(self, p: Perturbation) -> Tensor:
        if isinstance(p, Chain):
            return self.weight(p, p.nodes).mean()
        spread = float(p.half_log_snr(p.t_min)) - float(p.half_log_snr(p.t_max))  # int -lambda' dt
        return torch.tensor(self.share * spread / (p.t_max - p.t_min), dtype=torch.float64)


@dataclass(frozen=True)
class MinSNR(Weighting):
    """w = min(1, gamma sigma^2/alpha^2): min(SNR, gamma) |x0hat - x0|^2. Hang et al. 2023, arXiv:2303.09556."""

    gamma: float = checked(5.0, above=0.0)

    def weight(self, p: Perturbation, t: Tensor) -> Tensor:
        return (self.gamma * (-2 * p.half_log_snr(t)).exp()).clamp_max(1.0)


@dataclass(frozen=True)
class EDMWeight(Weighting):
    """w = 1 + (sigma/alpha)^2/sd^2. Karras et al. 2022, arXiv:2206.00364."""

    sigma_data: float = checked(0.5, above=0.0)

    law = "log-normal"

    def weight(self, p: Perturbation, t: Tensor) -> Tensor:
        return 1 + (-2 * p.half_log_snr(t)).exp() / self.sigma_data**2


@dataclass(frozen=True)
class VariationalTerms(LikelihoodWeight):
    """The variational bound itself: half the likelihood's weight, and K L_k on a chain.

    Args:
        variance: of the reverse steps of a chain: "small", "large", "learned", or "auto": learned where it can be.
        levels: number of values of the data, for the first step on a chain; None for continuous data.
    """

    variance: str = checked("auto", choices=("auto", *bound.VARIANCES))
    levels: int | None = checked(None, low=2)

    share = 1.0

    def weight(self, p: Perturbation, t: Tensor) -> Tensor:
        if isinstance(p, Chain):
            return bound.chain_weight(p, t, large=self.variance == "large")
        return 0.5 * super().weight(p, t)

    def refuse(self, model: ScoreModel) -> None:
        if isinstance(model.perturbation, Chain):
            self.chosen(model)

    def chosen(self, model: ScoreModel) -> str:
        """The variance that is meant."""
        return bound.chosen_variance(f"DenoisingScoreMatching: variance={self.variance!r}", self.variance, model)

    def constant(self, p: Perturbation, t: Tensor) -> Tensor:
        if not isinstance(p, Chain):
            return torch.zeros_like(t)
        first, gain, gap = bound.chain_steps(p, t)
        rest = bound.step_kl(torch.zeros_like(t), gain, gap, float(self.variance == "large"))
        return p.length * torch.where(first, float(bound.density_constant(p, p.nodes[0])), rest)

    def loss(
        self, model: ScoreModel, out: Prediction, x0: Tensor, noise: Tensor, t: Tensor, mean: Tensor | None
    ) -> Tensor:
        if not isinstance(model.perturbation, Chain):
            return super().loss(model, out, x0, noise, t, mean)
        return self.chain_loss(model, out, (out.noise - noise).square(), out.denoised, x0, t, mean)

    def chain_loss(
        self, model: ScoreModel, out: Prediction, error2: Tensor, x0hat: Tensor, x0: Tensor, t: Tensor,
        mean: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """K L_k / D at nodes t."""
        p, variance = model.perturbation, self.chosen(model)
        if not isinstance(p, Chain):
            raise ConfigError(f"the terms of a chain need one, but the perturbation is {p}")
        t = t.to(torch.float64)
        trained = model.trained_under if variance == "learned" else None
        terms = bound.chain_terms(p, error2, x0hat, bound.fraction_of(variance, out), x0, t, self.levels, trained)
        ratio = torch.ones_like(t) if mean is None else mean.to(t.device) / self.weight(p, t)
        return terms.flatten(1).mean(1) * (p.length * ratio).to(x0.dtype).to(x0.device)


@dataclass(frozen=True)
class Hybrid(VariationalTerms):
    """L_simple + gamma K L_k/D with the mean held fixed in the second, which so trains the variance alone.

    Nichol & Dhariwal 2021, arXiv:2102.09672.

    Args:
        gamma: factor of the bound, > 0.
    """

    gamma: float = checked(0.001, above=0.0)

    law = "stratified"
    by_importance = False

    def weight(self, p: Perturbation, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def constant(self, p: Perturbation, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def refuse(self, model: ScoreModel) -> None:
        if not isinstance(model.perturbation, Chain):
            raise ConfigError(
                "DenoisingScoreMatching: weighting='hybrid' learns the variance of a chain's steps, "
                f"but the perturbation is {model.perturbation}; use DDPM or NCSN, or weighting='vlb'"
            )
        self.chosen(model)

    def chosen(self, model: ScoreModel) -> str:
        return bound.chosen_variance("DenoisingScoreMatching: weighting='hybrid'", "learned", model)

    def loss(
        self, model: ScoreModel, out: Prediction, x0: Tensor, noise: Tensor, t: Tensor, mean: Tensor | None
    ) -> Tensor:
        error2 = (out.noise - noise).square()
        bound_part = self.chain_loss(model, out, error2.detach(), out.denoised.detach(), x0, t, None)
        return error2.flatten(1).mean(1) + self.gamma * bound_part
