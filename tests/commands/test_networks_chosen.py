"""Every network by its name on the command line: its sizes, what fits the data, and what it does not take."""

from typing import Any

import pytest
import torch

import sde_gen as sg
from sde_gen.config.prepare import prepare
from sde_gen.config.restore import resolved_network
from sde_gen.data import Affine, Dataset
from sde_gen.errors import ConfigError

IMAGES = {"unet": "UNet", "ncsnpp": "NCSNpp", "ddpmpp": "DDPMpp", "dit": "DiT", "edm2": "EDM2"}
UNET = {"width": 32, "multipliers": [1, 2, 2], "blocks": 1, "attention": [-1], "dropout": 0.0}  # for digits
KINDS = {1: "vector", 2: "series", 3: "image", 4: "volume"}


def data(*shape: int, n: int = 2) -> Dataset:
    return Dataset("some", KINDS[len(shape)], torch.zeros(n, *shape), torch.zeros(1, *shape), Affine())


def node(network: str, *more: str) -> dict[str, Any]:
    return dict(sg.load_config("train", [f"network={network}", *more]).network)


@pytest.mark.parametrize("name", IMAGES)
def test_is_trained_on_images_with_labels(name: str) -> None:
    prepared = prepare(sg.load_config("train", [f"network={name}", "data=digits", "class_conditional=true"]))
    network = prepared.model.network
    assert type(network).__name__ == IMAGES[name]
    assert network.num_classes == 10
    stored = prepared.stored["network"]
    assert "size" not in stored
    assert None not in stored.values()
    x, _ = prepared.data.test[:2], None
    assert prepared.model(x, 0.5, label=torch.tensor([3, 10])).noise.shape == x.shape


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 34, 50)])
def test_fits_images_of_other_sizes(name: str, shape: tuple[int, ...]) -> None:
    found = resolved_network(node(name), data(*shape), False)
    options = {key: value for key, value in found.items() if key != "_target_"}
    with torch.device("meta"):
        network = getattr(sg.networks, IMAGES[name])(**options)
        assert network(torch.zeros(1, *shape), torch.zeros(1)).shape == (1, *shape)


def test_a_size_by_name_and_what_is_given_beside_it() -> None:
    found = resolved_network(node("unet", "network.size=cifar10", "network.width=16"), data(3, 32, 32), False)
    assert (found["width"], found["multipliers"], found["channels"]) == (16, (1, 2, 2, 2), 3)
    garments = data(1, 28, 28)
    for multipliers, attention in (("[1,2,4]", [2]), ("[1]", [-1]), ("[1,1,1,1,1]", [2, 3])):
        found = resolved_network(node("unet", f"network.multipliers={multipliers}"), garments, False)
        assert found["attention"] == attention
    assert resolved_network(node("unet", "network.attention=[0]"), garments, False)["attention"] == [0]
    assert resolved_network(node("dit", "network.size=B"), data(3, 32, 32), False)["width"] == 768
    with pytest.raises(ConfigError, match="UNet: size must be one of 'digits', 'cifar10', 'imagenet64', got 'cifar'"):
        resolved_network(node("unet", "network.size=cifar"), data(3, 32, 32), False)


@pytest.mark.parametrize("name", IMAGES)
def test_what_it_does_not_take(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{IMAGES[name]} cannot take samples like those of some, of shape"):
        resolved_network(node(name), data(5), False)
    for shape in ((2, 16), (1, 4, 4, 4)):
        if name in ("unet", "dit"):
            assert resolved_network(node(name), data(*shape), False)["dimensions"] == len(shape) - 1
        else:
            with pytest.raises(ConfigError, match=f"{IMAGES[name]} takes images, and some has samples of shape"):
                resolved_network(node(name), data(*shape), False)


def test_the_experiment_with_clothes_has_the_network_that_it_was_measured_with() -> None:
    found = resolved_network(
        dict(sg.load_config("train", ["experiment=fashion_mnist"]).network), data(1, 28, 28), False
    )
    assert {key: found[key] for key in UNET} == UNET | {"multipliers": [1, 2, 4]}


def test_auto_at_8x8_is_what_it_was() -> None:
    assert resolved_network({"_target_": "auto"}, data(1, 8, 8), False) == {
        "_target_": "sde_gen.networks.UNet", "channels": 1,
    }  # fmt: skip
    assert resolved_network({"_target_": "auto"}, data(3, 32, 32, n=20_000), False)["width"] == 128
