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


RULES: dict[str, Rule] = {"euler": euler, "reverse": reverse, "ancestral": ancestral, "ddim": ddim, "heun": heun,
                          "2m": two_m, "multistep": polynomial_rules.multistep, "plms": polynomial_rules.plms,
                          "singlestep": polynomial_rules.singlestep}  # fmt: skip


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
