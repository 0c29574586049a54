"""Run folders: unique, locked, continued."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import sde_gen
from sde_gen.errors import ConfigError, DataError, MissingInputError, OutputError
from sde_gen.files import make_folder, publish, write_text
from sde_gen.training import MetricsFile, RunDirectory, newest_run, read_metrics, save_checkpoint


def _checkpoint(run: Path, step: int, age: float) -> None:
    path = save_checkpoint(run / "checkpoints", step, {"model": {"w": torch.zeros(1)}}, {}, {})
    when = time.time() - age
    os.utime(path / "manifest.json", (when, when))


def test_fresh_folders_never_collide(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: RunDirectory.fresh(tmp_path / "runs", "vp_digits").path, range(24)))
    assert len(set(runs)) == 24
    assert all(path.is_dir() and "vp_digits" in path.name for path in runs)


def test_a_new_folder_is_on_the_disk_with_all_that_lead_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr("sde_gen.files.fsync_folder", flushed.append)
    make_folder(tmp_path / "a/b/c")
    assert sorted(flushed) == [tmp_path, tmp_path / "a", tmp_path / "a/b"]
    make_folder(tmp_path / "a/b/c")
    assert len(flushed) == 3, "nothing is new"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", ".hidden", "-x", "a b", "x" * 300, "a\n"])
def test_names_that_are_no_folder_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="not a run's name"):
        RunDirectory.named(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for make in (lambda root: RunDirectory.named(root, "a"), lambda root: RunDirectory.fresh(root, "a")):
        with pytest.raises(OutputError, match="cannot create") as caught:
            make(tmp_path / "file" / "runs")
        assert caught.value.exit_code == 73


_HOLD = """
import sys
from sde_gen.training.run_folder import RunDirectory
with RunDirectory(sys.argv[1]).locked():
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_two_processes_never_share_a_run(tmp_path: Path) -> None:
    run = RunDirectory.named(tmp_path, "a")
    root = str(Path(sde_gen.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(run.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(OutputError, match="in use by another process") as caught, run.locked():
            pass
        assert caught.value.exit_code == 73
    with run.locked():
        pass
    with run.locked():
        pass


def test_newest_run_is_the_one_saved_last(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="train one first"):
        newest_run(tmp_path)
    (tmp_path / "empty").mkdir()
    _checkpoint(tmp_path / "a", 500, age=10)
    _checkpoint(tmp_path / "b", 100, age=5)
    assert newest_run(tmp_path).path.name == "b"
    _checkpoint(tmp_path / "a", 600, age=1)
    assert newest_run(tmp_path).path.name == "a"


def test_metrics_continue_after_the_resumed_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = MetricsFile(path)
    for step in (10, 20, 30):
        first.add({"step": step, "loss": 1 / step, "seconds": 0.1})
    with path.open("a") as stream:
        stream.write("40,0.1")  # cut short by a crash
    second = MetricsFile(path, step=20)
    second.add({"step": 21, "held_out_loss": 0.5})
    rows = read_metrics(path)
    assert [row["step"] for row in rows] == [10, 20, 21]
    assert rows[1]["loss"] == 1 / 20
    assert "loss" not in rows[2]
    with pytest.raises(ConfigError, match="no column"):
        second.add({"step": 1, "lose": 1.0})


def test_other_files_are_not_metrics(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="first line"):
        read_metrics(tmp_path / "metrics.csv")
    with pytest.raises(MissingInputError):
        read_metrics(tmp_path / "none.csv")


def test_publish_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "old")

    def half(temporary: Path) -> None:
        temporary.write_text("ha")
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        publish(path, half)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]
