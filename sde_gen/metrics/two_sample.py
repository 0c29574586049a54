"""Can a classifier tell two sets of samples apart?"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sde_gen.errors import ConfigError, DataError
from sde_gen.metrics.distances import pair
from sde_gen.rng import keyed_generator

_Z = 1.959963984540054  # of a 95 % interval


@dataclass(frozen=True)
class ClassifierTest:
    """Outcome of a classifier two-sample test.

    Attributes:
        accuracy: cross-validated; 0.5 where the sets cannot be told apart.
        standard_error: of the accuracy.
        interval: 95 % interval of the accuracy, within [0, 1].
        n: points of each set.
    """

    accuracy: float
    standard_error: float
    interval: tuple[float, float]
    n: int


def classifier_two_sample(x: Any, y: Any, folds: int = 5, seed: int = 0, largest: int = 1000) -> ClassifierTest:
    """Classifier two-sample test: accuracy of the classifier of `classifier_accuracy`, with a 95 % interval.

    Equally many points of each set take part, picked at random. The N = 2n out-of-fold answers are not independent,
    because the k training sets overlap; the interval is Wilson's for N / (1 + k/(k - 1)) answers (Nadeau and Bengio's
    correction; the plain binomial one would hold the truth in about 87 % of cases instead of 95 %).

    Args:
        x, y: arrays or tensors (n, ...) and (m, ...); all but the first axis are flattened.
        folds: number of folds k, at least 2.
        seed: of the choice of points and the shuffling.
        largest: most points of each set that take part.

    Raises:
        DataError, ConfigError: as for `classifier_accuracy`.

    Lopez-Paz and Oquab, "Revisiting classifier two-sample tests" (2017), arXiv:1610.06545; Nadeau and Bengio,
    "Inference for the generalization error" (2003).
    """
    from sklearn.model_selection import cross_val_predict

    if largest < 2:
        raise ConfigError(f"largest={largest} must be at least 2")
    a, b = pair(x, y)
    n = min(len(a), len(b), largest)
    a, b = (_some(s.numpy(), n, seed, i) for i, s in enumerate((a, b)))
    features, labels, machine, split = _problem(a, b, folds, seed)
    answered = cross_val_predict(machine, features, labels, cv=split)
    accuracy = float(np.mean(answered == labels))
    answers = 2 * n / (1 + folds / (folds - 1))
    return ClassifierTest(accuracy, math.sqrt(accuracy * (1 - accuracy) / answers), wilson(accuracy, answers), n)


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a probability of which the share `share` was found in n independent trials.

        (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n),    z = 1.96

    Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    centre = share + _Z**2 / (2 * n)
    half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return max(0.0, (centre - half) / (1 + _Z**2 / n)), min(1.0, (centre + half) / (1 + _Z**2 / n))


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
    from sklearn.model_selection import cross_val_score

    a, b = pair(x, y)
    features, labels, machine, split = _problem(a.numpy(), b.numpy(), folds, seed)
    scores = cross_val_score(machine, features, labels, cv=split, scoring="balanced_accuracy")
    return float(scores.mean())


def _problem(a: np.ndarray, b: np.ndarray, folds: int, seed: int) -> tuple[np.ndarray, np.ndarray, Any, Any]:
    """Features and labels of both sets together, the classifier, and how the folds are cut."""
    from sklearn.model_selection import StratifiedKFold
    from sklearn.svm import SVC

    if folds < 2:
        raise ConfigError(f"folds={folds} must be at least 2")
    if min(len(a), len(b)) < folds:
        raise DataError(f"a test in {folds} folds needs at least {folds} points in each set, got {len(a)} and {len(b)}")
    labels = np.concatenate([np.zeros(len(a), int), np.ones(len(b), int)])
    machine = SVC(kernel="rbf", C=1.0, gamma="scale", class_weight="balanced")
    return np.concatenate([a, b]), labels, machine, StratifiedKFold(n_splits=folds, shuffle=True, random_state=seed)


def _some(x: np.ndarray, n: int, seed: int, stream: int) -> np.ndarray:
    return x[torch.randperm(len(x), generator=keyed_generator(seed, 8, stream))[:n].numpy()]
