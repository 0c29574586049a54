"""Fréchet and kernel distances against closed forms and brute force."""

import itertools

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from sde_gen import metrics
from sde_gen.errors import DataError


def _with_moments(n: int, mean: np.ndarray, covariance: np.ndarray, seed: int) -> np.ndarray:
    """Points whose own mean and unbiased covariance are these, up to rounding."""
    x = np.random.default_rng(seed).normal(size=(n, len(mean)))
    x -= x.mean(0)
    values, vectors = np.linalg.eigh(np.cov(x, rowvar=False))
    white = x @ vectors / np.sqrt(values)
    return mean + white @ np.linalg.cholesky(covariance).T


def test_frechet_distance_of_gaussians_with_diagonal_covariances() -> None:
    x = _with_moments(40, np.array([1.0, -2.0, 0.5]), np.diag([1.0, 4.0, 9.0]), 0)
    y = _with_moments(50, np.array([0.0, 0.0, 0.5]), np.diag([4.0, 1.0, 16.0]), 1)
    assert metrics.frechet_distance(x, y) == pytest.approx(1 + 4 + 1 + 1 + 1, rel=1e-10)


def test_frechet_distance_of_covariances_that_do_not_commute() -> None:
    a = np.array([[2.0, 0.9], [0.9, 1.0]])
    b = np.array([[1.0, -0.4], [-0.4, 3.0]])
    expected = np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    x, y = _with_moments(30, np.zeros(2), a, 0), _with_moments(30, np.zeros(2), b, 1)
    assert metrics.frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-10)


def test_frechet_distance_with_fewer_points_than_features_loses_no_digits() -> None:
    x = np.random.default_rng(0).normal(size=(10, 40))
    assert metrics.frechet_distance(x, x) == pytest.approx(0.0, abs=1e-10)
    assert metrics.frechet_distance(x, x + 0.1) == pytest.approx(40 * 0.01, rel=1e-8)
    y = np.random.default_rng(1).normal(size=(12, 40))
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    across = np.sqrt(np.linalg.eigvals(a @ b).real.clip(0)).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b) - 2 * across
    assert metrics.frechet_distance(x, y) == pytest.approx(expected, rel=1e-5)


def _cubic(a: np.ndarray, b: np.ndarray) -> float:
    return float((np.dot(a, b) / len(a) + 1) ** 3)


def test_kernel_distance_is_its_definition() -> None:
    x, y = np.random.default_rng(0).normal(size=(5, 3)), np.random.default_rng(1).normal(size=(4, 3))
    left = np.mean([_cubic(a, b) for a, b in itertools.permutations(x, 2)])
    right = np.mean([_cubic(a, b) for a, b in itertools.permutations(y, 2)])
    across = np.mean([_cubic(a, b) for a, b in itertools.product(x, y)])
    assert metrics.kernel_distance(x, y) == pytest.approx(left + right - 2 * across, rel=1e-12)


def test_kernel_distance_is_unbiased() -> None:
    # Two laws on three points each: the mean over all possible pairs of samples of size 2 is the distance of the laws.
    p = np.array([[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]])
    q = np.array([[1.0, 1.0], [-1.0, 0.0], [0.0, 0.3]])
    samples = list(itertools.product(range(3), repeat=2))
    mean = np.mean([metrics.kernel_distance(p[list(i)], q[list(j)]) for i in samples for j in samples])
    table = {(s, t): np.mean([_cubic(a, b) for a in u for b in v]) for s, u in (("p", p), ("q", q))
             for t, v in (("p", p), ("q", q))}  # fmt: skip
    assert mean == pytest.approx(table["p", "p"] + table["q", "q"] - 2 * table["p", "q"], rel=1e-12)


def test_kernel_distance_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(40, 3), torch.randn(30, 3)
    whole = metrics.kernel_distance(x, y)
    monkeypatch.setattr("sde_gen.metrics.jackknife._BLOCK", 64)
    assert metrics.kernel_distance(x, y) == pytest.approx(whole, rel=1e-10)


@pytest.mark.parametrize("function", [metrics.frechet_distance, metrics.kernel_distance])
def test_a_single_point_is_refused(function) -> None:
    with pytest.raises(DataError, match="at least 2 points"):
        function(torch.rand(1, 2), torch.rand(5, 2))
