r"""A multistep rule that, in each sample and at each step, takes as much of the higher orders as they are worth.

The step of order p of a family of multistep rules is the step of order p - 1 and a term, T_p, that is a combination of
the last estimates. Along a smooth trajectory the terms fall with p; where data take shape, between modes or in more
detail than the steps resolve, they grow instead, and a rule of high order throws the sample far off. Here each term is
bounded by a share of the one before,

.. math:: x_{k+1} = a_k x_k + T_q + \sum_{p>q} \phi_p T_p, \qquad
          \phi_p = \Big(1 + \frac{|T_p|^2}{c^2\,|\phi_{p-1}T_{p-1}|^2}\Big)^{-1/2}, \qquad \phi_q = 1 ,

with the norm over the numbers of one sample: what a sample takes depends on it alone. T_p is of the order h^p, so that
phi_p is 1 up to h^2 and the order of convergence stays that of the highest term.

The estimates are kept as scaled divided differences in the angle,

.. math:: \delta^0_k = v_k, \qquad \delta^i_k = \delta^{i-1}_k - \beta_{ki}\,\delta^{i-1}_{k-1}, \qquad
          \beta_{ki} = \prod_{j=1}^{i-1} \frac{\theta_k-\theta_{k-j}}{\theta_{k-1}-\theta_{k-1-j}} ,

since T_p is a combination of two of them, of p - 2 and p - 1: one operation an order and one a term, each on one number
after the other, where a product of matrices costs more and rounds otherwise in batches of other sizes.
"""

from collections.abc import Iterable, Iterator, Sequence
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
from sde_gen.samplers.grid_sampler import GridSampler, Run, Step, estimate, require_finite
from sde_gen.samplers.grids import ChainNodes, UniformLambda
from sde_gen.samplers.multistep import polynomial_table

#: factor * tensor * phi (of each sample; None for 1).
Term = tuple[Tensor, float, Tensor | None]
#: A weight below this share of another of its term is a zero that was rounded.
_SMALL = 1e-12


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

    def plan(self, p: Perturbation, times: Tensor) -> "Plan":
        """The steps between these times."""
        plan = _plan(self.least, self.order, p, tuple(times.tolist()))
        sums = torch.tensor(plan.carry) + plan.weights.sum((1, 2)) + plan.shares.sum(1)
        require_finite(self, p, times[: len(plan.carry)], sums)
        return plan

    def weights(self, p: Perturbation, times: Tensor) -> Sequence[Sequence[float]]:
        """What each step takes of the velocity and of its terms."""
        return [(0.0, *[1.0] * (self.order - self.least + 1))] * (len(times) - 1)

    def stepper(self, run: Run) -> Step:
        plan, weights = self.plan(run.perturbation, run.times), self.weights(run.perturbation, run.times)
        terms, buffers = Terms(run.levels, run.state, plan, self.limit), run.buffers()

        def step(k: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
            new = torch.mul(x, plan.carry[k], out=buffers[x is buffers[0]])
            for weight, (term, factor, phi) in zip(weights[k], terms(k, x), strict=False):
                if phi is not None:
                    new.addcmul_(term, phi, value=weight * factor)
                elif weight:
                    new.add_(term, alpha=weight * factor)
            return new, None

        return step


@dataclass(frozen=True)
class Plan:
    """a_k; the weights (steps, terms, order) of T_q, T_{q+1}, ... in the differences; beta (steps, order)."""

    carry: list[float]
    weights: Tensor
    shares: Tensor


@lru_cache(maxsize=16)
def _plan(least: int, highest: int, p: Perturbation, times: tuple[float, ...]) -> Plan:
    """`LimitedUniPC.plan`, found once for all chunks and runs; not to be written to."""
    at = torch.tensor(times, dtype=torch.float64)
    tables = [polynomial_table(p, at, "velocity", "angle", order, corrector=True, twice=False)
              for order in range(least, highest + 1)]  # fmt: skip
    carry = tables[0].carry
    whole = torch.tensor([[w + [0.0] * (highest - len(w)) for w in t.weights] for t in tables], dtype=torch.float64)
    whole = whole.reshape(len(tables), len(carry), highest)
    terms = torch.cat([whole[:1], whole.diff(dim=0)]).movedim(0, 1)  # of the velocities, newest first
    angle = torch.atan2(p.sigma(at), p.alpha(at))
    shares = torch.zeros(len(carry), highest, dtype=torch.float64)
    of = torch.eye(highest, dtype=torch.float64).repeat(len(carry), 1, 1)  # differences from velocities, where known
    for i in range(1, highest):
        k = torch.arange(min(i, len(carry)), len(carry))
        for j in range(i):
            shares[k, i] = shares[k, i] * (angle[k] - angle[k - j]) / (angle[k - 1] - angle[k - 1 - j]) if j else 1.0
        of[k, i] = of[k, i - 1] - shares[k, i, None] * of[k - 1, i - 1].roll(1, -1)
    return Plan(carry, torch.linalg.solve(of.mT, terms.mT).mT, shares)


class Terms:
    """The differences of a run, one network call a step, and the terms of its steps.

    Args:
        levels: the model at the times of the run.
        state: what the states are like.
        plan: of the rule.
        limit: c of the module's formula.
    """

    def __init__(self, levels: Levels, state: Tensor, plan: Plan, limit: float) -> None:
        steps, _, depth = plan.weights.shape
        a, b = from_state_and_data("velocity", levels.alpha, levels.sigma)
        scale, self._estimate = estimate((a + b * levels.skip)[:steps], (b * levels.out)[:steps])
        shares = plan.shares * (scale.roll(1) / scale)[:, None]
        self._scale, self._shares, self._raw, self._limit = scale.tolist(), shares.tolist(), levels.raw, limit
        self._rows = [[_led(row) for row in terms] for terms in (plan.weights * scale[:, None, None]).tolist()]
        self._known = [torch.zeros_like(state) for _ in range(depth)]
        self._term = torch.empty_like(state)

    def __call__(self, k: int, x: Tensor) -> Iterator[Term]:
        """The velocity at time k, then the terms of step k, limited; each is soon overwritten."""
        known, shares = self._known, self._shares[k]
        known.insert(0, known.pop())  # the highest difference is needed in its own step only
        self._estimate(k, x, self._raw(k, x), known[0])
        for i in range(1, min(k + 1, len(known))):
            torch.sub(known[i - 1], known[i], alpha=shares[i], out=known[i])
        yield known[0], self._scale[k], None
        terms = ((self._combined(*led), led[0]) for led in self._rows[k])
        yield from limited(terms, self._limit) if len(self._rows[k]) > 1 else ((*term, None) for term in terms)

    def _combined(self, factor: float, first: int, others: list[tuple[int, float]]) -> Tensor:
        """One term, over its factor."""
        out = self._known[first]
        for i, ratio in others:
            out = torch.add(out, self._known[i], alpha=ratio, out=self._term)
        return out


def _led(row: list[float]) -> tuple[float, int, list[tuple[int, float]]]:
    """The largest number of a row, its place, and the ratios of the others to it with theirs."""
    first = max(range(len(row)), key=lambda i: abs(row[i]))
    factor = row[first]
    return factor, first, [(i, w / factor) for i, w in enumerate(row) if i != first and abs(w) > _SMALL * abs(factor)]


def limited(terms: Iterable[tuple[Tensor, float]], limit: float) -> Iterator[Term]:
    """The terms of one step, given as tensors and factors, with phi for each but the first."""
    size, before = None, 0.0
    for term, factor in terms:
        wide = torch.promote_types(term.dtype, torch.float32)
        own = torch.linalg.vector_norm(term, dim=tuple(range(1, term.ndim)), keepdim=True, dtype=wide)
        if size is None:
            yield term, factor, None
        elif before == 0:
            return  # nothing before it: nothing of it
        else:
            # By roots and quotients, which round in the same way in batches of all sizes, as hypot and rsqrt do not.
            square = own.div(size.clamp_min_(torch.finfo(wide).tiny)).square_().mul_((factor / (limit * before)) ** 2)
            phi = square.add_(1.0).sqrt_().reciprocal_()
            yield term, factor, phi.to(term.dtype)
            own = own.mul_(phi)
        size, before = own, factor
