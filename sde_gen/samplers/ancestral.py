r"""Steps that draw from the exact posterior of the forward process, with x0hat in the place of the data.

.. math:: p(x_s | x_t, x_0) = N(\frac{a\sigma_s^2}{\sigma_t^2} x_t + \frac{\alpha_s b^2}{\sigma_t^2} x_0,\;
          \frac{b^2\sigma_s^2}{\sigma_t^2} I)

`Ancestral` is DDPM's sampler (Ho et al. 2020, arXiv:2006.11239). `DDIM` keeps the marginal N(alpha_s x0, sigma_s^2)
but draws only a part eta of the posterior's noise (Song, Meng & Ermon 2021, arXiv:2010.02502); at eta = 0 it is the
exponential Euler step of the probability-flow ODE in lambda, exact when x0hat does not change along the step.

A network may say what the variance of a step is (Nichol & Dhariwal 2021, arXiv:2102.09672): with f in each dimension,

.. math:: \log std^2 = (1 - f)\,\log\frac{b^2\sigma_s^2}{\sigma_t^2} + f\,\log b^2 .
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks as check
from sde_gen.bound_terms import VARIANCES, chosen_variance, log_variance_gap
from sde_gen.model import halves
from sde_gen.perturbations import Perturbation
from sde_gen.samplers.grid_sampler import OneStepSampler, Run, Step, combine, require_finite


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

    variance: str = "small"

    uses_chain_nodes = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check.choice("Ancestral", "variance", self.variance, VARIANCES)

    @property
    def order(self) -> float:
        return 1.0

    @property
    def is_stochastic(self) -> bool:
        return True

    def coefficients(self, p: Perturbation, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        of_x, of_data, std = p.posterior(s, t)
        return of_x, of_data, p.transition(s, t)[1] if self.variance == "large" else std

    def stepper(self, run: Run) -> Step:
        if self.variance != "learned":
            return super().stepper(run)
        e, (t, s) = run.evaluation, (run.times[:-1], run.times[1:])
        chosen_variance("Ancestral: variance='learned'", "learned", e.model)
        a, b, small = self.coefficients(run.perturbation, t, s)
        require_finite(self, run.perturbation, t, a, b, small)
        of_x, of_raw = (a + b * e.skip[:-1]).tolist(), (b * e.out[:-1]).tolist()
        # log std = log small + (1 + v)/4 gap, v the second half of the output
        quarter = 0.25 * log_variance_gap(run.perturbation, s, t, e.model.trained_under)
        drawn, middle, slope = (small > 0).tolist(), (small.log() + quarter).tolist(), quarter.tolist()
        noise, scratch = run.draw, run.scratch()

        def step(k: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
            (f, v), new = halves(e.output(k, x), x), scratch.other(x)
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

    eta: float = 0.0

    default_steps = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        check.number("DDIM", "eta", self.eta, low=0.0, high=1.0)

    @property
    def order(self) -> float:
        return 1.0

    @property
    def is_stochastic(self) -> bool:
        return self.eta > 0

    def coefficients(self, p: Perturbation, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sigma_t, sigma_s = p.sigma(t), p.sigma(s)
        share = (p.transition(s, t)[1] / sigma_t).square()  # b^2/sigma_t^2, in [0, 1]
        kept = sigma_s * (1 - self.eta**2 * share).sqrt() / sigma_t  # of eps
        return kept, p.alpha(s) - p.alpha(t) * kept, self.eta * sigma_s * share.sqrt()
