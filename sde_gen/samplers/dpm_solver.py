r"""DPM-Solver++ of orders 2 and 3: multistep rules on the denoised estimate, in lambda.

.. math:: x_{k+1} = \tfrac{\sigma_{k+1}}{\sigma_k} x_k + \alpha_{k+1} \int_0^h e^{v-h}\, P(v)\, dv ,

with P the straight line (2M) or the parabola (3M) through the last estimates, integrated exactly. Lu et al. 2022,
arXiv:2211.01095.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_gen.errors import ConfigError
from sde_gen.perturbations import Perturbation
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

    exact: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.exact, bool):
            raise ConfigError(f"DPMSolverPP2M: exact must be True or False, got {self.exact!r}")

    @property
    def order(self) -> float:
        return 2.0

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

    @property
    def order(self) -> float:
        return 3.0

    def table(self, p: Perturbation, times: Tensor) -> Table:
        return polynomial_table(p, times, "data", "lambda", 3, corrector=False)
