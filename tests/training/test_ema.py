"""Averaged weights."""

import pytest
import torch
from torch import nn

from sde_gen.errors import CheckpointError, ConfigError
from sde_gen.training import EMA


def test_it_is_the_recursion_with_warm_up() -> None:
    layer = nn.Linear(3, 2)
    ema = EMA(layer, decay=0.5)
    expected = layer.weight.detach().clone()
    for n in range(12):
        with torch.no_grad():
            layer.weight.add_(1.0)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * layer.weight.detach()
        assert ema.next_decay() == pytest.approx(decay)
        ema.update()
    torch.testing.assert_close(ema.state_dict()["weight"], expected)


def test_applied_swaps_and_restores_also_after_an_error() -> None:
    layer = nn.Linear(2, 2)
    ema = EMA(layer, decay=0.9, warmup=False)
    with torch.no_grad():
        layer.weight.fill_(3.0)
    ema.update()
    trained = layer.weight.detach().clone()

    def fail() -> None:
        with ema.applied():
            assert not torch.equal(layer.weight, trained)
            torch.testing.assert_close(layer.weight.detach(), ema.state_dict()["weight"])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(layer.weight, trained)


def test_buffers_are_those_of_the_module_and_frozen_weights_stay() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    network[0].bias.requires_grad_(False)
    ema = EMA(network)
    network(torch.rand(8, 2))
    ema.update()
    state = ema.state_dict()
    assert set(state) == set(network.state_dict())
    assert torch.equal(state["1.running_mean"], network.state_dict()["1.running_mean"])


def test_state_round_trip_and_misfits() -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    first, second = EMA(a), EMA(b)
    first.update()
    second.load_state_dict(first.state_dict(), first.updates)
    assert second.updates == 1
    assert torch.equal(second.state_dict()["weight"], first.state_dict()["weight"])
    with pytest.raises(CheckpointError, match="weight"):
        second.load_state_dict({"weight": torch.zeros(3, 3)}, 0)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match=r"decay must be .* in \[0, 1\)"):
        EMA(nn.Linear(1, 1), decay)
