r"""Several models as one: the mixture of their laws, without their densities.

The score of :math:`\sum_j w_j p_j` needs the ratios of the noisy densities, which scores alone do not give. Along a
path they do: each expert is a chain of Gaussian steps, and by Bayes' rule the path tells which of them it came from,

.. math:: \pi_j(x_{T:s}) \propto \pi_j(x_{T:t})\, N(x_s;\, a x_t + b D_j,\, c^2), \qquad \pi_j(x_T) = w_j .

So :math:`\bar D = \sum_j \pi_j D_j` is the denoiser of the mixture, and its Jacobian has
:math:`\partial\pi_j/\partial x = \pi_j \frac{\alpha}{\sigma^2} (D_j - \bar D)` in it. In the limit of small steps
:math:`\pi` is the estimate of
Skreta et al. 2024, arXiv:2412.17762. A step draws an expert by :math:`\pi`, and then as that expert does: for any
number of steps the law is the mixture of those that the experts have by themselves. A guided step is weighted with
:math:`\sum_j \pi_j N(x_s; a x_t + b D_j, c^2) / \sum_j \pi_j N(x_s; a x_t + b (D_j + P - \bar D), c^2)`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.conditions import Condition
from sde_gen.errors import ConfigError
from sde_gen.inverse.experts import Experts, ExpertsLevels
from sde_gen.model import Levels, ScoreModel
from sde_gen.perturbations import Perturbation
from sde_gen.shapes import trailing

_ALONE = ("the score of a mixture needs the densities of its experts, which only their paths tell: sample it with "
          "TwistedSMC, itself or as the model of a Posterior or a Tilted")  # fmt: skip


class Mixture(Experts):
    """The mixture of the laws of several models, sum_j w_j p_j.

    `TwistedSMC` samples it, exactly where it is alone, whatever the number of particles and steps: the law is the
    mixture of what each expert draws. `Posterior(Mixture(models), operator, y, noise_std)` weighs the experts by their
    evidence too, p(j | y) in proportion to w_j p_j(y), which is `experts` of the result. Each particle asks every
    expert at each step.

    Args:
        models: under one perturbation; oracles or networks, not guided ones.
        weights: one for each, > 0, normalised to sum to one; by default all alike.

    Raises:
        ConfigError: for arguments that do not fit together; when asked, by anything but `TwistedSMC`.
    """

    no_density = ("the likelihood of a mixture is that of its parts: the logsumexp over the experts of log w_j and "
                  "their log-likelihoods")  # fmt: skip

    def __init__(self, models: Sequence[ScoreModel], weights: Sequence[float] | None = None) -> None:
        where, models = "Mixture", list(models)
        numbers = [1.0] * len(models) if weights is None else list(weights)
        numbers = [checks.number(where, "weight", w, low=0.0, open_low=True) for w in numbers]
        if not models or len(models) != len(numbers):
            raise ConfigError(f"{where}: give one model or more, and a weight for each, got {len(models)} models and "
                              f"{len(numbers)} weights")  # fmt: skip
        super().__init__(models)
        if any(m.starts_late for m in models):
            raise ConfigError(f"{where}: its experts begin from noise, and one of them from data; give its base")
        self.weights = tuple(w / sum(numbers) for w in numbers)

    def under(self, perturbation: Perturbation) -> "Mixture":
        """The same mixture under another formulation."""
        other = Mixture([m.under(perturbation) for m in self.experts], self.weights)
        other.training = self.training
        return other

    def levels(self, alpha: Tensor, sigma: Tensor, like: Tensor, condition: Any = None) -> "MixtureLevels":
        if not isinstance(condition, Condition):
            condition = Condition.of("model", condition, len(like))
        return MixtureLevels(self, alpha, sigma, like, condition)

    def __repr__(self) -> str:
        return "Mixture(" + ", ".join(f"{w:.3g} * {m!r}" for m, w in zip(self.models, self.weights, strict=True)) + ")"


class MixtureLevels(ExpertsLevels):
    """A mixture at some noise levels, along paths of states that `begin`, `branch` and `weigh` tell it of."""

    def __init__(self, model: Mixture, alpha: Tensor, sigma: Tensor, like: Tensor, condition: Condition) -> None:
        super().__init__(model, alpha, sigma, like, condition)
        if any(hasattr(expert, "twist") for expert in self.experts):
            raise ConfigError("Mixture: its experts are models as they are; guide the mixture, as in "
                              "Posterior(Mixture(models), ...)")  # fmt: skip
        self._weights = torch.tensor(model.weights, dtype=torch.float64, device=like.device)
        self._slopes = (alpha / sigma.square()).to(like.device).unbind(0)
        self._log_shares: Tensor = self._weights[:0]  # log pi of each state, (B, J); of none before `begin`
        self._apart: Tensor = self._weights[:0]  # D_j - Dbar of those last asked for, (B, J, *shape)

    def at(self, alpha: Tensor, sigma: Tensor) -> Levels:
        other = super().at(alpha, sigma)
        if isinstance(other, MixtureLevels):
            other._log_shares = self._log_shares
        return other

    def begin(self) -> None:
        """The states to come are noise, and of each expert by its weight."""
        self._log_shares = self._weights.log().expand(len(self._like), -1)

    def output(self, k: int, x: Tensor) -> Tensor:
        if not len(self._log_shares):
            raise ConfigError(_ALONE)
        each = torch.stack([self.counted(expert, expert.denoised, k, x) for expert in self.experts], 1)
        self.is_cut = any(expert.is_cut for expert in self.experts)
        log_shares = self._log_shares
        if x.requires_grad and torch.is_grad_enabled():  # the slope of log p_j, less what all share; of value 0
            slope = trailing(self._slopes[k], 2)
            log_shares = log_shares + slope * (each.detach() * (x - x.detach())[:, None]).flatten(2).sum(2)
        mean = torch.einsum("bj,bj...->b...", log_shares.softmax(1).to(x.dtype), each)
        self._apart = (each - mean[:, None]).detach()
        return mean

    def twist(self, k: int, x: Tensor) -> tuple[Tensor, Tensor, float, float]:
        """The estimate twice, no potential and no rate: what steps change, `weigh` tells."""
        mean = self.output(k, x)
        return mean, mean, 0.0, 0.0

    def log_final(self, x: Tensor) -> float:
        """The law has no potential of the data besides."""
        return 0.0

    @property
    def shares(self) -> Tensor:
        """pi of each state, (B, J), float64."""
        return self._log_shares.exp()

    def branch(self, u: Tensor, gain: float, place: Tensor | None = None) -> Tensor:
        """gain (D_j - Dbar) with experts j drawn by u, (B,), in (0, 1); for the states at `place` that go on."""
        here = slice(None) if place is None else place
        self._log_shares, self._apart = self._log_shares[here], gain * self._apart[here]
        chosen = (u[:, None] > self.shares.cumsum(1)[:, :-1]).sum(1)
        return self._apart[torch.arange(len(u), device=u.device), chosen]

    def weigh(self, z: Tensor, pull: Tensor | None) -> Tensor | float:
        """The shares after a step, and what its weight is of, (B,), float64.

        Args:
            z: the step, from the mean of the proposal, in units of its standard deviation c.
            pull: b/c (P - Dbar), or None where the proposal is the chain.
        """

        def log_steps(moved: Tensor) -> Tensor:
            errors = (moved[:, None] - self._apart).flatten(2)
            return self._log_shares - 0.5 * errors.square().sum(2, dtype=torch.float64)

        right = log_steps(z if pull is None else z + pull)
        total = right.logsumexp(1)
        change = 0.0 if pull is None else total - log_steps(z).logsumexp(1)
        self._log_shares = right - total[:, None]
        return change
