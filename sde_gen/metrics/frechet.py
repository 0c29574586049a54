r"""Distances of two sets of features by their first moments (Fréchet) or by a polynomial kernel.

Features are whatever a row holds: the points themselves, or what a network makes of them (`features.py`). Only with the
Inception network of the paper is the Fréchet distance an "FID", and numbers of different features never compare.
"""

from typing import Any

import torch
from torch import Tensor

from sde_gen.errors import DataError
from sde_gen.metrics.distances import blocks, pair


def frechet_distance(x: Any, y: Any) -> float:
    """Fréchet distance (Wasserstein-2, squared) of the Gaussians with the moments of the two sets.

        |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2))

    with unbiased covariances. It is biased upwards by about 1/n: compare sets of one size only.

    Args:
        x, y: features (n, ...) and (m, ...), n and m at least 2; all but the first axis are flattened.

    Raises:
        DataError: fewer than two points, different numbers of features, NaN or infinite values.

    Dowson and Landau, "The Fréchet distance between multivariate normal distributions" (1982); Heusel et al. (2017),
    arXiv:1706.08500.
    """
    a, b = pair(x, y)
    if min(len(a), len(b)) < 2:
        raise DataError(f"a covariance needs at least 2 points in each set, got {len(a)} and {len(b)}")
    return gaussian_frechet(*moments(a), *moments(b))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) of points (n, d), and a factor A, (min(n, d), d), of their unbiased covariance A^T A."""
    mean = x.mean(0)
    factor = (x - mean) / (len(x) - 1) ** 0.5
    return mean, torch.linalg.qr(factor, mode="r").R if len(x) > x.shape[1] else factor


def gaussian_frechet(mean_x: Tensor, factor_x: Tensor, mean_y: Tensor, factor_y: Tensor) -> float:
    """The formula of `frechet_distance` for what `moments` returns."""
    # tr (S_x S_y)^(1/2) is the sum of the singular values of A B^T: no covariance is formed, no root of a rounding
    # error taken, and fewer points than features are no special case.
    across = torch.linalg.svdvals(factor_x @ factor_y.T).sum()
    spread = factor_x.square().sum() + factor_y.square().sum() - 2 * across
    return float((mean_x - mean_y).square().sum() + spread)


def kernel_distance(x: Any, y: Any) -> float:
    """Kernel distance: squared maximum mean discrepancy with the cubic kernel, without bias (so it may be negative).

        mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{ij} k(x_i, y_j),   k(a, b) = (a.b/d + 1)^3

    Args:
        x, y: features (n, ...) and (m, ...), n and m at least 2; all but the first axis are flattened to d numbers.

    Raises:
        DataError: fewer than two points, different numbers of features, NaN or infinite values.

    Bińkowski et al., "Demystifying MMD GANs" (2018), arXiv:1801.01401.
    """
    a, b = pair(x, y)
    n, m = len(a), len(b)
    if min(n, m) < 2:
        raise DataError(f"an unbiased kernel distance needs at least 2 points in each set, got {n} and {m}")
    left, right, across = (
        sum(float(cubic_kernel(block, v).sum()) for block in blocks(u, v)) for u, v in ((a, a), (b, b), (a, b))
    )
    left, right = left - float(cubic_self(a).sum()), right - float(cubic_self(b).sum())
    return left / (n * (n - 1)) + right / (m * (m - 1)) - 2 * across / (n * m)


def cubic_kernel(a: Tensor, b: Tensor) -> Tensor:
    """The table (a_i . b_j / d + 1)^3."""
    return (a @ b.T / a.shape[1]).add_(1.0).pow_(3)


def cubic_self(a: Tensor) -> Tensor:
    """Its diagonal, k(a_i, a_i)."""
    return (a.square().sum(1) / a.shape[1] + 1.0) ** 3
