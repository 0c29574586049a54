r"""Stochastic Heun: a two-stage Runge-Kutta method of weak order 2 for the reverse SDE of any eta.

In :math:`y = x/\alpha` the noise is additive (see `sde_exponential`), for which Heun's scheme with one Gaussian a step
is already of weak order 2 (Kloeden & Platen 1992, section 15.1). Here the linear part and the noise are exact, and the
denoiser is the straight line between its values at the start and at the end of a first-order step:

.. math:: \hat x_s = a\,x_t + \alpha_s M_0 D_t + b\,z, \qquad x_s = \hat x_s + \alpha_s M_1\,[D(\hat x_s, s) - D_t],

with :math:`a, b, M_0, M_1` of `sde_exponential` and the same z in both.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks as check
from sde_gen.perturbations import Perturbation
from sde_gen.samplers.arctan import ArctanLambda
from sde_gen.samplers.grid_sampler import GridSampler, Run, Step, combine, require_finite
from sde_gen.samplers.grids import ChainNodes, TimeGrid
from sde_gen.samplers.sde_exponential import linear_and_noise, moments


@dataclass(frozen=True)
class StochasticHeun(GridSampler):
    """Stochastic Heun method: a first-order step, corrected by the denoiser found at its end; two calls a step.

    With `denoise=True`, `steps=N` calls the network 2N - 1 times.

    Args:
        eta: strength of the noise, >= 0; 1 is the reverse SDE.

    Raises:
        ConfigError: for eta out of range.
    """

    eta: float = 1.0

    default_steps = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check.number("StochasticHeun", "eta", self.eta, low=0.0)

    @property
    def order(self) -> float:
        return 2.0

    @property
    def is_stochastic(self) -> bool:
        return self.eta > 0

    def default_grid(self, perturbation: Perturbation) -> TimeGrid:
        return ChainNodes() if perturbation.is_chain else ArctanLambda()

    def stepper(self, run: Run) -> Step:
        p, e, times = run.perturbation, run.evaluation, run.times
        h, decay, std = linear_and_noise(p, times[:-1], times[1:], self.eta)
        flat, linear = moments((1 + self.eta**2) * h, 2)
        require_finite(self, p, times[:-1], decay, std)
        of_x, of_z, of_d = decay.tolist(), std.tolist(), (e.alpha[1:] * flat).tolist()
        # Onto sigma = 0 the first-order step lands on x0hat, and the denoiser there would change nothing.
        turn = torch.where(e.sigma[1:] > 0, e.alpha[1:] * linear, 0.0).tolist()
        denoised, noise, states = e.denoised, run.draw, run.scratch()

        def step(k: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
            d = denoised(k, x)
            new = combine(x, of_x[k], d, of_d[k], states.other(x))
            if of_z[k]:
                new.add_(noise(x, k, 0), alpha=of_z[k])
            if turn[k]:
                change = denoised(k + 1, new).sub_(d)
                new.add_(change, alpha=turn[k])
            return new, None

        return step
