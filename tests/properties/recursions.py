r"""What every fixed-step sampler does to a Gaussian, as a recursion in plain numpy written from the papers.

A state is an affine function m + L w of independent standard normals w; a Gaussian's denoiser and score are affine, so
every rule maps such states to such states. The law of the result is N(m, L L^T), exactly. Nothing here is imported
from the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from tests.properties import polynomial_rules
from tests.properties.curves import Curve


class Affine:
    """m + L w with L (D, n); the columns of w that a state lacks are zero."""

    def __init__(self, m: np.ndarray, L: np.ndarray) -> None:
        self.m, self.L = m, L

    def __add__(self, other: Affine) -> Affine:
        width = max(self.L.shape[1], other.L.shape[1])
        L = np.zeros((len(self.m), width))
        L[:, : self.L.shape[1]] += self.L
        L[:, : other.L.shape[1]] += other.L
        return Affine(self.m + other.m, L)

    def __rmul__(self, c: float) -> Affine:
        return Affine(c * self.m, c * self.L)

    def __sub__(self, other: Affine) -> Affine:
        return self + (-1.0) * other

    @property
    def covariance(self) -> np.ndarray:
        return self.L @ self.L.T


class Problem:
    """Gaussian data N(mean, cov) under a curve, and the normals drawn so far."""

    def __init__(self, mean: np.ndarray, cov: np.ndarray, curve: Curve) -> None:
        self.mean, self.cov, self.curve, self.drawn = mean, cov, curve, 0
        self.times: list[float] = []
        self.largest = 1.0
        """Largest variance of any state of a run: what its rounding errors are relative to."""
        self._precisions: dict[float, np.ndarray] = {}

    def precision(self, t: float) -> np.ndarray:
        """(alpha^2 Sigma + sigma^2 I)^-1"""
        if t not in self._precisions:
            total = self.curve.alpha(t) ** 2 * self.cov + self.curve.variance(t) * np.eye(len(self.mean))
            self._precisions[t] = np.linalg.inv(total)
        return self._precisions[t]

    def normal(self) -> Affine:
        """A new standard normal vector, independent of all before it."""
        d = len(self.mean)
        L = np.zeros((d, self.drawn + d))
        L[:, self.drawn :] = np.eye(d)
        self.drawn += d
        return Affine(np.zeros(d), L)

    def score(self, x: Affine, t: float) -> Affine:
        """-(alpha^2 Sigma + sigma^2)^-1 (x - alpha mu)"""
        a, precision = self.curve.alpha(t), self.precision(t)
        return Affine(-precision @ (x.m - a * self.mean), -precision @ x.L)

    def denoised(self, x: Affine, t: float) -> Affine:
        """E[x0 | x] = mu + alpha Sigma (alpha^2 Sigma + sigma^2)^-1 (x - alpha mu)"""
        a = self.curve.alpha(t)
        gain = a * self.cov @ self.precision(t)
        return Affine(self.mean + gain @ (x.m - a * self.mean), gain @ x.L)


#: One step t -> s of a rule: (problem, x, t, s, memory) -> (x, memory).
Rule = Callable[..., tuple[Affine, Any]]


def euler(q: Problem, x: Affine, t: float, s: float, memory: Any, eta: float) -> tuple[Affine, Any]:
    f, g2 = q.curve.f(t), q.curve.g2(t)
    new = x + (s - t) * (f * x - (1 + eta**2) / 2 * g2 * q.score(x, t))
    return (new + eta * math.sqrt(g2 * (t - s)) * q.normal() if eta else new), None


def kernel(curve: Curve, s: float, t: float) -> tuple[float, float]:
    """a and b^2 of x_t = a x_s + b z."""
    a = curve.alpha(t) / curve.alpha(s)
    return a, curve.variance(t) - a**2 * curve.variance(s)


def reverse(q: Problem, x: Affine, t: float, s: float, memory: Any) -> tuple[Affine, Any]:
    a, b2 = kernel(q.curve, s, t)
    return (2 - a) * x + b2 * q.score(x, t) + math.sqrt(b2) * q.normal(), None


def ancestral(q: Problem, x: Affine, t: float, s: float, memory: Any, variance: str) -> tuple[Affine, Any]:
    """Bayes: the prior of x_s given x0 is N(alpha_s x0, sigma_s^2), the likelihood of x_t is N(a x_s, b^2)."""
    a, b2 = kernel(q.curve, s, t)
    precision = 1 / q.curve.variance(s) + a**2 / b2
    mean = (1 / precision) * (
        (q.curve.alpha(s) / q.curve.variance(s)) * q.denoised(x, t) + (a / b2) * x
    )  # fmt: skip
    return mean + math.sqrt(1 / precision if variance == "small" else b2) * q.normal(), None


def ddim(q: Problem, x: Affine, t: float, s: float, memory: Any, eta: float) -> tuple[Affine, Any]:
    """Song, Meng & Ermon 2021, equation 12."""
    _, b2 = kernel(q.curve, s, t)
    std2 = eta**2 * b2 * q.curve.variance(s) / q.curve.variance(t)
    eps = -q.curve.sigma(t) * q.score(x, t)
    new = q.curve.alpha(s) * q.denoised(x, t) + math.sqrt(q.curve.variance(s) - std2) * eps
    return (new + math.sqrt(std2) * q.normal() if eta else new), None


def heun(q: Problem, x: Affine, t: float, s: float, memory: Any) -> tuple[Affine, Any]:
    """Karras et al. 2022, Algorithm 1 without churn, for y = x/alpha at noise level sigma/alpha."""
    c = q.curve
    here, there = c.sigma(t) / c.alpha(t), c.sigma(s) / c.alpha(s)
    y = (1 / c.alpha(t)) * x
    slope = (1 / here) * (y - q.denoised(x, t))
    euler = y + (there - here) * slope
    end = (1 / there) * (euler - q.denoised(c.alpha(s) * euler, s))
    return c.alpha(s) * (y + 0.5 * (there - here) * (slope + end)), None


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(60)


def two_m(q: Problem, x: Affine, t: float, s: float, memory: Any, exact: bool) -> tuple[Affine, Any]:
    """Lu et al. 2022 (arXiv:2211.01095), Algorithm 2; with `exact`, the variation-of-constants integral of the line
    through the last two denoised estimates, by quadrature in 60 points."""
    c = q.curve
    begin, end = c.lam(t), c.lam(s)
    h = end - begin
    now = q.denoised(x, t)
    carried = (c.sigma(s) / c.sigma(t)) * x
    if memory is None:
        new = carried - c.alpha(s) * math.expm1(-h) * now
    elif not exact:
        before, r = memory[0], (begin - memory[1]) / h
        new = carried - c.alpha(s) * math.expm1(-h) * ((1 + 1 / (2 * r)) * now - (1 / (2 * r)) * before)
    else:
        before, h0 = memory[0], begin - memory[1]
        at = 0.5 * h * (_NODES + 1)  # lambda - lambda_t
        # sigma_s e^lambda = alpha_s e^(lambda - lambda_s)
        weights = 0.5 * h * _WEIGHTS * c.alpha(s) * np.exp(at - h)
        flat, sloped = float(weights.sum()), float((weights * at).sum()) / h0
        new = carried + flat * now + sloped * (now - before)
    return new, (now, begin)


def sde_parts(q: Problem, t: float, s: float, eta: float) -> tuple[float, float, np.ndarray, np.ndarray, float]:
    """Of dy = c (D - y) dlambda + eta sqrt(2) e^-lambda dw, c = 1 + eta^2, by quadrature: h, the factor of x, the nodes
    lambda - lambda_t with their weights in the integral of D, and the variance of the noise."""
    h, c = q.curve.lam(s) - q.curve.lam(t), 1 + eta**2
    at = 0.5 * h * (_NODES + 1)
    weights = 0.5 * h * _WEIGHTS * q.curve.alpha(s) * c * np.exp(-c * (h - at))
    # alpha_s^2 e^(-2 lambda) = sigma_s^2 e^(2 (h - at))
    noise = 0.5 * h * _WEIGHTS * 2 * eta**2 * q.curve.variance(s) * np.exp(2 * (h - at) - 2 * c * (h - at))
    return h, q.curve.alpha(s) / q.curve.alpha(t) * math.exp(-c * h), at, weights, float(noise.sum())


def sde(
    q: Problem, x: Affine, t: float, s: float, memory: Any, order: int, eta: float, low: float = 0.0,
    high: float = math.inf,
) -> tuple[Affine, Any]:  # fmt: skip
    """The variation-of-constants formula with the Lagrange polynomial through the last `order` denoised estimates,
    fewer after a step that was much shorter; without noise from levels sigma/alpha outside of low to high."""
    eta = eta if low <= q.curve.sigma(t) / q.curve.alpha(t) <= high else 0.0
    h, carried, at, weights, variance = sde_parts(q, t, s, eta)
    known = [(q.denoised(x, t), q.curve.lam(t)), *(memory or [])]
    places = [lam - q.curve.lam(t) for _, lam in known]
    used = 1
    if order > 1 and len(known) > 1 and h <= 3 * -places[1]:
        used = 2
        if order > 2 and len(known) > 2 and h <= 1.5 * min(-places[1], places[1] - places[2]):
            used = 3
    new = carried * x
    for i in range(used):
        basis = np.ones_like(at)
        for j in range(used):
            if j != i:
                basis = basis * (at - places[j]) / (places[i] - places[j])
        new = new + float(weights @ basis) * known[i][0]
    return (new + math.sqrt(variance) * q.normal() if eta else new), known[:2]


def sde_heun(q: Problem, x: Affine, t: float, s: float, memory: Any, eta: float) -> tuple[Affine, Any]:
    """The line between D at t and D at the end of a first-order step with the same noise."""
    h, carried, at, weights, variance = sde_parts(q, t, s, eta)
    d = q.denoised(x, t)
    first = carried * x + float(weights.sum()) * d
    if eta:
        first = first + math.sqrt(variance) * q.normal()
    return first + float(weights @ at) / h * (q.denoised(first, s) - d), None


def churn(
    q: Problem, x: Affine, t: float, s: float, memory: Any, total: float, low: float, high: float, factor: float
) -> tuple[Affine, Any]:
    """Karras et al. 2022, Algorithm 2, for y = x/alpha; no level above the first."""
    c = q.curve

    def level(time: float) -> float:
        return c.sigma(time) / c.alpha(time)

    gamma = min(total / len(q.times), math.sqrt(2) - 1) if low <= level(t) <= high else 0.0
    raised = min(level(t) * (1 + gamma), level(q.times[0]))
    y, there = (1 / c.alpha(t)) * x, level(s)
    if raised > level(t):
        y = y + factor * math.sqrt(raised**2 - level(t) ** 2) * q.normal()
        hat = c.time(-math.log(raised))
    else:
        raised, hat = level(t), t
    slope = (1 / raised) * (y - q.denoised(c.alpha(hat) * y, hat))
    euler = y + (there - raised) * slope
    end = (1 / there) * (euler - q.denoised(c.alpha(s) * euler, s))
    return c.alpha(s) * (y + 0.5 * (there - raised) * (slope + end)), None


RULES: dict[str, Rule] = {"euler": euler, "reverse": reverse, "ancestral": ancestral, "ddim": ddim, "heun": heun,
                          "2m": two_m, "multistep": polynomial_rules.multistep, "plms": polynomial_rules.plms,
                          "singlestep": polynomial_rules.singlestep,
                          "sde": sde, "sde-heun": sde_heun, "churn": churn}  # fmt: skip


def restart_laps(curve: Curve, times: list[float], intervals: Any) -> list[list[float]]:
    """The descending stretches that Xu et al. 2023, Algorithm 1, visits in turn, levels sigma/alpha."""

    def level(t: float) -> float:
        return curve.sigma(t) / curve.alpha(t)

    ends = level(times[-1]), level(times[0])
    used = [(max(low, ends[0]), min(high, ends[1]), n, steps) for low, high, n, steps in intervals]
    used = [u for u in used if u[0] < u[1]]
    down = list(times)
    for edge in {e for low, high, _, _ in used for e in (low, high)}:
        if all(abs(math.log(level(t) / edge)) > 1e-9 for t in down):
            down.append(curve.time(-math.log(edge)))
    down.sort(reverse=True)
    laps, rest = [], down
    for low, high, repeats, steps in sorted(used, reverse=True):
        bottom = min(down, key=lambda t: abs(math.log(level(t) / low)))
        top = min(down, key=lambda t: abs(math.log(level(t) / high)))
        laps.append([t for t in rest if t >= bottom])
        again = [t for t in down if top >= t >= bottom]
        if steps is not None:
            roots = np.linspace(level(top) ** (1 / 7), level(bottom) ** (1 / 7), steps + 1)[1:-1]
            again = [top, *(curve.time(-7 * math.log(r)) for r in roots), bottom]
        laps += [list(again) for _ in range(repeats)]
        # the last lap goes on downwards
        rest = [*laps.pop(), *(t for t in down if t < bottom)]
    return [*laps, rest]


def langevin(q: Problem, x: Affine, t: float, size: float) -> Affine:
    return x + size * q.score(x, t) + math.sqrt(2 * size) * q.normal()


def prior(q: Problem, t: float) -> Affine:
    return q.curve.sigma(t) * q.normal()


def run(q: Problem, times: list[float], case: Any, denoise: bool, start: Affine | None = None) -> Affine:
    """The state a sampler returns; `case` is a `discovery.Case`, from which only plain numbers are read."""
    x = prior(q, times[0]) if start is None else start
    c, last = q.curve, times[-1]
    if case.rule == "annealed":
        per_level, snr = case.args
        for i, t in enumerate(times):
            if i:
                x = (c.alpha(t) / c.alpha(times[i - 1])) * x
            for _ in range(per_level):  # in y = x/alpha: e = 2 r^2 (sigma/alpha)^2, so e alpha^2 in x
                x = langevin(q, x, t, 2 * snr**2 * c.variance(t))
        return q.denoised(x, last) if denoise else x

    if case.rule == "consistent":
        # Jolicoeur-Martineau et al. 2021, Algorithm 2, for y = x/alpha: a share of the noise is taken away, and what
        # the next level has beyond the rest is put back.
        per_level, snr = case.args
        rho = [math.sqrt(c.variance(t)) / c.alpha(t) for t in times]
        for i, t in enumerate(times):
            if i:
                x = (c.alpha(t) / c.alpha(times[i - 1])) * x
            for j in range(per_level):
                after = rho[i + 1] if j == per_level - 1 and i + 1 < len(rho) else rho[i]
                share = max(2 * snr**2, 1 - after / rho[i])
                left = max(after**2 - (1 - share) ** 2 * rho[i] ** 2, 0.0)
                clean = c.alpha(t) * q.denoised(x, t)
                x = (1 - share) * x + share * clean + c.alpha(t) * math.sqrt(left) * q.normal()
        return q.denoised(x, last) if denoise else x

    if case.rule == "restart":
        laps = restart_laps(c, times, case.args)
        for i, lap in enumerate(laps):
            if i:
                a, b2 = kernel(c, laps[i - 1][-1], lap[0])
                x = a * x + math.sqrt(b2) * q.normal()
            memory = None
            for t, s in pairwise(lap):
                x, memory = RULES[case.predictor.rule](q, x, t, s, memory, *case.predictor.args)
        return q.denoised(x, last) if denoise else x

    q.times = times
    predictor = case if case.rule != "corrected" else case.predictor

    def correct(x: Affine, t: float, after: float | None) -> Affine:
        a2 = (c.alpha(t) / (1.0 if after is None else c.alpha(after))) ** 2
        for _ in range(case.corrector_steps):
            x = langevin(q, x, t, 2 * a2 * (case.snr * c.sigma(t)) ** 2)
        return x

    memory = None
    for t, s in pairwise(times):
        x = correct(x, t, s)
        if predictor is not None:
            x, memory = RULES[predictor.rule](q, x, t, s, memory, *predictor.args)
            q.largest = max(q.largest, float((x.L**2).sum(1).max()))
    return q.denoised(correct(x, last, None), last) if denoise else x
