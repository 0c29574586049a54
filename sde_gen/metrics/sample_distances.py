"""Distances between two sets of points, each with and without its standard error, in float64 and bounded memory.

Every one is called with two arrays or tensors, (n, ...) and (m, ...), all but the first axis flattened, and returns a
float; `energy_distance.estimate(x, y, seed)` returns it with its standard error. All of them refuse empty sets,
different numbers of features, and NaN or infinite values with a `DataError`.
"""

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.errors import DataError
from sde_gen.metrics.jackknife import Cut, euclidean, measure, pair_means
from sde_gen.rng import check_seed


@measure(least=1)
def energy_distance(x: Cut, y: Cut) -> Tensor:
    """Energy distance of two sets of points, as a V-statistic, without a square root.

        2 E|x - y| - E|x - x'| - E|y - y'|        (Euclidean norm; averages over all pairs, equal ones included)

    It is 0 for equal sets and positive otherwise. Two finite samples of one law are not at 0: compare with the value
    of two real samples of the same sizes.

    Szekely and Rizzo, "Energy statistics: a class of statistics based on distances" (2013).
    """
    across, left, right = pair_means(x, y, euclidean)
    return 2 * across - left - right


@measure(least=1)
def maximum_mean_discrepancy(x: Cut, y: Cut, bandwidth: float | None = None) -> Tensor:
    """Squared maximum mean discrepancy with a Gaussian kernel, as a V-statistic (never negative up to rounding).

        E k(x, x') + E k(y, y') - 2 E k(x, y),     k(a, b) = exp(-|a - b|^2 / (2 h^2))

    Args:
        x, y: the sets; y is the real one.
        bandwidth: h, positive; None takes the median distance of two points of y (of 2,000 at most), so that the kernel
            is the same for all sets that are compared with y.

    Raises:
        DataError: all points of y are equal, and no bandwidth is given.  ConfigError: `bandwidth` is not positive.

    Gretton et al., "A kernel two-sample test" (2012).
    """
    if bandwidth is None:
        bandwidth = median_distance(y.points[:2000])
    scale = -0.5 / checks.number("maximum_mean_discrepancy", "bandwidth", bandwidth, low=0.0, open_low=True) ** 2
    across, left, right = pair_means(x, y, lambda a, b: euclidean(a, b).square_().mul_(scale).exp_())
    return left + right - 2 * across


def median_distance(a: Tensor) -> float:
    """Median distance of two of the points (n, d), their mean where more than half of the points are equal.

    Raises:
        DataError: all points are equal.
    """
    distances = torch.pdist(a)
    width = 0.0 if len(a) < 2 else float(distances.median()) or float(distances.mean())
    if width == 0.0:
        raise DataError(f"the {len(a)} real points are all equal, so there is no median distance; give bandwidth=")
    return width


@measure(least=2)
def kernel_distance(x: Cut, y: Cut) -> Tensor:
    """Kernel distance: squared maximum mean discrepancy with the cubic kernel, without bias (so it may be negative).

        mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{ij} k(x_i, y_j),   k(a, b) = (a.b/d + 1)^3

    Args:
        x, y: features (n, d) and (m, d), n and m at least 2.

    Bińkowski et al., "Demystifying MMD GANs" (2018), arXiv:1801.01401.
    """
    d = x.points.shape[1]
    across, left, right = pair_means(
        x, y, lambda a, b: (a @ b.T / d).add_(1.0).pow_(3), lambda a: (a.square().sum(1) / d + 1.0) ** 3
    )
    return left + right - 2 * across


@measure(least=1)
def sliced_wasserstein(x: Cut, y: Cut, projections: int = 256, seed: int = 0) -> Tensor:
    """Sliced Wasserstein-2 distance: root of the mean, over random directions, of the squared 1-D distance.

    The one-dimensional distance is the L2 distance of the two quantile functions, exact for sets of any two sizes.

    Args:
        x, y: the sets.
        projections: number of random directions, at least 1.
        seed: of the directions, whole number in [0, 2^64).

    Raises:
        ConfigError: `projections` or `seed` out of range.

    Bonneel et al., "Sliced and Radon Wasserstein barycenters of measures" (2015).
    """
    projections = checks.integer("sliced_wasserstein", "projections", projections)
    generator = torch.Generator().manual_seed(check_seed(seed) % 2**63)
    directions = torch.randn(x.points.shape[1], projections, generator=generator, dtype=torch.float64).T
    directions = directions / directions.norm(dim=1, keepdim=True)
    sets = []
    for s in (x, y):
        values, order = (directions @ s.points.T).sort(dim=1)
        # What is left of a sorted row is sorted.
        groups, left_out = s.numbers[order], range(s.groups if s.groups > 1 else 0)
        sets.append([values, *(values[groups != i].view(projections, -1) for i in left_out)])
    return torch.stack([_quantile_distance(u, v) for u, v in zip(*sets, strict=True)])


def _quantile_distance(u: Tensor, v: Tensor) -> Tensor:
    """Root of the mean, over rows, of the squared Wasserstein-2 distance of (p, n) and (p, m), both ascending."""
    n, m = u.shape[1], v.shape[1]
    if n == m:
        return (u - v).square_().mean().sqrt()
    # Both quantile functions are constant between the merged break points k/n and k/m.
    breaks = torch.unique(torch.cat([torch.arange(n + 1) * m, torch.arange(m + 1) * n]))  # in units of 1/(n m)
    widths = (breaks[1:] - breaks[:-1]).double() / (n * m)
    in_u, in_v = (torch.div(breaks[:-1], k, rounding_mode="floor") for k in (m, n))
    return ((u[:, in_u] - v[:, in_v]).square_() @ widths).mean().sqrt()


@measure(least=2)
def frechet_distance(x: Cut, y: Cut) -> Tensor:
    """Fréchet distance (Wasserstein-2, squared) of the Gaussians with the moments of the two sets.

        |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2))

    with unbiased covariances. It is biased upwards by about 1/n: compare sets of one size only. Only with the features
    of the paper's Inception network is it an "FID", and numbers of different features never compare.

    Args:
        x, y: features (n, d) and (m, d), n and m at least 2.

    Dowson and Landau, "The Fréchet distance between multivariate normal distributions" (1982); Heusel et al. (2017),
    arXiv:1706.08500.
    """
    values = []
    for sets in zip(x.rests(), y.rests(), strict=True):
        means, factors = zip(*(_moments(s) for s in sets), strict=True)
        # tr (S_x S_y)^(1/2) is the sum of the singular values of A B^T: no covariance is formed, no root of a rounding
        # error taken, and fewer points than features are no special case.
        across = torch.linalg.svdvals(factors[0] @ factors[1].T).sum()
        spread = factors[0].square().sum() + factors[1].square().sum() - 2 * across
        values.append((means[0] - means[1]).square().sum() + spread)
    return torch.stack(values)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) of points (n, d), and a factor A, (min(n, d), d), of their unbiased covariance A^T A."""
    mean = x.mean(0)
    factor = (x - mean) / (len(x) - 1) ** 0.5
    return mean, torch.linalg.qr(factor, mode="r").R if len(x) > x.shape[1] else factor
