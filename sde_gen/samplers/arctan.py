r"""A time grid that is fine where data of ordinary size takes shape and coarse at both ends.

Equal steps in :math:`\arctan e^{-(\lambda - c)/w}`, that is a density of times in :math:`\lambda` in proportion to
:math:`1/\cosh((\lambda - c)/w)`. For noise far above the data, and far below its details, the denoiser is close to
linear in the state and long steps cost little; a grid uniform in lambda spends many of its times there. It depends on
the noise levels alone, so it is the same under every formulation. At :math:`w = 1, c = 0` it is uniform in the angle
:math:`\arctan(\sigma/\alpha)`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_gen import checks as check
from sde_gen.perturbations import Perturbation
from sde_gen.samplers.grids import TimeGrid, _at, _ends, _unit


@dataclass(frozen=True)
class ArctanLambda(TimeGrid):
    """Equal steps in arctan(exp(-(lambda - centre)/width)).

    Args:
        centre: half log-SNR around which the times are densest. 1 suits data of unit size whose details are a few times
            smaller.
        width: of the dense part, > 0, in units of lambda; very large is uniform in lambda.

    Raises:
        ConfigError: for values outside these.
    """

    centre: float = 1.0
    width: float = 3.0

    def __post_init__(self) -> None:
        check.number("ArctanLambda", "centre", self.centre)
        check.number("ArctanLambda", "width", self.width, low=0.0, open_low=True)

    def times(self, perturbation: Perturbation, n: int, t_low: float, t_high: float) -> Tensor:
        first, last = (math.atan(math.exp(-(end - self.centre) / self.width))
                       for end in _ends(perturbation, t_low, t_high))  # fmt: skip
        lam = self.centre - self.width * torch.log(torch.tan(first + _unit(n) * (last - first)))
        return _at(perturbation, lam, t_low, t_high)
