r"""Heun's second-order method for the probability-flow ODE, in the variables where its only curvature is the model's.

With :math:`y = x/\alpha` and :math:`\rho = \sigma/\alpha` the ODE is :math:`dy/d\rho = (y - D)/\rho` under every
formulation, so the answer depends on the noise levels visited and not on the formulation. Karras et al. 2022,
arXiv:2206.00364 (Algorithm 1 without churn).
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sde_gen.perturbations import Perturbation
from sde_gen.samplers.grid_sampler import GridSampler, Run, Step, combine, require_finite
from sde_gen.samplers.grids import ChainNodes, KarrasRho, TimeGrid


@dataclass(frozen=True)
class Heun(GridSampler):
    """Heun's method: an Euler step in sigma/alpha, corrected by the slope found at its end; two calls a step.

    With `denoise=True`, `steps=N` calls the network 2N - 1 times.
    """

    default_steps = 18

    @property
    def order(self) -> float:
        return 2.0

    def default_grid(self, perturbation: Perturbation) -> TimeGrid:
        return ChainNodes() if perturbation.is_chain else KarrasRho()

    def stepper(self, run: Run) -> Step:
        e = run.evaluation
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
        denoised, states, middles = e.denoised, run.scratch(), run.scratch()

        def step(k: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
            d = denoised(k, x)
            if not two_calls[k]:
                return combine(x, of_x[k], d, of_d[k], states.other(x)), None
            euler = combine(x, of_x[k], d, of_d[k], middles.other(x))
            d_end = denoised(k + 1, euler)
            new = combine(x, x_coef[k], d, d_coef[k], states.other(x))
            return new.add_(euler, alpha=end_coef[k]).add_(d_end, alpha=end_d[k]), None

        return step
