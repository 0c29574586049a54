"""Can a classifier tell two sets of samples apart?"""

from typing import Any

import numpy as np

from sde_gen.errors import ConfigError, DataError
from sde_gen.metrics.distances import points


def classifier_accuracy(x: Any, y: Any, folds: int = 5, seed: int = 0) -> float:
    """Cross-validated accuracy of a support vector machine (Gaussian kernel) that tells `x` from `y`.

    0.5 means that it cannot, 1.0 that it always can. The kernel's width follows the variance of all features together:
    standardising each would blow up features that hardly vary (a pixel that is black in every digit), where noise of a
    thousandth of the range then decides. Folds are shuffled and stratified. With sets of different sizes the balanced
    accuracy (mean over the two sets) is returned.

    Args:
        x, y: arrays or tensors (n, ...) and (m, ...); all but the first axis are flattened.
        folds: number of folds, at least 2 and at most the size of the smaller set.
        seed: of the shuffling.

    Raises:
        DataError: sets that are too small, hold NaN, or differ in their number of features.  ConfigError: `folds` < 2.

    Lopez-Paz and Oquab, "Revisiting classifier two-sample tests" (2017).
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.svm import SVC

    if folds < 2:
        raise ConfigError(f"folds={folds} must be at least 2")
    a, b = points(x, "x").numpy(), points(y, "y").numpy()
    if a.shape[1] != b.shape[1]:
        raise DataError(f"the two sets have {a.shape[1]} and {b.shape[1]} features per point; they must agree")
    if min(len(a), len(b)) < folds:
        raise DataError(f"a test in {folds} folds needs at least {folds} points in each set, got {len(a)} and {len(b)}")
    features = np.concatenate([a, b])
    labels = np.concatenate([np.zeros(len(a), int), np.ones(len(b), int)])
    machine = SVC(kernel="rbf", C=1.0, gamma="scale", class_weight="balanced")
    split = StratifiedKFold(n_splits=folds, shuffle=True, random_state=seed)
    scores = cross_val_score(machine, features, labels, cv=split, scoring="balanced_accuracy")
    return float(scores.mean())
