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
    a, b = _pair(x, y)
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
    a, b = _pair(x, y)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(a.shape[1], projections, generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=0, keepdim=True)
    u, v = (a @ directions).sort(dim=0).values, (b @ directions).sort(dim=0).values
    # Both quantile functions are constant between the merged break points k/n and k/m.
    n, m = len(u), len(v)
    breaks = torch.unique(torch.cat([torch.arange(n + 1) * m, torch.arange(m + 1) * n]))  # in units of 1/(n m)
    widths = (breaks[1:] - breaks[:-1]).double() / (n * m)
    left = breaks[:-1]
    squared = (u[torch.div(left, m, rounding_mode="floor")] - v[torch.div(left, n, rounding_mode="floor")]) ** 2
    return float((widths @ squared).mean().sqrt())


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
    a, b = _pair(x, y)
    if bandwidth is None:
        both = torch.cat([a[:1000], b[:1000]])
        distances = torch.pdist(both)
        bandwidth = float(distances.median()) or float(distances.mean())
        if bandwidth == 0.0:
            raise DataError("all points of both sets are equal, so there is no median distance; give bandwidth=")
    if not bandwidth > 0.0:
        raise ConfigError(f"bandwidth={bandwidth} must be positive")
    scale = -0.5 / bandwidth**2
    return _mean_kernel(a, a, scale) + _mean_kernel(b, b, scale) - 2.0 * _mean_kernel(a, b, scale)


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


def _pair(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    a, b = points(x, "x"), points(y, "y")
    if a.shape[1] != b.shape[1]:
        raise DataError(f"the two sets have {a.shape[1]} and {b.shape[1]} features per point; they must agree")
    return a, b


def _blocks(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    return a.split(max(1, _BLOCK // len(b)))


def _mean_distance(a: Tensor, b: Tensor) -> float:
    total = 0.0
    for block in _blocks(a, b):
        # Not through the matrix product, which loses half of the digits for near points.
        total += float(torch.cdist(block, b, compute_mode="donot_use_mm_for_euclid_dist").sum())
    return total / (len(a) * len(b))


def _mean_kernel(a: Tensor, b: Tensor, scale: float) -> float:
    total = 0.0
    for block in _blocks(a, b):
        distances = torch.cdist(block, b, compute_mode="donot_use_mm_for_euclid_dist")
        total += float(distances.square_().mul_(scale).exp_().sum())
    return total / (len(a) * len(b))
