"""Losses by noise level, and the weighting that is learned from them."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sde_gen as sg
from sde_gen.data import mixture
from sde_gen.training import Trainer, TrainerSettings, newest_checkpoint
from sde_gen.training.levels import PARTS, LearnedWeighting, LossByLevel

QUICK = TrainerSettings(steps=12, batch_size=8, warmup=2, log_every=4, checkpoint_every=0, eval_every=0, keep_best=0)


class _Kept(sg.DenoisingScoreMatching):
    """Keeps what it saw."""

    seen: list[tuple[Tensor, Tensor]]

    def __call__(self, *arguments: Any, t: Tensor | None = None, **named: Any) -> Tensor:
        losses = super().__call__(*arguments, t=t, **named)
        if t is not None:
            self.seen.append((t, losses.detach()))
        return losses


def _trainer(settings: TrainerSettings = QUICK, perturbation: Any = None, **arguments: Any) -> tuple[Trainer, list]:
    torch.manual_seed(0)
    model = sg.ScoreModel(sg.MLP(2, hidden=8, layers=1), perturbation or sg.VP())
    objective = _Kept()
    object.__setattr__(objective, "seen", [])
    rows: list[Mapping[str, float]] = []

    def listen(event: str, trainer: Trainer, values: Mapping[str, Any]) -> None:
        if event == "levels":
            rows.append(dict(values))

    trainer = Trainer(model, mixture(n=64, n_test=16), objective, settings, listeners=[listen], **arguments)
    return trainer, rows


@pytest.mark.parametrize("perturbation", [sg.VP(), sg.NCSN(), sg.EDM(), sg.FlowMatching()], ids=repr)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_rows_are_means_of_the_losses_of_each_part(perturbation: Any, accumulate: int) -> None:
    trainer, rows = _trainer(dataclasses.replace(QUICK, accumulate=accumulate), perturbation)
    trainer.train()
    seen = trainer.objective.seen  # type: ignore[attr-defined]
    assert [row["step"] for row in rows] == [4, 8, 12]
    high, low = (float(perturbation.half_log_snr(t)) for t in (perturbation.t_min, perturbation.t_max))
    for k, row in enumerate(rows):
        expected: dict[int, list[float]] = {}
        for t, losses in seen[4 * accumulate * k : 4 * accumulate * (k + 1)]:
            for level, loss in zip(perturbation.half_log_snr(t).tolist(), losses.tolist(), strict=True):
                part = min(PARTS - 1, max(0, math.ceil((level - low) / (high - low) * PARTS) - 1))
                expected.setdefault(part, []).append(loss)
        means = {f"{low + (i + 0.5) * (high - low) / PARTS:.2f}": sum(v) / len(v) for i, v in expected.items()}
        assert {name: value for name, value in row.items() if name != "step"} == pytest.approx(means, rel=1e-6)


def test_rows_after_an_interruption_are_those_of_one_piece(tmp_path: Path) -> None:
    whole, rows = _trainer()
    whole.train()
    first, before = _trainer(checkpoints=tmp_path)
    first.stop = lambda: first.step == 6
    first.train()
    second, after = _trainer(checkpoints=tmp_path)
    second.resume()
    second.train()
    assert before + after == rows


def test_a_skipped_update_does_not_count() -> None:
    trainer, rows = _trainer()
    levels = trainer.record.levels
    trainer.network.register_forward_hook(lambda m, i, out: out * math.nan if trainer.step == 1 else out)
    trainer.train()
    assert trainer.faults.total == 1
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert float(levels.counts.sum()) == 0, "each row begins anew"


def test_the_parts_are_of_the_range_that_is_trained() -> None:
    p = sg.VP()
    levels = LossByLevel(p)
    low, high = (float(p.half_log_snr(t)) for t in (p.t_max, p.t_min))
    assert len(levels.names) == PARTS
    assert float(levels.names[0]) == pytest.approx(low + (high - low) / PARTS / 2, abs=0.005)
    assert len(set(levels.names)) == PARTS


def test_u_becomes_the_logarithm_of_the_mean_loss() -> None:
    weighting = LearnedWeighting()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(weighting.parameters(), lr=3e-3)

    def mean(level: Tensor) -> Tensor:
        return torch.exp(-2 - 1.5 * torch.sin(level / 2))

    assert torch.equal(weighting.log_scale(torch.linspace(-5, 7, 9, dtype=torch.float64)), torch.zeros(9))
    for _ in range(800):
        level = torch.rand(256, generator=generator, dtype=torch.float64) * 12 - 5
        losses = mean(level) * 2 * torch.rand(256, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        weighting(losses, level).mean().backward()
        optimizer.step()
    level = torch.linspace(-4.8, 6.8, 50, dtype=torch.float64)
    error = weighting.log_scale(level).detach() - mean(level).log()
    assert error.abs().max() < 0.15
    # Where e^u is the mean loss, the weighted losses are 1 + u: no level pulls more than another.
    assert weighting(mean(level), level).detach() == pytest.approx((1 + mean(level).log()).tolist(), abs=0.15)


def test_it_is_trained_stored_and_gone_on_with_bit_for_bit(tmp_path: Path) -> None:
    settings = dataclasses.replace(QUICK, learned_weighting=True)
    plain, _ = _trainer()
    plain.train()
    whole, rows = _trainer(settings, checkpoints=tmp_path / "whole")
    whole.train()
    assert whole.weighting is not None
    assert whole.weighting.amplitudes.abs().max() > 0
    assert not torch.equal(whole.network.head.weight, plain.network.head.weight)  # type: ignore[union-attr]
    first, before = _trainer(settings, checkpoints=tmp_path / "parts")
    first.stop = lambda: first.step == 5
    first.train()
    second, after = _trainer(settings, checkpoints=tmp_path / "parts")
    second.resume()
    second.train()
    assert before + after == rows
    ends = [newest_checkpoint(tmp_path / name)[0] for name in ("whole", "parts")]
    for stem in ("model", "ema", "optimizer", "weighting"):
        a, b = (end.tensors(stem) for end in ends)  # type: ignore[union-attr]
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert set(a) == {"amplitudes", "step.amplitudes", "exp_avg.amplitudes", "exp_avg_sq.amplitudes"}


@pytest.mark.parametrize("optimizer", ["muon", "sgd"])
def test_it_goes_with_other_optimisers(tmp_path: Path, optimizer: str) -> None:
    settings = dataclasses.replace(QUICK, learned_weighting=True, optimizer=optimizer)
    trainer, _ = _trainer(settings, checkpoints=tmp_path)
    trainer.train()
    again, _ = _trainer(settings, checkpoints=tmp_path)
    assert again.resume() is not None
    assert torch.equal(again.weighting.amplitudes, trainer.weighting.amplitudes)  # type: ignore[union-attr]
