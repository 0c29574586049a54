r"""A model whose law is reweighted by a function of the data: :math:`p(x)\, L(x)` for any L of yours.

On the way the potential of a noisy state is the mean of L over the data it may come from, taken to be
:math:`N(D, r_t^2 I)` with :math:`r_t^2 = \sigma^2 v/(\alpha^2 v + \sigma^2)` for data of variance v,

.. math:: \psi_t(x) = \frac1M \sum_{j=1}^M L(D + r_t z_j), \qquad
          D_L = D + \frac{\sigma^2}{\alpha} J^\top \nabla_D \log\psi_t ,

with the same z in opposite pairs for all samples and times: L at D alone is overconfident.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.conditions import Condition
from sde_gen.errors import ConfigError
from sde_gen.inverse.posterior import spread_of
from sde_gen.model import Levels, ScoreModel
from sde_gen.parameterizations import DataPrediction
from sde_gen.perturbations import Perturbation
from sde_gen.shapes import trailing


class Tilted(ScoreModel):
    """A `ScoreModel` of p(x) exp(log_prob(x)): a likelihood, a reward, or the logits of a classifier.

    Any sampler takes it, as a guess; `TwistedSMC` is right, and its `log_evidence` is the log of the mean of
    exp(log_prob) under the model.

    Args:
        model: of x.
        log_prob: from (B, *shape) to (B,), row by row, finite; NaN is refused by samplers.
        draws: M, even, >= 2.
        guided: whether its gradient moves the samples. False asks no gradients, of it nor of the model, and leaves all
            to the weights.
        data_std: root of the mean variance of the data; by default that of an oracle's law, and 1 for a network.

    Raises:
        ConfigError: for an argument of another kind.
    """

    no_density = "a tilted model is the denoiser of no data, so it has no likelihood"

    def __init__(
        self,
        model: ScoreModel,
        log_prob: Callable[[Tensor], Tensor],
        *,
        draws: int = 16,
        guided: bool = True,
        data_std: float | None = None,
    ) -> None:
        if not isinstance(model, ScoreModel) or not callable(log_prob):
            raise ConfigError(f"Tilted: give a ScoreModel and a function log_prob(x), got {model!r} and {log_prob!r}")
        super().__init__(None, model.perturbation, DataPrediction())
        self.base, self.log_prob = model, log_prob
        self.draws = checks.integer("Tilted", "draws", draws, low=2)
        if self.draws % 2:
            raise ConfigError(f"Tilted: draws come in opposite pairs, so give an even number, got {draws}")
        self.is_guided = checks.boolean("Tilted", "guided", guided)
        self.data_std = spread_of(model) if data_std is None else data_std
        checks.number("Tilted", "data_std", self.data_std, low=0.0, open_low=True)
        self.trained_under, self.training, self.given = model.trained_under, model.training, model.given
        self.shape, self.classes, self.transform = model.shape, model.classes, model.transform

    def under(self, perturbation: Perturbation) -> "Tilted":
        """The same law under another formulation."""
        return Tilted(self.base.under(perturbation), self.log_prob, draws=self.draws, guided=self.is_guided,
                      data_std=self.data_std)  # fmt: skip

    def levels(self, alpha: Tensor, sigma: Tensor, like: Tensor, condition: Any = None) -> "TiltedLevels":
        if not isinstance(condition, Condition):
            condition = Condition.of("model", condition, len(like))
        return TiltedLevels(self, alpha, sigma, like, condition)

    def times_within(self, t_low: float | None = None) -> tuple[float, float]:
        return self.base.times_within(t_low)

    def warn_between_nodes(self, half_log_snr: Tensor) -> None:
        self.base.warn_between_nodes(half_log_snr)

    def __repr__(self) -> str:
        return f"Tilted({self.base!r} by {getattr(self.log_prob, '__name__', type(self.log_prob).__name__)})"


class TiltedLevels(Levels):
    """A tilted model at some noise levels."""

    def __init__(self, model: Tilted, alpha: Tensor, sigma: Tensor, like: Tensor, condition: Condition) -> None:
        super().__init__(model, alpha, sigma, like, condition)
        self.tilted, self.base = model, model.base.levels(alpha, sigma, like, condition)
        v = model.data_std**2
        parts = sigma.square() / alpha, sigma * v**0.5 / (alpha.square() * v + sigma.square()).sqrt()
        self._parts = [part.to(like.device).unbind(0) for part in parts]
        z = torch.randn(model.draws // 2, *like.shape[1:], dtype=torch.float64,
                        generator=torch.Generator().manual_seed(0))  # fmt: skip
        self._z = torch.cat([z, -z]).to(like.device)

    def output(self, k: int, x: Tensor) -> Tensor:
        return self.twist(k, x)[1] if self.tilted.is_guided else self._asked(k, x)

    def twist(self, k: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        """D, D_L, log psi and 0."""
        if not self.tilted.is_guided:
            denoised = self._asked(k, x)
            return denoised, denoised, self._log_psi(k, denoised), 0.0
        with torch.inference_mode(False), torch.enable_grad():
            at = x.detach().clone().requires_grad_()
            denoised = self._asked(k, at)
            log_psi = self._log_psi(k, denoised)
            if not log_psi.requires_grad:
                raise ConfigError("Tilted: log_prob, or the model, carries no gradient of its input; use guided=False")
            self._first.products += 1
            (g,) = torch.autograd.grad(log_psi.sum(), at)
        step = trailing(self._parts[0][k], x.ndim)
        return denoised.detach(), (denoised.detach() + step * g).to(x.dtype), log_psi.detach(), 0.0

    def log_final(self, x: Tensor) -> Tensor:
        """log L(x0), (B,)."""
        return self._log_prob(x)

    def _log_psi(self, k: int, denoised: Tensor) -> Tensor:
        """log of the mean of L over the draws around the estimate, (B,)."""
        spread = trailing(self._parts[1][k], denoised.ndim)
        each = [self._log_prob(denoised + (spread * z).to(denoised.dtype)) for z in self._z]
        return torch.stack(each).logsumexp(0) - torch.tensor(float(len(each)), dtype=torch.float64).log()

    def _log_prob(self, x: Tensor) -> Tensor:
        found = self.tilted.log_prob(x)
        if not isinstance(found, Tensor) or found.shape != x.shape[:1]:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(f"Tilted: log_prob must return one number for each sample, ({len(x)},), got {got}")
        return found.to(torch.float64)

    def _asked(self, k: int, x: Tensor) -> Tensor:
        """D of the model that is tilted, its calls counted."""
        return self.counted(self.base, self.base.denoised, k, x)
