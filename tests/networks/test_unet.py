"""The U-Net over sizes, channel counts, depths and memory formats."""

import pytest
import torch

from sde_gen.errors import ConfigError
from sde_gen.networks import UNet


def awake(network: UNet) -> UNet:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("size", [(8, 8), (1, 1), (3, 5), (28, 28), (33, 21), (7, 16), (1, 9)])
@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 2, 3, 2)])
def test_any_size_and_channel_count(channels: int, size: tuple[int, int], multipliers: tuple[int, ...]) -> None:
    network = awake(UNet(channels, width=4, multipliers=multipliers, blocks=1, attention=(-1,)))
    x = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(1))
    out = network(x, torch.tensor([-3.0, 4.0]))
    assert out.shape == x.shape
    assert torch.isfinite(out).all()
    assert out.std() > 0


@pytest.mark.parametrize("width", [4, 5, 24, 37, 48, 96])
@pytest.mark.parametrize("blocks", [1, 3])
def test_any_width_and_depth(width: int, blocks: int) -> None:
    network = UNet(1, width=width, blocks=blocks, attention=(0, 1))
    assert network(torch.randn(1, 1, 6, 6), torch.tensor(0.0)).shape == (1, 1, 6, 6)


def test_one_network_serves_several_sizes() -> None:
    network = awake(UNet(1, width=8))
    for size in (8, 9, 17):
        assert network(torch.randn(2, 1, size, size), torch.zeros(2)).shape == (2, 1, size, size)


def test_channels_last_gives_the_same_answer() -> None:
    network = awake(UNet(3, width=8, blocks=1))
    x = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(1))
    expected = network(x, torch.zeros(2))
    network = network.to(memory_format=torch.channels_last)
    out = network(x.contiguous(memory_format=torch.channels_last), torch.zeros(2))
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network(x, torch.zeros(2)), expected, rtol=1e-4, atol=1e-5)


def test_attention_connects_far_pixels() -> None:
    """Without attention one pixel cannot reach the opposite corner of a wide image; with it, it does."""
    far = []
    for attention in ((), (0,)):
        network = awake(UNet(1, width=8, multipliers=(1,), blocks=1, attention=attention)).double()
        for module in network.modules():  # the norms connect all pixels too: take them out of the way
            if isinstance(module, torch.nn.GroupNorm):
                module.forward = lambda x: x  # type: ignore[method-assign]
        x = torch.zeros(1, 1, 1, 64, dtype=torch.float64, requires_grad=True)
        network(x, torch.tensor(0.0))[0, 0, 0, -1].backward()
        assert x.grad is not None
        far.append(float(x.grad[0, 0, 0, 0].abs()))
    assert far[0] == 0.0
    assert far[1] > 0.0


def test_negative_levels_count_from_the_end() -> None:
    torch.manual_seed(0)
    first = UNet(1, width=8, multipliers=(1, 2), attention=(-1,))
    second = UNet(1, width=8, multipliers=(1, 2), attention=(1,))
    assert [n for n, _ in first.named_parameters()] == [n for n, _ in second.named_parameters()]
    assert sum(p.numel() for p in UNet(1, width=8, multipliers=(1, 2), attention=()).parameters()) < sum(
        p.numel() for p in first.parameters()
    )


def test_the_default_is_sized_for_digits() -> None:
    assert 0.7e6 < sum(p.numel() for p in UNet().parameters()) < 0.9e6


def test_takes_lists() -> None:
    a, b = UNet(1, width=4, multipliers=[1, 2], attention=[0]), UNet(1, width=4, multipliers=(1, 2), attention=(0,))
    assert a.state_dict().keys() == b.state_dict().keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels must be a whole number, at least 1, got 0"),
        ({"channels": 1.0}, "channels must be a whole number, at least 1, got 1.0"),
        ({"width": 3}, "width must be a whole number, at least 4, got 3"),
        ({"width": True}, "width must be a whole number, at least 4, got True"),
        ({"multipliers": ()}, "multipliers must name at least one level"),
        ({"multipliers": (1, 0)}, r"multipliers\[1\] must be a whole number, at least 1, got 0"),
        ({"multipliers": 2}, "multipliers must be a list of whole numbers, at least 1, got 2"),
        ({"multipliers": "12"}, "multipliers must be a list"),
        ({"blocks": 0}, "blocks must be a whole number, at least 1, got 0"),
        ({"attention": (3,)}, r"attention names level 3, but multipliers give levels 0\.\.2"),
        ({"attention": (-4,)}, r"attention\[0\] must be a whole number, at least -3, got -4"),
        ({"attention": 1}, "attention must be a list"),
        (
            {"size": "cifar"},
            "size must be one of 'digits', 'cifar10', 'imagenet64', got 'cifar'; did you mean 'cifar10'?",
        ),
    ],
)
def test_refuses_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        UNet(**options)


def test_tokens_need_attention() -> None:
    with pytest.raises(ConfigError, match="token_size needs a level with attention"):
        UNet(width=8, attention=(), token_size=3)
