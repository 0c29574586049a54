"""Can a classifier tell two sets of samples apart?"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sde_gen import checks
from sde_gen.metrics.jackknife import pair, wilson
from sde_gen.rng import keyed_generator


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


def classifier_two_sample(x: Any, y: Any, folds: int = 5, seed: int = 0, largest: int | None = 1000) -> ClassifierTest:
    """Classifier two-sample test: cross-validated accuracy of a support vector machine, with a 95 % interval.

    0.5 means that it cannot tell x from y, 1.0 that it always can. Equally many points of each set take part, picked at
    random; folds are shuffled and stratified. The kernel is Gaussian, its width follows the variance of all features
    together: standardising each would blow up features that hardly vary (a pixel that is black in every digit), where
    noise of a thousandth of the range then decides.

    The N = 2n out-of-fold answers are not independent, because the k training sets overlap; the interval is Wilson's
    for N / (1 + k/(k - 1)) answers (Nadeau and Bengio's correction; the plain binomial one would hold the truth in
    about 87 % of cases instead of 95 %).

    Args:
        x, y: arrays or tensors (n, ...) and (m, ...); all but the first axis are flattened.
        folds: number of folds k, at least 2 and at most the size of the smaller set.
        seed: of the choice of points and the shuffling, whole number in [0, 2^64).
        largest: most points of each set that take part, at least 2; None for all.

    Raises:
        DataError: sets that are too small, hold NaN, or differ in their number of features.
        ConfigError: `folds`, `seed` or `largest` out of range.

    Lopez-Paz and Oquab, "Revisiting classifier two-sample tests" (2017), arXiv:1610.06545; Nadeau and Bengio,
    "Inference for the generalization error" (2003).
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.svm import SVC

    folds = checks.integer("classifier_two_sample", "folds", folds, low=2)
    if largest is not None:
        largest = checks.integer("classifier_two_sample", "largest", largest, low=folds)
    a, b = pair(x, y, least=folds)
    n = min(len(a), len(b), largest or len(a))
    chosen = [s[torch.randperm(len(s), generator=keyed_generator(seed, 8, i))[:n]].numpy() for i, s in ((0, a), (1, b))]
    labels = np.repeat([0, 1], n)
    machine = SVC(kernel="rbf", C=1.0, gamma="scale", class_weight="balanced")
    split = StratifiedKFold(n_splits=folds, shuffle=True, random_state=seed % 2**32)
    answered = cross_val_predict(machine, np.concatenate(chosen), labels, cv=split)
    accuracy = float(np.mean(answered == labels))
    answers = 2 * n / (1 + folds / (folds - 1))
    return ClassifierTest(accuracy, math.sqrt(accuracy * (1 - accuracy) / answers), wilson(accuracy, answers), n)


def classifier_accuracy(x: Any, y: Any, folds: int = 5, seed: int = 0) -> float:
    """Accuracy of `classifier_two_sample` on as many points of each set as the smaller one has."""
    return classifier_two_sample(x, y, folds, seed, largest=None).accuracy
