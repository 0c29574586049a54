"""A process may end at any moment: what was published stays whole, and the next one goes on."""

import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sde_gen.distributed import Processes
from sde_gen.files import remove_leftovers
from sde_gen.training import newest_checkpoint, read_checkpoint, save_checkpoint
from sde_gen.training.checkpoint import checkpoint_folders
from tests.faults import jobs
from tests.faults.ranks import join, run_ranks, start_ranks

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

#: What the interpreter announces before it touches the file system.
EVENTS = frozenset(
    [f"os.{name}" for name in ("mkdir", "rename", "remove", "rmdir", "chmod", "link", "symlink", "truncate", "utime")]
    + ["open", "os.listdir", "os.scandir", "shutil.rmtree", "shutil.move"]
)


def _dies_at(event: int, action: Callable[[], object]) -> bool:
    """Whether a child that runs `action` has as many file-system events; at that one it ends without a word."""
    child = os.fork()
    if child == 0:
        count = 0

        def hook(name: str, _: object) -> None:
            nonlocal count
            if name in EVENTS:
                count += 1
                if count == event:
                    os._exit(9)

        try:
            sys.addaudithook(hook)
            action()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9), code
    return code == 9


def _save(folder: Path, step: int) -> None:
    tensors = {
        "model": {"w": torch.full((8, 4), float(step))},
        "ema": {"w": torch.full((8, 4), step / 2)},
        "optimizer": {"exp_avg.w": torch.ones(8, 4)},
    }
    state = {"seconds": float(step), "held_out_loss": 1.0 / (1 + step % 3)}
    save_checkpoint(folder, step, tensors, {"sde": {"_target_": "sde_gen.VP"}}, state, keep_last=1, keep_best=1)


def _nothing_there(folder: Path) -> None:
    """The first save of a run."""


def _two_there(folder: Path) -> None:
    """A save that also removes an old checkpoint."""
    _save(folder, 2)
    _save(folder, 3)


def _damaged_there(folder: Path) -> None:
    """A save over a damaged checkpoint of the same step, which is moved away."""
    _save(folder, 3)
    shutil.copytree(folder / "step_00000003", folder / "step_00000004")


_SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "before", [_two_there, pytest.param(_nothing_there, marks=_SLOW), pytest.param(_damaged_there, marks=_SLOW)]
)
def test_every_crash_point_of_a_save_recovers(tmp_path: Path, before: Callable[[Path], None]) -> None:
    points = 0
    for event in range(1, 1000):
        folder = tmp_path / f"{event}"
        before(folder)
        steps = [read_checkpoint(path).step for path in checkpoint_folders(folder) if path.name != "step_00000004"]
        crashed = _dies_at(event, lambda folder=folder: _save(folder, 4))
        found, skipped = newest_checkpoint(folder)
        if before is _damaged_there:
            assert all("step_00000004" in sentence for sentence in skipped)
        else:
            assert skipped == [], "what is published is whole"
        if found is None:
            assert not steps
        else:
            assert found.step in (*steps, 4)
            assert torch.equal(found.tensors("model")["w"], torch.full((8, 4), float(found.step)))
        remove_leftovers(folder)
        _save(folder, 4)
        found, skipped = newest_checkpoint(folder)
        assert found is not None
        assert (found.step, skipped) == (4, [])
        names = {path.name.split("-")[0] for path in folder.iterdir()}
        assert names <= {"step_00000002", "step_00000003", "step_00000004", "damaged"}
        shutil.rmtree(folder)
        if not crashed:
            break
        points += 1
    assert points >= 20, f"only {points} events: the hook does not see what the save does"


def test_everything_is_on_the_disk_before_it_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(descriptor: int) -> None:
        done.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def note_rename(source: str, target: str) -> None:
        done.append(("rename", str(target)))
        rename(source, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    _save(tmp_path, 1)
    place = done.index(("rename", str(tmp_path / "step_00000001")))
    names = {Path(path).name for what, path in done[:place] if what == "fsync"}
    files = {path.name for path in (tmp_path / "step_00000001").iterdir()}
    assert files < names, "every file"
    assert any(name.startswith(".tmp-") for name in names), "and the folder that holds them"
    assert ("fsync", str(tmp_path)) in done[place:], "and, after it, the folder that holds the checkpoint"


@pytest.mark.parametrize("apart", [pytest.param(False, marks=_SLOW), True])
def test_ten_kills_during_training_change_nothing(tmp_path: Path, apart: bool) -> None:
    checkpoints, clock = tmp_path / "checkpoints", random.Random(6)
    reached = -1
    for kill in range(10):
        (rank,) = start_ranks(jobs.train_on, 1, tmp_path / f"{kill}", checkpoints, 100_000, apart)
        until = time.monotonic() + 60
        while time.monotonic() < until:  # it is under way when a new checkpoint is there
            there = checkpoint_folders(checkpoints)
            if there and int(there[0].name[5:]) > reached:
                break
            time.sleep(0.01)
        time.sleep(clock.uniform(0.0, 0.15))
        rank.kill()
        assert join([rank], 10) == [-9]
        found, skipped = newest_checkpoint(checkpoints)
        assert found is not None
        assert skipped == [], "nothing unloadable"
        assert found.step > reached
        reached = found.step
    last = jobs.train_on(Processes(), checkpoints, reached + 2)
    whole = jobs.train(Processes(), tmp_path / "whole", {"steps": reached + 2, "eval_every": 0, "keep_best": 0})
    ends = [newest_checkpoint(folder)[0] for folder in (checkpoints, tmp_path / "whole")]
    for part in ("model", "ema", "optimizer"):
        a, b = (end.tensors(part) for end in ends if end is not None)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a), "bit for bit"
    assert last["step"] == whole["step"]


@pytest.mark.parametrize("apart", [pytest.param(False, marks=_SLOW), True])
def test_a_disk_that_is_really_full(tmp_path: Path, apart: bool) -> None:
    (seen,) = run_ranks(jobs.real_full_disk, 1, tmp_path / "ranks", tmp_path / "checkpoints", apart)
    names, steps = ([event[k] for event in seen["events"]] for k in (0, 1))
    assert names[:2] == ["save failed"] * 2
    assert set(names[2:]) == {"checkpoint"}
    if apart:  # when it is heard of depends on the disk
        assert steps == sorted(steps)
        assert steps[-1] == 40
    else:
        assert steps == [10, 12, 16, 20, 30, 40]
    assert "free some space" in seen["events"][0][2]
    found, skipped = newest_checkpoint(tmp_path / "checkpoints")
    assert found is not None
    assert (found.step, skipped) == (40, [])


@pytest.mark.slow
def test_memory_of_sampling_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    import sde_gen as sg
    from sde_gen.data import Affine, Dataset
    from sde_gen.training import Trainer, TrainerSettings

    torch.manual_seed(0)
    points = torch.randn(40, 64)
    data = Dataset("wide", "vector", points[:30], points[30:], Affine())
    config = {
        "network": {"_target_": "sde_gen.networks.MLP", "features": 64, "hidden": 8, "layers": 1, "frequencies": 0},
        "sde": {"_target_": "sde_gen.VP"},
        "parameterization": {"_target_": "sde_gen.NoisePrediction"},
    }
    network = sg.MLP(64, hidden=8, layers=1, frequencies=0)
    Trainer(
        sg.ScoreModel(network, sg.VP()), data, sg.DenoisingScoreMatching(), TrainerSettings(steps=1, batch_size=8),
        checkpoints=tmp_path / "runs/wide/checkpoints", config=config,
    ).train()  # fmt: skip
    small, large = 24_000, 240_000
    peaks = [run_ranks(jobs.sample_job, 1, tmp_path / f"{count}", tmp_path, count)[0] for count in (small, large)]
    growth, held = (peaks[1] - peaks[0]) * 1024, (large - small) * 64 * 4
    assert growth < held / 4, f"{growth / 2**20:.1f} MiB more for {held / 2**20:.0f} MiB more of samples"
    import numpy as np

    with np.load(tmp_path / f"out{large}/samples.npz") as arrays:
        assert arrays["x"].shape == (large, 64)
