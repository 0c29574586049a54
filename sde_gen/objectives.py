r"""Denoising score matching: which times are drawn, and how the errors there are weighted.

At a time t with :math:`x_t = \alpha x_0 + \sigma\epsilon`, every regression target is a multiple of the noise error:
:math:`\hat x_0 - x_0 = -(\sigma/\alpha)(\hat\epsilon - \epsilon)` and :math:`score - target = -(\hat\epsilon -
\epsilon)/\sigma`. One loss serves all formulations,

.. math:: \ell(x_0) = w(t)\; |\hat\epsilon(x_t, t) - \epsilon|^2 / D ,

the mean over the D dimensions, with these weights (:math:`\rho = \sigma/\alpha`):

==============  ==========================  =========================================================================
weighting       w(t)                        meaning
==============  ==========================  =========================================================================
``simple``      1                           L_simple of Ho et al. 2020, arXiv:2006.11239
``score``       1                           sigma^2 |score - target|^2, Song & Ermon 2019, arXiv:1907.05600
``snr``         1                           (alpha/sigma)^2 |x0hat - x0|^2, Salimans & Ho 2022, arXiv:2202.00512
``likelihood``  g^2/sigma^2                 g^2 |score - target|^2, Song et al. 2021, arXiv:2101.09258
``min-snr``     min(1, gamma rho^2)         min(SNR, gamma) |x0hat - x0|^2, Hang et al. 2023, arXiv:2303.09556
``edm``         (rho^2 + sd^2)/sd^2         Karras et al. 2022, arXiv:2206.00364
``vlb``         below                       the variational bound itself, Ho et al. 2020; Kingma et al. 2021
``hybrid``      1, and below                L_simple and the bound of the variance, Nichol & Dhariwal 2021
==============  ==========================  =========================================================================

(The first three are one loss under three names.) Because :math:`g^2 = -2\lambda'\sigma^2`, the likelihood weight is
:math:`-2\lambda'(t)`: drawing t so that lambda is uniform makes it constant, which is the importance sampling that
keeps its variance finite near t = 0.

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

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_gen import bound_terms as bound
from sde_gen import checks as check
from sde_gen.errors import ConfigError
from sde_gen.model import Prediction, ScoreModel
from sde_gen.perturbations.discrete import Chain

__all__ = [
    "DenoisingScoreMatching",
]

WEIGHTINGS = ("simple", "score", "likelihood", "snr", "min-snr", "edm", "vlb", "hybrid")
IMPORTANCE = ("likelihood", "vlb")
TIME_LAWS = ("auto", "uniform", "stratified", "log-normal", "importance", "nodes")


@dataclass(frozen=True)
class DenoisingScoreMatching:
    """Weighted denoising score matching, as per-sample losses.

    Args:
        weighting: "simple", "score", "likelihood", "snr", "min-snr", "edm", "vlb" or "hybrid"; see the table above.
        times_law: law of the training times on [t_min, t_max]: "uniform"; "stratified" (uniform, one draw in each of B
            equal parts: less variance); "log-normal" (log(sigma/alpha) normal, as EDM); "importance" (lambda uniform,
            for "likelihood" and "vlb"); "nodes" (a chain's nodes, uniformly). "auto" takes "importance" for these two
            weightings, "nodes" for a chain, "log-normal" for edm, else "stratified". On a chain, "uniform" and
            "stratified" draw nodes and "importance" draws nodes in proportion to the weight, so that only nodes are
            trained.
        gamma: of "min-snr", > 0.
        sigma_data: of "edm", > 0.
        log_mean: mean of log(sigma/alpha) of "log-normal".
        log_std: standard deviation of log(sigma/alpha) of "log-normal", > 0.
        label_dropout: probability in [0, 1] with which a label is replaced by `num_classes` ("no label").
        num_classes: number of classes, needed for label dropout.
        variance: of the reverse steps, for "vlb" on a chain: "small", "large", "learned", or "auto", which is learned
            where the network has it, else small.
        vlb_weight: gamma of "hybrid", > 0.
        levels: number of evenly spaced values from -1 to 1 that the data have (17 for digits, 256 for 8-bit images),
            for the first step of "vlb" and "hybrid" on a chain; None for continuous data, where that is a density.

    Raises:
        ConfigError: for values outside these ranges; and when used, for "hybrid" on a continuous process or with a
            network without a learned variance.
    """

    weighting: str = "simple"
    times_law: str = "auto"
    gamma: float = 5.0
    sigma_data: float = 0.5
    log_mean: float = -1.2
    log_std: float = 1.2
    label_dropout: float = 0.0
    num_classes: int = 0
    variance: str = "auto"
    vlb_weight: float = 0.001
    levels: int | None = None

    def __post_init__(self) -> None:
        where = "DenoisingScoreMatching"
        check.choice(where, "weighting", self.weighting, WEIGHTINGS)
        check.choice(where, "times_law", self.times_law, TIME_LAWS)
        check.number(where, "gamma", self.gamma, low=0.0, open_low=True)
        check.number(where, "sigma_data", self.sigma_data, low=0.0, open_low=True)
        check.number(where, "log_mean", self.log_mean)
        check.number(where, "log_std", self.log_std, low=0.0, open_low=True)
        check.number(where, "label_dropout", self.label_dropout, low=0.0, high=1.0)
        check.integer(where, "num_classes", self.num_classes, low=0)
        check.choice(where, "variance", self.variance, ("auto", *bound.VARIANCES))
        check.number(where, "vlb_weight", self.vlb_weight, low=0.0, open_low=True)
        if self.levels is not None:
            check.integer(where, "levels", self.levels, low=2)
        if self.weighting == "hybrid" and self.variance in ("small", "large"):
            raise ConfigError(f"{where}: weighting='hybrid' trains a learned variance, got variance={self.variance!r}")
        if self.label_dropout > 0 and self.num_classes == 0:
            raise ConfigError(f"{where}: label_dropout={self.label_dropout!r} needs num_classes >= 1")
        if self.times_law == "importance" and self.weighting not in IMPORTANCE:
            raise ConfigError(
                f"{where}: times_law='importance' is the importance sampling of weighting='likelihood' and 'vlb', "
                f"got weighting={self.weighting!r}; use 'uniform' or 'stratified'"
            )

    # -- the time law ------------------------------------------------------------------------------------------------

    def times(
        self,
        model: ScoreModel,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draw `batch` training times, float64, (B,), on `device` (the model's by default).

        Raises:
            ConfigError: for a law that the perturbation does not have ("nodes" of a continuous process).
        """
        check.integer("times", "batch", batch)
        device = model.device if device is None else torch.device(device)
        law, p = self.law_for(model), model.perturbation
        # Drawn where the generator lives, so that one seed gives one answer; these are B numbers.
        home = generator.device if generator is not None else torch.device("cpu")
        if law == "log-normal":
            z = torch.randn(batch, dtype=torch.float64, generator=generator, device=home)
            return self._log_normal(model, z).to(device)
        u = torch.rand(batch, dtype=torch.float64, generator=generator, device=home)
        if self._is_stratified(law):
            u = (torch.arange(batch, dtype=torch.float64, device=home) + u) / batch
        if isinstance(p, Chain):
            if law == "importance":
                edges = self._weight(p, p.nodes).cumsum(0)
                index = torch.searchsorted(edges / edges[-1], u.cpu()).clamp_max(p.length - 1)
            else:
                index = (u.cpu() * p.length).long().clamp_max(p.length - 1)
            return p.nodes[index].to(device)
        if law == "importance":
            high, low = (float(p.half_log_snr(t)) for t in (p.t_min, p.t_max))
            return p.time((low + u * (high - low)).clamp(low, high)).clamp(p.t_min, p.t_max).to(device)
        return (p.t_min + u * (p.t_max - p.t_min)).to(device)

    def law_for(self, model: ScoreModel) -> str:
        """The time law that "auto" stands for with this model, or the law asked for.

        Raises:
            ConfigError: for a model that the law or the weighting does not go with.
        """
        is_chain = isinstance(model.perturbation, Chain)
        if self.times_law == "nodes" and not is_chain:
            raise ConfigError(
                f"DenoisingScoreMatching: times_law='nodes' needs a chain such as DDPM or NCSN, "
                f"but the perturbation is {model.perturbation}"
            )
        if self.weighting == "hybrid" and not is_chain:
            raise ConfigError(
                "DenoisingScoreMatching: weighting='hybrid' learns the variance of a chain's steps, "
                f"but the perturbation is {model.perturbation}; use DDPM or NCSN, or weighting='vlb'"
            )
        if is_chain and self.weighting in ("vlb", "hybrid"):
            self._variance(model)
        if self.times_law != "auto":
            return self.times_law
        if self.weighting in IMPORTANCE:
            return "importance"
        if is_chain:
            return "nodes"
        return "log-normal" if self.weighting == "edm" else "stratified"

    @staticmethod
    def _is_stratified(law: str) -> bool:
        return law in ("stratified", "importance")

    def _log_normal(self, model: ScoreModel, z: Tensor) -> Tensor:
        p = model.perturbation
        high, low = (float(p.half_log_snr(t)) for t in (p.t_min, p.t_max))
        t = p.time((-(self.log_mean + self.log_std * z)).clamp(low, high)).clamp(p.t_min, p.t_max)
        if isinstance(p, Chain):  # the nearest node
            t = (t * p.length).round().clamp(1, p.length) / p.length
        return t

    # -- the loss ----------------------------------------------------------------------------------------------------

    def weight(self, model: ScoreModel, t: Tensor) -> Tensor:
        """Factor of |eps_hat - eps|^2 at times drawn by `times`, float64.

        It is w(t), over the density of an importance-sampled t relative to the uniform law. For "vlb" with a learned
        variance it is that of the small variance, in proportion to which nodes are drawn.
        """
        mean = self._mean_weight(model)
        return self._weight(model.perturbation, t) if mean is None else mean.to(t.device).expand(t.shape)

    def constant(self, model: ScoreModel, t: Tensor) -> Tensor:
        """What the loss adds to the weighted error at times drawn by `times`, float64.

        Zero, but for "vlb" on a chain with a fixed variance, where no network can change it (and where, at the first
        node of data on levels, the loss has another form altogether).
        """
        p, t = model.perturbation, t.to(torch.float64)
        if self.weighting != "vlb" or not isinstance(p, Chain):
            return torch.zeros_like(t)
        first, gain, gap = bound.chain_steps(p, t)
        rest = bound.step_kl(torch.zeros_like(t), gain, gap, float(self.variance == "large"))
        rest = torch.where(first, float(bound.density_constant(p, p.nodes[0])), rest)
        return p.length * rest * self._ratio(model, t)

    def _mean_weight(self, model: ScoreModel) -> Tensor | None:
        """Mean of w under the uniform law of times, where they are importance-sampled; else None."""
        p = model.perturbation
        if self.weighting not in IMPORTANCE or self.law_for(model) != "importance":
            return None
        if isinstance(p, Chain):
            return self._weight(p, p.nodes).mean()
        spread = float(p.half_log_snr(p.t_min)) - float(p.half_log_snr(p.t_max))  # int -lambda' dt
        share = 2 if self.weighting == "likelihood" else 1
        return torch.tensor(share * spread / (p.t_max - p.t_min), dtype=torch.float64)

    def _ratio(self, model: ScoreModel, t: Tensor) -> Tensor:
        """The uniform law of times over the one that nodes are drawn by."""
        mean = self._mean_weight(model)
        return torch.ones_like(t) if mean is None else mean.to(t.device) / self._weight(model.perturbation, t)

    def _weight(self, p: Any, t: Tensor) -> Tensor:
        t = t.to(torch.float64)
        if self.weighting == "likelihood":
            return (p.diffusion(t) / p.sigma(t)).square()
        if self.weighting == "vlb":
            if isinstance(p, Chain):
                return bound.chain_weight(p, t, large=self.variance == "large")
            return 0.5 * (p.diffusion(t) / p.sigma(t)).square()
        if self.weighting not in ("min-snr", "edm"):
            return torch.ones_like(t)
        ratio = (-2 * p.half_log_snr(t)).exp()  # sigma^2/alpha^2
        return (self.gamma * ratio).clamp_max(1.0) if self.weighting == "min-snr" else 1 + ratio / self.sigma_data**2

    def __call__(
        self,
        model: ScoreModel,
        x0: Tensor,
        condition: Mapping[str, Any] | None = None,
        *,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Per-sample losses (B,), in the dtype of x0.

        Args:
            model: the model to train.
            x0: data, (B, *shape), floating.
            condition: keyword arguments of the network, such as `{"label": labels}`.
            t: times (B,) instead of drawn ones (as drawn by `times`: an importance weight is still divided out).
            noise: standard normal, shaped like x0, instead of a drawn one.
            generator: source of the draws; torch's global one by default.

        Raises:
            ConfigError: if x0 is not a floating tensor with a batch dimension, or the shapes do not fit.
        """
        if not x0.is_floating_point() or x0.ndim < 2:
            raise ConfigError(
                f"objective: x0 must be a floating tensor of shape (B, *shape), got {x0.dtype} {tuple(x0.shape)}"
            )
        if t is None:
            t = self.times(model, x0.shape[0], generator=generator, device=x0.device)
        if noise is None:
            home = generator.device if generator is not None else x0.device
            noise = torch.randn(x0.shape, dtype=x0.dtype, device=home, generator=generator).to(x0.device)
        prediction = model(model.perturbation.perturb(x0, t, noise), t, **self._dropped(condition, generator))
        p = model.perturbation
        if self.weighting in ("vlb", "hybrid") and isinstance(p, Chain):
            return self._chain_loss(model, p, prediction, x0, noise, t)
        error = (prediction.noise - noise).square().flatten(1).mean(1)
        return self.weight(model, t).to(x0.dtype).to(x0.device) * error

    def _chain_loss(self, model: ScoreModel, p: Chain, out: Prediction, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """K L_k / D at nodes t, for "hybrid" with the mean held fixed and added to the simple loss."""
        hybrid, variance = self.weighting == "hybrid", self._variance(model)
        fraction = bound.fraction_of(variance, out)
        error2, mean = (out.noise - noise).square(), out.denoised
        simple = error2.flatten(1).mean(1)
        if hybrid:
            error2, mean = error2.detach(), mean.detach()
        t = t.to(torch.float64)
        trained = model.trained_under if variance == "learned" else None
        loss = bound.chain_terms(p, error2, mean, fraction, x0, t, self.levels, trained).flatten(1).mean(1)
        loss = loss * (p.length * self._ratio(model, t)).to(x0.dtype).to(x0.device)
        return simple + self.vlb_weight * loss if hybrid else loss

    def _variance(self, model: ScoreModel) -> str:
        """The variance that is meant, of "vlb" and "hybrid" on a chain."""
        hybrid = self.weighting == "hybrid"
        what = "weighting='hybrid'" if hybrid else f"variance={self.variance!r}"
        asked = "learned" if hybrid else self.variance
        return bound.chosen_variance(f"DenoisingScoreMatching: {what}", asked, model)

    def _dropped(self, condition: Mapping[str, Any] | None, generator: torch.Generator | None) -> dict[str, Any]:
        kept = dict(condition or {})
        if self.label_dropout > 0:
            if "label" not in kept:
                raise ConfigError("objective: label_dropout needs condition={'label': labels}")
            label = kept["label"]
            home = generator.device if generator is not None else label.device
            drop = torch.rand(label.shape, device=home, generator=generator).to(label.device) < self.label_dropout
            kept["label"] = torch.where(drop, self.num_classes, label)
        return kept
