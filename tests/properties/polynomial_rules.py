r"""Multistep and singlestep exponential rules as recursions in plain numpy, by quadrature and from earlier states.

Each integral over a step is a sum over Gauss-Legendre points; a corrected state is the integral from an earlier state,
as the papers write it. The package instead knows phi functions and tables of increments.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

from tests.properties.curves import Curve

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(60)
_NODES, _WEIGHTS = 0.5 * (_NODES + 1), 0.5 * _WEIGHTS
_FEW, _FEW_WEIGHTS = np.polynomial.legendre.leggauss(12)
_MANY, _MANY_WEIGHTS = np.polynomial.legendre.leggauss(160)
_MANY, _MANY_WEIGHTS = 0.5 * (_MANY + 1), 0.5 * _MANY_WEIGHTS
_FEW, _FEW_WEIGHTS = 0.5 * (_FEW + 1), 0.5 * _FEW_WEIGHTS


def value(q: Any, x: Any, t: float, prediction: str) -> Any:
    c = q.curve
    denoised, noise = q.denoised(x, t), -c.sigma(t) * q.score(x, t)
    if prediction == "velocity":
        return (1 / math.hypot(c.alpha(t), c.sigma(t))) * (c.alpha(t) * noise - c.sigma(t) * denoised)
    return denoised if prediction == "data" else noise


def basis(at: np.ndarray, nodes: list[float], j: int) -> np.ndarray:
    """1 at node j, 0 at the others."""
    out = np.ones_like(at)
    for i, node in enumerate(nodes):
        if i != j:
            out = out * (at - node) / (nodes[j] - node)
    return out


def weights(c: Curve, t: float, s: float, nodes: list[float], prediction: str, variable: str) -> tuple[float, list]:
    """x_s = carry x_t + sum_j w_j N(node_j), from dx/dlambda of each form."""
    a, b = c.alpha, c.sigma
    if variable == "time":  # even in log(t/(1.0005 - t)); a chain piece by piece, since its rates jump at the nodes
        cuts = [k / c.nodes for k in range(1, c.nodes) if s < k / c.nodes - 1e-9 and k / c.nodes + 1e-9 < t]
        ends = [max(s, 1e-9), *cuts, t]
        ends = [math.log(v / (1.0005 - v)) for v in ends]
        points, w = (_MANY, _MANY_WEIGHTS) if not cuts else (_FEW, _FEW_WEIGHTS)
        u = np.concatenate([lo + (hi - lo) * points for lo, hi in pairwise(ends)])
        du = np.concatenate([(hi - lo) * w for lo, hi in pairwise(ends)])
        u = 1.0005 / (1 + np.exp(-u))
        du = du * u * (1.0005 - u) / 1.0005
        lam = np.array([c.lam(v) for v in u])
        dlam = du * [c.g2(v) / (2 * c.variance(v)) for v in u]  # -dlambda/dt = g^2/(2 sigma^2)
        known = nodes
    else:
        of = {"lambda": lambda v: v, "rho": lambda v: np.exp(-v), "angle": lambda v: np.arctan(np.exp(-v))}[variable]
        low, high = c.lam(t), c.lam(s)
        lam, dlam = low + (high - low) * _NODES, (high - low) * _WEIGHTS
        u, known = of(lam), [float(of(c.lam(node))) for node in nodes]
    end = c.lam(s)
    if prediction == "data":
        carry, kernel = b(s) / b(t), a(s) * np.exp(lam - end)
    elif prediction == "noise":
        carry, kernel = a(s) / a(t), -b(s) * np.exp(end - lam)
    else:
        size = math.hypot(a(s), b(s))
        carry, kernel = size / math.hypot(a(t), b(t)), -size / (np.exp(lam) + np.exp(-lam))
    return carry, [float((kernel * basis(u, known, j) * dlam).sum()) for j in range(len(nodes))]


def combined(carry: float, x: Any, w: list[float], values: list[Any]) -> Any:
    out = carry * x
    for c, v in zip(w, values, strict=True):
        out = out + c * v
    return out


def multistep(
    q: Any, x: Any, t: float, s: float, memory: Any, order: int, prediction: str, variable: str, corrects: bool
) -> tuple[Any, Any]:
    """Adams-Bashforth through `order` values, or one less and corrected; `path` is the state as predicted, to which a
    corrector's change refers if something else has moved x since."""
    c = q.curve
    times, values, path, before, origin = ([], [], x, None, x) if memory is None else memory
    k, times = len(times), [t, *times]
    values = [value(q, x, t, prediction), *values]
    start = 1 <= k <= order - 2

    def again() -> Any:
        if start:
            return combined(*swap(weights(c, times[-1], t, times, prediction, variable), origin), values)
        nodes = times[:order]
        return combined(*swap(weights(c, times[1], t, nodes, prediction, variable), before), values[: len(nodes)])

    if start or (corrects and k):
        corrected = again()
        x, path = x + (corrected - path), corrected
        if order == 4 and k == 1:
            values[0] = value(q, x, t, prediction)
            corrected = again()
            x, path = x + (corrected - path), corrected
    nodes = times[: order - corrects]
    carry, w = weights(c, t, s, nodes, prediction, variable)
    new, onward = (combined(carry, at, w, values[: len(nodes)]) for at in (x, path))
    return new, (times, values, onward, path, origin)


def swap(pair: tuple[float, list[float]], x: Any) -> tuple[float, Any, list[float]]:
    return pair[0], x, pair[1]


def plms(q: Any, x: Any, t: float, s: float, memory: Any) -> tuple[Any, Any]:
    """Liu et al. 2022: linear multistep average of the noise, then DDIM's step with it."""
    c = q.curve
    e = [value(q, x, t, "noise"), *(memory or [])][:4]
    if len(e) == 1:
        mean = e[0]
    elif len(e) == 2:
        mean = (1 / 2) * (3 * e[0] - e[1])
    elif len(e) == 3:
        mean = (1 / 12) * (23 * e[0] - 16 * e[1] + 5 * e[2])
    else:
        mean = (1 / 24) * (55 * e[0] - 59 * e[1] + 37 * e[2] - 9 * e[3])
    clean = (1 / c.alpha(t)) * (x - c.sigma(t) * mean)
    return c.alpha(s) * clean + c.sigma(s) * mean, e


def singlestep(q: Any, x: Any, t: float, s: float, memory: Any, order: int, prediction: str) -> tuple[Any, Any]:
    """Lu et al. 2022, Algorithms 1 and 2 (arXiv:2206.00927), with every line integrated exactly."""
    c = q.curve
    variable = "angle" if prediction == "velocity" else "lambda"

    def take(to: float, times: list[float], values: list[Any]) -> Any:
        return combined(*swap(weights(c, t, to, times, prediction, variable), x), values)

    def time(r: float) -> float:
        return c.time(c.lam(t) + r * (c.lam(s) - c.lam(t)))

    now = value(q, x, t, prediction)
    if order == 2:
        middle = time(1 / 2)
        inner = value(q, take(middle, [t], [now]), middle, prediction)
        return take(s, [t, middle], [now, inner]), None
    first, second = time(1 / 3), time(2 / 3)
    one = value(q, take(first, [t], [now]), first, prediction)
    two = value(q, take(second, [t, first], [now, one]), second, prediction)
    return take(s, [t, second], [now, two]), None
