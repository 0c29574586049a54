"""Gradient norms by block: those of the clipped step's gradient, summed as the rows of a run in one piece are."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde_gen as sg
from sde_gen.data import mixture
from sde_gen.training import Trainer, TrainerSettings, newest_checkpoint
from sde_gen.training.block_norms import NormByBlock

QUICK = TrainerSettings(steps=12, batch_size=8, warmup=2, log_every=4, checkpoint_every=0, eval_every=0, keep_best=0)


class Nested(nn.Module):
    """Lists in lists, a part that no loss reaches, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 8)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.SiLU()), nn.ModuleList([nn.Linear(8, 8)])])
        self.spare, self.frozen, self.gain = nn.Linear(3, 3), nn.Linear(8, 2), nn.Parameter(torch.ones(2))
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        x = self.blocks[0](self.stem(x))
        return self.frozen(self.blocks[1][0](x)) * self.gain  # type: ignore[index]


NAMES = ("gain", "stem", "blocks.0.0", "blocks.1.0", "spare")


def _trainer(settings: TrainerSettings = QUICK, **arguments: Any) -> tuple[Trainer, list, dict]:
    """A trainer, its rows, and of each step the squared norm of the gradient by block before it is clipped."""
    torch.manual_seed(0)
    network = Nested()
    rows: list[Mapping[str, float]] = []
    trainer = Trainer(
        sg.ScoreModel(network, sg.VP()), mixture(n=64, n_test=16), settings=settings,
        listeners=[lambda event, _, values: rows.append(dict(values)) if event == "blocks" else None], **arguments,
    )  # fmt: skip
    seen: dict[int, dict[str, float]] = {}
    for name, p in network.named_parameters():
        if p.requires_grad:
            block = next(block for block in NAMES if name.startswith(block))

            def look(p: Tensor, block: str = block) -> None:
                squares = seen.setdefault(trainer.step, dict.fromkeys(NAMES, 0.0))
                squares[block] += float(p.grad.double().square().sum())  # type: ignore[union-attr]

            p.register_post_accumulate_grad_hook(look)
    return trainer, rows, seen


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_rows_are_means_of_the_norms_of_each_block(optimizer: str) -> None:
    # AdamW and Muon have several groups of parameters, in another order than the network's.
    trainer, rows, seen = _trainer(dataclasses.replace(QUICK, optimizer=optimizer, clip=0.1))
    trainer.train()
    assert [row["step"] for row in rows] == [4, 8, 12]
    for k, row in enumerate(rows):
        assert tuple(row) == ("step", *NAMES)
        means = {name: sum(math.sqrt(seen[step][name]) for step in range(4 * k, 4 * k + 4)) / 4 for name in NAMES}
        assert {name: row[name] for name in NAMES} == pytest.approx(means, rel=1e-5)
        assert row["spare"] == 0.0


def test_of_one_step_the_squares_add_up_to_that_of_the_whole() -> None:
    rows: dict[str, Any] = {}
    trainer = Trainer(
        sg.ScoreModel(sg.MLP(2, hidden=8, layers=2), sg.VP()), mixture(n=64, n_test=16),
        settings=dataclasses.replace(QUICK, steps=1, learned_weighting=True),
        listeners=[lambda event, _, values: rows.setdefault(event, values)],
    )  # fmt: skip
    trainer.train()
    blocks = {name: value for name, value in rows["blocks"].items() if name != "step"}
    assert list(blocks)[-1] == "weighting"
    assert {"stem", "blocks.0", "blocks.1", "head"} <= set(blocks)
    assert math.hypot(*blocks.values()) == pytest.approx(rows["log"]["grad_norm"], rel=1e-5)


def test_rows_after_an_interruption_are_those_of_one_piece(tmp_path: Path) -> None:
    whole, rows, _ = _trainer()
    whole.train()
    first, before, _ = _trainer(checkpoints=tmp_path)
    first.stop = lambda: first.step == 6
    first.train()
    second, after, _ = _trainer(checkpoints=tmp_path)
    second.resume()
    second.train()
    assert before + after == rows
    found, _ = newest_checkpoint(tmp_path)
    assert found is not None
    other = NormByBlock(nn.Linear(2, 2), [])
    other.restore((1.0, 2.0, 3.0))  # of another network
    assert other.row() == {}


def test_a_skipped_update_does_not_count() -> None:
    rows: list[Mapping[str, float]] = []
    trainer = Trainer(
        sg.ScoreModel(sg.MLP(2, hidden=8, layers=1), sg.VP()), mixture(n=64, n_test=16), settings=QUICK,
        listeners=[lambda event, _, values: rows.append(values) if event == "blocks" else None],
    )  # fmt: skip
    trainer.network.register_forward_hook(lambda m, i, out: out * math.nan if trainer.step == 1 else out)
    trainer.train()
    assert trainer.faults.total == 1
    assert all(math.isfinite(value) for row in rows for value in row.values())
