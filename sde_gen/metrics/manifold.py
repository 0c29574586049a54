"""How much of one set lies where the other is: improved precision and recall."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_gen.errors import ConfigError, DataError
from sde_gen.metrics.distances import blocks, euclidean, pair


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in [0, 1]: of the samples that look real (`precision`), of the real points that are covered (`recall`)."""

    precision: float
    recall: float


def precision_recall(samples: Any, real: Any, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall.

    A set stands for the union of balls around its points, each as wide as the distance to its k-th nearest neighbour
    in the set. Precision is the share of `samples` in the balls of `real`; recall the share of `real` in those of
    `samples`. Both depend on k and on the sizes of the sets.

    Args:
        samples, real: points or features (n, ...) and (m, ...), at least k + 1 of each; flattened.
        k: neighbours, at least 1.

    Raises:
        DataError: sets that are too small, hold NaN, or differ in their number of features.  ConfigError: `k` < 1.

    Kynkäänniemi et al. (2019), arXiv:1904.06991.
    """
    if k < 1:
        raise ConfigError(f"k={k} must be at least 1")
    a, b = pair(samples, real)
    if min(len(a), len(b)) <= k:
        raise DataError(f"k={k} neighbours need at least {k + 1} points in each set, got {len(a)} and {len(b)}")
    return PrecisionRecall(_covered(a, b, k), _covered(b, a, k))


def _covered(a: Tensor, b: Tensor, k: int) -> float:
    """Share of the points of `a` in a ball of `b`."""
    from sklearn.neighbors import NearestNeighbors

    # Asked without points, it leaves each point out of its own neighbours.
    distances, _ = NearestNeighbors(n_neighbors=k).fit(b.numpy()).kneighbors()
    radii = torch.from_numpy(distances[:, -1])
    return sum(int((euclidean(block, b) <= radii).any(1).sum()) for block in blocks(a, b)) / len(a)
