r"""Exponential integrators of the probability-flow ODE: the one derivation behind every rule in lambda.

With :math:`h = \lambda_s - \lambda_t > 0`, :math:`v = \lambda - \lambda_t` and :math:`n = \sqrt{\alpha^2+\sigma^2}` the
flow from t to s has three exact forms, which differ in the part that is integrated in closed form:

.. math::
    x_s &= \tfrac{\sigma_s}{\sigma_t} x_t + \alpha_s \int_0^h e^{v-h}\, D\, dv       && \text{(data)} \\
    x_s &= \tfrac{\alpha_s}{\alpha_t} x_t - \sigma_s \int_0^h e^{h-v}\, \epsilon\, dv && \text{(noise)} \\
    x_s &= \tfrac{n_s}{n_t} x_t + n_s \int_{\theta_t}^{\theta_s} v_\theta\, d\theta   && \text{(velocity)},
    \quad \theta = \arctan(\sigma/\alpha),\; v_\theta = (\alpha\epsilon - \sigma D)/n .

A rule replaces D, epsilon or v by the Lagrange polynomial through known values, in a variable of its choice, and takes
the integral exactly. For polynomials in :math:`\lambda` the moments are the phi functions,

.. math:: \int_0^1 e^{(1-s)z} \frac{s^{k-1}}{(k-1)!}\, ds = \varphi_k(z), \qquad
          \varphi_{k+1}(z) = \frac{\varphi_k(z) - 1/k!}{z}, \quad \varphi_0 = e^z ,

at z = -h for data and z = h for noise; in other variables a Gauss-Legendre rule in lambda gives them to rounding.
Hochbruck & Ostermann 2010 (Acta Numerica 19); Lu et al. 2022, arXiv:2206.00927 and 2211.01095; Zhang & Chen 2023,
arXiv:2204.13902.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_gen.perturbations import Chain, Perturbation

#: What a rule may interpolate, and in which variable: half log-SNR, sigma/alpha, arctan(sigma/alpha), or time.
PREDICTIONS = ("data", "noise", "velocity")
VARIABLES = ("lambda", "rho", "angle", "time")
NATURAL = {"data": "lambda", "noise": "lambda", "velocity": "angle"}


def phi(count: int, z: Tensor) -> list[Tensor]:
    """phi_1(z) ... phi_count(z), float64, for finite real z.

    By the recursion upward, or, where that would cancel, downward from the series of the last.
    """
    near = z.abs() < 1
    small, big = torch.where(near, z, 0.0), torch.where(near, 1.0, z)
    upward = [torch.expm1(big) / big]
    for k in range(1, count):
        upward.append((upward[-1] - 1 / math.factorial(k)) / big)
    terms = torch.tensor([1 / math.factorial(j + count) for j in range(20)], dtype=torch.float64)
    downward = [(torch.linalg.vander(small, N=20) * terms).sum(-1)]  # sum of z^j/(j + count)!
    for k in range(count - 1, 0, -1):
        downward.insert(0, small * downward[0] + 1 / math.factorial(k))
    return [torch.where(near, low, high) for low, high in zip(downward, upward, strict=True)]


def lagrange(nodes: Tensor) -> Tensor:
    """Coefficients c[..., j, n] of s^n in the polynomial that is 1 at node j and 0 at the others; nodes (..., m)."""
    m = nodes.shape[-1]
    rows = []
    for j in range(m):
        row = torch.zeros_like(nodes)
        row[..., 0] = 1.0
        for i in range(m):
            if i != j:  # times (s - s_i)/(s_j - s_i)
                shifted = torch.roll(row, 1, -1)
                shifted[..., 0] = 0.0
                row = (shifted - row * nodes[..., i, None]) / (nodes[..., j] - nodes[..., i])[..., None]
        rows.append(row)
    return torch.stack(rows, -2)


@cache
def _gauss() -> tuple[Tensor, Tensor]:
    """Points and weights of 64 on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(64)
    return torch.from_numpy(0.5 * (x + 1)), torch.from_numpy(0.5 * w)


def _variable(p: Perturbation, name: str, lam: Tensor) -> Tensor:
    if name == "rho":
        return (-lam).exp()
    if name == "angle":
        return torch.atan((-lam).exp())
    return p.time(lam) if name == "time" else lam


@dataclass(frozen=True)
class Points:
    """A process at some times: half log-SNR, alpha and sigma, float64, of one shape."""

    lam: Tensor
    alpha: Tensor
    sigma: Tensor

    @classmethod
    def of(cls, p: Perturbation, times: Tensor) -> "Points":
        return cls(p.half_log_snr(times), p.alpha(times), p.sigma(times))

    def __getitem__(self, index: Any) -> "Points":
        return Points(self.lam[index], self.alpha[index], self.sigma[index])


def integrals(
    p: Perturbation, prediction: str, variable: str, begin: Points, end: Points, nodes: Tensor
) -> tuple[Tensor, Tensor]:
    """Weights of a step: x_end = carry x_begin + sum_j weight_j N(node_j), exact for polynomials N of degree < m.

    Args:
        p: the process, for its times.
        prediction: what N is, of `PREDICTIONS`.
        variable: what the polynomial is in, of `VARIABLES`.
        begin, end: where the steps begin and end, (K,), begin before end.
        nodes: half log-SNRs (K, m) at which N is known, in any order, all different.

    Returns:
        carry (K,) and weight (K, m), float64.
    """
    start, at = begin.lam, nodes
    h = end.lam - start
    if prediction == "velocity":
        before, after = ((q.alpha.square() + q.sigma.square()).sqrt() for q in (begin, end))
        carry, factor = after / before, -after
    elif prediction == "noise":
        carry, factor = end.alpha / begin.alpha, -end.sigma
    else:
        carry, factor = end.sigma / begin.sigma, end.alpha
    if variable == "lambda" and prediction != "velocity":
        s = (at - start[:, None]) / h[:, None]
        values = phi(nodes.shape[-1], h if prediction == "noise" else -h)
        moments = torch.stack([h * math.factorial(n) * value for n, value in enumerate(values)], -1)
        weight = (lagrange(s) * moments[:, None, :]).sum(-1)
    else:
        weight = _by_quadrature(p, prediction, variable, start, start + h, at)
    return carry, factor[:, None] * weight


def _by_quadrature(p: Perturbation, prediction: str, variable: str, start: Tensor, end: Tensor, at: Tensor) -> Tensor:
    """Integrals of the kernel times each basis polynomial, over lambda from start to end; (K, m)."""
    which, low, high = torch.arange(len(start)), start, end
    if variable == "time" and isinstance(p, Chain) and len(start):
        # t(lambda) has a kink at every node: each piece between two of them is integrated for itself.
        nodes = p.half_log_snr(p.nodes).flip(0)
        ends = [
            torch.cat([a[None], nodes[(nodes > a) & (nodes < b)], b[None]]) for a, b in zip(start, end, strict=True)
        ]
        which = torch.cat([torch.full((len(e) - 1,), k) for k, e in enumerate(ends)])
        low, high = torch.cat([e[:-1] for e in ends]), torch.cat([e[1:] for e in ends])
    points, weights = _gauss()
    lam = low[:, None] + (high - low)[:, None] * points
    if prediction == "velocity":
        kernel = 0.5 / torch.cosh(lam)  # -d theta/d lambda
    else:
        sign = 1.0 if prediction == "data" else -1.0
        kernel = (sign * (lam - end[which, None])).exp()
    kernel = kernel * weights * (high - low)[:, None]
    tau, known = _variable(p, variable, lam), _variable(p, variable, at)
    basis = []
    for j in range(at.shape[-1]):
        value = kernel
        for i in range(at.shape[-1]):
            if i != j:
                value = value * (tau - known[which, i, None]) / (known[:, j] - known[:, i])[which, None]
        basis.append(torch.zeros_like(start).index_add(0, which, value.sum(-1)))
    return torch.stack(basis, -1)


def from_state_and_data(prediction: str, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b) of N = a x + b x0hat for one of `PREDICTIONS`."""
    if prediction == "data":
        return torch.zeros_like(alpha), torch.ones_like(alpha)
    if prediction == "noise":
        return 1 / sigma, -alpha / sigma
    size = (alpha.square() + sigma.square()).sqrt()
    return alpha / (sigma * size), -size / sigma
