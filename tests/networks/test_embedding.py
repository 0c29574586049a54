"""The features of the noise level."""

import math

import pytest
import torch

from sde_gen.networks.embedding import VectorEmbedding, positional_features
from sde_gen.networks.mlp import C_NOISE_LIMIT, fourier_features


@pytest.mark.parametrize("size", [4, 16, 128])
def test_features_are_float32_bounded_and_of_the_right_shape(size: int) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        out = fourier_features(torch.linspace(-25, 25, 11, dtype=dtype), size)
        assert out.shape == (11, size)
        assert out.dtype == torch.float32
        assert out.abs().max() <= 1


def test_formula() -> None:
    value, size = 1.7, 8
    frequencies = [0.05 * 200 ** (k / 3) for k in range(4)]
    expected = [math.sin(w * value) for w in frequencies] + [math.cos(w * value) for w in frequencies]
    torch.testing.assert_close(fourier_features(torch.tensor([value]), size)[0], torch.tensor(expected))


def test_infinite_levels_are_those_at_the_limit() -> None:
    infinite = fourier_features(torch.tensor([math.inf, -math.inf]), 32)
    assert torch.equal(infinite, fourier_features(torch.tensor([C_NOISE_LIMIT, -C_NOISE_LIMIT]), 32))
    assert torch.isnan(fourier_features(torch.tensor([math.nan]), 32)).all()


def test_levels_in_use_are_told_apart() -> None:
    """Neighbours differ visibly, and far levels never look like neighbours; for lambda and for EDM's -lambda/4."""
    for levels, step in ((torch.arange(-10, 15.01, 0.1), 0.1), (torch.arange(-3.75, 2.51, 0.025), 0.025)):
        features = fourier_features(levels, 64)
        distance = torch.cdist(features, features)
        near = distance.diagonal(1)
        assert near.min() > 0.3 * step
        index = torch.arange(len(levels))
        far = (index[:, None] - index[None, :]).abs() >= 10
        assert distance[far].min() > near.max()


def test_independent_of_the_global_generator() -> None:
    first = fourier_features(torch.tensor([0.3]), 16)
    torch.rand(5)
    assert torch.equal(first, fourier_features(torch.tensor([0.3]), 16))


def test_positions_by_formula() -> None:
    value, half = 731.0, 4
    for ends in (False, True):
        w = [10_000 ** (-k / (half - ends)) for k in range(half)]
        expected = [math.sin(f * value) for f in w] + [math.cos(f * value) for f in w]
        found = positional_features(torch.tensor([value], dtype=torch.float64), 2 * half, ends)
        torch.testing.assert_close(found[0], torch.tensor(expected), rtol=0, atol=1e-4)
    assert torch.isfinite(positional_features(torch.tensor([math.inf, -math.inf]), 8, True)).all()


def test_random_frequencies_are_kept_and_never_rounded() -> None:
    made = VectorEmbedding(8, 0, "Net", kind="fourier", features=16)
    kept = made.frequencies.clone()
    assert "frequencies" in made.state_dict()
    assert made.bfloat16().frequencies.dtype == torch.float32
    assert torch.equal(made.frequencies, kept)
    assert made.double().first.weight.dtype == torch.float64
    assert torch.equal(made.frequencies, kept)
    out = made(torch.tensor([0.1, math.inf]), None, 2)
    assert out.shape == (2, 8)
    assert torch.isfinite(out).all()
