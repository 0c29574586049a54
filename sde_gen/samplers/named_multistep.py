r"""The multistep rules that have names: each is the engine of `multistep` with its variable and prediction.

- DPM-Solver++ 2M and 3M: the denoised estimate by a straight line or a parabola in lambda,

  .. math:: x_{k+1} = \tfrac{\sigma_{k+1}}{\sigma_k} x_k + \alpha_{k+1} \int_0^h e^{v-h}\, P(v)\, dv .

- DEIS, LMS, PLMS: the noise estimate, by polynomials in t, in sigma/alpha, or by the averages of even steps,

  .. math:: x_{k+1} = \tfrac{\alpha_{k+1}}{\alpha_k} x_k
            + \alpha_{k+1} \int_{\rho_k}^{\rho_{k+1}} P\, d\rho , \qquad \rho = \sigma/\alpha .

P goes through the last estimates and is integrated exactly. Lu et al. 2022, arXiv:2211.01095; Zhang & Chen 2023,
arXiv:2204.13902; Liu et al. 2022, arXiv:2202.09778.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde_gen.checks import checked
from sde_gen.perturbations import Perturbation
from sde_gen.samplers.grids import ChainNodes, KarrasRho, UniformTime
from sde_gen.samplers.multistep import Multistep, Table, polynomial_table


@dataclass(frozen=True)
class DPMSolverPP2M(Multistep):
    """DPM-Solver++ 2M: second order with one network call a step; its first step is DDIM's.

    Args:
        exact: integrate the straight line exactly; False uses the coefficient of the paper's algorithm,
            (1 - exp(-h))/2 for (h - 1 + exp(-h))/h, equal to leading order.

    Raises:
        ConfigError: if exact is not a bool.
    """

    exact: bool = checked(True)

    order = 2.0

    def table(self, p: Perturbation, times: Tensor) -> Table:
        table = polynomial_table(p, times, "data", "lambda", 2, corrector=False)
        if self.exact:
            return table
        lam = p.half_log_snr(times)
        h = lam[1:] - lam[:-1]
        flat = -p.alpha(times[1:]) * torch.expm1(-h)
        slope = (0.5 * flat[1:] * h[1:] / h[:-1]).tolist()
        rows = [[w + s, -s] for w, s in zip(flat[1:].tolist(), slope, strict=True)]
        paper = [now if len(now) < 2 else row for now, row in zip(table.weights, [[], *rows], strict=False)]
        return Table(table.carry, paper)


@dataclass(frozen=True)
class DPMSolverPP3M(Multistep):
    """DPM-Solver++ 3M of order 3: the parabola through the last three denoised estimates, integrated exactly.

    The same rule as `AdamsBashforth(order=3)`; N calls for `steps=N`. Lu et al. 2022, arXiv:2211.01095.
    """

    order = 3.0

    def table(self, p: Perturbation, times: Tensor) -> Table:
        return polynomial_table(p, times, "data", "lambda", 3, corrector=False)


@dataclass(frozen=True)
class DEIS(Multistep):
    """tAB-DEIS: polynomials in t through the last `order` noise estimates, integrated exactly.

    Its answer depends on the formulation, through t. Zhang & Chen 2023, arXiv:2204.13902.

    Args:
        order: 1 to 4; the paper's tAB-r has order r + 1.

    Raises:
        ConfigError: for an order out of range.
    """

    order: int = checked(3, low=1, high=4)  # pyright: ignore[reportIncompatibleVariableOverride]
    variable: ClassVar[str] = "time"
    interpolates = "noise"
    default_grid = UniformTime()
    chain_grid = ChainNodes()

    def table(self, p: Perturbation, times: Tensor) -> Table:
        return polynomial_table(p, times, "noise", self.variable, self.order, corrector=False)


@dataclass(frozen=True)
class LMS(DEIS):
    """Linear multistep in sigma/alpha: polynomials in it through the last `order` noise estimates, integrated exactly.

    With rho = sigma/alpha and y = x/alpha the ODE is dy/drho = eps, so these are Adams-Bashforth rules on any grid.

    Args:
        order: 1 to 4.
    """

    order: int = checked(4, low=1, high=4)  # pyright: ignore[reportIncompatibleVariableOverride]
    variable = "rho"

    default_grid = KarrasRho()


@dataclass(frozen=True)
class PLMS(Multistep):
    """Pseudo linear multistep: the classical Adams-Bashforth average of four noise estimates, then DDIM's step.

    The average is that of even steps, whatever the grid, which limits the order to 2 (reached on smooth grids). It
    starts with fewer estimates, so `steps=N` makes N calls. Liu et al. 2022, arXiv:2202.09778.
    """

    order = 2.0
    interpolates = "noise"
    default_grid = UniformTime()
    chain_grid = ChainNodes()

    def table(self, p: Perturbation, times: Tensor) -> Table:
        first = polynomial_table(p, times, "noise", "lambda", 1, corrector=False)
        landing = float(p.sigma(times[-1])) == 0
        rows = [[w[0] * c for c in _AVERAGES[min(k, 3)]] for k, w in enumerate(first.weights)]
        return Table(first.carry, [*rows[:-1], first.weights[-1]] if landing else rows)


#: Adams-Bashforth on even steps, newest first.
_AVERAGES = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
