r"""Multistep rules on the noise estimate: DEIS (polynomials in t), LMS (in sigma/alpha), PLMS (even-step averages).

.. math:: x_{k+1} = \tfrac{\alpha_{k+1}}{\alpha_k} x_k
          + \alpha_{k+1} \int_{\rho_k}^{\rho_{k+1}} P\, d\rho , \qquad \rho = \sigma/\alpha ,

with P the polynomial through the last estimates. Zhang & Chen 2023, arXiv:2204.13902; Liu et al. 2022,
arXiv:2202.09778.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sde_gen import checks as check
from sde_gen.errors import ConfigError
from sde_gen.perturbations import Perturbation
from sde_gen.samplers.grids import ChainNodes, KarrasRho, TimeGrid, UniformTime
from sde_gen.samplers.multistep import Multistep, Table, polynomial_table


@dataclass(frozen=True)
class DEIS(Multistep):
    """tAB-DEIS: polynomials in t through the last `order` noise estimates, integrated exactly.

    Its answer depends on the formulation, through t. Zhang & Chen 2023, arXiv:2204.13902.

    Args:
        order: 1 to 4; the paper's tAB-r has order r + 1.

    Raises:
        ConfigError: for an order out of range.
    """

    order: int = 3  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    variable: ClassVar[str] = "time"

    @property
    def interpolates(self) -> str:
        return "noise"

    def __post_init__(self) -> None:
        super().__post_init__()
        check.integer(type(self).__name__, "order", self.order)
        if self.order > 4:
            raise ConfigError(f"{type(self).__name__}: order must be at most 4, got {self.order}")

    def default_grid(self, perturbation: Perturbation) -> TimeGrid:
        return ChainNodes() if perturbation.is_chain else UniformTime()

    def table(self, p: Perturbation, times: Tensor) -> Table:
        return polynomial_table(p, times, "noise", self.variable, self.order, corrector=False)


@dataclass(frozen=True)
class LMS(DEIS):
    """Linear multistep in sigma/alpha: polynomials in it through the last `order` noise estimates, integrated exactly.

    With rho = sigma/alpha and y = x/alpha the ODE is dy/drho = eps, so these are Adams-Bashforth rules on any grid.

    Args:
        order: 1 to 4.
    """

    order: int = 4
    variable = "rho"

    def default_grid(self, perturbation: Perturbation) -> TimeGrid:
        return ChainNodes() if perturbation.is_chain else KarrasRho()


@dataclass(frozen=True)
class PLMS(Multistep):
    """Pseudo linear multistep: the classical Adams-Bashforth average of four noise estimates, then DDIM's step.

    The average is that of even steps, whatever the grid, which limits the order to 2 (reached on smooth grids). It
    starts with fewer estimates, so `steps=N` makes N calls. Liu et al. 2022, arXiv:2202.09778.
    """

    @property
    def interpolates(self) -> str:
        return "noise"

    @property
    def order(self) -> float:
        return 2.0

    def default_grid(self, perturbation: Perturbation) -> TimeGrid:
        return ChainNodes() if perturbation.is_chain else UniformTime()

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
