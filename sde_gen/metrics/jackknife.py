r"""Standard errors of statistics of two samples, by the delete-a-group jackknife.

Each set is cut into G groups at random. With :math:`\theta_{(i)}` the statistic without the i-th group of either set,
and :math:`\bar\theta` their mean,

.. math:: \mathrm{se}^2 = \frac{G-1}{G}\sum_i(\theta_{(i)}-\bar\theta)^2 ,

The sets are independent, so that to leave out a group of both at once serves both. A statistic that is a function of
sums over pairs of points needs those sums only once, group by group. For statistics of pairs whose first-order part
vanishes, as it does for two sets of one law, the result is too large rather than too small, by about a root of two.

Efron and Stein, "The jackknife estimate of variance" (1981).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_gen.metrics.distances import blocks
from sde_gen.rng import keyed_generator

GROUPS = 20

#: A statistic as a function of the group that is left out of both sets; None leaves out none.
Statistic = Callable[[int | None], float]


@dataclass(frozen=True)
class Estimate:
    """A value, with its standard error or a 95 % interval where there is one."""

    value: float
    standard_error: float | None = None
    interval: tuple[float, float] | None = None


def jackknifed(statistic: Statistic, groups: int) -> Estimate:
    """The statistic of all points, and its standard error; None where there is a single group."""
    value = statistic(None)
    if groups < 2:
        return Estimate(value)
    without = torch.tensor([statistic(i) for i in range(groups)], dtype=torch.float64)
    return Estimate(value, math.sqrt((groups - 1) / groups * float((without - without.mean()).square().sum())))


def group_numbers(n: int, groups: int, seed: int) -> Tensor:
    """A group 0..groups-1 for each of n points, at random and of nearly equal sizes."""
    numbers = torch.arange(n) * groups // n
    return numbers[torch.randperm(n, generator=keyed_generator(seed, 7))]


def group_count(n: int, m: int) -> int:
    """How many groups sets of n and m points are cut into: `GROUPS`, fewer where that would leave single points."""
    return max(1, min(GROUPS, n // 2, m // 2))


@dataclass(frozen=True)
class PairSums:
    """Sums of a symmetric function over pairs of points, group by group.

    Attributes:
        cross: (G, G), over pairs of one point of each set.
        left, right: (G, G), over ordered pairs within a set, a point with itself included.
        left_self, right_self: (G,), over pairs of a point with itself.
        n, m: (G,), points of each group.
    """

    cross: Tensor
    left: Tensor
    right: Tensor
    left_self: Tensor
    right_self: Tensor
    n: Tensor
    m: Tensor

    @classmethod
    def of(
        cls,
        x: Tensor,
        y: Tensor,
        seed: int,
        function: Callable[[Tensor, Tensor], Tensor],
        of_itself: Callable[[Tensor], Tensor],
    ) -> "PairSums":
        """Of points (n, d) and (m, d), function((n, d), (m, d)) -> (n, m) and of_itself((n, d)) -> (n,)."""
        groups = group_count(len(x), len(y))
        a, b = (_membership(len(s), groups, seed) for s in (x, y))
        return cls(
            _sums(x, y, a, b, function),
            _sums(x, x, a, a, function),
            _sums(y, y, b, b, function),
            of_itself(x) @ a,
            of_itself(y) @ b,
            a.sum(0),
            b.sum(0),
        )

    def means(self, without: int | None, unbiased: bool = False) -> tuple[float, float, float]:
        """Means over the pairs without one group: across, within the first set, within the second.

        With `unbiased`, pairs of a point with itself are left out.
        """
        keep = torch.ones_like(self.n)
        if without is not None:
            keep[without] = 0.0
        n, m = float(keep @ self.n), float(keep @ self.m)
        across = float(keep @ self.cross @ keep) / (n * m)
        left, right = float(keep @ self.left @ keep), float(keep @ self.right @ keep)
        if not unbiased:
            return across, left / n**2, right / m**2
        left, right = left - float(keep @ self.left_self), right - float(keep @ self.right_self)
        return across, left / (n * (n - 1)), right / (m * (m - 1))

    @property
    def groups(self) -> int:
        """G."""
        return len(self.n)


def _membership(n: int, groups: int, seed: int) -> Tensor:
    """(n, G), 1 where a point is in a group."""
    return torch.nn.functional.one_hot(group_numbers(n, groups, seed), groups).double()


def _sums(x: Tensor, y: Tensor, a: Tensor, b: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    parts = blocks(x, y)
    total = torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64)
    for part, rows in zip(parts, a.split(len(parts[0])), strict=True):
        total += rows.T @ (function(part, y) @ b)
    return total
