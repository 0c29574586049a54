r"""Multistep exponential integrators of the probability-flow ODE.

In lambda the ODE has the exact solution

.. math:: x_s = \frac{\sigma_s}{\sigma_t} x_t + \sigma_s \int_{\lambda_t}^{\lambda_s} e^{\lambda} D(\lambda)\,d\lambda .

DPM-Solver++ replaces D by a polynomial through the last denoised estimates. With :math:`h = \lambda_s - \lambda_t`
and the straight line through the last two, at distance :math:`h_0` before, the integral is exactly

.. math:: \alpha_s\,[\varphi_1 D_k + \varphi_2\,(D_k - D_{k-1})/r], \quad r = h_0/h,\quad
          \varphi_1 = 1 - e^{-h},\quad \varphi_2 = (h - 1 + e^{-h})/h .

(The paper's 2M replaces :math:`\varphi_2` by :math:`\varphi_1/2`, equal to leading order; `exact=False` does so too.)
Lu et al. 2022, arXiv:2211.01095.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_gen.errors import ConfigError
from sde_gen.perturbations import Perturbation
from sde_gen.samplers.base import GridSampler, Run, Step, combine, require_finite
from sde_gen.samplers.grids import ChainNodes, TimeGrid, UniformLambda


def phi2(h: Tensor) -> Tensor:
    """(h - 1 + exp(-h))/h for h >= 0, by its series where the difference would cancel."""
    small = h.clamp(max=1e-2)
    series = small / 2 * (1 - small / 3 * (1 - small / 4 * (1 - small / 5 * (1 - small / 6))))
    big = h.clamp(min=1e-2)
    direct = torch.where(torch.isinf(big), 1.0, (big + torch.expm1(-big)) / big)
    return torch.where(h < 1e-2, series, direct)


@dataclass(frozen=True)
class DPMSolverPP2M(GridSampler):
    """DPM-Solver++ 2M: second order with one network call a step; its first step is DDIM's.

    Args:
        exact: integrate the straight line exactly; False uses the coefficient of the paper's algorithm.

    Raises:
        ConfigError: if exact is not a bool.
    """

    exact: bool = True

    default_steps = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.exact, bool):
            raise ConfigError(f"DPMSolverPP2M: exact must be True or False, got {self.exact!r}")

    @property
    def order(self) -> float:
        return 2.0

    def default_grid(self, perturbation: Perturbation) -> TimeGrid:
        return ChainNodes() if perturbation.is_chain else UniformLambda()

    def stepper(self, run: Run) -> Step:
        p, e, times = run.perturbation, run.evaluation, run.times
        lam = p.half_log_snr(times)
        h = lam[1:] - lam[:-1]
        decay = e.sigma[1:] / e.sigma[:-1]
        phi_1 = -torch.expm1(-h)
        slope = torch.zeros_like(h)  # of (D_k - D_{k-1}); the first step has no D_{k-1}
        slope[1:] = (phi2(h) if self.exact else 0.5 * phi_1)[1:] * h[1:] / h[:-1]
        # A last step onto sigma = 0 has infinite h: take x0hat itself, as DDIM does.
        slope = torch.where(torch.isinf(h), 0.0, slope)
        now, before = e.alpha[1:] * (phi_1 + slope), -e.alpha[1:] * slope
        require_finite(self, p, times[:-1], decay, now, before)
        of_x, of_now = decay.tolist(), (now * e.scale[:-1]).tolist()
        of_before = [0.0, *(before[1:] * e.scale[:-2]).tolist()]
        estimate, reuse = e.scaled_estimate, run.reuse

        def step(k: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
            before, free = (None, None) if memory is None else memory
            d = estimate(k, x, free)
            if before is None:
                return combine(x, of_x[k], d, of_now[k]), (d, None)  # this x is the caller's
            # The estimate before the last is not needed again: the new state takes its place, and the next estimate
            # that of this state, so three buffers go round.
            new = before.mul_(of_before[k]).add_(d, alpha=of_now[k]).add_(x, alpha=of_x[k])
            return new, (d, x if reuse else None)

        return step
