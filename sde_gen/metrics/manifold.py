"""How much of one set lies where the other is: improved precision and recall, density and coverage."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.metrics.jackknife import blocks, euclidean, pair


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in [0, 1]: of the samples that look real (`precision`), of the real points that are covered (`recall`)."""

    precision: float
    recall: float


def precision_recall(samples: Any, real: Any, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall: `covered` of the samples by the real points, and the other way round.

    Kynkäänniemi et al. (2019), arXiv:1904.06991.
    """
    return PrecisionRecall(covered(samples, real, k), covered(real, samples, k))


def covered(x: Any, by: Any, k: int = 3) -> float:
    """Share of the points of `x` that lie in the manifold of the set `by`.

    A set stands for the union of balls around its points, each as wide as the distance to its k-th nearest neighbour
    in the set. The share depends on k and on the sizes of the sets.

    Args:
        x, by: points or features (n, ...) and (m, ...), at least k + 1 of each; flattened.
        k: neighbours, at least 1.

    Raises:
        DataError: sets that are too small, hold NaN, or differ in their number of features.  ConfigError: `k` < 1.
    """
    k = checks.integer("precision_recall", "k", k)
    a, b = pair(x, by, least=k + 1)
    radii = _radii(b, k)
    return sum(int((euclidean(block, b) <= radii).any(1).sum()) for block in blocks(a, b)) / len(a)


@dataclass(frozen=True)
class DensityCoverage:
    """How densely the samples lie where real points are, and how many of those have one nearby.

    Attributes:
        density: 1 in the mean for two sets of one law; it may be larger.
        density_error: its standard error over the samples, the balls held fixed.
        coverage: in [0, 1]; of two sets of n points of one law about 1 - 2^-k.
    """

    density: float
    density_error: float
    coverage: float


def density_coverage(samples: Any, real: Any, k: int = 5) -> DensityCoverage:
    """Density and coverage: of M samples y and N real points x, each with the ball B_i to its k-th neighbour among x,

        density = 1/(k M) sum_j #{i: y_j in B_i},        coverage = 1/N #{i: some y_j in B_i}.

    Unlike precision, density does not call everything real that lies in the ball of one outlier.
    Naeem et al. (2020), arXiv:2002.09797.

    Args:
        samples, real: points or features (M, ...) and (N, ...), at least k + 1 of each; flattened.
        k: neighbours, at least 1.

    Raises:
        DataError: sets that are too small, hold NaN, or differ in their number of features.  ConfigError: `k` < 1.
    """
    k = checks.integer("density_coverage", "k", k)
    y, x = pair(samples, real, least=k + 1)
    radii, counts = _radii(x, k), []
    reached = torch.zeros(len(x), dtype=torch.bool)
    for block in blocks(y, x):
        inside = euclidean(block, x) <= radii
        counts.append(inside.sum(1))
        reached |= inside.any(0)
    each = torch.cat(counts).double() / k
    return DensityCoverage(float(each.mean()), float(each.std() / len(each) ** 0.5), float(reached.double().mean()))


def _radii(x: Tensor, k: int) -> Tensor:
    """Of each point, how far its k-th nearest neighbour among the others is."""
    from sklearn.neighbors import NearestNeighbors

    # Asked without points, it leaves each point out of its own neighbours.
    distances, _ = NearestNeighbors(n_neighbors=k).fit(x.numpy()).kneighbors()
    return torch.from_numpy(distances[:, -1])
