"""Checkpoints that are written while training goes on: the state of their step, in order, none of it lost."""

import dataclasses
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import sde_gen as sg
from sde_gen.data import Affine, Dataset, mixture
from sde_gen.errors import TrainingFault
from sde_gen.training import Trainer, TrainerSettings, checkpoint, newest_checkpoint, read_checkpoint
from sde_gen.training.checkpoint import checkpoint_folders
from sde_gen.training.state import packed

QUICK = TrainerSettings(
    steps=15, batch_size=8, warmup=0, schedule="constant", log_every=1, eval_every=0, checkpoint_every=5, keep_last=0,
    keep_best=0, ema=(0.9, 0.5), posthoc_every=5,
)  # fmt: skip


def _trainer(settings: TrainerSettings = QUICK, network: Any = None, data: Any = None, **arguments: Any) -> Trainer:
    torch.manual_seed(0)
    network = sg.MLP(2, hidden=8, layers=1) if network is None else network
    data = mixture(n=64, n_test=16) if data is None else data
    return Trainer(sg.ScoreModel(network, sg.VP()), data, settings=settings, retry_seconds=0.0, **arguments)


class _Gate:
    """Holds back each first file of a checkpoint until training has come three steps further, or to its end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, trainer: Trainer) -> None:
        self.trainer, self.waited, self.at_once = trainer, [], 0
        self.most, self._real, self._lock = 0, checkpoint.save_file, threading.Lock()
        monkeypatch.setattr(checkpoint, "save_file", self)

    def __call__(self, tensors: Any, path: Path, notes: Any = None) -> None:
        with self._lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        if path.stem == "model":
            began, until = int(path.parent.name[-8:]), time.monotonic() + 20
            while self.trainer.step < min(began + 3, self.trainer.settings.steps) and time.monotonic() < until:
                time.sleep(0.001)
            self.waited.append(self.trainer.step - began >= 3)
        self._real(tensors, path, notes)
        self.at_once -= 1


def _same(a: Path, b: Path) -> None:
    ours, theirs = read_checkpoint(a), read_checkpoint(b)
    timed = ("seconds", "metrics")
    assert {k: v for k, v in ours.state.items() if k not in timed} == {
        k: v for k, v in theirs.state.items() if k not in timed
    }
    names = {path.name for path in a.glob("*.safetensors")}
    assert names == {path.name for path in b.glob("*.safetensors")} != set()
    for name in names:
        x, y = (found.tensors(name.removesuffix(".safetensors")) for found in (ours, theirs))
        assert x.keys() == y.keys()
        assert all(torch.equal(x[key], y[key]) for key in x)


def test_training_goes_on_and_the_file_holds_the_step_it_was_begun_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _trainer(dataclasses.replace(QUICK, async_save=False), checkpoints=tmp_path / "at once").train()
    apart = _trainer(checkpoints=tmp_path / "apart")
    events: list[str] = []
    apart.listeners = (lambda event, t, v: events.append(v["path"].name) if event == "checkpoint" else None,)
    gate = _Gate(monkeypatch, apart)
    apart.train()
    assert gate.waited == [True, True, False], "training does not wait for the file, but its end does"
    assert gate.most == 1, "one file at a time"
    assert events == [f"step_{step:08d}" for step in (5, 10, 15)]
    for folder in ("", "averages"):
        places = [checkpoint_folders(tmp_path / name / folder) for name in ("at once", "apart")]
        assert [len(found) for found in places] == [3, 3]
        for a, b in zip(*places, strict=True):
            _same(a, b)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_copy_shares_no_memory_with_what_is_trained(channels_last: bool) -> None:
    images = torch.rand(20, 3, 8, 8) * 2 - 1
    data = Dataset("noise", "image", images[:16], images[16:], Affine())
    settings = dataclasses.replace(QUICK, steps=1, channels_last=channels_last, learned_weighting=True)
    trainer = _trainer(settings, sg.UNet(3, width=8, multipliers=[1], blocks=1, attention=[-1]), data)
    trainer.update()
    taken = packed(trainer.network, trainer.averages, trainer.optimizer, trainer.weighting, keep=True, copy=True)
    live = packed(trainer.network, trainer.averages, trainer.optimizer, trainer.weighting, keep=True)
    tensors = [t for named in taken.values() for t in named.values()]
    places = {t.untyped_storage().data_ptr() for t in tensors}
    assert len(places) == len(tensors)
    assert not places & {t.untyped_storage().data_ptr() for named in live.values() for t in named.values()}
    assert all(t.is_contiguous() for t in tensors), "which is how it is written: no second copy is made"
    for stem, named in live.items():
        assert all(torch.equal(taken[stem][name], tensor) for name, tensor in named.items())


def test_what_ends_training_waits_for_what_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def listen(event: str, trainer: Trainer, values: Mapping[str, Any]) -> None:
        if event == "log" and trainer.step == 7:
            raise TrainingFault(7, (0.0, 1.0), [], "gradient", 3)

    trainer = _trainer(checkpoints=tmp_path, listeners=[listen])
    real = checkpoint.save_file

    def slow(*values: Any) -> None:
        while trainer.step < 7:
            time.sleep(0.001)
        time.sleep(0.2)
        real(*values)

    monkeypatch.setattr(checkpoint, "save_file", slow)
    with pytest.raises(TrainingFault):
        trainer.train()
    found, skipped = newest_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, skipped) == (5, [])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoints")]


def test_weights_that_are_not_finite_are_heard_of_before_the_next_save(tmp_path: Path) -> None:
    def spoil(event: str, trainer: Trainer, values: Mapping[str, Any]) -> None:
        if event == "log" and trainer.step == 5:
            with torch.no_grad():
                trainer.averages[0].state_dict()["head.bias"].fill_(float("inf"))

    trainer = _trainer(checkpoints=tmp_path, listeners=[spoil])
    with pytest.raises(TrainingFault, match="weights became NaN or infinite") as caught:
        trainer.train()
    assert caught.value.step == 5
    assert trainer.step <= 10
    assert checkpoint_folders(tmp_path) == []


def test_an_average_that_is_not_written_costs_the_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, events = checkpoint.save_file, []

    def full(tensors: Any, path: Path, notes: Any = None) -> None:
        if path.parents[1].name == "averages":
            raise OSError(28, "No space left on device")
        real(tensors, path, notes)

    monkeypatch.setattr(checkpoint, "save_file", full)
    trainer = _trainer(checkpoints=tmp_path, listeners=[lambda event, *_: events.append(event)])
    trainer.train()
    assert (events.count("save failed"), events.count("checkpoint")) == (3, 3)
