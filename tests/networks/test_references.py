"""The same numbers as published networks say, on the same weights."""

import pytest
import torch

from sde_gen.errors import CheckpointError
from sde_gen.interop import published_weights
from sde_gen.networks import EDM2, DDPMpp, DiT, NCSNpp
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


@pytest.mark.parametrize("name", [*named("edm"), *named("score_sde")])
def test_ncsnpp_and_ddpmpp(name: str) -> None:
    given, said = reference(name)
    family, _, options = CONFIGURATIONS[name]
    network = (DDPMpp if "ddpmpp" in name else NCSNpp)(**options).eval()
    network.load_state_dict(getattr(published_weights, family)(given, network))
    x, c_noise, _ = inputs(name)
    assert said.square().mean() > 0.1
    torch.testing.assert_close(network(x, c_noise), said, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", named("edm2"))
def test_edm2(name: str) -> None:
    given, said = reference(name)
    network = EDM2(**CONFIGURATIONS[name][2]).eval()
    network.load_state_dict(published_weights.edm2(given, network))
    x, c_noise, label = inputs(name)
    assert said.square().mean() > 0.1
    torch.testing.assert_close(network(x, c_noise, label), said, rtol=1e-5, atol=1e-5)
    with pytest.raises(CheckpointError, match=r"logvar\.weight is no weight of the U-Net of edm2"):
        published_weights.edm2({"logvar.weight": x}, network)


def test_what_does_not_fit_is_named() -> None:
    network = NCSNpp(3)
    with pytest.raises(CheckpointError, match=r"map_label\.weight is no weight of a SongUNet without labels"):
        published_weights.edm({"map_label.weight": torch.zeros(1)}, network)
    with pytest.raises(CheckpointError, match="there are 1 parts of a network of score_sde, and"):
        published_weights.score_sde({"all_modules.0.weight": torch.zeros(1)}, network)
