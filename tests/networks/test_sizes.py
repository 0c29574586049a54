"""Sizes: what the papers' names stand for, and what fits data of a shape and number."""

from typing import Any

import pytest
import torch
from torch import nn

from sde_gen.networks import UNet
from sde_gen.networks.sizes import fitting_unet


def parameters(make: Any, *args: Any, **options: Any) -> float:
    """Millions of parameters, of shapes alone."""
    with torch.device("meta"):
        network: nn.Module = make(*args, **options)
    return sum(p.numel() for p in network.parameters()) / 1e6


@pytest.mark.parametrize(
    ("size", "count", "published"), [("digits", 0.80, None), ("cifar10", 29.71, 35.7), ("imagenet64", 228.09, 295.9)]
)
def test_parameters_of_the_unet(size: str, count: float, published: float | None) -> None:
    found = parameters(UNet, 1 if size == "digits" else 3, size=size)
    assert found == pytest.approx(count, abs=0.01)
    if published:  # one block more a level on the way up is what the papers' networks have besides
        assert 0.75 * published < found < published


def test_what_is_given_stands_and_the_rest_is_as_the_size_says() -> None:
    made = UNet(3, size="cifar10", width=8, dropout=0.0)
    assert {k: made.arguments[k] for k in ("width", "multipliers", "blocks", "attention", "dropout")} == {
        "width": 8, "multipliers": (1, 2, 2, 2), "blocks": 2, "attention": (1,), "dropout": 0.0,
    }  # fmt: skip
    again = UNet(**made.arguments)
    assert again.state_dict().keys() == made.state_dict().keys()


def test_what_fits_the_data() -> None:
    digits = UNet.sizes["digits"]
    assert fitting_unet((1, 8, 8), 1437) == {k: list(v) if isinstance(v, tuple) else v for k, v in digits.items()}
    assert fitting_unet((3, 16, 16), 10**6) == fitting_unet((1, 8, 8), 10)
    garments = fitting_unet((1, 28, 28), 60_000)
    assert garments == {"width": 32, "multipliers": [1, 2, 2, 2], "blocks": 2, "attention": [2, 3], "dropout": 0.0}
    few, many = fitting_unet((3, 32, 32), 19_999), fitting_unet((3, 32, 32), 50_000)
    assert few == {"width": 64, "multipliers": [1, 2, 2, 2], "blocks": 2, "attention": [1, 2, 3], "dropout": 0.1}
    assert many == few | {"width": 128}
    assert 29 < parameters(UNet, 3, **many) < 33
    assert fitting_unet((3, 64, 48), 100)["attention"] == [2, 3, 4]
    assert fitting_unet((3, 17, 40), 100)["multipliers"] == [1, 2, 2, 2, 2]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 48), (1, 17, 200), (2, 1000), (1, 20, 20, 20)])
def test_what_fits_can_be_built(shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        network = UNet(shape[0], **fitting_unet(shape, 100), dimensions=len(shape) - 1)
        assert network(torch.zeros(1, *shape), torch.zeros(1)).shape == (1, *shape)


def test_series_and_volumes_are_as_wide_as_digits() -> None:
    assert fitting_unet((2, 1000), 10**6) == {
        "width": 32, "multipliers": [1] + [2] * 8, "blocks": 2, "attention": [-1], "dropout": 0.0,
    }  # fmt: skip
