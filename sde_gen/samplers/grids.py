r"""Time grids: which times a sampler visits.

A grid gives n times from `t_high` (noise) down to `t_low`, in float64. It is a separate object so that two
formulations can be run on the same noise levels: `UniformLambda`, `KarrasRho`, `ArctanLambda` and `GivenLambdas` depend
on lambda alone.
"""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.checks import checked
from sde_gen.errors import ConfigError
from sde_gen.perturbations import Chain, Perturbation


class TimeGrid(abc.ABC):
    """n times, descending, for a perturbation.

    Attributes:
        end: lowest time, in [0, 1], that samplers hand it as t_low, instead of the perturbation's `t_sample`; a network
            is still asked no lower than it was trained.
        is_in_lambda: whether the noise levels at both ends must be finite.
    """

    end: float | None = None
    is_in_lambda: bool = False

    @abc.abstractmethod
    def times(self, perturbation: Perturbation, n: int, t_low: float, t_high: float) -> Tensor:
        """n strictly descending times from t_high to t_low (t_high alone for n = 1), float64, on the CPU."""

    @property
    def length(self) -> int | None:
        """Number of times, for grids that fix it."""
        return None


def _unit(n: int) -> Tensor:
    """n numbers from 0 to 1; 0 alone for n = 1."""
    return torch.linspace(0.0, 1.0, n, dtype=torch.float64) if n > 1 else torch.zeros(1, dtype=torch.float64)


def _ends(p: Perturbation, t_low: float, t_high: float) -> tuple[float, float]:
    return float(p.half_log_snr(t_high)), float(p.half_log_snr(t_low))


def _at(p: Perturbation, half_log_snr: Tensor, t_low: float, t_high: float) -> Tensor:
    """Times of these lambdas, with the end points exactly as asked."""
    first, last = _ends(p, t_low, t_high)
    t = p.time(half_log_snr.clamp(first, last))  # rounding must not carry a lambda out of the process's range
    t[0] = t_high
    if len(t) > 1:
        t[-1] = t_low
    return t


@dataclass(frozen=True)
class UniformTime(TimeGrid):
    """Equal steps in t.

    Args:
        end: lowest time; the perturbation's by default.
    """

    end: float | None = checked(None, low=0.0, high=1.0)

    def __post_init__(self) -> None:
        checks.fields(self)

    def times(self, perturbation: Perturbation, n: int, t_low: float, t_high: float) -> Tensor:
        t = t_high + _unit(n) * (t_low - t_high)
        if n > 1:
            t[-1] = t_low  # the sum rounds
        return t


@dataclass(frozen=True)
class UniformLambda(TimeGrid):
    """Equal steps in the half log-SNR lambda. Lu et al. 2022, arXiv:2206.00927.

    Args:
        end: lowest time; the perturbation's by default.
    """

    end: float | None = checked(None, low=0.0, high=1.0)

    def __post_init__(self) -> None:
        checks.fields(self)

    is_in_lambda = True

    def times(self, perturbation: Perturbation, n: int, t_low: float, t_high: float) -> Tensor:
        first, last = _ends(perturbation, t_low, t_high)
        return _at(perturbation, first + _unit(n) * (last - first), t_low, t_high)


@dataclass(frozen=True)
class KarrasRho(TimeGrid):
    """Equal steps in (sigma/alpha)^(1/rho). Karras et al. 2022, arXiv:2206.00364.

    Args:
        rho: exponent, >= 1; larger puts more times at low noise.
        end: lowest time; the perturbation's by default.
    """

    rho: float = checked(7.0, low=1.0)
    end: float | None = checked(None, low=0.0, high=1.0)

    is_in_lambda = True

    def __post_init__(self) -> None:
        checks.fields(self)

    def times(self, perturbation: Perturbation, n: int, t_low: float, t_high: float) -> Tensor:
        first, last = ((-torch.tensor(e, dtype=torch.float64) / self.rho).exp()
                       for e in _ends(perturbation, t_low, t_high))  # fmt: skip
        return _at(perturbation, -self.rho * (first + _unit(n) * (last - first)).log(), t_low, t_high)


@dataclass(frozen=True)
class ArctanLambda(TimeGrid):
    r"""Equal steps in arctan(exp(-(lambda - centre)/width)): fine where data of ordinary size takes shape.

    That is a density of times in proportion to 1/cosh((lambda - centre)/width). For noise far above the data, and far
    below its details, the denoiser is close to linear in the state and long steps cost little; a grid uniform in lambda
    spends many of its times there. At width 1 and centre 0 it is uniform in the angle arctan(sigma/alpha).

    Args:
        centre: half log-SNR around which the times are densest. 1 suits data of unit size whose details are a few times
            smaller.
        width: of the dense part, > 0, in units of lambda; very large is uniform in lambda.
        end: lowest time; the perturbation's by default.

    Raises:
        ConfigError: for values outside these.
    """

    centre: float = checked(1.0)
    width: float = checked(3.0, above=0.0)
    end: float | None = checked(None, low=0.0, high=1.0)

    def __post_init__(self) -> None:
        checks.fields(self)

    def times(self, perturbation: Perturbation, n: int, t_low: float, t_high: float) -> Tensor:
        first, last = (math.atan(math.exp(min(-(end - self.centre) / self.width, 700.0)))
                       for end in _ends(perturbation, t_low, t_high))  # fmt: skip
        lam = self.centre - self.width * torch.log(torch.tan(first + _unit(n) * (last - first)))
        return _at(perturbation, lam, t_low, t_high)


@dataclass(frozen=True)
class Quadratic(TimeGrid):
    """Equal steps in sqrt(t). Song, Meng & Ermon 2021, arXiv:2010.02502.

    Args:
        end: lowest time; the perturbation's by default.
    """

    end: float | None = checked(None, low=0.0, high=1.0)

    def __post_init__(self) -> None:
        checks.fields(self)

    def times(self, perturbation: Perturbation, n: int, t_low: float, t_high: float) -> Tensor:
        root = t_high**0.5 + _unit(n) * (t_low**0.5 - t_high**0.5)
        t = root.square()
        t[0] = t_high
        if n > 1:
            t[-1] = t_low
        return t


@dataclass(frozen=True)
class ChainNodes(TimeGrid):
    """The nodes of a chain: all K of them, or a subset that keeps the first and the last.

    Args:
        even_in: what the subset is even in: "nodes" (DDIM's, arXiv:2010.02502), or "lambda", the nodes nearest to
            equal steps in the half log-SNR, as far as they are different nodes.
        end: lowest time, of which the nearest node is taken; the first node's by default.

    Raises:
        ConfigError: for another even_in, for a continuous perturbation, or for more times than nodes.
    """

    even_in: str = checked("nodes", choices=("nodes", "lambda"))
    end: float | None = checked(None, low=0.0, high=1.0)

    def __post_init__(self) -> None:
        checks.fields(self)

    @property
    def is_in_lambda(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.even_in == "lambda"

    def times(self, perturbation: Perturbation, n: int, t_low: float, t_high: float) -> Tensor:
        if not isinstance(perturbation, Chain):
            raise ConfigError(f"ChainNodes: {perturbation} is not a chain; use UniformTime() or UniformLambda()")
        length = perturbation.length
        first, last = round(t_high * length), max(1, round(t_low * length))
        if n > first - last + 1:
            raise ConfigError(
                f"ChainNodes: {n} times asked of {first - last + 1} nodes of {perturbation}; use fewer steps, "
                "or a grid such as UniformLambda() that goes between the nodes"
            )
        nodes = perturbation.nodes[last - 1 : first].flip(0)
        if self.even_in == "nodes" or n == 1:
            return nodes[(_unit(n) * (first - last)).round().long()]
        lam = perturbation.half_log_snr(nodes)
        nearest = (lam - (lam[0] + _unit(n)[:, None] * (lam[-1] - lam[0]))).abs().argmin(1)
        # Each at least one after the one before, and with room for those that follow.
        place = torch.arange(n)
        return nodes[((nearest - place).cummax(0).values).clamp(max=len(nodes) - n) + place]


@dataclass(frozen=True)
class GivenTimes(TimeGrid):
    """A given list of times, strictly descending, in [0, 1].

    Args:
        values: the times.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _descending("GivenTimes", self.values))
        if self.values[0] > 1 or self.values[-1] < 0:
            raise ConfigError(f"GivenTimes: times must lie in [0, 1], got {self.values[0]!r} ... {self.values[-1]!r}")

    @property
    def length(self) -> int:
        return len(self.values)

    def times(self, perturbation: Perturbation, n: int, t_low: float, t_high: float) -> Tensor:
        return torch.tensor(self.values, dtype=torch.float64)


@dataclass(frozen=True)
class GivenLambdas(TimeGrid):
    """A given list of half log-SNRs, strictly ascending: the same noise levels under any formulation.

    Args:
        values: the half log-SNRs.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        down = _descending("GivenLambdas", [-float(v) for v in self.values])
        object.__setattr__(self, "values", tuple(-v for v in down))

    @property
    def length(self) -> int:
        return len(self.values)

    def times(self, perturbation: Perturbation, n: int, t_low: float, t_high: float) -> Tensor:
        return perturbation.time(torch.tensor(self.values, dtype=torch.float64))


def _descending(where: str, values: Sequence[float] | Tensor) -> tuple[float, ...]:
    listed = tuple(float(v) for v in values)
    ordered = all(a > b for a, b in pairwise(listed))
    if not listed or not ordered or any(v != v for v in listed):
        kind = "strictly descending times" if where == "GivenTimes" else "strictly ascending half log-SNRs"
        raise ConfigError(f"{where}: expected a list of {kind}, got {len(listed)} values that are not")
    return listed


#: Grids by the names that `grid=` takes besides an object or a list of times.
GRIDS: dict[str, TimeGrid] = {
    "uniform": UniformTime(),
    "lambda": UniformLambda(),
    "karras": KarrasRho(),
    "quadratic": Quadratic(),
    "nodes": ChainNodes(),
    "lambda-nodes": ChainNodes("lambda"),
}


def as_grid(grid: "TimeGrid | str | Sequence[float] | Tensor") -> TimeGrid:
    """A grid from an object, a name in `GRIDS`, or a list of descending times."""
    if isinstance(grid, TimeGrid):
        return grid
    if isinstance(grid, str):
        return GRIDS[checks.choice("grid", "name", grid, tuple(GRIDS))]
    if isinstance(grid, Tensor | Sequence):
        return GivenTimes(tuple(float(t) for t in grid))
    raise ConfigError(
        f"grid: expected a TimeGrid, one of {', '.join(map(repr, GRIDS))} or a list of times, got {grid!r}"
    )
