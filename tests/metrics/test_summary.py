"""All metrics at once, and their standard errors."""

import inspect
import json
import math
import pickle

import numpy as np
import pytest
import torch

from sde_gen import metrics
from sde_gen.errors import ConfigError, DataError
from sde_gen.metrics import jackknife
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
    expected = {
        "sliced_wasserstein": metrics.sliced_wasserstein,
        "energy_distance": metrics.energy_distance,
        "mmd": metrics.maximum_mean_discrepancy,
        "frechet_distance": metrics.frechet_distance,
        "kernel_distance": metrics.kernel_distance,
        "precision": lambda a, b: metrics.precision_recall(a, b).precision,
        "recall": lambda a, b: metrics.precision_recall(a, b).recall,
        "density": lambda a, b: metrics.density_coverage(a, b).density,
        "coverage": lambda a, b: metrics.density_coverage(a, b).coverage,
    }
    for name, function in expected.items():
        assert found[name].value == pytest.approx(function(x, y), rel=1e-9), name
        assert found[name].real_against_real == pytest.approx(function(z, y), rel=1e-9), name
        assert (found[name].n, found[name].m) == (60, 50)
    assert found["c2st"].better == "half"
    assert found["c2st"].value > found["c2st"].real_against_real
    for name, result in found.items():
        assert (result.standard_error is None) == (name not in (*WITH_ERRORS, "density"))
        assert (result.interval is None) == (name in (*WITH_ERRORS, "density"))
        assert result.seconds >= 0
    assert json.loads(json.dumps(found["recall"].to_dict()))["interval"] == list(found["recall"].interval or ())


MEASURES = [value for value in vars(metrics).values() if isinstance(value, metrics.Measure)]


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.__name__)
def test_a_measure_has_one_value_with_and_without_its_error(measure: metrics.Measure) -> None:
    x, y, _ = _sets(23, 31)
    found = measure.estimate(x, y, 3)
    assert found.value == pytest.approx(measure(x, y), rel=1e-12)
    assert found.standard_error > 0
    assert measure.estimate(x, y, 3) == found
    assert measure.estimate(x, y, 4).standard_error != found.standard_error
    assert pickle.loads(pickle.dumps(measure)) is measure  # noqa: S301
    assert inspect.getdoc(measure)
    few = measure.estimate(x[:3], y)
    assert (few.value, few.standard_error) == (pytest.approx(measure(x[:3], y), rel=1e-12), None)


def test_every_metric_is_a_function_of_the_package() -> None:
    assert len(MEASURES) == len(WITH_ERRORS)  # the error of the density holds its balls fixed
    x, y, _ = _sets(23, 31)
    assert METRICS["mmd"].function(x, y, 3) == metrics.maximum_mean_discrepancy.estimate(x, y, 3)
    assert METRICS["sliced_wasserstein"].function(x, y, 3).value == metrics.sliced_wasserstein(x, y, seed=3)
    test = metrics.classifier_two_sample(x, y, seed=3)
    assert METRICS["c2st"].function(x, y, 3) == metrics.Estimate(test.accuracy, None, test.interval)
    assert metrics.classifier_accuracy(x, y, seed=3) == test.accuracy


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=30)
    without = [np.delete(values, i).mean() for i in range(30)]
    found = metrics.Estimate.jackknifed(torch.tensor([values.mean(), *without], dtype=torch.float64))
    assert found.value == pytest.approx(values.mean())
    assert found.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(30), rel=1e-10)
    assert metrics.Estimate.jackknifed(torch.ones(1)) == metrics.Estimate(1.0)


@pytest.mark.parametrize("unbiased", [False, True])
def test_pairs_without_a_group_are_those_of_the_rest(unbiased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jackknife, "_BLOCK", 64)
    x, y, _ = _sets(23, 31)

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T + 1) ** 2

    cuts = [jackknife.Cut.of(s, 11, 5) for s in (x, y)]
    a, b = (cut.numbers for cut in cuts)
    assert sorted(a.bincount().tolist()) == [2] * 10 + [3]
    itself = (lambda s: (s.square().sum(1) + 1) ** 2) if unbiased else None
    found = torch.stack(jackknife.pair_means(*cuts, kernel, itself), dim=1)
    assert found.shape == (12, 3)
    for i in (None, 0, 7):
        u, v = (x, y) if i is None else (x[a != i], y[b != i])
        rests = [list(cut.rests())[0 if i is None else i + 1] for cut in cuts]
        assert [s.tolist() for s in rests] == [u.tolist(), v.tolist()]
        tables = kernel(u, v), kernel(u, u), kernel(v, v)
        if unbiased:
            means = [float((t.sum() - t.diagonal().sum()) / (len(t) * (len(t) - 1))) for t in tables[1:]]
        else:
            means = [float(t.mean()) for t in tables[1:]]
        row = found[0 if i is None else i + 1].tolist()
        assert row == pytest.approx([float(tables[0].mean()), *means], rel=1e-12)


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


@pytest.mark.parametrize("name", METRICS)
def test_too_few_points_are_told_beforehand_and_of_which_set(name: str) -> None:
    least, many = METRICS[name].smallest, 100
    assert metrics.check_sizes([name], least, least, least) == (least, least)
    assert metrics.check_sizes([name], many, many, least, None) == (least, many)
    assert metrics.check_sizes([name], many, 2 * least + 1, largest=least) == (least, least)
    for sizes, words in (
        ((least - 1, many, many), "samples"),
        ((many, least - 1, many), "real points"),
        ((many, many, least - 1), "points of the reference"),
    ):
        with pytest.raises(DataError, match=f"{name} needs at least {least} .* {least - 1} {words};"):
            metrics.check_sizes([name], *sizes)
        x, y, z = (torch.rand(n, 2) for n in sizes)
        with pytest.raises(DataError, match=f"{least - 1} {words};"):
            metrics.summary(x, y, z, metrics=[name])
    if least > 2:
        with pytest.raises(DataError, match=f"at least {least}"):
            METRICS[name].function(torch.rand(least - 1, 2), torch.rand(9, 2), 0)
        with pytest.raises(ConfigError, match=f"largest, for {name}, must be .* at least {least}, got 2"):
            metrics.check_sizes([name], many, many, many, 2)
    metrics.summary(torch.rand(least, 2), torch.rand(least, 2), torch.rand(least, 2), metrics=[name])


def test_bad_input() -> None:
    x, y, z = _sets()
    with pytest.raises(ConfigError, match=r"one of 'sliced_wasserstein', .* got 'fid'"):
        metrics.summary(x, y, z, metrics=["fid"])
    with pytest.raises(ConfigError, match="largest"):
        metrics.summary(x, y, z, largest=1)
    with pytest.raises(DataError, match=r"recall needs at least 4 points .* 3 samples;"):
        metrics.summary(x[:3], y, z, metrics=["energy_distance", "recall"])
    with pytest.raises(DataError, match="NaN"):
        metrics.summary(x * math.nan, y, z)
    with pytest.raises(DataError, match="features"):
        metrics.summary(x, y, torch.rand(20, 3))
    with pytest.raises(DataError, match=r"needs at least 2 points .* 1 real points in each half"):
        metrics.summary(x, y[:3])
