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
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sde_gen.checks import checked
from sde_gen.errors import ConfigError
from sde_gen.model import Levels
from sde_gen.perturbations import Perturbation
from sde_gen.samplers.exponential import from_state_and_data
from sde_gen.samplers.grid_sampler import GridSampler, Run, Step, require_finite
from sde_gen.samplers.grids import ChainNodes, UniformLambda
from sde_gen.samplers.multistep import polynomial_table
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

    def plan(self, p: Perturbation, times: Tensor) -> tuple[list[float], Tensor]:
        """a_k, and the weights (steps, terms, order) of T_q, T_{q+1}, ..., of the last velocities, newest first."""
        carry, weights = _plan(self.least, self.order, p, tuple(times.tolist()))
        require_finite(self, p, times[: len(carry)], torch.tensor(carry) + weights.sum((1, 2)))
        return carry, weights

    def stepper(self, run: Run) -> Step:
        carry, weights = self.plan(run.perturbation, run.times)
        remember, limit = Velocities(run.levels, run.state, weights), self.limit

        def step(k: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
            _, terms = remember(k, x, limit)
            new = torch.mul(x, carry[k])
            for term in terms:
                new.add_(term)
            return new, None

        return step


@lru_cache(maxsize=16)
def _plan(least: int, highest: int, p: Perturbation, times: tuple[float, ...]) -> tuple[list[float], Tensor]:
    """`LimitedUniPC.plan`, found once for all chunks and runs; not to be written to."""
    tables = [polynomial_table(p, torch.tensor(times, dtype=torch.float64), "velocity", "angle", order, corrector=True,
                               twice=False) for order in range(least, highest + 1)]  # fmt: skip
    carry = tables[0].carry
    whole = torch.tensor([[w + [0.0] * (highest - len(w)) for w in t.weights] for t in tables], dtype=torch.float64)
    whole = whole.reshape(len(tables), len(carry), highest)
    return carry, torch.cat([whole[:1], whole.diff(dim=0)]).movedim(0, 1)


class Velocities:
    """The last velocities of a run, one network call each, and the terms of its steps.

    Args:
        levels: the model at the times of the run.
        state: what the states are like.
        weights: (steps, terms, order), of the last velocities, newest first.
    """

    def __init__(self, levels: Levels, state: Tensor, weights: Tensor) -> None:
        steps, _, self.depth = weights.shape
        a, b = from_state_and_data("velocity", levels.alpha, levels.sigma)
        self._of_x, self._of_raw, self._raw = (a + b * levels.skip).tolist(), (b * levels.out).tolist(), levels.raw
        # Velocity k lies in place k mod depth.
        k, j = torch.arange(steps)[:, None], torch.arange(self.depth)
        self._weights = weights.gather(2, ((k - j) % self.depth)[:, None].expand_as(weights)).to(state)
        self._known = torch.zeros((self.depth, *state.shape), dtype=state.dtype, device=state.device)
        self._terms = self._known.new_empty((weights.shape[1], *state.shape))

    def __call__(self, k: int, x: Tensor, limit: float) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The velocity at time k, and the terms of step k, limited; both are overwritten later."""
        velocity = self._known[k % self.depth]
        torch.mul(x, self._of_x[k], out=velocity).add_(self._raw(k, x), alpha=self._of_raw[k])
        torch.mm(self._weights[k], self._known.flatten(1), out=self._terms.flatten(1))
        return velocity, limited(self._terms.unbind(0), limit)


def limited(terms: tuple[Tensor, ...], limit: float) -> tuple[Tensor, ...]:
    """The terms of one step, each but the first made smaller by its phi, in place."""
    wide = torch.promote_types(terms[0].dtype, torch.float32)
    size = None
    for term in terms:
        own = torch.linalg.vector_norm(term.flatten(1), dim=1, dtype=wide)
        if size is not None:
            most = limit * size
            share = most / torch.hypot(most, own).clamp_min(torch.finfo(wide).tiny)
            term.mul_(trailing(share.to(term.dtype), term.ndim))
            own = share * own
        size = own
    return terms
