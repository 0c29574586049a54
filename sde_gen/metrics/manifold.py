"""How much of one set lies where the other is: improved precision and recall."""

from dataclasses import dataclass
from typing import Any

import torch

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
    from sklearn.neighbors import NearestNeighbors

    k = checks.integer("precision_recall", "k", k)
    a, b = pair(x, by, least=k + 1)
    # Asked without points, it leaves each point out of its own neighbours.
    distances, _ = NearestNeighbors(n_neighbors=k).fit(b.numpy()).kneighbors()
    radii = torch.from_numpy(distances[:, -1])
    return sum(int((euclidean(block, b) <= radii).any(1).sum()) for block in blocks(a, b)) / len(a)
