r"""Measures of two sets of points, and how sure they are: by the delete-a-group jackknife, or Wilson's interval.

Each set is cut into G groups at random. With :math:`\theta_{(i)}` the measure without the i-th group of either set, and
:math:`\bar\theta` their mean,

.. math:: \mathrm{se}^2 = \frac{G-1}{G}\sum_i(\theta_{(i)}-\bar\theta)^2 ,

The sets are independent, so that to leave out a group of both at once serves both. A measure that is a function of
sums over pairs of points needs those sums only once, group by group. For measures of pairs whose first-order part
vanishes, as it does for two sets of one law, the result is too large rather than too small, by about a root of two.

Efron and Stein, "The jackknife estimate of variance" (1981).
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec

import torch
from torch import Tensor

from sde_gen.errors import DataError
from sde_gen.rng import keyed_generator

GROUPS = 20
_Z = 1.959963984540054  # of a 95 % interval
_BLOCK = 2**22  # entries of a table of pairs held at once (32 MiB)

P = ParamSpec("P")
#: Numbers of pairs: (n, d) and (m, d) to (n, m).
Table = Callable[[Tensor, Tensor], Tensor]


def points(x: Any, name: str = "x") -> Tensor:
    """`x` as a float64 tensor (n, features) on the CPU.

    Raises:
        DataError: not an array of real numbers, no points, or NaN or infinite values.
    """
    try:
        tensor = torch.as_tensor(x).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"the set {name} must be an array of real numbers, got {type(x).__name__}") from error
    if tensor.is_complex():
        raise DataError(f"the set {name} must hold real numbers, got {tensor.dtype}; give x.real or torch.view_as_real")
    if tensor.ndim == 0 or tensor.numel() == 0:
        raise DataError(f"the set {name} of shape {tuple(tensor.shape)} holds no points; give at least one")
    tensor = tensor.to(device="cpu", dtype=torch.float64).reshape(len(tensor), -1)
    bad = ~torch.isfinite(tensor).all(dim=1)
    if bool(bad.any()):
        raise DataError(f"the set {name} holds NaN or infinity in {int(bad.sum())} of its {len(tensor)} points")
    return tensor


def pair(x: Any, y: Any, least: int = 1, names: tuple[str, str] = ("x", "y")) -> tuple[Tensor, Tensor]:
    """Both sets as `points`, with equal numbers of features and at least `least` points in each.

    Raises:
        DataError: as for `points`, different numbers of features, or too few points.
    """
    a, b = (points(s, name) for s, name in zip((x, y), names, strict=True))
    shown = " and ".join(names)
    if a.shape[1] != b.shape[1]:
        raise DataError(f"the sets {shown} have {a.shape[1]} and {b.shape[1]} features per point; they must agree")
    if min(len(a), len(b)) < least:
        raise DataError(f"the sets {shown} need at least {least} points each, got {len(a)} and {len(b)}")
    return a, b


def blocks(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """`a` in pieces whose table of pairs with `b` has a bounded size."""
    return a.split(max(1, _BLOCK // len(b)))


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """The table of distances |a_i - b_j|."""
    # Not through the matrix product, which loses half of the digits for near points.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


@dataclass(frozen=True)
class Estimate:
    """A value, with its standard error or a 95 % interval where there is one."""

    value: float
    standard_error: float | None = None
    interval: tuple[float, float] | None = None

    @classmethod
    def jackknifed(cls, values: Tensor) -> "Estimate":
        """From (1 + G,) values: of all points, then without each group in turn; of (1,), without an error."""
        without = values[1:]
        groups = len(without)
        if not groups:
            return cls(float(values[0]))
        spread = float((without - without.mean()).square().sum())
        return cls(float(values[0]), math.sqrt((groups - 1) / groups * spread))


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a probability of which the share p was found in n independent trials.

        (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n),    z = 1.96

    Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    z, whole = _Z, 1 + _Z**2 / n
    centre, half = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, (centre - half) / whole), min(1.0, (centre + half) / whole)


@dataclass(frozen=True)
class Cut:
    """Points (n, d), the group 0..G-1 of each, (n,), and G; G of 1 leaves nothing out."""

    points: Tensor
    numbers: Tensor
    groups: int

    @classmethod
    def of(cls, x: Tensor, groups: int, seed: int) -> "Cut":
        """Groups at random and of nearly equal sizes."""
        numbers = torch.arange(len(x)) * groups // len(x)
        if groups > 1:
            numbers = numbers[torch.randperm(len(x), generator=keyed_generator(seed, 7))]
        return cls(x, numbers, groups)

    @property
    def kept(self) -> Tensor:
        """(1 + G, G), 1 where a group is kept: all of them, then all but each in turn; (1, 1) of ones for one group."""
        ones = torch.ones(1 + self.groups, self.groups, dtype=torch.float64)
        ones[1:].fill_diagonal_(0.0)
        return ones[: None if self.groups > 1 else 1]

    def rests(self) -> Iterator[Tensor]:
        """All points, then those without each group in turn."""
        yield self.points
        for group in range(self.groups if self.groups > 1 else 0):
            yield self.points[self.numbers != group]


def pair_means(x: Cut, y: Cut, table: Table, itself: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """Means of `table` over the pairs of one point of each set, within x, and within y; (1 + G,) each, as `Cut.kept`.

    Args:
        x, y: the sets, with equal G.
        table: a symmetric function of two points.
        itself: of points (n, d), the values (n,) of each with itself: those pairs are then left out of the means.
    """
    kept = x.kept
    members = [torch.nn.functional.one_hot(s.numbers, s.groups).double() for s in (x, y)]
    sizes = [kept @ member.sum(0) for member in members]
    means = []
    for i, j in ((0, 1), (0, 0), (1, 1)):
        a, b = (x, y)[i].points, (x, y)[j].points
        parts = blocks(a, b)
        sums = torch.zeros(x.groups, x.groups, dtype=torch.float64)  # over pairs of groups
        for part, rows in zip(parts, members[i].split(len(parts[0])), strict=True):
            sums += rows.T @ (table(part, b) @ members[j])
        total, count = torch.stack([k @ sums @ k for k in kept]), sizes[i] * sizes[j]
        if itself is not None and i == j:
            total, count = total - kept @ (itself(a) @ members[i]), sizes[i] * (sizes[i] - 1)
        means.append(total / count)
    return means


class Measure(Generic[P]):
    """A measure of two sets: `measure(x, y)` is its value, `measure.estimate(x, y)` has the standard error beside it.

    Attributes:
        statistic: of two `Cut` sets, the values (1 + G,) of all points and without each group in turn.
        least: points that either set must have.
    """

    __name__: str

    def __init__(self, statistic: Callable[Concatenate[Cut, Cut, P], Tensor], least: int = 1) -> None:
        self.statistic, self.least = statistic, least
        functools.update_wrapper(self, statistic)

    def __reduce__(self) -> str:
        return self.__name__  # pickled as a function is, by its name

    def __call__(self, x: Any, y: Any, *args: P.args, **kwargs: P.kwargs) -> float:
        """The value for arrays or tensors (n, ...) and (m, ...), all but the first axis flattened."""
        a, b = (Cut.of(s, 1, 0) for s in pair(x, y, self.least))
        return float(self.statistic(a, b, *args, **kwargs)[0])

    def estimate(self, x: Any, y: Any, seed: int = 0, /, *args: P.args, **kwargs: P.kwargs) -> Estimate:
        """The value and its standard error over both sets; `seed` cuts them into groups.

        There are `GROUPS` groups, fewer where those would be single points, and no error where there is only one.
        """
        a, b = pair(x, y, self.least)
        groups = max(1, min(GROUPS, len(a) // 2, len(b) // 2))
        return Estimate.jackknifed(self.statistic(Cut.of(a, groups, seed), Cut.of(b, groups, seed), *args, **kwargs))


def measure(least: int) -> Callable[[Callable[Concatenate[Cut, Cut, P], Tensor]], Measure[P]]:
    """Make a `Measure` of the function below, for sets of at least `least` points."""
    return lambda statistic: Measure(statistic, least)
