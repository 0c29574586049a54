r"""`LimitedUniPC` with, for one model, noise levels of its own and a weight for each term of each step.

.. math:: x_{k+1} = a_k x_k + e_k n_{k+1} v_k + \sum_p s_{kp} \phi_p T_p, \qquad n = \sqrt{\alpha^2+\sigma^2},

with v the last velocity and all else as in `limited.py`; e = 0 and s = 1 are that rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sde_gen.errors import ConfigError
from sde_gen.perturbations import Perturbation
from sde_gen.samplers.grids import GivenLambdas
from sde_gen.samplers.limited import LimitedUniPC


@dataclass(frozen=True)
class FittedSteps(LimitedUniPC):
    """Given noise levels, and given weights of the terms of `LimitedUniPC`, for the model they were fitted to.

    Args:
        lambdas: N half log-SNRs, ascending; the first is that of the start.
        of_terms: of each of the N - 1 steps e and the s of its terms, from the lowest order on.

    Raises:
        ConfigError: if the lengths do not fit, or steps, grid or denoise are given too.
    """

    lambdas: Sequence[float] = ()
    of_terms: Sequence[Sequence[float]] = ()

    def __post_init__(self) -> None:
        lengths = [len(row) for row in self.of_terms]
        if len(lengths) != len(self.lambdas) - 1 or any(n < 2 for n in lengths):
            raise ConfigError(
                "FittedSteps: expected N lambdas and N - 1 rows of a weight of the velocity and of each term, got "
                f"{len(self.lambdas)} and rows of {lengths}"
            )
        grid = GivenLambdas(tuple(self.lambdas))
        if self.steps is not None or self.grid not in (None, grid) or self.denoise is not True:
            raise ConfigError("FittedSteps: its steps are its lambdas; give neither steps, nor grid, nor denoise")
        rows = tuple(tuple(map(float, row)) for row in self.of_terms)
        for name, value in (("lambdas", grid.values), ("grid", grid), ("of_terms", rows)):
            object.__setattr__(self, name, value)
        super().__post_init__()

    def weights(self, p: Perturbation, times: Tensor) -> Sequence[Sequence[float]]:
        size = p.size(times)[1:].tolist()
        return [(row[0] * after, *row[1:]) for row, after in zip(self.of_terms, size, strict=True)]
