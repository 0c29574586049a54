"""What every network promises: shapes, dtypes, conditions, zero output at the start, gradients, compilation."""

import copy
import math
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sde_gen.errors import ConfigError
from sde_gen.networks import EDM2, MLP, DDPMpp, DiT, NCSNpp, UNet


def small_unet(**options: object) -> UNet:
    settings: dict = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,)}
    return UNet(**(settings | options))


def small_mlp(**options: object) -> MLP:
    settings: dict = {"hidden": 16, "layers": 2}
    return MLP(**(settings | options))


def small_dit(**options: object) -> DiT:
    settings: dict = {"width": 16, "depth": 2, "heads": 2}
    return DiT(**(settings | options))


def small_ncsnpp(make: type[NCSNpp], **options: object) -> NCSNpp:
    settings: dict = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,)}
    return make(**(settings | options))


def small_edm2(**options: object) -> EDM2:
    settings: dict = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,)}
    return EDM2(**(settings | options))


MAKERS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "unet": (small_unet, (1, 8, 8)),
    "mlp": (small_mlp, (2,)),
    "ncsnpp": (lambda **options: small_ncsnpp(NCSNpp, progressive_output="skip", **options), (1, 8, 8)),
    "edm2": (small_edm2, (1, 8, 8)),
    "ddpmpp": (lambda **options: small_ncsnpp(DDPMpp, **options), (1, 8, 8)),
    "dit": (small_dit, (1, 8, 8)),
    "dit-rotary": (lambda **options: small_dit(positions="rotary", rms_norm=True, **options), (1, 8, 8)),
}
EVERY = pytest.mark.parametrize("kind", sorted(MAKERS))


def awake(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with random weights everywhere, the zero-initialised layers too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network


def batch(shape: tuple[int, ...], size: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, *shape, generator=generator), torch.linspace(-8, 12, size)


@EVERY
@pytest.mark.parametrize("num_classes", [0, 3])
def test_a_new_network_returns_zeros(kind: str, num_classes: int) -> None:
    make, shape = MAKERS[kind]
    x, c_noise = batch(shape)
    out = make(num_classes=num_classes)(x, c_noise)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert torch.equal(out, torch.zeros_like(x))


@EVERY
@pytest.mark.parametrize("num_classes", [0, 3])
def test_gradients_reach_every_parameter(kind: str, num_classes: int) -> None:
    make, shape = MAKERS[kind]
    network = awake(make(num_classes=num_classes))
    x, c_noise = batch(shape, 4)
    condition = {"label": torch.tensor([0, 1, 2, 3])} if num_classes else {}
    network(x, c_noise, **condition).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@EVERY
def test_one_noise_level_for_all_equals_one_for_each(kind: str) -> None:
    make, shape = MAKERS[kind]
    network = awake(make())
    x, _ = batch(shape)
    torch.testing.assert_close(network(x, torch.tensor(1.5)), network(x, torch.full((3,), 1.5)))


@EVERY
def test_output_depends_on_noise_level_and_label(kind: str) -> None:
    make, shape = MAKERS[kind]
    network = awake(make(num_classes=2))
    x, c_noise = batch(shape)
    outputs = [network(x, c_noise + shift, label=torch.tensor(label)) for shift in (0.0, 0.1) for label in (0, 1, 2)]
    for i, first in enumerate(outputs):
        for second in outputs[:i]:
            assert (first - second).abs().max() > 1e-4


@EVERY
def test_no_label_is_the_label_num_classes(kind: str) -> None:
    make, shape = MAKERS[kind]
    network = awake(make(num_classes=5))
    x, c_noise = batch(shape)
    missing = network(x, c_noise)
    torch.testing.assert_close(missing, network(x, c_noise, label=torch.full((3,), 5)))
    torch.testing.assert_close(missing, network(x, c_noise, label=torch.tensor(5, dtype=torch.int32)))


@EVERY
@pytest.mark.parametrize("label", [[0, 6, 1], [0, -1, 1], 7, np.array([0, 0, 99])])
def test_a_label_out_of_range_is_named(kind: str, label: Any) -> None:
    make, shape = MAKERS[kind]
    x, c_noise = batch(shape)
    with pytest.raises(ConfigError, match=r"labels are 0\.\.4, or 5 for no label; got"):
        make(num_classes=5)(x, c_noise, label=label)


def told(size: int = 3, seed: int = 2) -> dict[str, Tensor]:
    """A vector of 4 and two tokens of 5 for each sample."""
    generator = torch.Generator().manual_seed(seed)
    return {"vector": torch.randn(size, 4, generator=generator), "tokens": torch.randn(size, 2, 5, generator=generator)}


@EVERY
def test_is_told_vectors_and_tokens(kind: str) -> None:
    """The output follows each of them, row by row, and every parameter is reached."""
    make, shape = MAKERS[kind]
    network = awake(make(num_classes=2, vector_size=4, token_size=5))
    x, c_noise = batch(shape)
    given = told()
    label = torch.tensor([0, 1, 2])
    both = network(x, c_noise, label, **given)
    assert both.shape == x.shape
    for name, value in given.items():
        other = value.clone()
        other[1] += 1.0  # of one sample
        moved = (network(x, c_noise, label, **(given | {name: other})) - both).abs().flatten(1).amax(1)
        assert moved[1] > 1e-3, name
        torch.testing.assert_close(moved[[0, 2]], torch.zeros(2), rtol=0, atol=1e-5)
    both.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@EVERY
def test_zeros_are_no_vector_and_no_tokens(kind: str) -> None:
    """So a condition is dropped by zeros, and shorter lists of tokens are filled up with them."""
    make, shape = MAKERS[kind]
    network = awake(make(vector_size=4, token_size=5))
    x, c_noise = batch(shape)
    given, near = told(), {"rtol": 1e-4, "atol": 1e-5}
    nothing = {name: torch.zeros_like(value) for name, value in given.items()}
    torch.testing.assert_close(network(x, c_noise, **nothing), network(x, c_noise), **near)
    longer = {"tokens": torch.cat([given["tokens"], torch.zeros(3, 4, 5)], 1)}
    torch.testing.assert_close(network(x, c_noise, **longer), network(x, c_noise, tokens=given["tokens"]), **near)
    swapped = given["tokens"].flip(1)  # a set
    torch.testing.assert_close(network(x, c_noise, tokens=swapped), network(x, c_noise, tokens=given["tokens"]), **near)


@EVERY
def test_what_it_may_be_told_changes_no_network_that_is_not_told(kind: str) -> None:
    """Names, and what a network without them says: the weights of one fit into one that may be told more."""
    make, shape = MAKERS[kind]
    plain, more = awake(make()).eval(), make(vector_size=4, token_size=5).eval()
    found = more.load_state_dict(plain.state_dict(), strict=False)
    assert not found.unexpected_keys
    assert all("tokens" in name or "vector" in name for name in found.missing_keys)
    x, c_noise = batch(shape)
    if kind != "edm2":  # whose embedding shares its size with the vector's
        assert torch.equal(more(x, c_noise), plain(x, c_noise))
    if not kind.startswith("dit"):  # where tokens stand beside the others
        assert torch.equal(more(x, c_noise, tokens=told()["tokens"]), more(x, c_noise))


@EVERY
def test_refuses_vectors_and_tokens_that_do_not_fit(kind: str) -> None:
    make, shape = MAKERS[kind]
    x, c_noise = batch(shape)
    given = told()
    network = make(vector_size=4, token_size=5)
    for name, wrong, message in (
        ("vector", given["vector"][:, 1:], r"vector must have shape \(3, 4\), as vector_size says, got \(3, 3\)"),
        ("vector", given["vector"][:2], r"vector must have shape \(3, 4\)"),
        ("tokens", given["tokens"][0], r"tokens must have shape \(3, count, 5\), as token_size says, got \(2, 5\)"),
        ("tokens", given["tokens"][:2], r"tokens must have shape \(3, count, 5\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            network(x, c_noise, **{name: wrong})
    for name in given:
        with pytest.raises(ConfigError, match=f"{name} must have shape"):
            make()(x, c_noise, **{name: given[name]})
        with pytest.raises(ConfigError, match=f"{name[:5].rstrip('s')}.*_size must be a whole number, at least 0"):
            make(**{{"vector": "vector_size", "tokens": "token_size"}[name]: -1})


@EVERY
def test_sample_does_not_depend_on_its_batch(kind: str) -> None:
    make, shape = MAKERS[kind]
    network = awake(make())
    x, c_noise = batch(shape, 7)
    whole = network(x, c_noise)
    torch.testing.assert_close(whole[2:3], network(x[2:3], c_noise[2:3]), rtol=1e-4, atol=1e-5)


@EVERY
@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e30, -1e30, 0.0])
def test_extreme_noise_levels_give_finite_output(kind: str, value: float) -> None:
    make, shape = MAKERS[kind]
    x, _ = batch(shape)
    assert torch.isfinite(awake(make())(x, torch.tensor(value))).all()


@EVERY
def test_nan_in_the_noise_level_is_not_hidden(kind: str) -> None:
    make, shape = MAKERS[kind]
    x, _ = batch(shape)
    out = awake(make())(x, torch.tensor([1.0, math.nan, 2.0]))
    assert torch.isfinite(out[[0, 2]]).all()
    assert torch.isnan(out[1]).all()


@EVERY
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_output_has_the_dtype_of_the_input(kind: str, dtype: torch.dtype) -> None:
    make, shape = MAKERS[kind]
    network = awake(make())
    x, c_noise = batch(shape)
    out = network(x.to(dtype), c_noise.to(torch.float64))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), network(x.to(dtype).float(), c_noise), rtol=1e-2, atol=1e-2)


@EVERY
def test_runs_in_bfloat16(kind: str) -> None:
    make, shape = MAKERS[kind]
    network = awake(make(num_classes=2))
    x, c_noise = batch(shape)
    exact = network(x, c_noise)
    spread = exact.std()
    low = copy.deepcopy(network).bfloat16()
    for given in (x, x.bfloat16()):
        out = low(given, c_noise)
        assert out.dtype == given.dtype
        assert (out.float() - exact).std() < 0.1 * spread
    with torch.autocast("cpu", torch.bfloat16):
        out = network(x, c_noise)
    assert out.dtype == torch.float32
    assert (out - exact).std() < 0.1 * spread
    out.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@EVERY
def test_runs_in_float64(kind: str) -> None:
    make, shape = MAKERS[kind]
    network = awake(make())
    x, c_noise = batch(shape)
    exact = copy.deepcopy(network).double()(x.double(), c_noise)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(network(x, c_noise).double(), exact, rtol=1e-3, atol=1e-4)


@EVERY
def test_dropout_acts_in_training_only(kind: str) -> None:
    make, shape = MAKERS[kind]
    network = awake(make(dropout=0.5))
    x, c_noise = batch(shape)
    assert not torch.equal(network(x, c_noise), network(x, c_noise))
    network.eval()
    assert torch.equal(network(x, c_noise), network(x, c_noise))


@EVERY
def test_state_dict_round_trip_and_no_shared_or_hidden_state(kind: str) -> None:
    make, shape = MAKERS[kind]
    network, other = awake(make(num_classes=2)), make(num_classes=2)
    other.load_state_dict(network.state_dict())
    x, c_noise = batch(shape)
    assert torch.equal(network(x, c_noise), other(x, c_noise))
    pointers = [p.data_ptr() for p in network.parameters()]
    assert len(set(pointers)) == len(pointers)
    assert all(p.is_contiguous() for p in network.state_dict().values())


@EVERY
def test_construction_follows_the_global_seed(kind: str) -> None:
    make, _ = MAKERS[kind]
    states = []
    for seed in (0, 0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            states.append(torch.cat([p.detach().flatten() for p in make().parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


_QUICK = ("mlp", "unet", "dit")  # to trace


@pytest.mark.parametrize(
    ("kind", "num_classes"),
    [
        *(pytest.param(k, 2, marks=[] if k in _QUICK else pytest.mark.slow) for k in sorted(MAKERS)),
        ("mlp", 0),
        ("unet", 0),
    ],
)
def test_traces_without_graph_breaks(kind: str, num_classes: int) -> None:
    """The whole network becomes one graph (the compiler's back end is not needed to see that)."""
    make, shape = MAKERS[kind]
    network = awake(make(num_classes=num_classes)).eval()
    x, c_noise = batch(shape)
    torch._dynamo.reset()
    traced = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(traced(x, c_noise), network(x, c_noise))
    if num_classes:
        label = torch.tensor([0, 1, 2])
        torch.testing.assert_close(traced(x, c_noise, label=label), network(x, c_noise, label=label))
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own imports warn
@EVERY
def test_compiles_with_the_default_back_end(kind: str) -> None:
    make, shape = MAKERS[kind]
    network = awake(make()).eval()
    x, c_noise = batch(shape)
    torch._dynamo.reset()
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("needs a C++ compiler")
    out = torch.compile(network, fullgraph=True)(x, c_noise)
    torch.testing.assert_close(out, network(x, c_noise), rtol=1e-3, atol=1e-4)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own imports warn
@EVERY
def test_a_training_step_compiles_without_graph_breaks(kind: str) -> None:
    """Loss, gradient and fused optimiser with the network as one graph: the same weights as without the compiler."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("needs a C++ compiler")
    make, shape = MAKERS[kind]
    x, c_noise = batch(shape)
    after = []
    for compiled in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)  # for frequencies, which are no parameters
        network = awake(make(num_classes=2)).train()
        optimiser = torch.optim.SGD(network.parameters(), lr=0.01, fused=True)
        if compiled:
            network.compile(fullgraph=True)
        for _ in range(2):
            network(x, c_noise, label=torch.tensor([0, 1, 2])).square().mean().backward()
            optimiser.step()
            optimiser.zero_grad()
        after.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    torch.testing.assert_close(after[1], after[0], rtol=1e-3, atol=1e-4)
    torch._dynamo.reset()


@EVERY
def test_channels_last_is_kept_through(kind: str) -> None:
    """Every convolution is given, and gives, images with their channels side by side, as fast kernels have them."""
    make, shape = MAKERS[kind]
    if len(shape) != 3 or kind.startswith("dit"):
        pytest.skip("has no convolutions")
    network = awake(make(channels=2)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    seen: list[bool] = []

    def look(_module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        seen.extend(t.is_contiguous(memory_format=torch.channels_last) for t in (given[0], out) if t.dim() == 4)

    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(look)
    x, c_noise = batch((2, *shape[1:]))
    exact = network(x, c_noise)
    seen.clear()
    out = network(x.contiguous(memory_format=torch.channels_last), c_noise)
    assert len(seen) > 10
    assert all(seen)
    torch.testing.assert_close(out, exact, rtol=1e-4, atol=1e-4)


@EVERY
def test_refuses_shapes_that_do_not_fit(kind: str) -> None:
    make, shape = MAKERS[kind]
    network = make(num_classes=3)
    x, c_noise = batch(shape)
    wrong = [
        (torch.randn(3, shape[0] + 1, *shape[1:]), c_noise, None, "x must have shape"),
        (x[0], c_noise, None, "x must have shape"),
        (x, c_noise[:2], None, "c_noise must have shape"),
        (x, c_noise[:1], None, "c_noise must have shape"),
        (x, c_noise[:, None], None, "c_noise must have shape"),
        (x, c_noise, torch.zeros(2, dtype=torch.int64), "label must have shape"),
        (x, c_noise, torch.zeros(3, 1, dtype=torch.int64), "label must have shape"),
        (x, c_noise, torch.zeros(3), "whole numbers"),
        (x, c_noise, torch.zeros(3, dtype=torch.bool), "whole numbers"),
    ]
    for given, levels, label, message in wrong:
        with pytest.raises(ConfigError, match=message):
            network(given, levels, label=label)
    with pytest.raises(ConfigError, match="num_classes=0"):
        make()(x, c_noise, label=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"labels are 0\.\.2"):
        network(x, c_noise, label=torch.full((3,), 4))


@EVERY
def test_unknown_arguments_are_errors(kind: str) -> None:
    make, shape = MAKERS[kind]
    x, c_noise = batch(shape)
    with pytest.raises(TypeError):
        make(widht=3)
    with pytest.raises(TypeError):
        make()(x, c_noise, lable=torch.zeros(3, dtype=torch.int64))


@EVERY
@pytest.mark.parametrize("dropout", [-0.1, 1.0, 2, math.nan, "a", True])
def test_refuses_a_bad_dropout(kind: str, dropout: object) -> None:
    with pytest.raises(ConfigError, match=r"dropout must be a (finite )?number in \[0, 1\)"):
        MAKERS[kind][0](dropout=dropout)


@EVERY
@pytest.mark.parametrize("num_classes", [-1, 1.5, "3", None, True])
def test_refuses_a_bad_class_count(kind: str, num_classes: object) -> None:
    with pytest.raises(ConfigError, match="num_classes must be a whole number, at least 0"):
        MAKERS[kind][0](num_classes=num_classes)
