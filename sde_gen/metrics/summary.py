"""All distances of two sets of samples at once, each beside the same distance of two sets of real ones."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sde_gen.errors import ConfigError, DataError
from sde_gen.metrics import distances as d
from sde_gen.metrics.features import Features, Pixels
from sde_gen.metrics.frechet import cubic_kernel, cubic_self, gaussian_frechet, moments
from sde_gen.metrics.jackknife import Estimate, PairSums, group_count, group_numbers, jackknifed
from sde_gen.metrics.manifold import precision_recall
from sde_gen.metrics.two_sample import classifier_two_sample, wilson
from sde_gen.rng import check_seed, keyed_generator

_PROJECTIONS = 256
_FOLDS = 5
_NEIGHBOURS = 3


@dataclass(frozen=True)
class MetricResult:
    """One metric of samples against real data.

    Attributes:
        name: one of `METRICS`.
        title: for people; with the features where they are not the points themselves.
        value: of the samples against the real set.
        standard_error: of the value, over both sets; None where an interval says it better.
        interval: 95 %, for the metrics that are probabilities; None elsewhere.
        real_against_real: the same metric of other real data, as many as samples: what a perfect sampler reaches.
        real_standard_error, real_interval: of `real_against_real`.
        n, m: samples and real points compared.
        better: "lower", "higher", or "half" (the nearer to 0.5 the better).
        seconds: that both took.
    """

    name: str
    title: str
    value: float
    standard_error: float | None
    interval: tuple[float, float] | None
    real_against_real: float
    real_standard_error: float | None
    real_interval: tuple[float, float] | None
    n: int
    m: int
    better: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}


@dataclass(frozen=True)
class _Metric:
    title: str
    function: Callable[[Tensor, Tensor, int], Estimate]
    better: str = "lower"
    of_features: bool = False
    smallest: int = 2


def summary(
    samples: Any,
    real: Any,
    reference: Any = None,
    *,
    metrics: Sequence[str] | None = None,
    features: Features | None = None,
    seed: int = 0,
    largest: int | None = 2000,
    progress: Callable[[str], object] | None = None,
) -> list[MetricResult]:
    """Distances of `samples` from `real`, and of as many points of `reference`, other real data, from `real`.

    Args:
        samples: (n, ...), on the scale of the real data.
        real: (m, ...), such as the held-out data.
        reference: (l, ...), such as the training data; None cuts `real` into two halves at random, one to compare with
            and one as reference. At most l samples are used, so that both comparisons are of sets of one size.
        metrics: names from `METRICS`, in the order wanted; None for all.
        features: what the Fréchet and the kernel distance, precision and recall look at; the points themselves by
            default.
        seed: of every random choice, whole number in [0, 2^64).
        largest: most points of each set, picked at random; None for all. The classifier takes 1,000 at most.
        progress: called with the title of each metric before it is computed.

    Returns:
        One result for each metric.

    Raises:
        ConfigError: a name that is not a metric, `largest` < 2.
        DataError: sets that are too small for a metric asked for, hold NaN, or differ in their number of features.
    """
    names = list(METRICS) if metrics is None else list(metrics)
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"metric {name!r} is not one of {', '.join(METRICS)}")
    check_seed(seed)
    if largest is not None and largest < 2:
        raise ConfigError(f"largest={largest} must be at least 2, or None")
    x, y, z = _sets(samples, real, reference, seed, largest)
    for name in names:
        if min(len(x), len(y)) < METRICS[name].smallest:
            raise DataError(
                f"{name} needs at least {METRICS[name].smallest} points in each set, got {len(x)} samples and "
                f"{len(y)} real points"
            )
    if isinstance(features, Pixels):
        features = None
    shown = features.name if features is not None else "pixels" if x.ndim == 4 else None
    flat = tuple(d.points(s, title) for s, title in ((x, "samples"), (y, "real"), (z, "reference")))
    looked_at = flat
    if features is not None and any(METRICS[name].of_features for name in names):
        looked_at = tuple(features(s) for s in (x, y, z))
    results = []
    for name in names:
        metric = METRICS[name]
        title = f"{metric.title} ({shown})" if metric.of_features and shown is not None else metric.title
        if progress is not None:
            progress(title)
        began = time.perf_counter()
        a, b, c = looked_at if metric.of_features else flat
        found, floor = metric.function(a, b, seed), metric.function(c, b, seed)
        results.append(
            MetricResult(
                name,
                title,
                found.value,
                found.standard_error,
                found.interval,
                floor.value,
                floor.standard_error,
                floor.interval,
                len(a),
                len(b),
                metric.better,
                time.perf_counter() - began,
            )
        )
    return results


def _sets(samples: Any, real: Any, reference: Any, seed: int, largest: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Samples, real points and reference, picked at random; samples and reference are equally many."""
    x, y = torch.as_tensor(samples).detach().cpu(), torch.as_tensor(real).detach().cpu()
    d.pair(x, y)
    if reference is None:
        if len(y) < 4:
            raise DataError(f"without a reference, at least 4 real points are needed, got {len(y)}")
        y, z = _picked(y, len(y), seed, 0).tensor_split(2)
    else:
        z = torch.as_tensor(reference).detach().cpu()
        d.pair(z, y)
    most = math.inf if largest is None else largest
    n = int(min(len(x), len(z), most))
    return _picked(x, n, seed, 1), _picked(y, int(min(len(y), most)), seed, 2), _picked(z, n, seed, 3)


def _picked(x: Tensor, n: int, seed: int, stream: int) -> Tensor:
    return x[torch.randperm(len(x), generator=keyed_generator(seed, 9, stream))[:n]]


def _sliced_wasserstein(x: Tensor, y: Tensor, seed: int) -> Estimate:
    directions = d.random_directions(x.shape[1], _PROJECTIONS, seed % 2**63)
    groups = group_count(len(x), len(y))
    sets = []
    for s in (x, y):
        values, order = (directions @ s.T).sort(dim=1)
        sets.append((values, group_numbers(len(s), groups, seed)[order]))

    def statistic(without: int | None) -> float:
        # What is left of a sorted row is sorted.
        return d.quantile_distance(*(v if without is None else v[g != without].view(len(v), -1) for v, g in sets))

    return jackknifed(statistic, groups)


def _energy_distance(x: Tensor, y: Tensor, seed: int) -> Estimate:
    sums = PairSums.of(x, y, seed, d.euclidean, lambda s: s.new_zeros(len(s)))

    def statistic(without: int | None) -> float:
        across, left, right = sums.means(without)
        return 2 * across - left - right

    return jackknifed(statistic, sums.groups)


def _mmd(x: Tensor, y: Tensor, seed: int) -> Estimate:
    # The width follows from the real set alone: one kernel for the samples and for the reference.
    scale = -0.5 / d.median_distance(y[:2000]) ** 2
    sums = PairSums.of(x, y, seed, lambda a, b: d.gaussian_kernel(a, b, scale), lambda s: s.new_ones(len(s)))

    def statistic(without: int | None) -> float:
        across, left, right = sums.means(without)
        return left + right - 2 * across

    return jackknifed(statistic, sums.groups)


def _kernel_distance(x: Tensor, y: Tensor, seed: int) -> Estimate:
    sums = PairSums.of(x, y, seed, cubic_kernel, cubic_self)

    def statistic(without: int | None) -> float:
        across, left, right = sums.means(without, unbiased=True)
        return left + right - 2 * across

    return jackknifed(statistic, sums.groups)


def _frechet_distance(x: Tensor, y: Tensor, seed: int) -> Estimate:
    groups = group_count(len(x), len(y))
    sets = [(s, group_numbers(len(s), groups, seed)) for s in (x, y)]

    def statistic(without: int | None) -> float:
        (a, b) = (moments(s if without is None else s[g != without]) for s, g in sets)
        return gaussian_frechet(*a, *b)

    return jackknifed(statistic, groups)


def _c2st(x: Tensor, y: Tensor, seed: int) -> Estimate:
    test = classifier_two_sample(x, y, folds=_FOLDS, seed=seed % 2**32)
    return Estimate(test.accuracy, None, test.interval)


def _precision(x: Tensor, y: Tensor, seed: int) -> Estimate:
    share = precision_recall(x, y, _NEIGHBOURS).precision
    return Estimate(share, None, wilson(share, len(x)))


def _recall(x: Tensor, y: Tensor, seed: int) -> Estimate:
    share = precision_recall(x, y, _NEIGHBOURS).recall
    return Estimate(share, None, wilson(share, len(y)))


#: Name of every metric, in the order in which they are reported.
METRICS: dict[str, _Metric] = {
    "sliced_wasserstein": _Metric("sliced Wasserstein distance", _sliced_wasserstein),
    "energy_distance": _Metric("energy distance", _energy_distance),
    "mmd": _Metric("MMD, Gaussian kernel, squared", _mmd),
    "c2st": _Metric("classifier accuracy", _c2st, better="half", smallest=_FOLDS),
    "frechet_distance": _Metric("Fréchet distance", _frechet_distance, of_features=True),
    "kernel_distance": _Metric("kernel distance", _kernel_distance, of_features=True, smallest=2),
    "precision": _Metric("precision", _precision, "higher", of_features=True, smallest=_NEIGHBOURS + 1),
    "recall": _Metric("recall", _recall, "higher", of_features=True, smallest=_NEIGHBOURS + 1),
}
