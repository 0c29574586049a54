r"""A multistep rule that, in each sample and at each step, takes as much of the higher orders as they are worth.

The step of order p of a family of multistep rules is the step of order p - 1 and a term, T_p, that is a combination of
the last estimates. Along a smooth trajectory the terms fall with p; where data take shape, between modes or in more
detail than the steps resolve, they grow instead, and a rule of high order throws the sample far off. Here each term is
bounded by a share of the one before,

.. math:: x_{k+1} = a_k x_k + T_q + \sum_{p>q} \phi_p T_p, \qquad
          \phi_p = \Big(1 + \frac{|T_p|^2}{c^2\,|\phi_{p-1}T_{p-1}|^2}\Big)^{-1/2}, \qquad \phi_q = 1 ,

with the norm over the numbers of one sample: what a sample takes depends on it alone. T_p is of the order h^p, so that
phi_p is 1 up to h^2 and the order of convergence stays that of the highest term.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sde_gen.checks import checked
from sde_gen.errors import ConfigError
from sde_gen.model import combine
from sde_gen.perturbations import Perturbation
from sde_gen.samplers.exponential import from_state_and_data
from sde_gen.samplers.grid_sampler import GridSampler, Run, Step, require_finite
from sde_gen.samplers.grids import ChainNodes, UniformLambda
from sde_gen.samplers.multistep import Weights, polynomial_table
from sde_gen.shapes import trailing


@dataclass(frozen=True)
class LimitedUniPC(GridSampler):
    """UniPC of velocities (see `UniPC`) of orders `least` to `order` in one, each term limited by the one before.

    With `denoise=True`, `steps=N` calls the network N times.

    Args:
        order: highest order, 2 to 5.
        least: order that is always taken whole, 2 to `order`; 3 for steps that resolve most of what happens.
        limit: c of the module's formula, > 0; larger trusts the higher orders more.

    Raises:
        ConfigError: for values outside these.
    """

    order: int = checked(4, low=2, high=5)  # pyright: ignore[reportIncompatibleVariableOverride]
    least: int = checked(2, low=2, high=5)
    limit: float = checked(0.5, above=0.0)

    default_steps = 20
    default_grid = UniformLambda()
    chain_grid = ChainNodes("lambda")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.least > self.order:
            raise ConfigError(f"{type(self).__name__}: least is at most order, got {self.least} and {self.order}")

    def plan(self, p: Perturbation, times: Tensor) -> tuple[list[float], list[list[Weights]]]:
        """a_k, and for each step the weights of T_q, T_{q+1}, ... of the last velocities, newest first."""
        tables = [polynomial_table(p, times, "velocity", "angle", order, corrector=True, twice=False)
                  for order in range(self.least, self.order + 1)]  # fmt: skip
        carry, steps = tables[0].carry, []
        for k in range(len(carry)):
            rows = [table.weights[k] for table in tables]
            terms = [_less(high, low) for low, high in pairwise(rows)]
            steps.append([rows[0], *(row for row in terms if row)])
        require_finite(self, p, times[:-1], torch.tensor([a + sum(s[0]) for a, s in zip(carry, steps, strict=True)]))
        return carry, steps

    def stepper(self, run: Run) -> Step:
        e, depth, limit = run.levels, self.order - 1, self.limit
        carry, steps = self.plan(run.perturbation, run.times)
        a, b = from_state_and_data("velocity", e.alpha, e.sigma)
        of_x, of_raw = (a + b * e.skip).tolist(), (b * e.out).tolist()

        def step(k: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
            known = [combine(x, of_x[k], e.raw(k, x), of_raw[k]), *(memory or [])]
            new = torch.mul(x, carry[k])
            for term in limited(steps[k], known, limit):
                new.add_(term)
            return new, known[:depth]

        return step


def limited(rows: list[Weights], known: list[Tensor], limit: float) -> list[Tensor]:
    """The terms of one step, each but the first limited by the one before."""
    terms: list[Tensor] = []
    size = None
    for row in rows:
        term = torch.mul(known[0], row[0])
        for w, value in zip(row[1:], known[1:], strict=False):
            term.add_(value, alpha=w)
        own = torch.linalg.vector_norm(term.flatten(1), dim=1, dtype=torch.promote_types(term.dtype, torch.float32))
        if size is not None:
            most = limit * size
            share = most / torch.hypot(most, own).clamp_min(torch.finfo(own.dtype).tiny)
            term.mul_(trailing(share.to(term.dtype), term.ndim))
            own = share * own
        size = own
        terms.append(term)
    return terms


def _less(high: Weights, low: Weights) -> Weights:
    """high - low, the shorter padded with zeros; nothing where they are the same, as in the first steps."""
    low = [*low, *[0.0] * (len(high) - len(low))]
    return [] if high == low else [u - v for u, v in zip(high, low, strict=True)]
