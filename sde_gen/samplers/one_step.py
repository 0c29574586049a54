r"""Steps that are one linear combination of the state, the denoised estimate and fresh noise.

.. math:: x_s = a\,x_t + b\,\hat x_0(x_t, t) + c\,z

with numbers of (t, s). The rules differ in what they hold fixed along the step:

- `EulerMaruyama`: all coefficients of :math:`dx = [f x - \tfrac{1+\eta^2}{2} g^2 \nabla\log p_t]\,dt + \eta\, g\, dw`
  (t running down; :math:`\eta = 1` the reverse SDE, 0 the probability-flow ODE);
- `ReverseDiffusion`: the exact forward kernel :math:`x_t = a x_s + b z`, reversed. Song et al. 2021, arXiv:2011.13456;
- `Ancestral` (Ho et al. 2020, arXiv:2006.11239): the posterior of the forward process, with x0hat in the place of data,

  .. math:: p(x_s | x_t, x_0) = N(\frac{a\sigma_s^2}{\sigma_t^2} x_t + \frac{\alpha_s b^2}{\sigma_t^2} x_0,\;
            \frac{b^2\sigma_s^2}{\sigma_t^2} I) ;

- `DDIM` (Song, Meng & Ermon 2021, arXiv:2010.02502): the marginal :math:`N(\alpha_s x_0, \sigma_s^2)`, with a part eta
  of the posterior's noise; at eta = 0 the exponential Euler step of the probability-flow ODE in lambda.

A network may say what the variance of an ancestral step is (Nichol & Dhariwal 2021, arXiv:2102.09672): with f in each
dimension, :math:`\log std^2 = (1 - f)\,\log\frac{b^2\sigma_s^2}{\sigma_t^2} + f\,\log b^2`.
"""

import abc
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_gen.bound_terms import VARIANCES, chosen_variance, log_variance_gap
from sde_gen.checks import checked
from sde_gen.model import combine
from sde_gen.perturbations import Perturbation
from sde_gen.samplers.grid_sampler import GridSampler, Run, Step, require_finite
from sde_gen.shapes import halves


@dataclass(frozen=True)
class OneStepSampler(GridSampler):
    """A sampler whose step is x_s = a x_t + b x0hat(x_t, t) + c z with numbers a, b, c of (t, s)."""

    order = 1.0

    @abc.abstractmethod
    def coefficients(self, p: Perturbation, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(a, b, c) of the steps t -> s (s < t), float64 tensors of one shape."""

    def stepper(self, run: Run) -> Step:
        t, s = run.times[:-1], run.times[1:]
        a, b, c = self.coefficients(run.perturbation, t, s)
        require_finite(self, run.perturbation, t, a, b, c)
        e = run.levels
        # x0hat = skip x + out raw is folded in, which also removes the cancellation that a detour through x0hat has.
        of_x, of_raw = (a + b * e.skip[:-1]).tolist(), (b * e.out[:-1]).tolist()
        of_z, raw, noise, scratch = c.tolist(), e.raw, run.draw, run.buffers()

        def step(k: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
            f, new = raw(k, x), scratch[x is scratch[0]]
            if not of_z[k]:
                return torch.mul(x, of_x[k], out=new).add_(f, alpha=of_raw[k]), None
            # The noise is drawn where the new state will lie, which keeps a buffer out of the cache.
            new = torch.mul(noise(x, k, 0, new), of_z[k], out=new)
            return new.add_(x, alpha=of_x[k]).add_(f, alpha=of_raw[k]), None

        return step


@dataclass(frozen=True)
class EulerMaruyama(OneStepSampler):
    """Euler-Maruyama steps, x + [f x - (1+eta^2)/2 g^2 score](s-t) + eta g sqrt(t-s) z, coefficients at t.

    Args:
        eta: 1 for the reverse SDE, 0 for the probability-flow ODE (Euler's method), >= 0.

    Raises:
        ConfigError: for eta out of range.
    """

    eta: float = checked(1.0, low=0.0)

    @property
    def is_stochastic(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.eta > 0

    def coefficients(self, p: Perturbation, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f, g = p.drift(t), p.diffusion(t)
        h, strength = t - s, 0.5 * (1 + self.eta**2) * (g / p.sigma(t)).square()
        # score = (alpha x0hat - x)/sigma^2
        return 1 - (f + strength) * h, strength * p.alpha(t) * h, self.eta * g * h.sqrt()


@dataclass(frozen=True)
class ReverseDiffusion(OneStepSampler):
    """Reverse-diffusion steps, (2-a) x + b^2 score + b z, with the forward kernel (a, b) from s to t.

    On the DDPM chain a = sqrt(1-beta) and b^2 = beta; on NCSN's levels a = 1 and b^2 = sigma_t^2 - sigma_s^2.
    """

    is_stochastic = True
    uses_chain_nodes = True

    def coefficients(self, p: Perturbation, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b = p.transition(s, t)
        share = (b / p.sigma(t)).square()
        return 2 - a - share, share * p.alpha(t), b


@dataclass(frozen=True)
class Ancestral(OneStepSampler):
    """Ancestral sampling: x_s drawn from p(x_s | x_t, x0hat).

    Args:
        variance: "small", the posterior's b^2 sigma_s^2/sigma_t^2 (beta-tilde of a DDPM chain; right for data at a
            point), or "large", b^2 (beta of a DDPM chain; right for standard normal data), or "learned", between the
            two as the network says; a step to sigma = 0 draws no noise.

    Raises:
        ConfigError: for another variance, or, when run, for "learned" with a network that has no learned variance.
    """

    variance: str = checked("small", choices=VARIANCES)

    is_stochastic = True
    uses_chain_nodes = True
    is_finite_without_signal = True

    def coefficients(self, p: Perturbation, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        of_x, of_data, std = p.posterior(s, t)
        return of_x, of_data, p.transition(s, t)[1] if self.variance == "large" else std

    def stepper(self, run: Run) -> Step:
        if self.variance != "learned":
            return super().stepper(run)
        e, (t, s) = run.levels, (run.times[:-1], run.times[1:])
        chosen_variance("Ancestral: variance='learned'", "learned", e.model)
        a, b, small = self.coefficients(run.perturbation, t, s)
        require_finite(self, run.perturbation, t, a, b, small)
        of_x, of_raw = (a + b * e.skip[:-1]).tolist(), (b * e.out[:-1]).tolist()
        # log std = log small + (1 + v)/4 gap, v the second half of the output
        quarter = 0.25 * log_variance_gap(run.perturbation, s, t, e.model.trained_under)
        drawn, middle, slope = (small > 0).tolist(), (small.log() + quarter).tolist(), quarter.tolist()
        noise, scratch = run.draw, run.buffers()

        def step(k: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
            (f, v), new = halves(e.output(k, x), x), scratch[x is scratch[0]]
            if not drawn[k]:
                return combine(x, of_x[k], f, of_raw[k], new), None
            std = torch.mul(v, slope[k]).add_(middle[k]).exp_()
            new = torch.mul(noise(x, k, 0, new), std, out=new)
            return new.add_(x, alpha=of_x[k]).add_(f, alpha=of_raw[k]), None

        return step


@dataclass(frozen=True)
class DDIM(OneStepSampler):
    """DDIM: x_s = alpha_s x0hat + sqrt(sigma_s^2 - std^2) eps + std z, std = eta times the posterior's.

    Args:
        eta: 0 is deterministic, 1 is `Ancestral(variance="small")`; in [0, 1].

    Raises:
        ConfigError: for eta out of range.
    """

    eta: float = checked(0.0, low=0.0, high=1.0)

    default_steps = 50
    is_finite_without_signal = True

    @property
    def is_stochastic(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.eta > 0

    def coefficients(self, p: Perturbation, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = p.curves(t), p.curves(s)
        share = (p.transition(s, t)[1] / sigma_t).square()  # b^2/sigma_t^2, in [0, 1]
        kept = sigma_s * (1 - self.eta**2 * share).sqrt() / sigma_t  # of eps
        return kept, alpha_s - alpha_t * kept, self.eta * sigma_s * share.sqrt()
