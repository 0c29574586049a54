r"""Any scalar linear SDE, by its drift and diffusion.

From :math:`dx = f(t)\,x\,dt + g(t)\,dw` and the noise at t = 0, in float64,

.. math:: \log\alpha(t) = \int_0^t f, \qquad
          \frac{\sigma^2}{\alpha^2}(t) = \sigma(0)^2 + \int_0^t \frac{g^2}{\alpha^2},
          \qquad \lambda = -\tfrac12\log\frac{\sigma^2}{\alpha^2} .

Both integrals are sums of series of Legendre polynomials on intervals that halve towards t = 0, so that sigma is right
to its last digits where it vanishes, and wherever f or g is not smooth. All terms of the second are positive: nothing
cancels. Solutions of linear SDEs: Särkkä & Solin 2019, section 6.
"""

# What a subclass states of these two takes float64 tensors alone; see `Perturbation.__init_subclass__`.
# pyright: reportIncompatibleMethodOverride=false

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.errors import ConfigError
from sde_gen.perturbations.base import Perturbation

#: Points of an interval, and the degree to which f and g^2/alpha^2 are followed in it.
_POINTS = 16
#: Intervals halve down to 2^-66; before that the curves are powers of t.
_HALVINGS = 66
#: Largest error of one interval, relative to the integral so far.
_ERROR = 1e-13
_MOST_PIECES = 5000
#: Steps of Newton's method, which doubles the digits of a time in each.
_NEWTON = 9
#: By which a step may leave its bracket, relative to t.
_ROUNDING = 1e-9


class Rate:
    """f or g as it was given, answering as every method of a perturbation does."""

    _map, _check = Perturbation._map, Perturbation._check  # its dtype, device and checks of t

    def __init__(self, name: str, given: Any) -> None:
        self.name, self.given = name, given
        try:
            hash(given)
        except TypeError as error:
            raise ConfigError(f"LinearSDE: {name} must be a function that hashes, as those of Python do, got a "
                              f"{type(given).__name__}") from error  # fmt: skip

    def at(self, t: Tensor) -> Tensor:
        """Its values, float64 in and out."""
        value: Any = "nothing"
        try:
            value = self.given(t)
            found = torch.as_tensor(value, dtype=torch.float64, device=t.device)
            return found if found.shape == t.shape else found.expand(t.shape) + torch.zeros_like(t)
        except (TypeError, ValueError, RuntimeError) as error:
            what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r} ({error})"
            raise ConfigError(
                f"LinearSDE: {self.name}(t) must be a real number or a tensor shaped like t, float64 "
                f"{tuple(t.shape)}, got {what}; use torch's functions"
            ) from error

    def __call__(self, t: Tensor | float) -> Tensor:
        return self._map(self.at, t)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rate) and (self.name, self.given) == (other.name, other.given)

    def __hash__(self) -> int:
        return hash((self.name, self.given))

    def __repr__(self) -> str:
        return getattr(self.given, "__qualname__", type(self.given).__name__)

    def __str__(self) -> str:
        return f"LinearSDE.{self.name}"


class RateTable(Rate, Sequence[float]):
    """A rate as numbers at equal steps in t, straight lines between them: what a configuration can hold."""

    def __init__(self, name: str, given: Any) -> None:
        super().__init__(name, checks.listed("LinearSDE", name, given))

    def at(self, t: Tensor) -> Tensor:
        table = torch.tensor(self.given, dtype=torch.float64, device=t.device)
        place, last = t * (len(table) - 1), len(table) - 1
        left = place.detach().floor().clamp(0, max(last - 1, 0)).long()
        return torch.lerp(table[left], table[(left + 1).clamp_max(last)], place - left)

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, index: Any) -> Any:
        return self.given[index]

    def __repr__(self) -> str:
        numbers = repr(self.given)
        digest = hashlib.sha256(numbers.encode()).hexdigest()[:8]
        return numbers if len(self) < 9 else f"<{len(self)} numbers, {digest}>"


@dataclass(frozen=True)
class LinearSDE(Perturbation):
    r"""The SDE dx = f(t) x dt + g(t) dw on [0, 1], with curves that follow from f and g.

    log alpha(t) = int_0^t f, sigma(t)^2 = alpha(t)^2 (sigma_min^2 + int_0^t g^2/alpha^2), to 1e-10 or better of each.

    Args:
        drift: f, finite on [0, 1]: a function that takes float64 tensors of any shape, such as `lambda t: -5 * t`, or a
            list of its values at equal steps in t from 0 to 1, with straight lines between them.
        diffusion: g >= 0, finite, and not 0 over any stretch of time: the same.
        sigma_min: noise at t = 0, >= 0.

    Raises:
        ConfigError: for rates that are no such functions, or too rough to be integrated; a function cannot be stored in
            a configuration, a list can.
    """

    drift: Any = field()
    diffusion: Any = field()
    sigma_min: float = checks.checked(0.0, low=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("drift", "diffusion"):
            given = getattr(self, name)
            if not isinstance(given, Rate):
                object.__setattr__(self, name, Rate(name, given) if callable(given) else RateTable(name, given))
        _pieces(self, "cpu")

    @property
    def t_sample(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """1e-5 if the data is smoothed anyway, else 1e-3."""
        return 1e-5 if self.sigma_min else 1e-3

    def log_alpha(self, t: Tensor) -> Tensor:
        pieces = _pieces(self, str(t.device))
        return pieces.integral(t, 0)

    def _ratio(self, t: Tensor) -> Tensor:
        """sigma^2/alpha^2."""
        return self.sigma_min**2 + _pieces(self, str(t.device)).integral(t, 1)

    def variance(self, t: Tensor) -> Tensor:
        return (2 * self.log_alpha(t)).exp() * self._ratio(t)

    def half_log_snr(self, t: Tensor) -> Tensor:
        return -0.5 * self._ratio(t).log()

    def time(self, half_log_snr: Tensor) -> Tensor:
        pieces, ratio = _pieces(self, str(half_log_snr.device)), (-2 * half_log_snr).exp() - self.sigma_min**2
        piece = (torch.searchsorted(pieces.starts[1], ratio.contiguous()) - 1).clamp_min(0)
        low, high = left, right = pieces.edges[piece], pieces.edges[piece + 1]
        t = 0.5 * (low + high)
        for _ in range(_NEWTON):
            error = self.half_log_snr(t) - half_log_snr
            low, high = torch.where(error > 0, t, low), torch.where(error > 0, high, t)
            step = t + error * 2 * self.variance(t) / self.diffusion.at(t).square()
            t = step.clamp(low, high)
            # A step beyond an end that has been tried leads nowhere; one by its rounding is there.
            beyond = (step - t).abs() > _ROUNDING * high
            tried = ((t == low) & (low != left)) | ((t == high) & (high != right))
            t = torch.where(beyond & tried, 0.5 * (low + high), t)
        first = pieces.edges[0] * (ratio / pieces.starts[1][0]).clamp_min(0) ** (1 / pieces.powers[1])
        return torch.where(ratio < pieces.starts[1][0], first, t)

    def _rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.drift.at(t), self.diffusion.at(t).square()


class Pieces(NamedTuple):
    """Two integrals from 0 on, of f and of g^2/alpha^2, piece by piece."""

    edges: Tensor
    """Of the pieces, (n + 1,), from 2^-66 to 1."""
    starts: Tensor
    """The integrals up to the left edge of each, (2, n)."""
    series: Tensor
    """What each adds, as powers of the place from -1 to 1 on its interval, (2, n, degree + 1)."""
    powers: tuple[float, float]
    """Before the first edge the integrals are these powers of t."""

    def integral(self, t: Tensor, which: int) -> Tensor:
        """One of the two at t, float64 of any shape."""
        first = self.edges[0]
        u = t.clamp_min(first)
        piece = (torch.searchsorted(self.edges, u.detach().contiguous()) - 1).clamp(0, len(self.edges) - 2)
        left, right = self.edges[piece], self.edges[piece + 1]
        x, c = 2 * (u - left) / (right - left) - 1, self.series[which][piece]
        value = (c * x[..., None] ** torch.arange(c.shape[-1], device=t.device)).sum(-1)
        inside = self.starts[which][piece] + value
        before = self.starts[which][0] * (t.clamp_max(first) / first) ** self.powers[which]
        return torch.where(t < first, before, inside)


@lru_cache(maxsize=256)
def _pieces(sde: LinearSDE, device: str) -> Pieces:
    if device != "cpu":
        edges, starts, series, powers = _pieces(sde, "cpu")
        return Pieces(edges.to(device), starts.to(device), series.to(device), powers)
    edges = {2.0**-k for k in range(_HALVINGS + 1)}
    for rate in (sde.drift, sde.diffusion):
        edges |= {k / (len(rate) - 1) for k in range(1, len(rate))} if isinstance(rate, RateTable) else set()
    todo = list(pairwise(sorted(edges)))[::-1]
    first = todo[-1][0]
    # Up to the first edge: the power of t that the integrals follow over the piece after it.
    f, g2 = _values(sde, torch.tensor([0.5 * first, first], dtype=torch.float64))
    powers = [_power(v) for v in (f, g2)]
    sums = [float(v[1]) * first / power for v, power in zip((f, g2), powers, strict=True)]
    found: list[tuple[float, list[float], np.ndarray]] = []
    while todo:
        low, high = todo.pop()
        series, added, wrong = _piece(sde, low, high, sums[0])
        rough = any(w > _ERROR * max(abs(s), abs(a)) for w, s, a in zip(wrong, (1.0, sums[1]), added, strict=True))
        if rough and high - low > 1e-13 * high:
            middle = 0.5 * (low + high)
            todo += [(middle, high), (low, middle)]
        else:
            found.append((low, list(sums), series))
            sums = [s + a for s, a in zip(sums, added, strict=True)]
            if not math.isfinite(sums[1]):
                raise ConfigError(f"LinearSDE: sigma/alpha is beyond float64 from t = {high:.4g} on; the drift takes "
                                  "the signal away too fast, or the diffusion is too large")  # fmt: skip
            if not added[1] > 0:
                raise ConfigError("LinearSDE: diffusion(t) must not be 0 over a stretch of time, got 0 from "
                                  f"t = {low:.4g} to {high:.4g}; every time needs its own noise level")  # fmt: skip
        if len(found) + len(todo) > _MOST_PIECES:
            raise ConfigError(f"LinearSDE: drift and diffusion are too rough at t = {low:.6g} to be integrated; smooth "
                              "them, or give tables of their values")  # fmt: skip
    lows, starts, series = zip(*found, strict=True)
    return Pieces(
        torch.tensor([*lows, 1.0], dtype=torch.float64), torch.tensor(starts, dtype=torch.float64).T.contiguous(),
        torch.from_numpy(np.stack(series, 1)), (powers[0], powers[1]),
    )  # fmt: skip


def _power(values: Tensor) -> float:
    """The power p with which an integral begins, from its integrand at h/2 and h: t^(p - 1)."""
    half, whole = values.tolist()
    return 1.0 if half == 0 or whole / half <= 0 else max(1 + math.log2(whole / half), 0.5)


def _piece(sde: LinearSDE, low: float, high: float, log_alpha: float) -> tuple[np.ndarray, list[float], list[float]]:
    """On one interval: both integrals as series, what they add, and about how wrong that is."""
    half = 0.5 * (high - low)
    f, g2 = (v.numpy() for v in _values(sde, torch.from_numpy(low + half * (_NODES + 1))))
    by_f = _integrated(f, half)
    with np.errstate(over="ignore", invalid="ignore"):
        grown = g2 * np.exp(-2 * (log_alpha + np.polynomial.legendre.legval(_NODES, by_f)))
        by_g = _integrated(grown, half)
    with np.errstate(over="ignore", invalid="ignore"):
        wrong = [half * np.abs((_ANALYSIS @ v)[-2:]).max() for v in (f, grown)]
        series = np.stack([by_f, by_g]) @ _POWERS
    return series, [float(c.sum()) for c in (by_f, by_g)], wrong  # P_k(1) = 1


def _integrated(values: np.ndarray, half: float) -> np.ndarray:
    """Legendre series of the integral from the left end on."""
    return half * np.polynomial.legendre.legint(_ANALYSIS @ values, lbnd=-1)


def _values(sde: LinearSDE, t: Tensor) -> tuple[Tensor, Tensor]:
    """f and g^2 at some times, checked."""
    f, g = sde.drift.at(t), sde.diffusion.at(t)
    for name, value, wrong in (("drift", f, ~f.isfinite()), ("diffusion", g, ~(g.isfinite() & (g >= 0)))):
        if bool(wrong.any()):
            allowed = "finite" if name == "drift" else "finite and at least 0"
            raise ConfigError(f"LinearSDE: {name}(t) must be {allowed} on [0, 1], got {value[wrong][0].item():.6g} at "
                              f"t = {t[wrong][0].item():.6g}")  # fmt: skip
    return f.detach(), g.detach().square()


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(_POINTS)
#: From Legendre polynomials to powers.
_POWERS = np.stack(
    [np.pad(np.polynomial.legendre.leg2poly(row), (0, _POINTS - k)) for k, row in enumerate(np.eye(_POINTS + 1))]
)
#: From values at the nodes to coefficients of Legendre polynomials.
_ANALYSIS = (np.polynomial.legendre.legvander(_NODES, _POINTS - 1) * _WEIGHTS[:, None]).T * (
    np.arange(_POINTS)[:, None] + 0.5
)
