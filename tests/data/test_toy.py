"""Generated data: shapes, scales, laws, seeds."""

import math
from collections.abc import Callable

import pytest
import torch

from sde_gen.data import Dataset, checkerboard, mixture, rings, swiss_roll, two_moons
from sde_gen.errors import ConfigError

MAKERS: list[Callable[..., Dataset]] = [two_moons, checkerboard, swiss_roll, rings, mixture]
EVERY = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)


@EVERY
def test_sizes_names_and_scale(make: Callable[..., Dataset]) -> None:
    data = make(n=5000, n_test=300)
    assert data.name == make.__name__
    assert data.kind == "vector"
    assert data.train.shape == (5000, 2)
    assert data.test.shape == (300, 2)
    assert data.train.mean(0).abs().max() < 0.1
    assert (data.train.std(0) - 1).abs().max() < 0.1
    assert (data.law is not None) == (make is mixture)


@EVERY
def test_draws_follow_the_seed_alone(make: Callable[..., Dataset]) -> None:
    first = make(n=100, n_test=50)
    torch.rand(3)
    assert make(n=100, n_test=50).fingerprint == first.fingerprint
    for seed in (1, 1 << 32, 1 << 63):
        assert not torch.equal(make(n=100, n_test=50, seed=seed).train, first.train)
    assert torch.equal(make(n=100, n_test=7).train, first.train)
    assert not torch.equal(make(n=50, n_test=50).train, first.test)


@EVERY
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n must be a whole number, at least 1, got 0"),
        ({"n_test": 0}, "n_test must be a whole number, at least 1, got 0"),
        ({"n": 10.5}, "n must be a whole number"),
        ({"seed": -1}, "seed must be a whole number"),
    ],
)
def test_refuses_bad_sizes(make: Callable[..., Dataset], options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**options)


@pytest.mark.parametrize("make", [two_moons, swiss_roll, rings])
@pytest.mark.parametrize("noise", [-0.1, math.nan, math.inf, "x", True])
def test_refuses_a_bad_noise(make: Callable[..., Dataset], noise: object) -> None:
    with pytest.raises(ConfigError, match=r"noise must be a (finite )?number in \[0, inf"):
        make(noise=noise)


def test_checkerboard_lies_on_the_dark_squares() -> None:
    data = checkerboard(n=4000)
    raw = data.transform.inverse(data.train.double())
    assert raw.abs().max() <= 2.0 + 1e-6
    cells = raw.clamp(-2 + 1e-6, 2 - 1e-6).floor()
    assert torch.all(cells.sum(1) % 2 == 0)
    _, counts = cells.unique(dim=0, return_counts=True)
    assert len(counts) == 8
    assert counts.min() > 380  # expected 500, standard deviation 21


def test_moons_rings_and_roll_lie_on_their_curves() -> None:
    moons = two_moons(n=500, noise=0)
    raw = moons.transform.inverse(moons.train.double())
    centers = torch.tensor([[0.0, 0.0], [1.0, 0.5]], dtype=torch.float64)[moons.train_labels]
    assert ((raw - centers).norm(dim=1) - 1).abs().max() < 1e-5
    circles = rings(n=500, noise=0, count=4)
    assert circles.num_classes == 4
    assert circles.train_labels is not None
    radii = circles.transform.inverse(circles.train.double()).norm(dim=1)
    assert (radii - 1 - circles.train_labels).abs().max() < 1e-5
    roll = swiss_roll(n=500, noise=0)
    raw = roll.transform.inverse(roll.train.double())
    radius = raw.norm(dim=1)
    along = radius[:, None] * torch.stack([radius.cos(), radius.sin()], 1)
    assert (raw - along).abs().max() < 1e-3
    assert radius.min() > 1.5 * math.pi - 1e-3
    assert radius.max() < 4.5 * math.pi + 1e-3


def test_rings_refuses_no_ring() -> None:
    with pytest.raises(ConfigError, match="rings: count must be a whole number, at least 1"):
        rings(count=0)


def test_the_law_of_the_mixture_is_that_of_its_samples() -> None:
    data = mixture(n=40000)
    law = data.law
    assert law is not None
    assert law.weights.shape == (16,)
    assert law.means.shape == (16, 2)
    assert law.covariances.shape == (16, 2, 2)
    assert all(v.dtype == torch.float64 for v in (law.weights, law.means, law.covariances))
    assert float(law.weights.sum()) == pytest.approx(1)
    assert len(set(law.weights.tolist())) == 4
    x, labels = data.train.double(), data.train_labels
    assert labels is not None
    for mode in range(16):
        here = x[labels == mode]
        n, w = len(here), float(law.weights[mode])
        assert abs(n / len(x) - w) < 6 * math.sqrt(w * (1 - w) / len(x))
        std = law.covariances[mode].diagonal().sqrt()
        assert torch.all((here.mean(0) - law.means[mode]).abs() < 6 * std / math.sqrt(n))
        bound = 6 * math.sqrt(2 / n) * std[:, None] * std[None, :]
        assert torch.all((here.T.cov() - law.covariances[mode]).abs() < bound)
    mean = law.weights @ law.means
    second = torch.einsum("k,kii->i", law.weights, law.covariances + torch.einsum("ki,kj->kij", law.means, law.means))
    torch.testing.assert_close(mean, torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(second, torch.ones(2, dtype=torch.float64))


def test_a_mixture_of_ones_own() -> None:
    data = mixture(
        n=20,
        n_test=5,
        weights=[1, 3],
        means=[[0, 0, 0], [1, 2, 3]],
        covariances=[[[1, 0, 0], [0, 1, 0], [0, 0, 1]]] * 2,
    )
    assert data.shape == (3,)
    assert data.num_classes == 2
    assert data.law is not None
    assert data.law.weights.tolist() == [0.25, 0.75]


EYE = [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1.0]}, "need means"),
        ({"means": [[0.0, 0.0]]}, "means need covariances"),
        ({"means": [0.0, 0.0], "covariances": [EYE]}, "means must be 2-dimensional"),
        ({"means": [[0.0, math.nan]], "covariances": [EYE]}, "means must be 2-dimensional, not empty and finite"),
        ({"means": [[0.0], [0.0, 1.0]], "covariances": [EYE]}, "means must be a regular array"),
        ({"means": [[0.0, 0.0]], "covariances": [EYE, EYE]}, "must have shapes"),
        ({"means": [[0.0, 0.0]], "covariances": [EYE], "weights": [1.0, 2.0]}, "must have shapes"),
        ({"means": [[0.0, 0.0]], "covariances": [EYE], "weights": [0.0]}, "weights must all be > 0, got 0 for mode 0"),
        ({"means": [[0.0, 0.0]], "covariances": [[[1.0, 2.0], [2.0, 1.0]]]}, "mode 0 must be symmetric and positive"),
        ({"means": [[0.0, 0.0]], "covariances": [[[1.0, 0.5], [0.0, 1.0]]]}, "mode 0 must be symmetric and positive"),
    ],
)
def test_refuses_what_is_no_mixture(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mixture(**options)
