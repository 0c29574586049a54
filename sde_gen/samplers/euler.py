r"""First-order steps of the reverse-time equation.

With :math:`\eta = 1` for the reverse SDE and :math:`\eta = 0` for the probability-flow ODE,

.. math:: dx = [f x - \tfrac{1+\eta^2}{2} g^2 \nabla\log p_t(x)]\,dt + \eta\, g\, dw ,\qquad t \text{ running down.}

`EulerMaruyama` freezes the coefficients at t. `ReverseDiffusion` instead reverses the exact forward kernel
:math:`x_t = a x_s + b z`, as the discretisation that matches a chain's own forward steps. Song et al. 2021,
arXiv:2011.13456.
"""

from dataclasses import dataclass

from torch import Tensor

from sde_gen import checks as check
from sde_gen.perturbations import Perturbation
from sde_gen.samplers.grid_sampler import OneStepSampler


@dataclass(frozen=True)
class EulerMaruyama(OneStepSampler):
    """Euler-Maruyama steps, x + [f x - (1+eta^2)/2 g^2 score](s-t) + eta g sqrt(t-s) z, coefficients at t.

    Args:
        eta: 1 for the reverse SDE, 0 for the probability-flow ODE (Euler's method), >= 0.

    Raises:
        ConfigError: for eta out of range.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check.number("EulerMaruyama", "eta", self.eta, low=0.0)

    @property
    def order(self) -> float:
        return 1.0

    @property
    def is_stochastic(self) -> bool:
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

    uses_chain_nodes = True

    @property
    def order(self) -> float:
        return 1.0

    @property
    def is_stochastic(self) -> bool:
        return True

    def coefficients(self, p: Perturbation, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b = p.transition(s, t)
        share = (b / p.sigma(t)).square()
        return 2 - a - share, share * p.alpha(t), b
