"""Distances between two sets of points, computed in float64 and in blocks of bounded memory."""

from typing import Any

import torch
from torch import Tensor

from sde_gen.errors import ConfigError, DataError

_BLOCK = 2**22  # entries of a distance matrix held at once (32 MiB)


def energy_distance(x: Any, y: Any) -> float:
    """Energy distance of two sets of points, as a V-statistic, without a square root.

        2 E|x - y| - E|x - x'| - E|y - y'|        (Euclidean norm; averages over all pairs, equal ones included)

    It is 0 for equal sets and positive otherwise. Two finite samples of one law are not at 0: compare with the value
    of two real samples of the same sizes.

    Args:
        x, y: arrays or tensors (n, ...) and (m, ...), n and m at least 1; all but the first axis are flattened.

    Raises:
        DataError: empty sets, different numbers of features, NaN or infinite values.

    Szekely and Rizzo, "Energy statistics: a class of statistics based on distances" (2013).
    """
    a, b = pair(x, y)
    return 2.0 * _mean_distance(a, b) - _mean_distance(a, a) - _mean_distance(b, b)


def sliced_wasserstein(x: Any, y: Any, projections: int = 256, seed: int = 0) -> float:
    """Sliced Wasserstein-2 distance: root of the mean, over random directions, of the squared 1-D distance.

    The one-dimensional distance is the L2 distance of the two quantile functions, exact for sets of any two sizes.

    Args:
        x, y: arrays or tensors (n, ...) and (m, ...); all but the first axis are flattened.
        projections: number of random directions, at least 1.
        seed: of the directions.

    Raises:
        DataError: as for `energy_distance`.  ConfigError: `projections` below 1.

    Bonneel et al., "Sliced and Radon Wasserstein barycenters of measures" (2015).
    """
    if projections < 1:
        raise ConfigError(f"projections={projections} must be at least 1")
    a, b = pair(x, y)
    directions = random_directions(a.shape[1], projections, seed)
    return quantile_distance(*((directions @ s.T).sort(dim=1).values for s in (a, b)))


def random_directions(features: int, count: int, seed: int) -> Tensor:
    """Unit vectors (count, features), uniform on the sphere."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(features, count, generator=generator, dtype=torch.float64).T
    return directions / directions.norm(dim=1, keepdim=True)


def quantile_distance(u: Tensor, v: Tensor) -> float:
    """Root of the mean, over rows, of the squared Wasserstein-2 distance of (p, n) and (p, m), both ascending."""
    n, m = u.shape[1], v.shape[1]
    if n == m:
        return float((u - v).square_().mean().sqrt())
    # Both quantile functions are constant between the merged break points k/n and k/m.
    breaks = torch.unique(torch.cat([torch.arange(n + 1) * m, torch.arange(m + 1) * n]))  # in units of 1/(n m)
    widths = (breaks[1:] - breaks[:-1]).double() / (n * m)
    left = breaks[:-1]
    in_u, in_v = (torch.div(left, k, rounding_mode="floor") for k in (m, n))
    return float(((u[:, in_u] - v[:, in_v]).square_() @ widths).mean().sqrt())


def maximum_mean_discrepancy(x: Any, y: Any, bandwidth: float | None = None) -> float:
    """Squared maximum mean discrepancy with a Gaussian kernel, as a V-statistic (never negative up to rounding).

        E k(x, x') + E k(y, y') - 2 E k(x, y),     k(a, b) = exp(-|a - b|^2 / (2 h^2))

    Args:
        x, y: arrays or tensors (n, ...) and (m, ...); all but the first axis are flattened.
        bandwidth: h, positive; None takes the median distance between points of both sets together (at most 2,000).

    Raises:
        DataError: as for `energy_distance`, or all points equal.  ConfigError: `bandwidth` not positive.

    Gretton et al., "A kernel two-sample test" (2012).
    """
    a, b = pair(x, y)
    if bandwidth is None:
        bandwidth = median_distance(torch.cat([a[:1000], b[:1000]]))
    if not bandwidth > 0.0:
        raise ConfigError(f"bandwidth={bandwidth} must be positive")
    scale = -0.5 / bandwidth**2
    return _mean_kernel(a, a, scale) + _mean_kernel(b, b, scale) - 2.0 * _mean_kernel(a, b, scale)


def median_distance(a: Tensor) -> float:
    """Median distance of two of the points (n, d), their mean where more than half of the points are equal.

    Raises:
        DataError: all points are equal.
    """
    distances = torch.pdist(a)
    bandwidth = float(distances.median()) or float(distances.mean())
    if bandwidth == 0.0:
        raise DataError("all points of both sets are equal, so there is no median distance; give bandwidth=")
    return bandwidth


def points(x: Any, name: str = "x") -> Tensor:
    """`x` as a float64 tensor (n, features) on the CPU.

    Raises:
        DataError: no points, or NaN or infinite values.
    """
    tensor = torch.as_tensor(x).detach().to(device="cpu", dtype=torch.float64)
    if tensor.ndim == 0 or tensor.numel() == 0:
        raise DataError(f"the set {name} of shape {tuple(tensor.shape)} holds no points; give at least one")
    tensor = tensor.reshape(len(tensor), -1)
    bad = ~torch.isfinite(tensor).all(dim=1)
    if bool(bad.any()):
        raise DataError(f"the set {name} holds NaN or infinity in {int(bad.sum())} of its {len(tensor)} points")
    return tensor


def pair(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Both sets as `points`, with equal numbers of features.

    Raises:
        DataError: as for `points`, or different numbers of features.
    """
    a, b = points(x, "x"), points(y, "y")
    if a.shape[1] != b.shape[1]:
        raise DataError(f"the two sets have {a.shape[1]} and {b.shape[1]} features per point; they must agree")
    return a, b


def blocks(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """`a` in pieces whose table of pairs with `b` has a bounded size."""
    return a.split(max(1, _BLOCK // len(b)))


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """The table of distances |a_i - b_j|."""
    # Not through the matrix product, which loses half of the digits for near points.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def gaussian_kernel(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The table exp(scale |a_i - b_j|^2)."""
    return euclidean(a, b).square_().mul_(scale).exp_()


def _mean_distance(a: Tensor, b: Tensor) -> float:
    return sum(float(euclidean(block, b).sum()) for block in blocks(a, b)) / (len(a) * len(b))


def _mean_kernel(a: Tensor, b: Tensor, scale: float) -> float:
    return sum(float(gaussian_kernel(block, b, scale).sum()) for block in blocks(a, b)) / (len(a) * len(b))
