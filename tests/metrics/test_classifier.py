"""The classifier two-sample test and its interval."""

import numpy as np
import pytest
from scipy.stats import binomtest

from sde_gen import metrics
from sde_gen.errors import ConfigError, DataError
from sde_gen.metrics.jackknife import wilson


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (3, 10), (50, 100), (100, 100)])
def test_wilsons_interval(hits: int, n: int) -> None:
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_interval_holds_one_half_for_equal_laws_and_its_error_is_not_too_small() -> None:
    """One law twice, 100 times: 95 % coverage, and a standard error no smaller than the spread.

    False alarm: at most 18 misses of 100 at a rate of 0.05, P < 1e-6; spread over standard error at most 1.15, expected
    0.86, about 5 sigma. It detects an interval that takes the out-of-fold answers for independent: the ratio is 1.29.
    """
    found = []
    for i in range(100):
        x, y = np.random.default_rng(i).normal(size=(2, 40, 2))
        found.append(metrics.classifier_two_sample(x, y))
    misses = sum(not test.interval[0] <= 0.5 <= test.interval[1] for test in found)
    assert misses <= 18
    spread = np.std([test.accuracy for test in found])
    error = np.sqrt(np.mean([test.standard_error**2 for test in found]))
    assert spread <= 1.15 * error
    assert spread >= 0.5 * error


def test_laws_that_differ_are_told_apart() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 100, 3))
    test = metrics.classifier_two_sample(x, y + 2.0)
    assert 0.9 < test.accuracy < 1.0
    assert 0.85 < test.interval[0] < test.accuracy < test.interval[1] <= 1.0


def test_equally_many_points_of_each_set_take_part() -> None:
    x, y = np.random.default_rng(0).normal(size=(300, 2)), np.random.default_rng(1).normal(size=(40, 2))
    assert metrics.classifier_two_sample(x, y).n == 40
    assert metrics.classifier_two_sample(x, x, largest=30).n == 30
    assert metrics.classifier_two_sample(x, y, seed=3) == metrics.classifier_two_sample(x, y, seed=3)


def test_bad_arguments() -> None:
    x = np.zeros((10, 2))
    with pytest.raises(ConfigError, match=r"folds must be .* at least 2, got 1"):
        metrics.classifier_two_sample(x, x, folds=1)
    with pytest.raises(ConfigError, match="largest"):
        metrics.classifier_two_sample(x, x, largest=1)
    with pytest.raises(DataError, match="at least 5"):
        metrics.classifier_two_sample(x[:4], x)
    with pytest.raises(DataError, match="features"):
        metrics.classifier_two_sample(x, np.zeros((10, 3)))
