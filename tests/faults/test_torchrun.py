"""The commands under torchrun, on two processes with gloo."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sde_gen
from sde_gen.training import newest_checkpoint
from tests.commands.helpers import TINY

pytestmark = pytest.mark.slow
ROOT = str(Path(sde_gen.__file__).parents[1])
TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m")


def _start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def _run(folder: Path, *arguments: str) -> str:
    with _start(folder, *arguments) as process:
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, (out, err)
    return out


def test_training_sampling_and_evaluating_equal_one_process(tmp_path: Path) -> None:
    settings = (*TINY, "trainer.steps=30", "trainer.schedule=constant", "class_conditional=true")
    out = _run(tmp_path, *TORCHRUN, "sde_gen.train", *settings)
    assert out.count("2 processes") == 1, "process 0 alone speaks"
    (two,) = (tmp_path / "runs").iterdir()
    _run(tmp_path, "-m", "sde_gen.train", *settings, "run=one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"], "nothing else is left anywhere"
    ends = [newest_checkpoint(folder / "checkpoints")[0] for folder in (tmp_path / "runs/one", two)]
    for part in ("model", "ema"):
        a, b = (end.tensors(part) for end in ends if end is not None)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    rows = [(folder / "metrics.csv").read_text().splitlines() for folder in (tmp_path / "runs/one", two)]
    assert len(rows[0]) == len(rows[1])

    arguments = ("sampler=em", "sampler.steps=5", "num_samples=100", "chunk=16", "run=one", "label=cycle", "device=cpu")
    _run(tmp_path, *TORCHRUN, "sde_gen.sample", *arguments, "out=two")
    _run(tmp_path, "-m", "sde_gen.sample", *arguments, "out=one")
    with np.load(tmp_path / "one/samples.npz") as one, np.load(tmp_path / "two/samples.npz") as several:
        for name in ("x", "model_x", "label"):
            np.testing.assert_array_equal(one[name], several[name])
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two")]
    for report in reports:
        report.pop("seconds")
    assert reports[0] == reports[1]

    arguments = ("sampler=em", "sampler.steps=5", "num_samples=100", "chunk=16", "run=one", "device=cpu")
    arguments += ("likelihood=both", "nll.samples=50", "nll.steps=10", "nll.terms=8", "nll.divergence=hutchinson")
    out = _run(tmp_path, *TORCHRUN, "sde_gen.evaluate", *arguments, "out=e2")
    assert out.count("written to") == 1, "process 0 alone speaks"
    _run(tmp_path, "-m", "sde_gen.evaluate", *arguments, "out=e1")
    with np.load(tmp_path / "e1/evaluation.npz") as one, np.load(tmp_path / "e2/evaluation.npz") as several:
        assert {"x", "ode_log_prob", "vlb_log_prob"} <= set(one) == set(several)
        for name in one:
            np.testing.assert_array_equal(one[name], several[name])
    assert sorted(os.listdir(tmp_path / "e1")) == sorted(os.listdir(tmp_path / "e2"))
    first, second = (_without_seconds(json.loads((tmp_path / e / "evaluation.json").read_text())) for e in ("e1", "e2"))
    assert first == second
    assert len(first["metrics"]) > 1
    assert list(first["likelihood"]) == ["ode", "vlb"]


def _without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_seconds(part) for key, part in value.items() if key != "seconds"}
    return [_without_seconds(part) for part in value] if isinstance(value, list) else value


def test_a_sweep_makes_one_set_of_folders(tmp_path: Path) -> None:
    _run(tmp_path, *TORCHRUN, "sde_gen.train", "--multirun", *TINY, "run=s", "sde=vp,ve", "trainer.steps=2")
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == [".sweeps", "s_0", "s_1"]
    assert len(list((tmp_path / "runs/.sweeps").iterdir())) == 1


def test_a_killed_process_ends_the_job_which_goes_on_from_the_newest_checkpoint(tmp_path: Path) -> None:
    endless = (*TINY, "trainer.steps=1000000", "trainer.checkpoint_every=20", "trainer.schedule=constant", "run=a")
    checkpoints = tmp_path / "runs/a/checkpoints"
    with _start(tmp_path, *TORCHRUN, "sde_gen.train", *endless, "timeout=20") as process:
        until = time.monotonic() + 120
        while not (checkpoints.is_dir() and any(checkpoints.glob("step_*"))) and time.monotonic() < until:
            time.sleep(0.1)
        workers = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        assert len(workers) == 2, workers
        os.kill(int(workers[1]), signal.SIGKILL)
        process.communicate(timeout=120)
    assert process.returncode != 0
    found, skipped = newest_checkpoint(checkpoints)
    assert found is not None
    assert skipped == []
    last = (f"trainer.steps={found.step + 3}", "trainer.preview_samples=0")
    out = _run(tmp_path, "-m", "sde_gen.train", "resume=a", *last, "device=cpu")
    assert f"continued from step {found.step}" in out


def test_a_signal_to_torchrun_saves_and_stops(tmp_path: Path) -> None:
    endless = (*TINY, "trainer.steps=1000000", "trainer.checkpoint_every=0", "trainer.schedule=constant", "run=a")
    with _start(tmp_path, *TORCHRUN, "sde_gen.train", *endless) as process:
        until = time.monotonic() + 120
        metrics = tmp_path / "runs/a/metrics.csv"
        while not (metrics.is_file() and len(metrics.read_text().splitlines()) > 2) and time.monotonic() < until:
            time.sleep(0.1)
        process.terminate()
        _, err = process.communicate(timeout=120)
    assert "which is saved; run the same command with run=a to continue" in err
    found, skipped = newest_checkpoint(tmp_path / "runs/a/checkpoints")
    assert found is not None
    assert skipped == []
