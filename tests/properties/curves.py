"""The curves of every perturbation in plain numpy, written from the papers and from nothing in the package.

``alpha sigma lam f g2`` of a float t. The chains' betas and levels are formed here too.
"""

import math
from dataclasses import dataclass

import numpy as np


class Curve:
    """alpha = exp(log_alpha), sigma^2 = variance; f and g^2 are stated by each process."""

    t_max = 1.0
    t_low = 1e-3
    nodes = 0

    def log_alpha(self, t: float) -> float:
        return 0.0

    def variance(self, t: float) -> float:
        raise NotImplementedError

    def f(self, t: float) -> float:
        return 0.0

    def g2(self, t: float) -> float:
        raise NotImplementedError

    def alpha(self, t: float) -> float:
        return math.exp(self.log_alpha(t))

    def sigma(self, t: float) -> float:
        return math.sqrt(self.variance(t))

    def lam(self, t: float) -> float:
        return self.log_alpha(t) - 0.5 * math.log(self.variance(t))

    def time(self, lam: float) -> float:
        """t(lambda) by bisection."""
        low, high = 0.0, 1.0
        for _ in range(200):
            middle = 0.5 * (low + high)
            if middle in (low, high):
                break
            low, high = (middle, high) if self.lam(middle) > lam else (low, middle)
        return high


@dataclass
class VPCurve(Curve):
    b0: float = 0.1
    b1: float = 20.0

    def log_alpha(self, t: float) -> float:
        return -(t**2) * (self.b1 - self.b0) / 4 - t * self.b0 / 2

    def variance(self, t: float) -> float:
        return -math.expm1(2 * self.log_alpha(t))

    def beta(self, t: float) -> float:
        return self.b0 + t * (self.b1 - self.b0)

    def f(self, t: float) -> float:
        return -0.5 * self.beta(t)

    def g2(self, t: float) -> float:
        return self.beta(t)


class SubVPCurve(VPCurve):
    def variance(self, t: float) -> float:
        return math.expm1(2 * self.log_alpha(t)) ** 2

    def g2(self, t: float) -> float:  # beta (1 - exp(-2 int beta)), int beta = -2 log alpha
        return self.beta(t) * -math.expm1(4 * self.log_alpha(t))


@dataclass
class VECurve(Curve):
    low: float = 0.01
    high: float = 50.0
    t_low = 1e-5

    def variance(self, t: float) -> float:
        return self.low**2 * (self.high / self.low) ** (2 * t)

    def g2(self, t: float) -> float:
        return 2 * math.log(self.high / self.low) * self.variance(t)


@dataclass
class EDMCurve(Curve):
    low: float = 0.002
    high: float = 80.0
    rho: float = 7.0
    t_low = 0.0

    def root(self, t: float) -> float:
        return (1 - t) * self.low ** (1 / self.rho) + t * self.high ** (1 / self.rho)

    def variance(self, t: float) -> float:
        return self.root(t) ** (2 * self.rho)

    def g2(self, t: float) -> float:  # 2 sigma dsigma/dt
        slope = self.high ** (1 / self.rho) - self.low ** (1 / self.rho)
        return 2 * self.root(t) ** self.rho * self.rho * self.root(t) ** (self.rho - 1) * slope


@dataclass
class CosineCurve(Curve):
    s: float = 0.008
    t_max = 0.999

    def angle(self, t: float) -> float:
        return math.pi / 2 * (t + self.s) / (1 + self.s)

    def log_alpha(self, t: float) -> float:
        return math.log(math.cos(self.angle(t)) / math.cos(self.angle(0.0)))

    def variance(self, t: float) -> float:
        return 1 - math.exp(2 * self.log_alpha(t))

    def f(self, t: float) -> float:
        return -math.pi / 2 / (1 + self.s) * math.tan(self.angle(t))

    def g2(self, t: float) -> float:  # alpha^2 + sigma^2 = 1
        return -2 * self.f(t)


class FlowCurve(Curve):
    t_max = 0.999

    def log_alpha(self, t: float) -> float:
        return math.log(1 - t)

    def variance(self, t: float) -> float:
        return t**2

    def f(self, t: float) -> float:
        return -1 / (1 - t)

    def g2(self, t: float) -> float:  # 2t + 2 t^2/(1-t)
        return 2 * t / (1 - t)


class ChainCurve(Curve):
    """lambda linear in t between nodes; noise-to-signal ratio linear before the first; one-sided slopes at nodes."""

    def __init__(self, lams: np.ndarray, preserving: bool) -> None:
        self.lams, self.preserving, self.nodes = lams, preserving, len(lams)
        self.t_low = 1 / self.nodes

    def ratio(self, t: float) -> tuple[float, float]:
        """sigma^2/alpha^2 and its slope from the left."""
        k = t * self.nodes
        first = math.exp(-2 * self.lams[0])
        left = math.ceil(k - 1e-9) - 1  # nodes 1..K; the interval (left, left + 1]
        if left < 1:
            return first * k, first * self.nodes
        here, after = self.lams[left - 1], self.lams[left]
        value = math.exp(-2 * (here + (k - left) * (after - here)))
        return value, -2 * self.nodes * (after - here) * value

    def log_alpha(self, t: float) -> float:
        return -0.5 * math.log1p(self.ratio(t)[0]) if self.preserving else 0.0

    def variance(self, t: float) -> float:
        r = self.ratio(t)[0]
        return r / (1 + r) if self.preserving else r

    def f(self, t: float) -> float:
        r, slope = self.ratio(t)
        return -0.5 * slope / (1 + r) if self.preserving else 0.0

    def g2(self, t: float) -> float:
        return -2 * self.f(t) if self.preserving else self.ratio(t)[1]


def ddpm(steps: int, schedule: str) -> ChainCurve:
    low, high = 1e-4 * 1000 / steps, 0.02 * 1000 / steps
    u = np.arange(steps) / (steps - 1)
    if schedule == "linear":
        betas = low + (high - low) * u
    elif schedule == "quadratic":
        betas = (low**0.5 + (high**0.5 - low**0.5) * u) ** 2
    elif schedule == "sigmoid":
        betas = low + (high - low) / (1 + np.exp(-(-6 + 12 * u)))
    else:  # Nichol & Dhariwal, equation 17
        k = np.arange(steps + 1)
        bar = np.cos((k / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
    log_bar = np.cumsum(np.log1p(-betas))
    return ChainCurve(0.5 * (log_bar - np.log(-np.expm1(log_bar))), preserving=True)


def ncsn(levels: int, low: float = 0.01, high: float = 50.0) -> ChainCurve:
    return ChainCurve(-np.log(low * (high / low) ** (np.arange(levels) / (levels - 1))), preserving=False)


def table_betas() -> list[float]:
    """Somebody's betas: alpha_bar = exp(-9 u^2 - u), as no class states it."""
    u = np.arange(201) / 200
    bar = np.exp(-9 * u**2 - u)
    return list(1 - bar[1:] / bar[:-1])


def table() -> ChainCurve:
    log_bar = np.cumsum(np.log1p(-np.array(table_betas())))
    return ChainCurve(0.5 * (log_bar - np.log(-np.expm1(log_bar))), preserving=True)


CURVES: dict[str, Curve] = {
    "VP": VPCurve(),
    "SubVP": SubVPCurve(),
    "VE": VECurve(),
    "EDM": EDMCurve(),
    "Cosine": CosineCurve(),
    "FlowMatching": FlowCurve(),
    "DDPM-linear": ddpm(200, "linear"),
    "DDPM-cosine": ddpm(200, "cosine"),
    "DDPM-quadratic": ddpm(200, "quadratic"),
    "DDPM-sigmoid": ddpm(200, "sigmoid"),
    "NCSN": ncsn(150),
    "LinearSDE": VPCurve(),
    "Table": table(),
}


def grid(curve: Curve, kind: str, n: int) -> list[float]:
    """n times from t_max down to t_low, as the documentation of the grids says."""
    high, low = curve.t_max, curve.t_low
    if n == 1:
        return [high]
    u = np.arange(n) / (n - 1)
    if kind == "uniform":
        return list(high + u * (low - high))
    if kind == "quadratic":
        return [high, *((high**0.5 + u[1:-1] * (low**0.5 - high**0.5)) ** 2), low]
    if kind == "nodes":
        from fractions import Fraction

        return [round(curve.nodes - Fraction(k, n - 1) * (curve.nodes - 1)) / curve.nodes for k in range(n)]
    first, last = curve.lam(high), curve.lam(low)
    if kind == "lambda-nodes":  # the nearest node to each that is below the one before and leaves room for the rest
        lam, chosen = {k: curve.lam(k / curve.nodes) for k in range(1, curve.nodes + 1)}, [curve.nodes]
        for i in range(1, n):
            want = first + u[i] * (last - first)
            free = range(n - i, chosen[-1])
            chosen.append(min(free, key=lambda k: abs(lam[k] - want)))
        return [k / curve.nodes for k in chosen]
    if kind == "lambda":
        lams = first + u * (last - first)
    elif kind == "arctan":  # centre 1, width 3
        angles = [math.atan(math.exp((1 - v) / 3)) for v in (first, last)]
        lams = 1 - 3 * np.log(np.tan(angles[0] + u * (angles[1] - angles[0])))
    else:  # karras, rho = 7
        ends = [math.exp(-first / 7), math.exp(-last / 7)]
        lams = -7 * np.log(ends[0] + u * (ends[1] - ends[0]))
    return [high, *(curve.time(v) for v in lams[1:-1]), low]
