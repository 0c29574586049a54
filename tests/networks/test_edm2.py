"""EDM2: sizes as published, and what magnitude-preserving means."""

import pytest
import torch

from sde_gen.errors import ConfigError
from sde_gen.networks import EDM2
from sde_gen.networks.edm2 import blend, joined, silu, unit
from tests.networks.test_networks import awake
from tests.networks.test_sizes import parameters


def rms(x: torch.Tensor) -> float:
    return float(x.detach().square().mean().sqrt())


def small(**options: object) -> EDM2:
    return EDM2(**({"width": 32, "multipliers": (1, 2), "blocks": 1, "attention": (1,)} | options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "published"), [("XS", 125), ("S", 280), ("M", 498), ("L", 777), ("XL", 1119), ("XXL", 1523)]
)
def test_parameters_of_the_paper(size: str, published: int) -> None:
    assert parameters(EDM2, 4, size=size, num_classes=1000) == pytest.approx(published, abs=0.6)


def test_every_operation_keeps_the_size() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1000, n, 8, generator=generator) for n in (30, 50))
    assert rms(silu(a)) == pytest.approx(1, abs=0.01)
    assert rms(blend(a, b[:, :30], 0.3)) == pytest.approx(1, abs=0.01)
    both = joined(a, b)
    assert rms(both) == pytest.approx(1, abs=0.01)
    assert float(both[:, :30].square().sum() / both[:, 30:].square().sum()) == pytest.approx(1, abs=0.02)
    assert rms(unit(3 * a, 1)) == pytest.approx(1, abs=1e-3)


def test_activations_of_a_new_network_are_of_order_one_at_every_depth() -> None:
    torch.manual_seed(0)
    network, seen = small(), []
    for name, module in network.named_modules():
        if name.startswith(("down.", "shrink.", "middle.", "grow.", "up.")) and name.count(".") == 1:
            module.register_forward_hook(lambda _m, _i, out: seen.append(rms(out)))
    network(torch.randn(8, 1, 16, 16), torch.linspace(-3, 3, 8))
    assert len(seen) == 10
    assert all(0.7 < value < 1.4 for value in seen)


def test_training_holds_the_weights_at_unit_size_and_evaluation_leaves_them() -> None:
    network = awake(small())
    x, c = torch.randn(2, 1, 8, 8), torch.zeros(2)
    before = network.stem.weight.detach().clone()
    network.eval()(x, c)
    assert torch.equal(network.stem.weight, before)
    said = network(x, c)
    network.train()
    first = network(x, c)
    rows = network.stem.weight.detach().flatten(1).square().mean(1)
    torch.testing.assert_close(rows, torch.ones_like(rows))
    torch.testing.assert_close(network(x, c), first, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first, said, rtol=2e-2, atol=2e-2)  # up to the eps beside the norm


def test_two_calls_before_one_gradient() -> None:
    network = awake(small())
    x, c = torch.randn(2, 1, 8, 8), torch.zeros(2)
    network(x, c)
    (network(x, c) + network(x, c)).square().sum().backward()
    both = network.stem.weight.grad
    network.zero_grad()
    (2 * network(x, c)).square().sum().backward()
    torch.testing.assert_close(network.stem.weight.grad, both, rtol=1e-3, atol=1e-4 * float(both.abs().max()))


def test_no_label_is_a_row_of_zeros() -> None:
    network = awake(small(num_classes=3)).eval()
    x, c = torch.randn(4, 1, 8, 8), torch.zeros(4)
    with torch.no_grad():
        network.embedding.label.weight.zero_()  # type: ignore[union-attr]
    every = network(x[:1].expand(4, -1, -1, -1), c, torch.tensor([0, 1, 2, 3]))
    torch.testing.assert_close(every, every[:1].expand_as(every))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multipliers": ()}, "multipliers must name at least one level"),
        ({"head": 0}, "head must be a whole number, at least 1"),
        ({"size": "xs"}, "size must be one of 'digits', 'XS', 'S'"),
        ({"attention": (2,)}, "attention names level 2"),
    ],
)
def test_refuses_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**options)


def test_sides_that_cannot_be_halved_are_named() -> None:
    with pytest.raises(ConfigError, match="EDM2: the sides of x must be multiples of 2 for 2 levels"):
        small()(torch.zeros(1, 1, 7, 8), torch.zeros(1))
