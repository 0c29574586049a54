"""The MLP's arguments, and that it learns."""

import pytest
import torch

from sde_gen.errors import ConfigError
from sde_gen.networks import MLP


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, "features must be a whole number, at least 1, got 0"),
        ({"hidden": 2}, "hidden must be a whole number, at least 4, got 2"),
        ({"hidden": 17}, "hidden must be even, got 17; try 18"),
        ({"layers": 0}, "layers must be a whole number, at least 1, got 0"),
        ({"layers": 2.0}, "layers must be a whole number, at least 1, got 2.0"),
    ],
)
def test_refuses_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MLP(**options)


@pytest.mark.parametrize("features", [1, 2, 17])
def test_any_number_of_features(features: int) -> None:
    x = torch.randn(5, features)
    assert MLP(features, hidden=8, layers=1)(x, torch.zeros(5)).shape == x.shape


def test_learns_a_function_of_input_and_noise_level() -> None:
    """A hundred steps explain most of sin(3 x) cos(c), which no additive model in x and c can."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MLP(1, hidden=64, layers=2)
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        losses = []
        for _ in range(150):
            x, c_noise = torch.randn(256, 1), 4 * torch.randn(256)
            target = torch.sin(3 * x) * torch.cos(c_noise)[:, None]
            loss = (network(x, c_noise) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach() / target.square().mean()))
    assert losses[0] == pytest.approx(1.0, abs=1e-5)
    assert sum(losses[-10:]) / 10 < 0.2
