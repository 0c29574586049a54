"""NCSN++ and DDPM++: sizes as published, resampling, pyramids, and what is refused."""

import pytest
import torch
from torch.nn import functional as F

from sde_gen.errors import ConfigError
from sde_gen.networks import DDPMpp, NCSNpp
from sde_gen.networks.ncsnpp import Resampling
from tests.networks.test_networks import awake
from tests.networks.test_sizes import parameters


def small(make: type[NCSNpp] = NCSNpp, **options: object) -> NCSNpp:
    return make(**({"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,)} | options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "size", "published"),  # counted on the published code, by `benchmarks/network_references.py --counts`
    [(NCSNpp, "cifar10", 62_758_787), (DDPMpp, "cifar10", 61_804_419),
     (NCSNpp, "cifar10_edm", 56_395_523), (DDPMpp, "cifar10_edm", 55_732_739)],
)  # fmt: skip
def test_parameters_of_the_published_code(make: type[NCSNpp], size: str, published: int) -> None:
    embedding = "fourier" if make is NCSNpp else "ddpm"
    assert round(1e6 * parameters(make, 3, size=size, embedding=embedding)) == published


def test_resampling() -> None:
    x = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    plain, smooth = Resampling((1, 1)), Resampling((1, 3, 3, 1))
    torch.testing.assert_close(plain(x, "down"), F.avg_pool2d(x, 2))
    torch.testing.assert_close(plain(x, "up"), F.interpolate(x, scale_factor=2, mode="nearest"))
    inside = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)[..., 1:-1, 1:-1]
    torch.testing.assert_close(smooth(x, "up")[..., 1:-1, 1:-1], inside)  # the same taps, 1/4 and 3/4
    padded = F.pad(x, (1, 1, 1, 1))
    torch.testing.assert_close(smooth(padded, "down", padded=True), smooth(x, "down"))
    assert smooth(torch.ones(1, 1, 8, 8), "down")[..., 1:-1, 1:-1].eq(1).all()


@pytest.mark.parametrize("into", ["none", "skip", "residual"])
@pytest.mark.parametrize("out_of", ["none", "skip", "residual"])
def test_every_way_in_and_out(into: str, out_of: str) -> None:
    network = awake(small(progressive_input=into, progressive_output=out_of, learned_variance=True))
    out = network(torch.randn(2, 1, 8, 12), torch.zeros(2))
    assert out.shape == (2, 2, 8, 12)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_sigma_scaling_is_the_logarithm_in_and_a_division_out() -> None:
    scaled, plain = awake(small(sigma_scaling=True)), awake(small())
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.2, 3.0])
    expected = plain(x, sigma.log()) / sigma[:, None, None, None]
    torch.testing.assert_close(scaled(x, sigma), expected)


def grown(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, fir: tuple[int, ...]) -> torch.Tensor:
    """Twice the size as published: a transposed convolution with its kernel turned round, then the filter, then cut."""
    taps = torch.tensor(fir, dtype=x.dtype)
    taps = 4 * torch.outer(taps, taps) / taps.sum() ** 2
    if len(fir) == 2:  # where the published code copies pixels
        return F.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), weight, bias, padding=1)
    wide = F.conv_transpose2d(x, weight.flip(2, 3).transpose(0, 1), stride=2)
    apart = F.pad(wide, (1, 1, 1, 1)).flatten(0, 1)[:, None]
    return F.conv2d(apart, taps.flip(0, 1)[None, None])[:, 0].unflatten(0, wide.shape[:2]) + bias[:, None, None]


@pytest.mark.parametrize("fir", [(1, 1), (1, 3, 3, 1)])
@pytest.mark.parametrize("rescale", [True, False])
def test_a_residual_output_is_the_published_one(fir: tuple[int, ...], rescale: bool) -> None:
    """The way up written out, from what each block said, in float64."""
    network = awake(small(progressive_output="residual", fir=fir, multipliers=(1, 2, 1), skip_rescale=rescale)).double()
    factor = 0.5**0.5 if rescale else 1.0
    said: dict[int, torch.Tensor] = {}
    entered: dict[int, torch.Tensor] = {}
    for k, block in enumerate(network.up):
        block.register_forward_hook(lambda _m, _i, out, k=k: said.__setitem__(k, out))
    for k, block in enumerate(network.grow):
        block.register_forward_hook(lambda _m, given, _o, k=k: entered.__setitem__(k, given[0]))
    out = network(torch.randn(2, 1, 8, 12, dtype=torch.float64), torch.zeros(2))
    first, *others = network.out_of
    torch.testing.assert_close(entered[0], said[1], rtol=0, atol=0)  # the lowest level goes on as it is
    norm, _, conv = first
    pyramid = F.conv2d(F.silu(norm(said[1])), conv.weight, conv.bias, padding=1)
    for level, conv in enumerate(others, 1):
        pyramid = factor * (grown(pyramid, conv.weight, conv.bias, fir) + said[2 * level + 1])
        if level < len(others):
            torch.testing.assert_close(entered[level], pyramid)
    torch.testing.assert_close(out, network.heads[0](F.silu(network.norms[0](pyramid))))


def test_what_fits_can_be_halved() -> None:
    assert NCSNpp.fitting((1, 28, 28), 60_000)["multipliers"] == [1, 2, 2]
    assert NCSNpp.fitting((3, 32, 32), 50_000)["multipliers"] == [1, 2, 2, 2]
    assert NCSNpp.fitting((3, 27, 32), 100)["multipliers"] == [1]
    for shape in ((1, 28, 28), (3, 33, 40), (1, 7, 7)):
        with torch.device("meta"):
            network = NCSNpp(shape[0], **NCSNpp.fitting(shape, 100))
            assert network(torch.zeros(1, *shape), torch.zeros(1)).shape == (1, *shape)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fir": (1, 2, 1)}, r"fir must be an even number of taps, such as \(1, 1\)"),
        ({"fir": (0, 0)}, "fir must be an even number of taps"),
        ({"progressive_input": "input_skip"}, "progressive_input must be one of 'none', 'skip', 'residual'"),
        ({"progressive_output": "output_skip"}, "progressive_output must be one of 'none', 'skip', 'residual'"),
        ({"multipliers": ()}, "multipliers must name at least one level"),
        ({"attention": (2,)}, "attention names level 2"),
        ({"sigma_scaling": 1}, "sigma_scaling must be True or False"),
        ({"size": "cifar"}, "size must be one of 'digits', 'cifar10', 'cifar10_deep', 'cifar10_edm'"),
    ],
)
def test_refuses_bad_arguments(options: dict, message: str) -> None:
    for make in (NCSNpp, DDPMpp):
        with pytest.raises(ConfigError, match=f"{make.__name__}: {message}"):
            small(make, **options)


def test_sides_that_cannot_be_halved_are_named() -> None:
    with pytest.raises(ConfigError, match=r"NCSNpp: the sides of x must be multiples of 2 for 2 levels, got \(1, 1, 7"):
        small()(torch.zeros(1, 1, 7, 8), torch.zeros(1))
