"""Generated two-dimensional data: unlimited, quick to learn, with a known law or a shape that an eye can judge.

Training and held-out samples are independent draws. The transforms are fixed numbers, not estimates, so that runs with
other seeds or sizes live on one scale; each feature has standard deviation about 1.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sde_gen.checks import integer, number
from sde_gen.data.dataset import Dataset, Mixture
from sde_gen.data.order import generator
from sde_gen.data.transform import Affine
from sde_gen.errors import ConfigError
from sde_gen.rng import check_seed

Points = NDArray[np.float64]
Draw = Callable[[int, np.random.Generator], tuple[Points, NDArray[np.int64]]]


def two_moons(*, n: int = 8192, n_test: int = 2048, noise: float = 0.05, seed: int = 0) -> Dataset:
    """Two interleaved half circles of radius 1, with Gaussian noise; the moon is the label.

    Args:
        n: training samples.
        n_test: held-out samples.
        seed: picks them.
        noise: standard deviation of the noise, >= 0, in units of the radius.

    Raises:
        ConfigError: an argument outside its range.
    """
    noise = number("two_moons", "noise", noise, low=0)

    def draw(count: int, rng: np.random.Generator) -> tuple[Points, NDArray[np.int64]]:
        moon = rng.integers(0, 2, count)
        angle = np.pi * rng.random(count)
        upper = np.stack([np.cos(angle), np.sin(angle)], 1)
        lower = np.stack([1 - np.cos(angle), 0.5 - np.sin(angle)], 1)
        return np.where(moon[:, None] == 0, upper, lower) + noise * rng.standard_normal((count, 2)), moon

    return _sampled("two_moons", draw, n, n_test, seed, Affine((0.5, 0.25), (0.87, 0.5)), 2)


def checkerboard(*, n: int = 8192, n_test: int = 2048, seed: int = 0) -> Dataset:
    """The uniform law on the 8 dark squares of a 4 by 4 board over [-2, 2]^2; no labels.

    Args:
        n: training samples.
        n_test: held-out samples.
        seed: picks them.
    """

    def draw(count: int, rng: np.random.Generator) -> tuple[Points, NDArray[np.int64]]:
        row = rng.integers(0, 4, count)
        column = 2 * rng.integers(0, 2, count) + row % 2
        return np.stack([column, row], 1) - 2.0 + rng.random((count, 2)), row

    std = 2 / math.sqrt(3)
    return _sampled("checkerboard", draw, n, n_test, seed, Affine((0.0, 0.0), (std, std)), 0)


def swiss_roll(*, n: int = 8192, n_test: int = 2048, noise: float = 0.25, seed: int = 0) -> Dataset:
    """A spiral, (a cos a, a sin a) with a uniform in [1.5 pi, 4.5 pi], with Gaussian noise; no labels.

    Args:
        n: training samples.
        n_test: held-out samples.
        seed: picks them.
        noise: standard deviation of the noise, >= 0; the arms are 2 pi apart.
    """
    noise = number("swiss_roll", "noise", noise, low=0)

    def draw(count: int, rng: np.random.Generator) -> tuple[Points, NDArray[np.int64]]:
        angle = np.pi * (1.5 + 3 * rng.random(count))
        spiral = angle[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        return spiral + noise * rng.standard_normal((count, 2)), np.zeros(count, np.int64)

    return _sampled("swiss_roll", draw, n, n_test, seed, Affine((2.0, 0.0), (6.8, 6.8)), 0)


def rings(*, n: int = 8192, n_test: int = 2048, count: int = 3, noise: float = 0.05, seed: int = 0) -> Dataset:
    """`count` circles of radius 1, 2, ..., equally likely, with Gaussian noise; the ring is the label.

    Args:
        n: training samples.
        n_test: held-out samples.
        seed: picks them.
        count: number of rings, at least 1.
        noise: standard deviation of the noise, >= 0; the rings are 1 apart.
    """
    count = integer("rings", "count", count)
    noise = number("rings", "noise", noise, low=0)

    def draw(number: int, rng: np.random.Generator) -> tuple[Points, NDArray[np.int64]]:
        ring = rng.integers(0, count, number)
        angle = 2 * np.pi * rng.random(number)
        circle = (ring[:, None] + 1) * np.stack([np.cos(angle), np.sin(angle)], 1)
        return circle + noise * rng.standard_normal((number, 2)), ring

    mean_square = sum(r * r for r in range(1, count + 1)) / count
    std = math.sqrt(mean_square / 2 + noise**2)
    return _sampled("rings", draw, n, n_test, seed, Affine((0.0, 0.0), (std, std)), count)


def mixture(
    *,
    n: int = 8192,
    n_test: int = 2048,
    weights: Sequence[float] | None = None,
    means: Sequence[Sequence[float]] | None = None,
    covariances: Sequence[Sequence[Sequence[float]]] | None = None,
    seed: int = 0,
) -> Dataset:
    """A Gaussian mixture of any dimension; `dataset.law` is its exact law on the model's scale, the mode is the label.

    Without parameters: 16 modes on a 4 by 4 grid of spacing 1, with weights proportional to 1, 2, 3, 4 in turn and full
    covariances of four shapes (standard deviations 0.05 to 0.2). The transform takes the exact mean and standard
    deviation of each feature to 0 and 1.

    Args:
        n: training samples.
        n_test: held-out samples.
        seed: picks them.
        weights: (K,) > 0, scaled to sum to 1; None: equal, or the built-in ones.
        means: (K, D); None: the built-in mixture, which takes no covariances either.
        covariances: (K, D, D), symmetric and positive definite.

    Raises:
        ConfigError: shapes that do not fit, weights <= 0, a covariance that is not positive definite.
    """
    law = _law(weights, means, covariances)
    w, mu, cov = (np.asarray(v) for v in (law.weights, law.means, law.covariances))
    center = w @ mu
    second = np.einsum("k,kij->ij", w, cov + np.einsum("ki,kj->kij", mu - center, mu - center))
    transform = Affine(tuple(map(float, center)), tuple(map(float, np.sqrt(np.diag(second)))))
    factors = np.linalg.cholesky(cov)

    def draw(count: int, rng: np.random.Generator) -> tuple[Points, NDArray[np.int64]]:
        mode = np.minimum(np.searchsorted(np.cumsum(w), rng.random(count), side="right"), len(w) - 1)
        noise = rng.standard_normal((count, mu.shape[1]))
        return mu[mode] + np.einsum("nij,nj->ni", factors[mode], noise), mode

    scale = torch.tensor(transform.scale, dtype=torch.float64)
    scaled = Mixture(law.weights, transform.forward(law.means), law.covariances / (scale[:, None] * scale[None, :]))
    return _sampled("mixture", draw, n, n_test, seed, transform, len(w), scaled)


def _law(weights: object, means: object, covariances: object) -> Mixture:
    """The mixture in raw units, checked; the built-in one where nothing is given."""
    if means is None:
        if weights is not None or covariances is not None:
            raise ConfigError("mixture: weights and covariances need means; give means (K, D) or none of the three")
        means, weights, covariances = _built_in()
    if covariances is None:
        raise ConfigError("mixture: means need covariances of shape (K, D, D)")
    mu, cov = _array("means", means, 2), _array("covariances", covariances, 3)
    w = np.ones(len(mu)) if weights is None else _array("weights", weights, 1)
    modes, features = mu.shape
    if w.shape != (modes,) or cov.shape != (modes, features, features):
        raise ConfigError(
            f"mixture: weights, means and covariances must have shapes (K,), (K, D), (K, D, D), "
            f"got {w.shape}, {mu.shape}, {cov.shape}"
        )
    if not (w > 0).all():
        raise ConfigError(f"mixture: weights must all be > 0, got {w.min():g} for mode {int(w.argmin())}")
    for mode, matrix in enumerate(cov):
        if not np.allclose(matrix, matrix.T) or np.linalg.eigvalsh(matrix)[0] <= 0:
            raise ConfigError(f"mixture: the covariance of mode {mode} must be symmetric and positive definite")
    return Mixture(*(torch.from_numpy(v) for v in (w / w.sum(), mu, cov)))


def _built_in() -> tuple[NDArray, NDArray, NDArray]:
    modes = np.arange(16)
    means = np.stack([modes % 4, modes // 4], 1) - 1.5
    long, short = np.array([0.05, 0.2, 0.15, 0.1])[modes % 4], np.array([0.05, 0.05, 0.1, 0.1])[modes % 4]
    angle = np.pi * modes / 8
    axis = np.stack([np.cos(angle), np.sin(angle)], 1)
    other = np.stack([-np.sin(angle), np.cos(angle)], 1)
    outer = [np.einsum("ki,kj->kij", v, v) for v in (axis, other)]
    covariances = long[:, None, None] ** 2 * outer[0] + short[:, None, None] ** 2 * outer[1]
    return means.astype(np.float64), 1.0 + (modes + modes // 4) % 4, covariances


def _array(name: str, values: object, dimensions: int) -> Points:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"mixture: {name} must be a regular array of numbers ({error})") from None
    if array.ndim != dimensions or array.size == 0 or not np.isfinite(array).all():
        raise ConfigError(
            f"mixture: {name} must be {dimensions}-dimensional, not empty and finite, got shape {array.shape}"
        )
    return array


def _sampled(
    name: str, draw: Draw, n: int, n_test: int, seed: int, transform: Affine, classes: int, law: Mixture | None = None
) -> Dataset:
    seed = check_seed(seed)
    sizes = integer(name, "n", n), integer(name, "n_test", n_test)
    drawn = [draw(size, generator(seed, stream)) for stream, size in enumerate(sizes)]
    train, test = (transform.forward(torch.from_numpy(points)).to(torch.float32) for points, _ in drawn)
    labels = [torch.from_numpy(values).to(torch.int64) if classes else None for _, values in drawn]
    return Dataset(name, "vector", train, test, transform, labels[0], labels[1], classes, law)
