r"""Towards what a classifier, or any log-likelihood, prefers.

.. math:: D_w = D + w\,\frac{\sigma^2}{\alpha}\,\nabla_x \log p(c\,|\,x_t)

which, for the exact log p(c | x_t) and w = 1, is the denoiser of p(x | c). A likelihood of the data, put in its place
at x0hat, is a guess that particles (`TwistedSMC`) correct to p(x) p(c|x)^w.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.conditions import Condition
from sde_gen.errors import ConfigError
from sde_gen.guidance.guided import Guided, GuidedLevels, Scale, checked_scale, refuse_cut, scales
from sde_gen.model import ScoreModel
from sde_gen.perturbations import Perturbation


class ClassifierGuidance(Guided):
    """Guidance by the gradient of a log-probability. Dhariwal & Nichol 2021, arXiv:2105.05233.

    Args:
        model: of the data.
        log_prob: returns the log-probability of each sample, (B,), in nats, by operations that torch can differentiate;
            row i is to depend on sample i alone. Of the state, `log_prob(z, half_log_snr)` is given what a network is,
            z = x/sqrt(alpha^2 + sigma^2), (B, *shape), and half_log_snr, (B,), float64; of the denoised,
            `log_prob(x0)`.
        at: "state", for a classifier of noisy data; "denoised", for one of clean data, at x0hat; then the gradient runs
            through the network, at the price of a vector-Jacobian product.
        scale: w: 0 is the model itself, 1 Bayes' rule; a function of sigma/alpha makes a schedule.
        condition: names that `log_prob` is told as keywords, such as ("label",), and the model is not.

    Raises:
        ConfigError: for an argument of another kind or outside its range; when asked, if `log_prob` returns another
            shape, or a network's output carries no gradient.
    """

    def __init__(
        self,
        model: ScoreModel,
        log_prob: Callable[..., Tensor],
        at: str = "state",
        scale: Scale = 1.0,
        *,
        condition: tuple[str, ...] = (),
    ) -> None:
        super().__init__(model)
        if not callable(log_prob):
            raise ConfigError(f"ClassifierGuidance: log_prob must be a function, got {log_prob!r}")
        self.log_prob, self.condition = log_prob, tuple(condition)
        self.at = checks.choice("ClassifierGuidance", "at", at, ("state", "denoised"))
        self.scale = checked_scale("ClassifierGuidance", scale)

    def under(self, perturbation: Perturbation) -> "ClassifierGuidance":
        base = self.base.under(perturbation)
        return ClassifierGuidance(base, self.log_prob, self.at, self.scale, condition=self.condition)

    def levels(
        self, alpha: Tensor, sigma: Tensor, like: Tensor, condition: Mapping[str, Any] | Condition | None = None
    ) -> "ClassifierLevels":
        condition = Condition.of("model", condition, len(like))
        mine = Condition({name: part for name, part in condition.parts.items() if name in self.condition})
        rest = {name: part for name, part in condition.parts.items() if name not in self.condition}
        both = Condition({**self.told(Condition(rest), len(like)).parts, **mine.parts})
        return ClassifierLevels(self, alpha, sigma, like, both)

    def __repr__(self) -> str:
        return f"ClassifierGuidance({self.base!r}, at={self.at!r}, scale={self.scale!r})"


class ClassifierLevels(GuidedLevels):
    """Guidance by a classifier at some noise levels."""

    def __init__(
        self, model: ClassifierGuidance, alpha: Tensor, sigma: Tensor, like: Tensor, condition: Condition
    ) -> None:
        super().__init__(model, alpha, sigma, like, condition)
        self._guided, self._looked = model, False
        told = {name: part for name, part in condition.parts.items() if name not in model.condition}
        self._base = model.base.levels(alpha, sigma, like, Condition(told))
        chosen = Condition({name: part for name, part in condition.parts.items() if name in model.condition})
        self._keywords = chosen.arguments
        weights = scales("ClassifierGuidance", model.scale, alpha, sigma)
        self._weights = self.listed(weights)
        self._pulls = self.listed(weights * sigma.square() / (alpha * self.out))
        self._input = self.listed(torch.rsqrt(alpha.square() + sigma.square()))
        lambdas = (alpha.log() - sigma.log()).to(like.device)
        self._lambdas = (lambdas[:, None] if lambdas.ndim == 1 else lambdas).expand(len(lambdas), len(like)).unbind(0)

    def output(self, k: int, x: Tensor) -> Tensor:
        raw, variance, gradient, _ = self._guide(k, x)
        raw = raw if gradient is None else raw + self._pulls[k] * gradient
        return raw if variance is None else torch.cat([raw, variance], 1)

    def twist(self, k: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        """D, guided D, w log p(c | x_t), (B,), float64, and 0."""
        raw, _, gradient, log_prob = self._guide(k, x)
        denoised = moved = self.data(k, x, raw)
        if gradient is not None:
            moved = self.data(k, x, raw + self._pulls[k] * gradient)
        return denoised, moved, self._weights[k] * log_prob.to(torch.float64), 0.0

    def log_final(self, x: Tensor) -> Tensor:
        """w log p(c | x0), (B,), float64; a classifier of states is asked at the least noise."""
        last = len(self.alpha) - 1
        state = x if self._guided.at == "denoised" else x * float(self.alpha[last])
        return self._weights[last] * self._log_prob(last, state).to(torch.float64)

    def _guide(self, k: int, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
        """F, what the network says of the variance, the gradient of log p in x, and log p."""
        through = self._guided.at == "denoised"
        if self._single and self._weights[k] == 0:
            return *self.asked(self._base, k, x), None, torch.zeros(len(x), dtype=torch.float64, device=x.device)
        with torch.inference_mode(False), torch.enable_grad():
            at = x.detach().clone().requires_grad_()
            with torch.set_grad_enabled(through):
                raw, variance = self.asked(self._base, k, at)
            if through and not self._looked and (not raw.requires_grad or self.is_cut):
                refuse_cut("ClassifierGuidance", self._base, k, at)
                self._looked = True
            log_prob = self._log_prob(k, self.data(k, at, raw) if through else at)
            if not log_prob.requires_grad:
                raise ConfigError("ClassifierGuidance: log_prob carries no gradient of its input; remove "
                                  "torch.no_grad, .detach() or .item() from it")  # fmt: skip
            (gradient,) = torch.autograd.grad(log_prob.sum(), at)
        self._first.products += through
        return raw.detach(), variance, gradient, log_prob.detach()

    def _log_prob(self, k: int, where: Tensor) -> Tensor:
        model, keywords = self._guided, self._keywords
        if model.at == "denoised":
            found = model.log_prob(where, **keywords)
        else:
            found = model.log_prob(self._input[k] * where, self._lambdas[k], **keywords)
        if not isinstance(found, Tensor) or found.shape != where.shape[:1]:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(f"ClassifierGuidance: log_prob must return a number for each sample, ({len(where)},), "
                              f"got {got}")  # fmt: skip
        return found
