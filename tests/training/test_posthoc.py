"""Averages of several lengths, and of lengths that are chosen after training."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde_gen as sg
from sde_gen.config.objects import describe
from sde_gen.data import mixture
from sde_gen.errors import CheckpointError, ConfigError
from sde_gen.training import PowerEMA, Trainer, TrainerSettings, averaged_weights, newest_checkpoint
from sde_gen.training.posthoc import Snapshot, combination, exponent, relative_length

QUICK = TrainerSettings(steps=12, batch_size=8, warmup=2, log_every=4, checkpoint_every=0, eval_every=0, keep_best=0)


def _shares(length: float, step: int, steps: int) -> Tensor:
    """How much each of `steps` weights counts in a power-function average, from the recursion alone."""
    shares = torch.zeros(steps, dtype=torch.float64)
    for t in range(1, step + 1):
        decay = (1 - 1 / t) ** exponent(length)
        shares *= decay
        shares[t - 1] += 1 - decay
    return shares


def _trainer(folder: Path | None, steps: int | None = None, **changes: Any) -> Trainer:
    torch.manual_seed(0)
    model = sg.ScoreModel(sg.MLP(2, hidden=8, layers=1), sg.VP())
    settings = dataclasses.replace(QUICK, **({} if steps is None else {"steps": steps}), **changes)
    parts = {"network": model.network, "sde": model.perturbation, "parameterization": model.parameterization}
    config = {name: describe(part, name) for name, part in parts.items()} | {"trainer": {"ema": settings.ema}}
    return Trainer(model, mixture(n=64, n_test=16), settings=settings, checkpoints=folder, config=config)


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_a_length_and_its_exponent(length: float) -> None:
    p = exponent(length)
    # The standard deviation of u under p u^(p-1) on [0, 1], by its moments.
    assert math.sqrt(p / (p + 2) - (p / (p + 1)) ** 2) == pytest.approx(length, rel=1e-9)
    assert relative_length(p) == pytest.approx(length, rel=1e-12)
    # The paper's: gamma = 6.94 and 16.97 for 0.10 and 0.05.
    assert exponent(0.10) - 1 == pytest.approx(6.94, abs=0.005)
    assert exponent(0.05) - 1 == pytest.approx(16.97, abs=0.005)


@pytest.mark.parametrize("length", [0.0, -0.1, 0.3, math.nan, True])
def test_other_lengths_are_refused(length: float) -> None:
    with pytest.raises(ConfigError, match="relative length must be"):
        exponent(length)


def test_the_recursion_is_the_closed_form() -> None:
    layer = nn.Linear(1, 1, bias=False).double()
    ema, seen = PowerEMA(layer, 0.1), []
    for t in range(1, 31):
        with torch.no_grad():
            layer.weight.fill_(math.sin(t))
        seen.append(math.sin(t))
        ema.update()
    i, p = torch.arange(1, 31, dtype=torch.float64), exponent(0.1)
    closed = (i / 30) ** p - ((i - 1) / 30) ** p
    torch.testing.assert_close(closed, _shares(0.1, 30, 30), rtol=1e-12, atol=1e-15)
    assert float(ema.state_dict()["weight"]) == pytest.approx(float(closed @ torch.tensor(seen, dtype=torch.float64)))


def test_the_factors_are_those_of_least_squares() -> None:
    kept = [Snapshot(length, step) for step in (20, 40, 60) for length in (0.05, 0.1)]
    factors, misfit = combination(kept, Snapshot(0.15, 60))
    shares = torch.stack([_shares(*snapshot, 60) for snapshot in kept])
    wanted = _shares(0.15, 60, 60)
    # Free directions keep the sum at one; along them nothing is better.
    basis = torch.linalg.svd(torch.ones(1, 6, dtype=torch.float64)).Vh[1:]
    start = torch.full((6,), 1 / 6, dtype=torch.float64)
    best = start + basis.T @ torch.linalg.lstsq((basis @ shares).T, wanted - start @ shares).solution
    torch.testing.assert_close(factors, best, rtol=1e-7, atol=1e-9)
    assert misfit == pytest.approx(float((factors @ shares - wanted).norm() / wanted.norm()), rel=1e-9)
    assert float(factors.sum()) == pytest.approx(1, abs=1e-12)
    exact, none = combination(kept, Snapshot(0.1, 40))
    torch.testing.assert_close(exact, torch.eye(6, dtype=torch.float64)[3], rtol=1e-9, atol=1e-9)
    assert none < 1e-9


def test_long_runs_and_short_lengths_stay_finite() -> None:
    kept = [Snapshot(length, step) for step in range(2000, 100_001, 2000) for length in (0.05, 0.1)]
    for length, bar in ((0.03, 1e-2), (0.07, 1e-3), (0.15, 2e-3)):
        factors, misfit = combination(kept, Snapshot(length, 100_000))
        assert misfit < bar
        assert factors.abs().max() < 10


def test_any_length_after_training_is_the_average_tracked_during_it(tmp_path: Path) -> None:
    # The bar of 1e-3 relative, and of the distance from the last weights, which is the harder measure.
    trainer = _trainer(tmp_path, steps=160, posthoc_every=4, learning_rate=0.01, schedule="constant")
    lengths = (0.03, 0.05, 0.07, 0.15, 0.2)
    tracked = {length: PowerEMA(trainer.network, length) for length in lengths}
    update = trainer.update

    def track() -> None:  # beside the trainer, which must not store these
        update()
        for average in tracked.values():
            average.update()

    trainer.update = track  # type: ignore[method-assign]
    trainer.train()
    checkpoint, _ = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert {name.partition("/")[0] for name in checkpoint.tensors("averages")} == {"power=0.05", "power=0.1"}
    last = checkpoint.tensors("model")
    for length, average in tracked.items():
        made, direct = averaged_weights(checkpoint, length), average.state_dict()
        flat = [torch.cat([state[name].double().flatten() for name in direct]) for state in (made, direct, last)]
        assert (flat[0] - flat[1]).norm() < 1e-3 * flat[1].norm()
        assert (flat[0] - flat[1]).norm() < 0.03 * (flat[1] - flat[2]).norm()
    model = sg.load(tmp_path, weights=0.2)
    assert all(torch.equal(t, made[name]) for name, t in model.network.state_dict().items())


def test_several_decays_at_once_are_each_what_one_alone_is(tmp_path: Path) -> None:
    several = _trainer(tmp_path / "several", ema=(0.9, 0.5))
    several.train()
    assert several.ema is several.averages[0]
    for decay in (0.9, 0.5):
        alone = _trainer(None, ema=decay)
        alone.train()
        model = sg.load(tmp_path / "several", weights=decay)
        expected = alone.ema.state_dict()
        assert all(torch.equal(t, expected[name]) for name, t in model.network.state_dict().items())
    with pytest.raises(CheckpointError, match=r"has no average 0\.7, only ema, model, decay=0\.5"):
        sg.load(tmp_path / "several", weights=0.7)
    for weights in ("last", None, True):
        with pytest.raises(ConfigError, match="weights must be 'ema' or 'model', or a number"):
            sg.load(tmp_path / "several", weights=weights)  # type: ignore[arg-type]


def test_averages_and_snapshots_go_on_bit_for_bit(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"ema": (0.9, 0.5), "posthoc_every": 3}
    _trainer(tmp_path / "whole", **changes).train()
    first = _trainer(tmp_path / "parts", **changes)
    first.stop = lambda: first.step == 5
    first.train()
    second = _trainer(tmp_path / "parts", **changes)
    assert second.resume() is not None
    assert [average.updates for average in second.averages] == [5] * 4
    second.train()
    whole, parts = (newest_checkpoint(tmp_path / name)[0] for name in ("whole", "parts"))
    assert whole is not None
    assert parts is not None
    names = {f"{label}/head.bias" for label in ("decay=0.5", "power=0.05", "power=0.1")}
    assert names <= set(whole.tensors("averages"))
    assert all(torch.equal(t, parts.tensors("averages")[n]) for n, t in whole.tensors("averages").items())
    steps = [sorted(p.name for p in (tmp_path / name / "averages").iterdir()) for name in ("whole", "parts")]
    assert steps[0] == steps[1] == [f"step_{step:08d}" for step in (3, 6, 9, 12)]
    a, b = averaged_weights(whole, 0.08), averaged_weights(parts, 0.08)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_too_few_snapshots_or_none_are_refused(tmp_path: Path) -> None:
    _trainer(tmp_path / "few", steps=60, posthoc_every=30, batch_size=4).train()
    few, _ = newest_checkpoint(tmp_path / "few")
    assert few is not None
    with pytest.raises(CheckpointError, match=r"give an average of length 0\.2 only to \d+%"):
        averaged_weights(few, 0.2)
    with pytest.raises(ConfigError, match="relative length must be"):
        averaged_weights(few, 0.5)
    _trainer(tmp_path / "none").train()
    none, _ = newest_checkpoint(tmp_path / "none")
    assert none is not None
    with pytest.raises(CheckpointError, match=r"trainer\.posthoc_every=N"):
        averaged_weights(none, 0.1)
    with pytest.raises(CheckpointError, match=r"averages"):  # which the run has, and the checkpoint not
        _trainer(tmp_path / "none", posthoc_every=3).resume()


@pytest.mark.parametrize("ema", [1.0, -0.1, (), (0.9, 0.9), (0.9, 2.0), "0.9"])
def test_bad_decays_are_refused(ema: Any) -> None:
    with pytest.raises(ConfigError, match="trainer: ema must be"):
        TrainerSettings(ema=ema)
