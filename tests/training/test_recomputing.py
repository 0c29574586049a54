"""Activations that are computed again: the same gradients, less memory."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde_gen as sg
from sde_gen.errors import ConfigError
from sde_gen.training import Trainer, TrainerSettings

QUICK = TrainerSettings(steps=2, batch_size=4, warmup=1, log_every=2, checkpoint_every=0, eval_every=0, keep_best=0)


def _trained(settings: TrainerSettings, network: nn.Module, x: Tensor) -> tuple[Trainer, int]:
    """A trainer after two steps, and the most bytes that were held for a backward pass."""
    held, most = 0, 0
    trainer = Trainer(sg.ScoreModel(network, sg.VP()), x, settings=settings)
    inputs = {p.data_ptr() for p in network.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        nonlocal held
        held += 0 if tensor.data_ptr() in inputs else tensor.nbytes
        return tensor

    for _ in range(2):
        held = 0
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer.update()
        most = max(most, held)
    return trainer, most


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}, {"accumulate": 2}], ids=str)
def test_gradients_are_the_very_same(changes: dict[str, Any]) -> None:
    x = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ends = []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = sg.UNet(3, width=8, multipliers=[1, 2], blocks=1, attention=[-1], dropout=0.2)
        settings = dataclasses.replace(QUICK, checkpoint_activations=recompute, **changes)
        trainer, _ = _trained(settings, network, x)
        ends.append((network.state_dict(), trainer.record.norms))
    assert ends[0][0].keys() == ends[1][0].keys()
    assert all(torch.equal(tensor, ends[1][0][name]) for name, tensor in ends[0][0].items())
    assert torch.equal(ends[0][1], ends[1][1])


def test_less_is_held_for_the_backward_pass() -> None:
    x = torch.rand(12, 1, 8, 8)
    held = []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = sg.UNet(1, width=16, multipliers=[1, 1], blocks=2, attention=[])
        _, most = _trained(dataclasses.replace(QUICK, checkpoint_activations=recompute), network, x)
        held.append(most)
    assert held[1] < held[0] / 2


def test_a_network_is_wrapped_once_and_samples_as_before() -> None:
    network = sg.MLP(2, hidden=8)
    settings = dataclasses.replace(QUICK, checkpoint_activations=True)
    before = sg.DDIM(steps=3)(sg.ScoreModel(network, sg.VP()), (4, 2), seed=0).x
    for _ in range(2):
        Trainer(sg.ScoreModel(network, sg.VP()), torch.rand(12, 2), settings=settings)
    wrapped = [m for m in network.modules() if hasattr(m.forward, "plain")]
    assert wrapped
    assert not any(hasattr(m.forward.plain, "plain") for m in wrapped)  # type: ignore[union-attr]
    assert torch.equal(sg.DDIM(steps=3)(sg.ScoreModel(network, sg.VP()), (4, 2), seed=0).x, before)


def test_a_network_without_blocks_is_refused() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return self.layer(x)

    with pytest.raises(ConfigError, match="Flat has none"):
        Trainer(
            sg.ScoreModel(Flat(), sg.VP()), torch.rand(12, 2), settings=TrainerSettings(checkpoint_activations=True)
        )
