"""The same numbers as published networks say, on the same weights."""

import pytest
import torch

from sde_gen.errors import CheckpointError
from sde_gen.interop import published_weights
from sde_gen.networks import DiT
from tests.networks.references import CONFIGURATIONS, inputs, reference


def named(family: str) -> list[str]:
    return [name for name, (of, _, _) in CONFIGURATIONS.items() if of == family]


@pytest.mark.parametrize("name", named("dit"))
def test_dit(name: str) -> None:
    given, said = reference(name)
    network = DiT(**CONFIGURATIONS[name][2], embedding="adm")
    network.load_state_dict(published_weights.dit(given))
    x, index, label = inputs(name)
    assert said.square().mean() > 0.1
    torch.testing.assert_close(network(x, index, label), said, rtol=1e-5, atol=1e-5)
    with pytest.raises(CheckpointError, match=r"blocks\.0\.other\.weight is no weight of DiT"):
        published_weights.dit({"blocks.0.other.weight": x})
