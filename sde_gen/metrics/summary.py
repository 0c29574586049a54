"""All distances of two sets of samples at once, each beside the same distance of two sets of real ones."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.errors import DataError
from sde_gen.metrics.features import Features, Pixels
from sde_gen.metrics.jackknife import Estimate, pair, wilson
from sde_gen.metrics.manifold import covered, density_coverage
from sde_gen.metrics.sample_distances import (
    energy_distance,
    frechet_distance,
    kernel_distance,
    maximum_mean_discrepancy,
    sliced_wasserstein,
)
from sde_gen.metrics.two_sample import classifier_two_sample
from sde_gen.rng import check_seed, keyed_generator


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
class Metric:
    """A measure as `summary` and the commands know it by name.

    Attributes:
        title: for people.
        function: of samples (n, d), real points (m, d) and a seed, the value with its error or interval.
        better: which way: "lower", "higher", or "half" (the nearer to 0.5 the better).
        of_features: whether it looks at features rather than at the points.
        smallest: points that either set must have.
    """

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
        ConfigError: a name that is not a metric, `largest` or `seed` out of range.
        DataError: sets that are too small for a metric asked for (see `check_sizes`), hold NaN, or differ in their
            number of features.
    """
    names = list(METRICS) if metrics is None else list(metrics)
    check_seed(seed)
    pair(samples, real, names=("samples", "real"))
    x, y = (torch.as_tensor(s).detach().cpu() for s in (samples, real))
    if reference is None:
        n, m = check_sizes(names, len(x), len(y), None, largest)
        y, z = _picked(y, len(y), seed, 0).tensor_split(2)
    else:
        pair(reference, real, names=("reference", "real"))
        z = torch.as_tensor(reference).detach().cpu()
        n, m = check_sizes(names, len(x), len(y), len(z), largest)
    x, y, z = _picked(x, n, seed, 1), _picked(y, m, seed, 2), _picked(z, n, seed, 3)
    if isinstance(features, Pixels):
        features = None
    shown = features.name if features is not None else "pixels" if x.ndim == 4 else None
    flat = tuple(s.double().flatten(1) for s in (x, y, z))
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
        results.append(MetricResult(
            name, title, found.value, found.standard_error, found.interval, floor.value, floor.standard_error,
            floor.interval, len(a), len(b), metric.better, time.perf_counter() - began,
        ))  # fmt: skip
    return results


def check_sizes(
    names: Sequence[str], samples: int, real: int, reference: int | None = None, largest: int | None = 2000
) -> tuple[int, int]:
    """How many samples (and points of the reference) and how many real points `summary` compares, known beforehand.

    Args:
        names: of metrics.
        samples, real, reference: points of each set; None cuts the real ones into two halves.
        largest: most points of each set, at least 2; None for all.

    Raises:
        ConfigError: a name that is not a metric, or a `largest` that is too small for one.
        DataError: a set that is too small for one; it says which.
    """
    if largest is not None:
        largest = checks.integer("summary", "largest", largest, low=2)
    sizes = {"samples": samples, "real points": real, "points of the reference": reference}
    if reference is None:
        sizes = {"samples": samples, "real points in each half": real // 2}
        real, reference = real - real // 2, real // 2
    for name in names:
        least = METRICS[checks.choice("summary", "metrics", name, tuple(METRICS))].smallest
        if largest is not None:
            checks.integer("summary", f"largest, for {name},", largest, low=least)
        short = " and ".join(f"{size} {what}" for what, size in sizes.items() if size is not None and size < least)
        if short:
            raise DataError(
                f"{name} needs at least {least} points in each set, but there are {short}; give more, or leave it out"
            )
    return min(samples, reference, largest or samples), min(real, largest or real)


def _picked(x: Tensor, n: int, seed: int, stream: int) -> Tensor:
    return x[torch.randperm(len(x), generator=keyed_generator(seed, 9, stream))[:n]]


def _classifier(x: Tensor, y: Tensor, seed: int) -> Estimate:
    test = classifier_two_sample(x, y, seed=seed)
    return Estimate(test.accuracy, None, test.interval)


def _precision(x: Tensor, y: Tensor, seed: int) -> Estimate:
    share = covered(x, y)
    return Estimate(share, None, wilson(share, len(x)))


def _density(x: Tensor, y: Tensor, seed: int) -> Estimate:
    found = density_coverage(x, y)
    return Estimate(found.density, found.density_error)


def _coverage(x: Tensor, y: Tensor, seed: int) -> Estimate:
    share = density_coverage(x, y).coverage
    return Estimate(share, None, wilson(share, len(y)))


#: Name of every metric, in the order in which they are reported.
METRICS: dict[str, Metric] = {
    "sliced_wasserstein": Metric(
        "sliced Wasserstein distance", lambda x, y, seed: sliced_wasserstein.estimate(x, y, seed, seed=seed)
    ),
    "energy_distance": Metric("energy distance", energy_distance.estimate),
    "mmd": Metric("MMD, Gaussian kernel, squared", maximum_mean_discrepancy.estimate),
    "c2st": Metric("classifier accuracy", _classifier, "half", smallest=5),
    "frechet_distance": Metric("Fréchet distance", frechet_distance.estimate, of_features=True),
    "kernel_distance": Metric("kernel distance", kernel_distance.estimate, of_features=True),
    "precision": Metric("precision", _precision, "higher", of_features=True, smallest=4),
    "recall": Metric("recall", lambda x, y, seed: _precision(y, x, seed), "higher", of_features=True, smallest=4),
    "density": Metric("density", _density, "higher", of_features=True, smallest=6),
    "coverage": Metric("coverage", _coverage, "higher", of_features=True, smallest=6),
}
