"""All metrics at once, and their standard errors."""

import json
import math

import numpy as np
import pytest
import torch

from sde_gen import metrics
from sde_gen.errors import ConfigError, DataError
from sde_gen.metrics import distances, jackknife
from sde_gen.metrics.summary import METRICS

WITH_ERRORS = ["sliced_wasserstein", "energy_distance", "mmd", "frechet_distance", "kernel_distance"]


def _sets(n: int = 60, m: int = 50, shift: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x, y, z = (torch.randn(k, 2, generator=g, dtype=torch.float64) for k in (n, m, n))
    return x + torch.tensor([shift, 0.0]), y, z


def test_values_are_those_of_the_functions() -> None:
    x, y, z = _sets(shift=2.0)
    found = {r.name: r for r in metrics.summary(x, y, z)}
    assert list(found) == list(METRICS)
    width = distances.median_distance(y)
    expected = {
        "sliced_wasserstein": metrics.sliced_wasserstein,
        "energy_distance": metrics.energy_distance,
        "mmd": lambda a, b: metrics.maximum_mean_discrepancy(a, b, bandwidth=width),
        "frechet_distance": metrics.frechet_distance,
        "kernel_distance": metrics.kernel_distance,
        "precision": lambda a, b: metrics.precision_recall(a, b).precision,
        "recall": lambda a, b: metrics.precision_recall(a, b).recall,
    }
    for name, function in expected.items():
        assert found[name].value == pytest.approx(function(x, y), rel=1e-9), name
        assert found[name].real_against_real == pytest.approx(function(z, y), rel=1e-9), name
        assert (found[name].n, found[name].m) == (60, 50)
    assert found["c2st"].better == "half"
    assert found["c2st"].value > found["c2st"].real_against_real
    for name, result in found.items():
        assert (result.standard_error is None) == (name not in WITH_ERRORS)
        assert (result.interval is None) == (name in WITH_ERRORS)
        assert result.seconds >= 0
    assert json.loads(json.dumps(found["recall"].to_dict()))["interval"] == list(found["recall"].interval or ())


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=30)
    found = jackknife.jackknifed(
        lambda without: float((values if without is None else np.delete(values, without)).mean()), 30
    )
    assert found.value == pytest.approx(values.mean())
    assert found.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(30), rel=1e-10)
    assert jackknife.jackknifed(lambda without: 1.0, 1).standard_error is None


@pytest.mark.parametrize("unbiased", [False, True])
def test_pairs_without_a_group_are_those_of_the_rest(unbiased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "_BLOCK", 64)
    x, y, _ = _sets(23, 31)

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T + 1) ** 2

    sums = jackknife.PairSums.of(x, y, 5, kernel, lambda s: (s.square().sum(1) + 1) ** 2)
    assert sums.groups == 11
    a, b = (jackknife.group_numbers(len(s), 11, 5) for s in (x, y))
    assert sorted(a.bincount().tolist()) == [2] * 10 + [3]
    for i in (None, 0, 7):
        u, v = (x, y) if i is None else (x[a != i], y[b != i])
        tables = kernel(u, v), kernel(u, u), kernel(v, v)
        if unbiased:
            means = [float((t.sum() - t.diagonal().sum()) / (len(t) * (len(t) - 1))) for t in tables[1:]]
        else:
            means = [float(t.mean()) for t in tables[1:]]
        assert sums.means(i, unbiased) == pytest.approx((float(tables[0].mean()), *means), rel=1e-12)


def test_standard_errors_are_the_spread_of_repeated_values() -> None:
    """80 pairs of sets of two laws that differ: mean squared standard error over variance between 0.4 and 2.5.

    The variance of 80 values has a relative deviation of 0.16: false alarm below 1e-6. It detects a factor of the
    number of groups or of points.
    """
    found = {name: [] for name in WITH_ERRORS}
    for i in range(80):
        x, y = torch.from_numpy(np.random.default_rng(i).normal(size=(2, 50, 2)))
        x = 1.5 * x + torch.tensor([1.0, 0.0])
        for name, pairs in found.items():
            estimate = METRICS[name].function(x, y, i)
            pairs.append((estimate.value, estimate.standard_error))
    for name, pairs in found.items():
        values, errors = np.array(pairs).T
        assert 0.4 < (errors**2).mean() / values.var(ddof=1) < 2.5, name


def test_the_real_set_is_halved_where_there_is_no_reference() -> None:
    x, y, _ = _sets(100, 60, shift=3.0)
    (result,) = metrics.summary(x, y, metrics=["energy_distance"])
    assert (result.n, result.m) == (30, 30)
    assert result.value > 10 * result.real_against_real > 0


def test_sets_are_cut_to_one_size_at_random() -> None:
    x, y, z = _sets(100, 80)
    (result,) = metrics.summary(x, y, z[:40], metrics=["mmd"])
    assert (result.n, result.m) == (40, 80)
    one, same, other = (
        metrics.summary(x, y, z, metrics=["energy_distance"], largest=20, seed=seed)[0] for seed in (1, 1, 2)
    )
    assert (one.n, one.m) == (20, 20)
    assert one.value == same.value != other.value


def test_images_and_progress() -> None:
    x, y = torch.rand(20, 1, 4, 4), torch.rand(20, 1, 4, 4)
    told: list[str] = []
    found = metrics.summary(x, y, y, metrics=["recall", "frechet_distance"], progress=told.append)
    assert told == [r.title for r in found] == ["recall (pixels)", "Fréchet distance (pixels)"]
    assert found[1].value == pytest.approx(metrics.frechet_distance(x.flatten(1), y.flatten(1)))


def test_bad_input() -> None:
    x, y, z = _sets()
    with pytest.raises(ConfigError, match="metric 'fid' is not one of sliced_wasserstein, "):
        metrics.summary(x, y, z, metrics=["fid"])
    with pytest.raises(ConfigError, match="largest"):
        metrics.summary(x, y, z, largest=1)
    with pytest.raises(DataError, match="recall needs at least 4"):
        metrics.summary(x[:3], y, z, metrics=["energy_distance", "recall"])
    with pytest.raises(DataError, match="NaN"):
        metrics.summary(x * math.nan, y, z)
    with pytest.raises(DataError, match="features"):
        metrics.summary(x, y, torch.rand(20, 3))
    with pytest.raises(DataError, match="at least 4 real"):
        metrics.summary(x, y[:3])
