r"""A model of x given y = A x + noise: the denoiser moved towards what was observed.

With :math:`D = D(x, t)`, its Jacobian :math:`J = dD/dx` and noise covariance R, the likelihood of a noisy state is
taken to be :math:`\psi_t(x) = N(y;\; A D,\; R + C_t)`, and the guided denoiser, the covariance held fixed, is

.. math:: D_y = D + \frac{\sigma^2}{\alpha} J^\top A^\top (R + C_t)^{-1} (y - A D) .

- "mmps": :math:`C_t = \frac{\sigma^2}{\alpha} A J A^\top`, the covariance of x0 given x_t by Tweedie's second formula;
  exact for Gaussian data. Rozet et al. 2024, arXiv:2405.13712.
- "pigdm": :math:`C_t = r_t^2 A A^\top`, :math:`r_t^2 = \sigma^2 v/(\alpha^2 v + \sigma^2)` for data of variance v.
  Song et al. 2023 (Pseudoinverse-guided diffusion models).

Both are guesses for data that are not Gaussian; `TwistedSMC` takes them as proposals and corrects them.
"""

import math
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.conditions import NOTHING, Condition, Rows
from sde_gen.errors import ConfigError
from sde_gen.inverse.curvature import conjugate, written_out
from sde_gen.inverse.linearised import Linear, Sampled, Tangent
from sde_gen.inverse.measurement import Measurement, read_noise
from sde_gen.inverse.operators import Operator
from sde_gen.model import Levels, ScoreModel
from sde_gen.parameterizations import DataPrediction
from sde_gen.perturbations import Perturbation
from sde_gen.shapes import trailing

METHODS = ("mmps", "pigdm", "none")
#: Up to so many observed numbers A J A' is written out, one vector-Jacobian product a number; beyond, so many steps.
_DENSE, _STEPS = 8, 3
#: sigma/alpha in units of the data's spread up to which a network is guided: beyond, its Jacobian is noise.
_REACH = 5.0
#: Name under which observations with a row for each sample travel with a condition.
_NAME = "observation"
_GUIDED = ("a guided model is the denoiser of no data, so it has no likelihood; the evidence of an observation is "
           "TwistedSMC(...)(posterior, shape).log_evidence")  # fmt: skip


class Posterior(ScoreModel):
    """A `ScoreModel` of x given y, which every sampler takes.

    Args:
        model: of x. Its Jacobian is taken by automatic differentiation, also of a network in evaluation mode.
        operator: what is measured, such as `Mask(seen)` or `Matrix(a)`.
        y: one observation for all samples, or `Rows(y)` with one for each.
        noise_std: standard deviation of the noise of each number, > 0; a vector (m,), or a covariance (m, m).
        method: "mmps" or "pigdm", as above; "none" guides nowhere and serves `TwistedSMC`, which weights without
            gradients of the network.
        data_std: root of the mean variance of the data; by default that of an oracle's law, and 1 for a network.
        steps: of conjugate gradients for "mmps", one vector-Jacobian product each; m are exact for Gaussian data. By
            default A J A' is written out up to 8 observed numbers (m products), beyond there are 3 steps.
        reach: guidance begins at sigma/alpha = reach * data_std; by default 5 for a network, whose Jacobian is noise
            beyond, and everywhere for an oracle.

    The Jacobian of a network need not be a covariance. Written out, A J A' is replaced by its absolute value, which
    overshoots no observation, and does nothing along directions of negative curvature; conjugate gradients stop, for
    that sample, at the first direction of less curvature than the noise has, with the step of "pigdm" if that is the
    first. Samples are taken down to sigma/alpha = noise_std/(3 |A|) where the
    model was trained so far. What is NaN stays NaN, so that samplers raise `NonFiniteError`.

    Raises:
        ConfigError: for an argument of another kind; when asked, if y does not fit the operator.
    """

    no_density = _GUIDED

    def __init__(
        self,
        model: ScoreModel,
        operator: Operator,
        y: Any,
        noise_std: Any,
        method: str = "mmps",
        *,
        data_std: float | None = None,
        steps: int | None = None,
        reach: float | None = None,
    ) -> None:
        if not isinstance(model, ScoreModel):
            raise ConfigError(f"Posterior: model must be a ScoreModel, got {type(model).__name__}")
        if not isinstance(operator, Operator):
            raise ConfigError(
                f"Posterior: operator must be an Operator such as Mask(seen) or Matrix(a), "
                f"got {type(operator).__name__}"
            )
        super().__init__(None, model.perturbation, DataPrediction())
        self.base, self.operator, self.noise_std = model, operator, noise_std
        self.trained_under, self.training = model.trained_under, model.training
        self.shape, self.classes, self.transform = model.shape, model.classes, model.transform
        self.method = checks.choice("Posterior", "method", method, METHODS)
        data_std = spread_of(model) if data_std is None else data_std
        self.data_std = checks.number("Posterior", "data_std", data_std, low=0.0, open_low=True)
        self.steps = None if steps is None else checks.integer("Posterior", "steps", steps)
        if reach is None:
            reach = math.inf if hasattr(model, "law") else _REACH
        self.reach = checks.number("Posterior", "reach", reach, low=0.0, open_low=True, infinite=True)
        std, factor = read_noise(noise_std)
        self._least = float(std.min() if factor is None else torch.linalg.svdvals(factor)[-1])
        self.y = y.value if isinstance(y, Rows) else torch.as_tensor(y)
        self.given = (Condition({_NAME: y}) if isinstance(y, Rows) else NOTHING).beside(model.given, "Posterior", None)
        self._bound: dict[Any, Measurement] = {}

    def using(self, method: str) -> "Posterior":
        """The same posterior by another method."""
        return self._remade(self.base, method)

    def under(self, perturbation: Perturbation) -> "Posterior":
        """The same posterior under another formulation: what is guided is the model moved there."""
        return self._remade(self.base.under(perturbation), self.method)

    def _remade(self, base: ScoreModel, method: str) -> "Posterior":
        y = Rows(self.y) if _NAME in self.given.parts else self.y
        other = Posterior(base, self.operator, y, self.noise_std, method, data_std=self.data_std, steps=self.steps,
                          reach=self.reach)  # fmt: skip
        other._bound, other.training = self._bound, self.training
        return other

    def measurement(self, shape: tuple[int, ...], device: torch.device) -> Measurement:
        """The operator and its noise for samples of this shape."""
        key = (shape, device)
        if key not in self._bound:
            self._bound[key] = Measurement(self.operator, self.noise_std, shape, device)
        return self._bound[key]

    def levels(self, alpha: Tensor, sigma: Tensor, like: Tensor, condition: Any = None) -> "PosteriorLevels":
        if not isinstance(condition, Condition):
            condition = Condition.of("model", condition, len(like))
        return PosteriorLevels(self, alpha, sigma, like, condition.beside(self.given, "Posterior", len(like)))

    def times_within(self, t_low: float | None = None) -> tuple[float, float]:
        """As of the model, but on down to sigma/alpha = noise_std/(3 |A|)."""
        low, high = self.base.times_within(t_low)
        p, wanted = self.perturbation, math.log(3 * self.operator.norm / self._least)
        if t_low is not None or wanted <= float(p.half_log_snr(low)):
            return low, high
        # An oracle knows its law without noise too; a network what it was trained on.
        least = 0.0 if hasattr(self.base, "law") else p.t_min
        return self.base.times_within(float(p.time(min(wanted, float(p.half_log_snr(least))))))

    @property
    def network_dtype(self) -> torch.dtype | None:
        return self.base.network_dtype

    def warn_between_nodes(self, half_log_snr: Tensor) -> None:
        self.base.warn_between_nodes(half_log_snr)

    def __repr__(self) -> str:
        return f"Posterior({self.base!r} given {self.operator!r} by {self.method!r}, noise {self.noise_std!r})"


def spread_of(model: ScoreModel) -> float:
    """Root of the mean variance of the data: that of an oracle's law, and 1 for a network."""
    law = getattr(model, "law", None)
    if law is None:
        return 1.0
    x = law.sample(4096)
    return max(float((x - x.mean(0)).square().mean().sqrt()), 1e-6)


class PosteriorLevels(Levels):
    """A guided model at some noise levels; calls and vector-Jacobian products of the network are counted."""

    def __init__(self, model: Posterior, alpha: Tensor, sigma: Tensor, like: Tensor, condition: Condition) -> None:
        super().__init__(model, alpha, sigma, like, condition)
        told = dict(condition.parts)
        observed = told.pop(_NAME, None)
        y, rows = (model.y, False) if observed is None else (observed.value, True)
        self.guided, self._looked = model, False
        self.base = model.base.levels(alpha, sigma, like, Condition(told))
        self.measured = model.measurement(tuple(like.shape[1:]), like.device)
        self.y = self.measured.observed(y, rows)
        # Of each level, a number or one for each sample: sigma^2/alpha, the variance r^2, and whether it is guided.
        spread = model.data_std**2
        parts = (
            sigma.square() / alpha,
            sigma.square() * spread / (alpha.square() * spread + sigma.square()),
            sigma <= model.reach * model.data_std * alpha,
        )
        self._parts = [part.tolist() if self._single else part.to(like.device).unbind(0) for part in parts]

    def output(self, k: int, x: Tensor) -> Tensor:
        return self._guide(k, x, False)[1]

    def twist(self, k: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor | float, float]:
        """D of x alone, guided D, log psi_t(x) in nats, (B,), float64, and 0: what particles ask at level k."""
        return *self._guide(k, x, True), 0.0

    def log_final(self, x: Tensor) -> Tensor:
        """log p(y | x0), (B,)."""
        return self.measured.log_likelihood(self.y, x)

    def _guide(self, k: int, x: Tensor, weigh: bool) -> tuple[Tensor, Tensor, Tensor | float]:
        """D, guided D and, if asked, log psi."""
        grow, variance, reached = (part[k] for part in self._parts)
        if self._single and not reached:
            denoised = self._asked(k, x)
            return denoised, denoised, 0.0
        method, linear = self.guided.method, self.guided.operator.is_linear
        if not self._single:
            grow, variance = (c.detach().expand(len(x))[:, None] for c in (grow, variance))
        if method == "none":
            denoised = self._asked(k, x)
            if not weigh:
                return denoised, denoised, 0.0
            near = (Linear if linear else Sampled)(self.measured, self.y, denoised, variance)
            psi = self._log_psi(near.error, near.solve(near.error), near.log_det())
            return denoised, denoised, psi if self._single else torch.where(reached, psi, 0.0)
        with torch.inference_mode(False), torch.enable_grad():
            at = x.detach().clone().requires_grad_()
            denoised = self._asked(k, at)
            if not denoised.requires_grad or (self.base.is_cut and not self._looked):
                self._look(k, at)
        values = denoised.detach()

        def pulled(v: Tensor) -> Tensor:
            """J' v, float64."""
            self._first.products += 1
            return torch.autograd.grad(denoised, at, v.to(denoised.dtype), retain_graph=True)[0].to(torch.float64)

        near = (Linear if linear else Tangent)(self.measured, self.y, values, variance)
        log_det = 0.0
        if method == "pigdm":
            u = near.solve(near.error)
            moved = pulled(near.adjoint(u))
        elif self.guided.steps is None and self.measured.size <= _DENSE:
            u, moved, log_det = written_out(near.error, near.forward, near.adjoint, pulled, grow)
        else:
            steps = self.guided.steps or _STEPS
            u, moved = conjugate(near.error, near.forward, near.adjoint, pulled, near.solve, grow, steps)
        psi = 0.0
        if weigh:
            exact = isinstance(log_det, Tensor)
            psi = self._log_psi(near.error, u, log_det if exact else near.log_det())
        step = grow if self._single else trailing(grow[:, 0], x.ndim)
        moved = values + (step * moved).to(x.dtype)
        if self._single:
            return values, moved, psi
        reached_psi = torch.where(reached, psi, 0.0) if weigh else 0.0
        return values, torch.where(trailing(reached, x.ndim), moved, values), reached_psi

    def _look(self, k: int, x: Tensor) -> None:
        """Refuse a network whose output carries no gradient, though it says something of its input."""
        moved, self._looked = x.detach() + 0.1 * (1 + x.detach().abs()), True
        levels = self.base.at(self.base.alpha, self.base.sigma)
        if not torch.equal(levels.raw(k, x), levels.raw(k, moved)):
            raise ConfigError(
                "Posterior: the network's output carries no gradient of its input; remove torch.no_grad, .detach() or "
                "a compiled inference mode from its forward, or use particles with twist='none'"
            )

    def _log_psi(self, error: Tensor, u: Tensor, log_det: Tensor | float) -> Tensor:
        """log N(y; A D, R + C) where u = (I + C)^-1 (y - A D), (B,)."""
        return self.measured.log_scale - 0.5 * ((error * u).sum(1) + log_det)

    def _asked(self, k: int, x: Tensor) -> Tensor:
        """D of the model that is guided, its calls counted."""
        return self.counted(self.base, self.base.denoised, k, x)
