r"""A flow and the integral of its divergence on a fixed grid, with one network call a node.

The state is carried by Adams and Bashforth's rule: the slope is replaced by the polynomial through its last k values.
Its divergence does not feed back, so that it is integrated afterwards, as it were, with the polynomials through the k
nodes *around* each interval, whose error is much smaller than that of an extrapolation, and with weights known in
advance: :math:`\int\nabla\cdot f\,d\lambda = \sum_m w_m (\nabla\cdot f)_m`. Each node may therefore have probes of its
own. Hairer, Norsett & Wanner 1993, III.1.

Nodes are even in :math:`\mathrm{asinh}((\lambda-1)/3)`: dense where noise is about as large as structure in the data,
sparse towards both ends, where the slope dies away like :math:`e^{-2|\lambda|}`. The first steps, for which there are
not k values yet, are of lower order and are made shorter in return.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sde_gen.samplers.exponential import lagrange

#: Where nodes are densest in lambda, and how far that reaches.
_CENTRE, _WIDTH = 1.0, 3.0


@dataclass(frozen=True)
class Path:
    """State at the last node, integrals (B, K), and for each sample the first node that was not finite, or -1."""

    u: Tensor
    q: Tensor
    bad: Tensor


def default_nodes(begin: float, end: float, count: int) -> Tensor:
    """`count` lambdas from begin to end, float64; with ten or more, four of them halve the first interval in turn."""
    halvings = 4 if count >= 10 else 0
    low, high = (np.arcsinh((v - _CENTRE) / _WIDTH) for v in (begin, end))
    nodes = _CENTRE + _WIDTH * np.sinh(np.linspace(low, high, count - halvings))
    nodes[0], nodes[-1] = begin, end
    first = nodes[0] + (nodes[1] - nodes[0]) * 0.5 ** np.arange(halvings, 0, -1)
    return torch.from_numpy(np.concatenate([nodes[:1], first, nodes[1:]]))


def weights(nodes: np.ndarray, low: float, high: float) -> np.ndarray:
    """w with integral_low^high p = sum_i w_i p(nodes_i) for polynomials p of degree < len(nodes)."""
    coefficients = lagrange(torch.from_numpy((nodes - low) / (high - low))).numpy()
    return (high - low) * coefficients @ (1 / np.arange(1, len(nodes) + 1))


def quadrature(nodes: np.ndarray, order: int) -> np.ndarray:
    """Weights of the integral over all nodes, from polynomials of degree order - 1 around each interval."""
    count = len(nodes)
    k = min(order, count)
    total = np.zeros(count)
    for i in range(count - 1):
        start = min(max(0, i - (k - 2) // 2), count - k)
        around = slice(start, start + k)
        total[around] += weights(nodes[around], nodes[i], nodes[i + 1])
    return total


def adams_bashforth(
    call: Callable[[int, Tensor, float], tuple[Tensor, Tensor]], u: Tensor, nodes: Tensor, order: int
) -> Path:
    """Carry u from the first node to the last, and integrate the second value of `call` along.

    Args:
        call: (node, u, lambda) -> slope like u, and rates (B, K) float64.
        u: (B, *shape).
        nodes: (N,) float64, monotone, N >= 2.
        order: k >= 1.
    """
    grid = nodes.numpy()
    of_rates = quadrature(grid, order).tolist()
    steps = []
    for m in range(len(grid) - 1):
        known = slice(max(0, m + 1 - order), m + 1)
        steps.append(weights(grid[known], grid[m], grid[m + 1]).tolist())
    past: list[Tensor] = []
    q: Tensor | None = None
    bad = torch.full((len(u),), -1, device=u.device)
    for m, lam in enumerate(grid.tolist()):
        slope, rate = call(m, u, lam)
        q = rate * of_rates[m] if q is None else q.add_(rate, alpha=of_rates[m])
        finite = slope.flatten(1).sum(1).isfinite() & rate.sum(1).isfinite()
        bad = torch.where((bad < 0) & ~finite, m, bad)
        if m < len(steps):
            past = [*past, slope][-order:]
            for w, f in zip(steps[m], past, strict=True):
                u = u.add(f, alpha=w)
    return Path(u, torch.zeros(len(u), 0, dtype=torch.float64) if q is None else q, bad)
