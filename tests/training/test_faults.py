"""Losses and gradients that are not finite, disks that are full: skipped, counted, retried, and at last an error."""

import dataclasses
import os
import pickle
import signal
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde_gen as sg
from sde_gen.data import mixture
from sde_gen.errors import NonFiniteError, TrainingFault, WriteError
from sde_gen.training import (
    MetricsFile,
    Trainer,
    TrainerSettings,
    best_checkpoint,
    newest_checkpoint,
    read_checkpoint,
    read_metrics,
    stop_on_signals,
)
from sde_gen.training.bookkeeping import FaultCount

QUICK = TrainerSettings(
    steps=20, batch_size=16, warmup=0, schedule="constant", log_every=4, eval_every=0, checkpoint_every=10, ema=0.9
)


class Poisoned(nn.Module):
    """Not finite at the calls listed: in the output of sample 3, or in the gradient alone."""

    def __init__(self, steps: Sequence[int], gradient: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.calls, self.steps, self.gradient = 0, tuple(steps), gradient

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        if not self.training:
            return x * self.weight
        self.calls += 1
        y = x * self.weight
        if self.calls - 1 in self.steps:
            if self.gradient:
                return y + torch.sqrt(self.weight - self.weight)  # 0, with an infinite slope
            y = y.clone()
            y[3] = float("nan")
        return y


def _trainer(network: nn.Module, settings: TrainerSettings = QUICK, **arguments: Any) -> Trainer:
    model = sg.ScoreModel(network, sg.VP())
    data = mixture(n=100, n_test=40)
    return Trainer(model, data, sg.DenoisingScoreMatching(), settings, retry_seconds=0.0, **arguments)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("on_device", [False, True])
def test_one_or_two_faults_are_skipped_and_counted(tmp_path: Path, gradient: bool, on_device: bool) -> None:
    trainer = _trainer(Poisoned([0, 5, 6, 9], gradient), checkpoints=tmp_path)
    if on_device:  # as on a GPU: the optimiser itself is told, and the host does not look
        trainer._update._on_device, trainer._update.checked_here = True, False
    weights, rows = [], []

    def note(event: str, t: Trainer, values: Any) -> None:
        if event == "log":
            rows.append(dict(values))

    trainer.listeners = (note,)
    before = trainer.update

    def spy() -> None:
        weights.append(trainer.network.weight.detach().clone())
        before()

    trainer.update = spy  # type: ignore[method-assign]
    trainer.train()
    weights.append(trainer.network.weight.detach().clone())
    unmoved = [k for k in range(20) if torch.equal(weights[k], weights[k + 1])]
    assert unmoved == [0, 5, 6, 9], "the update is skipped at these steps and at no other"
    steps = next(iter(trainer.optimizer.state.values()))["step"]
    assert int(steps) == 16, "nor does the optimiser know of them"
    assert trainer.faults.total == 4
    assert [row["skipped"] for row in rows] == [1, 3, 4, 4, 4, 4]
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in rows), "means are over the steps that count"
    found, _ = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 20
    assert found.state["skipped"] == [4, 0]


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("log_every", [1, 4, 100])
def test_three_in_a_row_end_the_run_and_are_named(tmp_path: Path, gradient: bool, log_every: int) -> None:
    settings = dataclasses.replace(QUICK, log_every=log_every)
    trainer = _trainer(Poisoned([12, 13, 14], gradient), settings, checkpoints=tmp_path, seed=2)
    with pytest.raises(TrainingFault, match="gradient" if gradient else "training loss") as caught:
        trainer.train()
    fault = caught.value
    assert isinstance(fault, NonFiniteError)
    assert (fault.step, fault.in_a_row, fault.exit_code) == (14, 3, 70)
    steps = [14] if log_every == 1 else [12, 13, 14]  # what is still known when the third is met
    t = torch.cat([trainer.batches.times(k) if gradient else trainer.batches.times(k)[3:4] for k in steps])
    if log_every != 1 or not gradient:
        assert fault.t_range == (float(t.min()), float(t.max()))
    if gradient:
        assert fault.indices == ()
    else:
        assert fault.indices == tuple(sorted({int(trainer.batches.indices(k)[3]) for k in steps}))
        assert "samples [" in str(fault)
    assert "step 14" in str(fault)
    assert "t from" in str(fault)
    again = pickle.loads(pickle.dumps(fault))  # noqa: S301 - our own
    assert str(again) == str(fault)
    found, _ = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 10
    assert all(tensor.isfinite().all() for tensor in found.tensors("model").values())


def test_faults_on_both_sides_of_a_checkpoint_are_one_row(tmp_path: Path) -> None:
    _trainer(Poisoned([8, 9]), dataclasses.replace(QUICK, steps=10), checkpoints=tmp_path).train()
    found, _ = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.state["skipped"] == [2, 2]
    resumed = _trainer(Poisoned([0]), checkpoints=tmp_path)
    resumed.resume(found)
    with pytest.raises(TrainingFault) as caught:
        resumed.train()
    assert caught.value.step == 10


def test_weights_that_are_not_finite_are_never_published(tmp_path: Path) -> None:
    trainer = _trainer(Poisoned([]), checkpoints=tmp_path)
    with torch.no_grad():
        trainer.network.weight[1] = float("inf")
    with pytest.raises(TrainingFault, match="weights became NaN or infinite"):
        trainer.save()
    assert list(tmp_path.iterdir()) == []
    with torch.no_grad():
        trainer.network.weight[1] = 1.0
        trainer.ema.state_dict()["weight"][0] = float("nan")
    with pytest.raises(TrainingFault, match="weights became NaN or infinite"):
        trainer.save()


def test_counting() -> None:
    count = FaultCount()
    assert count.add([True, True, False, True]) is None
    assert (count.total, count.in_a_row) == (3, 1)
    assert count.add([True, True, True]) == 1
    assert count.in_a_row == 3


def _full_disk(monkeypatch: pytest.MonkeyPatch, failures: int) -> list[int]:
    """The next `failures` writes of tensors fail as on a full disk."""
    from sde_gen.training import checkpoint

    left = [failures]
    real = checkpoint.save_file

    def save(tensors: Any, path: Any, notes: Any = None) -> None:
        if left[0] > 0:
            left[0] -= 1
            raise OSError(28, os.strerror(28))
        real(tensors, path, notes)

    monkeypatch.setattr(checkpoint, "save_file", save)
    return left


#: Events of a run that saves every five steps and writes a row every four, on a disk that refuses twice.
AT_ONCE = [("save failed", 5), ("save failed", 8), ("checkpoint", 10), ("checkpoint", 15), ("checkpoint", 20)]
#: Heard with the next row, or before the next save, where a thread writes.
LATER = [("save failed", 8), ("save failed", 10), ("checkpoint", 12), ("checkpoint", 16), ("checkpoint", 20)]


@pytest.mark.parametrize("apart", [False, True])
def test_a_full_disk_leaves_the_old_checkpoint_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    events: list[tuple[str, int]] = []

    def listen(event: str, trainer: Trainer, _: Any) -> None:
        events.append((event, trainer.step))
        wait([f for f in trainer._saver._pending.values() if isinstance(f, Future)])

    settings = dataclasses.replace(QUICK, checkpoint_every=5, async_save=apart)
    trainer = _trainer(Poisoned([]), settings, checkpoints=tmp_path, listeners=[listen])
    trainer.save()
    _full_disk(monkeypatch, 2)
    trainer.train()
    kept = [pair for pair in events if pair[0] in ("checkpoint", "save failed")]
    assert kept == [("checkpoint", 0), *(LATER if apart else AT_ONCE)]
    assert newest_checkpoint(tmp_path)[1] == []


@pytest.mark.parametrize("apart", [False, True])
def test_three_failed_saves_in_a_row_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool) -> None:
    settings = dataclasses.replace(QUICK, checkpoint_every=5, async_save=apart)
    trainer = _trainer(Poisoned([]), settings, checkpoints=tmp_path)
    trainer.save()
    left = _full_disk(monkeypatch, 100)
    with pytest.raises(WriteError) as caught:
        trainer.train()
    assert caught.value.exit_code == 74
    assert left == [97]
    assert os.listdir(tmp_path) == ["step_00000000"]
    assert newest_checkpoint(tmp_path)[0] is not None


def test_the_last_save_is_tried_three_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _trainer(Poisoned([]), dataclasses.replace(QUICK, checkpoint_every=0), checkpoints=tmp_path)
    _full_disk(monkeypatch, 2)
    trainer.train()
    assert os.listdir(tmp_path) == ["step_00000020"]


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("apart", [False, True])
def test_a_signal_in_the_middle_of_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, apart: bool
) -> None:
    from sde_gen.training import checkpoint

    real, written = checkpoint.save_file, []

    def save(tensors: Any, path: Any, notes: Any = None) -> None:
        written.append(path)
        if len(written) == 5:  # the second file of the second checkpoint
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
        real(tensors, path, notes)

    monkeypatch.setattr(checkpoint, "save_file", save)
    with stop_on_signals() as stop:
        settings = dataclasses.replace(QUICK, steps=10**5 if apart else 20, checkpoint_every=5, async_save=apart)
        trainer = _trainer(Poisoned([]), settings, checkpoints=tmp_path, stop=lambda: bool(stop))
        with nullcontext() if times == 1 else pytest.raises(KeyboardInterrupt):
            trainer.train()
    if apart:  # whatever ends training, what is being written is written
        there = sorted(int(name.removeprefix("step_")) for name in os.listdir(tmp_path))
        assert there[:2] == [5, 10]
        assert there[2:] == ([trainer.step] if times == 1 else [])
    elif times == 1:  # the save is finished, and another one is made at the end of the next step
        assert trainer.interrupted
        assert sorted(os.listdir(tmp_path)) == [f"step_{step:08d}" for step in (5, 10, 11)]
    else:  # the save is given up, and nothing of it is left
        assert os.listdir(tmp_path) == ["step_00000005"]
    assert newest_checkpoint(tmp_path)[1] == []


def test_rows_of_metrics_wait_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv")
    assert metrics.add({"step": 1, "loss": 0.5})
    full = [True, True]
    append = metrics._append

    def fail() -> None:
        if full:
            full.pop()
            raise OSError(28, os.strerror(28))
        append()

    monkeypatch.setattr(metrics, "_append", fail)
    assert not metrics.add({"step": 2, "loss": 0.4})
    assert not metrics.add({"step": 3, "loss": 0.3})
    assert metrics.add({"step": 4, "loss": 0.2})
    assert [row["step"] for row in read_metrics(metrics.path)] == [1, 2, 3, 4]
    full[:] = [True, True, True]
    assert not metrics.add({"step": 5})
    assert not metrics.add({"step": 6})
    with pytest.raises(WriteError):
        metrics.add({"step": 7})


def test_best_is_kept_beside_the_last(tmp_path: Path) -> None:
    trainer = _trainer(
        sg.MLP(2, hidden=8, layers=1), dataclasses.replace(QUICK, checkpoint_every=0, keep_last=1, keep_best=1),
        checkpoints=tmp_path,
    )  # fmt: skip
    for step, loss in ((1, 0.9), (2, 0.3), (3, 0.5), (4, float("nan")), (5, 0.7)):
        trainer.step, trainer._held_out = step, (step, loss)
        trainer.save()
    assert sorted(os.listdir(tmp_path)) == ["step_00000002", "step_00000005"]
    best, skipped = best_checkpoint(tmp_path)
    assert best is not None
    assert best.step == 2
    assert not skipped
    (tmp_path / "step_00000002" / "ema.safetensors").write_bytes(b"")
    best, skipped = best_checkpoint(tmp_path)
    assert best is not None
    assert best.step == 5
    assert "step_00000002" in skipped[0]


def test_the_best_is_measured_with_each_checkpoint(tmp_path: Path) -> None:
    _trainer(sg.MLP(2, hidden=8, layers=1), dataclasses.replace(QUICK, keep_last=0), checkpoints=tmp_path).train()
    losses = [read_checkpoint(path).state["held_out_loss"] for path in tmp_path.iterdir()]
    assert len(losses) == 2
    assert all(isinstance(loss, float) for loss in losses)
