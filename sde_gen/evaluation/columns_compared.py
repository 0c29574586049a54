"""How the columns of a table differ, each for itself, between samples and held-out data."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from sde_gen.data.columns import Column
from sde_gen.data.rows import decoded

_MOST = 100  # columns


def compared_columns(
    columns: Sequence[Column], samples: NDArray[np.floating], real: NDArray[np.floating]
) -> list[dict[str, Any]]:
    """One mapping for each column: its name, kind, and the distance of its law in `samples` from that in `real`.

    Of numbers and ordinals "wasserstein": W1 in units of the real standard deviation, beside both means and standard
    deviations; of categories "total_variation" of the frequencies, in [0, 1].

    Args:
        columns: of the table.
        samples: raw samples (N, D).
        real: raw held-out data (M, D).
    """
    found = []
    for (column, a), (_, b) in zip(decoded(columns, samples)[:_MOST], decoded(columns, real), strict=False):
        row: dict[str, Any] = {"name": column.name, "kind": column.kind}
        if column.kind == "category":
            mine, theirs = Counter(a), Counter(b)
            gaps = [abs(mine[value] / len(a) - theirs[value] / len(b)) for value in column.values]
            found.append(row | {"total_variation": sum(gaps) / 2})
            continue
        if column.kind == "ordinal":
            a, b = ([column.values.index(value) for value in values] for values in (a, b))
        x, y = np.array(a, np.float64), np.array(b, np.float64)
        scale = float(y.std()) or 1.0
        row |= {
            "mean": float(x.mean()),
            "std": float(x.std()),
            "real_mean": float(y.mean()),
            "real_std": float(y.std()),
        }
        centre = y.mean()
        found.append(row | {"wasserstein": float(wasserstein_distance((x - centre) / scale, (y - centre) / scale))})
    return found
