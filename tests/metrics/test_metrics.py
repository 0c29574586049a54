"""Distances against closed forms and other implementations."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.stats import energy_distance as scipy_energy
from scipy.stats import wasserstein_distance

from sde_gen import metrics
from sde_gen.errors import ConfigError, DataError
from sde_gen.metrics import jackknife


def _normal(n: int, d: int, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


def test_energy_distance_in_one_dimension_is_scipys_square() -> None:
    x, y = _normal(50, 1), _normal(70, 1, 1.0, 1)
    assert metrics.energy_distance(x, y) == pytest.approx(scipy_energy(x[:, 0], y[:, 0]) ** 2, rel=1e-12)


def test_energy_distance_is_zero_for_equal_sets_and_symmetric(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = _normal(40, 3), _normal(30, 3, 0.5, 1)
    assert metrics.energy_distance(x, x[::-1].copy()) == pytest.approx(0.0, abs=1e-12)
    whole = metrics.energy_distance(x, y)
    assert whole == pytest.approx(metrics.energy_distance(y, x), rel=1e-12)
    monkeypatch.setattr(jackknife, "_BLOCK", 64)
    assert metrics.energy_distance(x, y) == pytest.approx(whole, rel=1e-12)


def test_energy_distance_of_two_points() -> None:
    x, y = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    assert metrics.energy_distance(x, y) == pytest.approx(10.0)


def test_images_are_flattened() -> None:
    x, y = torch.rand(20, 1, 4, 4), torch.rand(25, 1, 4, 4)
    assert metrics.energy_distance(x, y) == pytest.approx(metrics.energy_distance(x.flatten(1), y.flatten(1)))


@pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 70), (7, 3)])
def test_sliced_wasserstein_in_one_dimension_is_exact(n: int, m: int) -> None:
    x, y = _normal(n, 1), _normal(m, 1, 1.0, 1)
    grid = np.linspace(0, 1, 400_001)[:-1] + 0.5 / 400_000
    quantiles = [np.sort(a[:, 0])[np.floor(grid * len(a)).astype(int)] for a in (x, y)]
    expected = np.sqrt(np.mean((quantiles[0] - quantiles[1]) ** 2))
    assert metrics.sliced_wasserstein(x, y, projections=3) == pytest.approx(expected, rel=1e-4)


def test_sliced_wasserstein_of_a_shift() -> None:
    x = _normal(500, 2)
    # Along a direction v the two laws differ by the shift times v_0, and E v_0^2 = 1/2.
    distance = metrics.sliced_wasserstein(x, x + np.array([2.0, 0.0]), projections=20_000)
    assert distance == pytest.approx(2 / np.sqrt(2), rel=0.02)
    assert wasserstein_distance(x[:, 0], x[:, 0] + 2) == pytest.approx(2.0)


def test_mmd_grows_with_the_shift_and_matches_the_definition() -> None:
    x, y = _normal(30, 2), _normal(20, 2, 1.0, 1)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        squared = ((a[:, None] - b[None]) ** 2).sum(-1)
        return float(np.exp(-squared / (2 * 1.5**2)).mean())

    expected = kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)
    assert metrics.maximum_mean_discrepancy(x, y, bandwidth=1.5) == pytest.approx(expected, rel=1e-10)
    assert metrics.maximum_mean_discrepancy(x, x) == pytest.approx(0.0, abs=1e-12)
    assert metrics.maximum_mean_discrepancy(x, y) < metrics.maximum_mean_discrepancy(x, y + 2)


def test_the_bandwidth_of_mmd_is_the_median_distance_of_the_real_points_whatever_the_samples() -> None:
    y = _normal(22, 2, 1.0, 1)  # an odd number of distances
    width = float(np.median(pdist(y)))
    for x in (_normal(30, 2), 50 * _normal(10, 2)):
        assert metrics.maximum_mean_discrepancy(x, y) == pytest.approx(
            metrics.maximum_mean_discrepancy(x, y, bandwidth=width), rel=1e-12
        )


def test_classifier_cannot_tell_equal_laws_and_can_tell_others() -> None:
    x, y = _normal(200, 4), _normal(200, 4, 0.0, 1)
    assert metrics.classifier_accuracy(x, y) == pytest.approx(0.5, abs=0.15)
    assert metrics.classifier_accuracy(x, y + 2) > 0.9
    # Balanced: a rule that always names the larger set gets 0.5.
    assert metrics.classifier_accuracy(_normal(300, 2), _normal(60, 2, 0.0, 1)) == pytest.approx(0.5, abs=0.15)


def test_classifier_is_reproducible() -> None:
    x, y = _normal(60, 3), _normal(60, 3, 0.5, 1)
    assert metrics.classifier_accuracy(x, y, seed=3) == metrics.classifier_accuracy(x, y, seed=3)


@pytest.mark.parametrize(
    "function", [metrics.energy_distance, metrics.sliced_wasserstein, metrics.maximum_mean_discrepancy]
)
def test_unusable_sets_are_refused(function) -> None:
    good = torch.rand(5, 2)
    with pytest.raises(DataError, match="NaN"):
        function(good, torch.tensor([[0.0, float("nan")]]))
    with pytest.raises(DataError, match="no points"):
        function(torch.zeros(0, 2), good)
    with pytest.raises(DataError, match="features"):
        function(good, torch.rand(5, 3))
    with pytest.raises(DataError, match=r"real numbers, got torch.complex64"):
        function(good, torch.rand(5, 2, dtype=torch.complex64))
    with pytest.raises(DataError, match="array of real numbers, got list"):
        function(good, ["a", "b"])
    assert function(good.round().long().numpy(), good) == function(good.round(), good), "whole numbers are numbers"


def test_arguments_out_of_range_are_refused() -> None:
    x = torch.rand(5, 2)
    with pytest.raises(ConfigError, match="projections"):
        metrics.sliced_wasserstein(x, x, projections=0)
    with pytest.raises(ConfigError, match="bandwidth"):
        metrics.maximum_mean_discrepancy(x, x, bandwidth=-1.0)
    with pytest.raises(DataError, match="equal"):
        metrics.maximum_mean_discrepancy(torch.ones(3, 2), torch.ones(3, 2))
    with pytest.raises(ConfigError, match="folds"):
        metrics.classifier_accuracy(x, x, folds=1)
    with pytest.raises(DataError, match="at least 5"):
        metrics.classifier_accuracy(x[:3], x)
