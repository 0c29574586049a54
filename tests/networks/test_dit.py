"""The transformer: patches and their way back, positions, sizes, and what it is told."""

import numpy as np
import pytest
import torch

from sde_gen.errors import ConfigError
from sde_gen.networks import DiT
from sde_gen.networks.dit import places, rotated, waves
from tests.networks.test_networks import awake
from tests.networks.test_sizes import parameters


def small(**options: object) -> DiT:
    return DiT(**({"width": 24, "depth": 2, "heads": 2} | options))  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "published"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_parameters_of_the_paper(size: str, published: int) -> None:
    found = parameters(DiT, 4, size=size, num_classes=1000, learned_variance=True, embedding="adm")
    assert found == pytest.approx(published, abs=0.6)


@pytest.mark.parametrize("sides", [(6,), (4, 8), (2, 4, 6)])
@pytest.mark.parametrize("patch", [1, 2])
def test_patches_come_back(sides: tuple[int, ...], patch: int) -> None:
    network = small(channels=3, dimensions=len(sides), patch=patch)
    x = torch.randn(2, 3, *sides)
    grid = [n // patch for n in sides]
    cut = network._patches(x, grid)  # of a patch: channels first, as a convolution has it
    assert cut.shape == (2, int(np.prod(grid)), 3 * patch ** len(sides))
    back = cut.unflatten(2, (3, -1)).transpose(2, 3).flatten(2)  # channels last, as the output has them
    assert torch.equal(network._image(back, grid), x)
    assert awake(network)(x, torch.zeros(2)).shape == x.shape


def test_the_stem_is_a_convolution() -> None:
    network, x = small(channels=3), torch.randn(2, 3, 6, 8)
    weight = network.stem.weight.unflatten(1, (3, 2, 2))
    expected = torch.nn.functional.conv2d(x, weight, network.stem.bias, stride=2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(network.stem(network._patches(x, [3, 4])), expected, rtol=1e-5, atol=1e-6)


def test_products_of_rotated_features_depend_on_differences() -> None:
    angles = waves(places([9, 9], torch.device("cpu")), 2).flatten(1)
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(8, generator=generator).expand(81, 8) for _ in range(2))
    products = (rotated(q, angles) @ rotated(k, angles).T).reshape(9, 9, 9, 9)
    torch.testing.assert_close(products[1:, 1:, 1:, 1:], products[:-1, :-1, :-1, :-1], rtol=1e-4, atol=1e-5)
    assert (products[0, 0] - products[0, 0, 0, 0]).abs().max() > 0.1
    torch.testing.assert_close(rotated(q, angles).square().sum(1), q.square().sum(1))


def test_positions_tell_places_apart_and_rotary_takes_other_sizes() -> None:
    for positions in ("sincos", "rotary"):
        network = awake(small(positions=positions))
        x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        turned = network(x.flip(2, 3), torch.zeros(1)).flip(2, 3)
        assert (turned - network(x, torch.zeros(1))).abs().max() > 1e-3
        assert network(torch.randn(1, 1, 12, 4), torch.zeros(1)).shape == (1, 1, 12, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 25}, "heads must divide width"),
        ({"width": 26}, "4 must divide width, for positions='sincos'"),
        ({"width": 12, "positions": "rotary"}, "4 must divide width / heads, for positions='rotary'"),
        ({"positions": "learned"}, "positions must be one of 'sincos', 'rotary'"),
        ({"embedding": "time"}, "embedding must be one of 'half_log_snr', 'ddpm', 'adm', 'fourier'"),
        ({"patch": 0}, "patch must be a whole number, at least 1"),
        ({"depth": 0}, "depth must be a whole number, at least 1"),
        ({"size": "XXL"}, "size must be one of 'tiny', 'S', 'B', 'L', 'XL'"),
        ({"rms_norm": 1}, "rms_norm must be True or False"),
    ],
)
def test_refuses_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**options)


def test_a_size_that_patches_do_not_fill_is_named() -> None:
    with pytest.raises(ConfigError, match=r"multiples of patch=2, got \(1, 1, 7, 8\); patch=1 takes any size"):
        small()(torch.zeros(1, 1, 7, 8), torch.zeros(1))


def test_what_fits() -> None:
    assert DiT.fitting((1, 8, 8), 10) == DiT.fitting((1, 28, 28), 60_000) == DiT.sizes["tiny"]
    assert DiT.fitting((3, 32, 32), 1000) == DiT.sizes["S"]
    assert DiT.fitting((3, 32, 32), 50_000) == DiT.sizes["B"]
