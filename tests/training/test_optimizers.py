"""Optimisers by name and schedules: what a step is, what is kept, what is refused."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sde_gen as sg
from sde_gen.data import mixture
from sde_gen.errors import CheckpointError, ConfigError
from sde_gen.training import Trainer, TrainerSettings, newest_checkpoint
from sde_gen.training.optimizers import NAMES, Muon, make_optimizer, orthogonalised

CPU = torch.device("cpu")
QUICK = TrainerSettings(steps=8, batch_size=16, warmup=2, log_every=4, eval_every=0, checkpoint_every=0, keep_best=0)


class Sign(torch.optim.Optimizer):
    """Somebody's own: it keeps numbers as well as tensors."""

    def __init__(self, params: Any, lr: float = 1e-3, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"mean": torch.zeros_like(p), "count": 0, "nothing": None}
                state["count"] += 1
                p.sub_(state["mean"].lerp_(p.grad, 1 - group["beta"]).sign(), alpha=group["lr"] / state["count"])


def _trainer(settings: TrainerSettings = QUICK, **arguments: Any) -> Trainer:
    torch.manual_seed(0)
    model = sg.ScoreModel(sg.MLP(2, hidden=32, layers=1), sg.VP())
    return Trainer(model, mixture(n=100, n_test=40), settings=settings, **arguments)


@pytest.mark.parametrize("name", [*NAMES, Sign])
def test_each_learns_and_goes_on_bit_for_bit(tmp_path: Path, name: Any) -> None:
    own = {"optimizer": name} if name is Sign else {}
    settings = QUICK if name is Sign else dataclasses.replace(QUICK, optimizer=name)
    whole = _trainer(settings, checkpoints=tmp_path / "whole", **own)
    before = {k: v.clone() for k, v in whole.network.state_dict().items()}
    whole.train()
    assert any(not torch.equal(v, before[k]) for k, v in whole.network.state_dict().items())

    first = _trainer(settings, checkpoints=tmp_path / "parts", **own)
    first.stop = lambda: first.step == 3
    first.train()
    second = _trainer(settings, checkpoints=tmp_path / "parts", **own)
    assert second.resume() is not None
    assert second.step == 3
    second.train()
    ends = [newest_checkpoint(tmp_path / part)[0] for part in ("whole", "parts")]
    for stem in ("model", "ema", "optimizer"):
        a, b = (end.tensors(stem) for end in ends)  # type: ignore[union-attr]
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a), stem


def test_the_default_is_adam_without_decay_as_one_group() -> None:
    optimizer = _trainer().optimizer
    assert type(optimizer) is torch.optim.Adam
    (group,) = optimizer.param_groups
    assert group["weight_decay"] == 0
    assert group["fused"]


def test_decay_is_of_matrices_alone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8))
    for choice, decay, expected in (("adamw", None, 0.01), ("adamw", 0.3, 0.3), ("sgd", 0.1, 0.1), ("adamw", 0.0, 0.0)):
        groups = make_optimizer(choice, network, decay, CPU).param_groups
        decays = {p: group["weight_decay"] for group in groups for p in group["params"]}
        assert len(decays) == 4
        assert all(d == (expected if p.ndim > 1 else 0) for p, d in decays.items())


def test_arguments_of_a_target_reach_it() -> None:
    optimizer = make_optimizer(
        {"_target_": "torch.optim.RMSprop", "alpha": 0.5, "weight_decay": 0.2}, nn.Linear(2, 2), None, CPU
    )
    assert isinstance(optimizer, torch.optim.RMSprop)
    assert [(g["alpha"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.5, 0.2), (0.5, 0.0)]


def test_the_polynomial_acts_on_singular_values() -> None:
    # X -> aX + (bA + cA^2)X with A = XX^T keeps the singular vectors: five times s -> as + bs^3 + cs^5.
    generator = torch.Generator().manual_seed(0)
    for shape in ((6, 9), (9, 6)):
        u, s, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64, generator=generator), full_matrices=False)
        expected = s / s.norm()
        for _ in range(5):
            expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
        torch.testing.assert_close(orthogonalised(u * s @ v), u * expected @ v, rtol=1e-9, atol=1e-9)
        assert ((expected - 1).abs() < 0.35).all()
    assert torch.equal(orthogonalised(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_muon_of_matrices_is_that_of_torch_and_of_the_rest_adam() -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch has Muon since 2.9")
    torch.manual_seed(0)
    a, b = nn.Linear(24, 40), nn.Linear(24, 40)
    b.load_state_dict(a.state_dict())
    ours = make_optimizer({"_target_": "muon", "weight_decay": 0.1}, a, None, CPU)
    theirs = [
        torch.optim.Muon([b.weight], weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.Adam([b.bias]),
    ]
    for _ in range(5):
        x, start = torch.randn(64, 24), b.weight.detach().clone()
        for layer in (a, b):
            layer.zero_grad()
            layer(x).square().mean().backward()
        ours.step()
        for optimizer in theirs:
            optimizer.step()
        # Theirs is computed in bfloat16.
        assert (a.weight - b.weight).norm() < 0.03 * (b.weight - start).norm()
        torch.testing.assert_close(a.bias, b.bias, rtol=1e-5, atol=1e-7)
        a.load_state_dict(b.state_dict())


def test_muon_takes_kernels_and_leaves_tables_ends_and_gains_to_adam() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.enter = nn.Embedding(32, 32), nn.Conv2d(1, 32, 3)
            self.middle, self.leave = nn.Conv2d(32, 32, 3), nn.Conv2d(32, 1, 3)

    network = Net()
    optimizer = make_optimizer("muon", network, None, CPU)
    assert isinstance(optimizer, Muon)
    (orthogonal,) = [group["params"] for group in optimizer.param_groups if group["matrices"]]
    assert [p is network.middle.weight for p in orthogonal] == [True]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 7
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.middle.weight.grad = torch.randn_like(network.middle.weight)
    before = network.middle.weight.detach().clone()
    optimizer.param_groups[0]["weight_decay"] = 0.0
    optimizer.step()
    singular = torch.linalg.svdvals((before - network.middle.weight).detach().flatten(1)) / (
        1e-3 * 0.2 * math.sqrt(288)
    )
    assert ((singular - 1).abs() < 0.35).all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optimizer": "adan"}, "optimizer must be one of 'adam'"),
        ({"optimizer": 3}, "optimizer must be one of adam"),
        ({"optimizer": {"_target_": "torch.optim.SGD", "momentun": 0.9}}, "did you mean 'momentum'"),
        ({"decay_after": 10}, "decay_after goes with schedule='inverse-sqrt'"),
        ({"weight_decay": -1}, "weight_decay must be a finite number in"),
        ({"schedule": "step"}, "schedule must be one of"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TrainerSettings(**settings)


def test_bad_optimisers_are_refused() -> None:
    layer = nn.Linear(2, 2)
    for choice, decay, said in (
        ({"_target_": "mine.Lion"}, None, "trust="),
        ({"_target_": "adamw", "weight_decay": 1.0}, 0.5, "not both"),
        ({"_target_": "adam", "betas": [0.9, 2.0]}, None, "Adam refuses"),
        ({"_target_": "muon", "momentum": 1.0}, None, r"Muon: momentum must be a finite number in \[0, 1\)"),
    ):
        with pytest.raises(ConfigError, match=said):
            make_optimizer(choice, layer, decay, CPU)
    with pytest.raises(ConfigError, match=r"must be a torch\.optim\.Optimizer, got str"):
        make_optimizer("adam", layer, None, CPU, own=lambda groups: "adam")  # type: ignore[arg-type,return-value]


def test_state_of_another_optimiser_is_refused(tmp_path: Path) -> None:
    _trainer(checkpoints=tmp_path).train()
    with pytest.raises(CheckpointError, match="optimiser state"):
        _trainer(dataclasses.replace(QUICK, optimizer="rmsprop"), checkpoints=tmp_path).resume()


def test_inverse_square_root_is_what_the_papers_say() -> None:
    vaswani = TrainerSettings(schedule="inverse-sqrt", warmup=100, learning_rate=1.0)
    edm2 = TrainerSettings(schedule="inverse-sqrt", warmup=100, decay_after=700, learning_rate=2.0)
    for step in (1, 50, 100, 101, 400, 700, 701, 5000):
        # min(step^-1/2, step warmup^-3/2) of section 5.3, which is 1 at its top; and equation 67 with a linear ramp.
        assert vaswani.rate(step - 1) == pytest.approx(10 * min(step**-0.5, step * 100**-1.5), rel=1e-12)
        assert edm2.rate(step - 1) == pytest.approx(2 * min(1, step / 100) / math.sqrt(max(step / 700, 1)), rel=1e-12)
