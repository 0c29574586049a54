r"""Heun's second-order method for the probability-flow ODE, in the variables where its only curvature is the model's.

With :math:`y = x/\alpha` and :math:`\rho = \sigma/\alpha` the ODE is :math:`dy/d\rho = (y - D)/\rho` under every
formulation, so the answer depends on the noise levels visited and not on the formulation. Karras et al. 2022,
arXiv:2206.00364 (Algorithm 1 without churn).

`EDMChurn` adds a little noise at each time ("churn") before Heun's step takes more away: step i of N raises the level
to

.. math:: \hat\rho_i = (1+\gamma_i)\rho_i, \qquad \gamma_i = \min(S_{churn}/N, \sqrt2 - 1)
          \text{ where } S_{tmin} \le \rho_i \le S_{tmax}, \text{ else } 0,

by :math:`\hat y = y + S_{noise}\sqrt{\hat\rho^2 - \rho^2}\,z`, the forward process itself. Both parts keep the
marginals, so with :math:`S_{noise} = 1` the only error is that of Heun's method: weak order 2 (Algorithm 2). Two things
are fixed here that the paper leaves open. No level rises above the first of the grid, which is as far as the model is
known: the first step adds nothing. And the last step, the denoised estimate, adds nothing either (with the paper's own
values of S_tmin it never does).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_gen.checks import checked
from sde_gen.errors import ConfigError
from sde_gen.model import combine
from sde_gen.perturbations import Perturbation
from sde_gen.samplers.grid_sampler import GridSampler, Run, Step, require_finite
from sde_gen.samplers.grids import KarrasRho


@dataclass(frozen=True)
class Heun(GridSampler):
    """Heun's method: an Euler step in sigma/alpha, corrected by the slope found at its end; two calls a step.

    With `denoise=True`, `steps=N` calls the network 2N - 1 times.
    """

    order = 2.0
    default_steps = 18
    default_grid = KarrasRho()

    def stepper(self, run: Run) -> Step:
        e = run.levels
        alpha, rho = e.alpha, e.sigma / e.alpha
        h = rho[1:] - rho[:-1]
        grow = alpha[1:] / alpha[:-1]
        # Euler: y' = y + h (y - D)/rho_t; correction: y'' = y + h/2 [(y - D)/rho_t + (y' - D')/rho_s].
        ratio, half, end = rho[1:] / rho[:-1], 0.5 * h / rho[:-1], 0.5 * h / rho[1:]
        require_finite(self, run.perturbation, run.times[:-1], ratio, grow)
        # At rho_s = 0 the slope at the end has no value: that step stays Euler's, which lands on x0hat.
        whole = rho[1:] > 0
        of_x, of_d = (grow * ratio).tolist(), (alpha[1:] * (1 - ratio)).tolist()
        x_coef, d_coef = (grow * (1 + half)).tolist(), (-alpha[1:] * half).tolist()
        end_coef, end_d = end.tolist(), (-alpha[1:] * end).tolist()
        two_calls = whole.tolist()
        denoised, states, middles = e.denoised, run.buffers(), run.buffers()

        def step(k: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
            d = denoised(k, x)
            if not two_calls[k]:
                return combine(x, of_x[k], d, of_d[k], states[x is states[0]]), None
            euler = combine(x, of_x[k], d, of_d[k], middles[x is middles[0]])
            d_end = denoised(k + 1, euler)
            new = combine(x, x_coef[k], d, d_coef[k], states[x is states[0]])
            return new.add_(euler, alpha=end_coef[k]).add_(d_end, alpha=end_d[k]), None

        return step


@dataclass(frozen=True)
class EDMChurn(GridSampler):
    """Heun's method with churn; two calls a step.

    With `denoise=True`, `steps=N` calls the network 2N - 1 times. N in S_churn/N is the number of times visited. On a
    chain the raised levels lie between the nodes.

    Args:
        s_churn: total amount of churn, >= 0; 0 is `Heun()`. The paper used 30 to 80.
        s_tmin, s_tmax: levels sigma/alpha between which noise is added, 0 <= s_tmin <= s_tmax; s_tmax may be infinite.
        s_noise: factor of the added noise, > 0. Above 1 it makes up for a network that removes too much; any value but
            1 leaves a bias that more steps do not remove.

    Attributes:
        order: 2 (weak); None unless s_noise is 1.

    Raises:
        ConfigError: for values outside these.
    """

    s_churn: float = checked(40.0, low=0.0)
    s_tmin: float = checked(0.05, low=0.0)
    s_tmax: float = checked(50.0, low=0.0, infinite=True)
    s_noise: float = checked(1.0, above=0.0)

    default_steps = 18
    default_grid = KarrasRho()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.s_tmin > self.s_tmax:
            raise ConfigError(f"EDMChurn: s_tmin={self.s_tmin} must not be above s_tmax={self.s_tmax}")

    @property
    def order(self) -> float | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 2.0 if self.s_noise == 1 or not self.s_churn else None

    @property
    def is_stochastic(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.s_churn > 0

    def raised(self, p: Perturbation, times: Tensor) -> Tensor:
        """Times of the raised levels, one for each step."""
        lam = p.half_log_snr(times)
        rho = torch.exp(-lam)
        gamma = min(self.s_churn / len(times), math.sqrt(2) - 1)
        inside = (rho >= self.s_tmin) & (rho <= self.s_tmax)
        up = (lam - math.log1p(gamma)).clamp_min(lam[0])
        return torch.where(inside & (up < lam), p.time(torch.where(lam.isfinite(), up, lam[0])), times)[:-1]

    def stepper(self, run: Run) -> Step:
        p, times, end = run.perturbation, run.times, run.levels
        raised = self.raised(p, times)
        begin = end.at(*p.curves(raised))
        grow, added = p.transition(times[:-1], raised)
        added = added * self.s_noise
        rho, rho_end = begin.sigma / begin.alpha, end.sigma[1:] / end.alpha[1:]
        scale, ratio, h = end.alpha[1:] / begin.alpha, rho_end / rho, rho_end - rho
        require_finite(self, p, times[:-1], grow, added, scale, ratio)
        # As in `heun`: Euler in rho, then the mean of the slopes at both ends; Euler alone onto rho = 0.
        of_x, of_d = (scale * ratio).tolist(), (end.alpha[1:] * (1 - ratio)).tolist()
        half, half_end = 0.5 * h / rho, torch.where(rho_end > 0, 0.5 * h / rho_end, 0.0)
        x_coef, d_coef = (scale * (1 + half)).tolist(), (-end.alpha[1:] * half).tolist()
        end_coef, end_d = half_end.tolist(), (-end.alpha[1:] * half_end).tolist()
        of_raised, of_z = grow.tolist(), added.tolist()
        noise, states, middles, hats = run.draw, run.buffers(), run.buffers(), run.buffers()

        def step(k: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
            if of_z[k]:
                x = combine(x, of_raised[k], noise(x, k, 0), of_z[k], hats[x is hats[0]])
            d = begin.denoised(k, x)
            euler = combine(x, of_x[k], d, of_d[k], middles[x is middles[0]])
            if not end_coef[k]:
                return euler, None
            d_end = end.denoised(k + 1, euler)
            new = combine(x, x_coef[k], d, d_coef[k], states[x is states[0]])
            return new.add_(euler, alpha=end_coef[k]).add_(d_end, alpha=end_d[k]), None

        return step
