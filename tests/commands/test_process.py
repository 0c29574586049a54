"""The commands as processes: exit codes, signals, start-up, other folders, python -O."""

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sde_gen
from sde_gen.config.launch import say
from sde_gen.training import newest_checkpoint
from tests.commands.helpers import TINY

ROOT = str(Path(sde_gen.__file__).parents[1])
ENDLESS = ("trainer.steps=1000000", "trainer.checkpoint_every=0", "trainer.log_every=50")


def _start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for(path: Path, process: subprocess.Popen[str], lines: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        if path.is_file() and len(path.read_text().splitlines()) >= lines:
            return
        time.sleep(0.05)
    process.kill()
    pytest.fail(f"no {path}: {process.communicate()}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], ids=str)
def test_a_signal_saves_at_the_next_step_and_exits_with_75(tmp_path: Path, number: signal.Signals) -> None:
    with _start(tmp_path, "-m", "sde_gen.train", *TINY, *ENDLESS, "run=a") as process:
        _wait_for(tmp_path / "runs/a/metrics.csv", process, 2)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 75, (out, err)
    assert number.name in err
    assert "run the same command with run=a to continue" in err
    assert err.startswith("stopped by "), "what was stopped and is saved is no error"
    assert "Traceback" not in err
    found, skipped = newest_checkpoint(tmp_path / "runs/a/checkpoints")
    assert found is not None
    assert not skipped
    assert f"at step {found.step} of" in err


def test_a_killed_run_goes_on_from_its_newest_checkpoint(tmp_path: Path) -> None:
    every = "trainer.checkpoint_every=50"
    with _start(
        tmp_path, "-m", "sde_gen.train", *TINY, *ENDLESS, every, "run=a", "trainer.schedule=constant"
    ) as process:
        _wait_for(tmp_path / "runs/a/metrics.csv", process, 4)  # before that of step 150 the first save was heard of
        process.kill()
        process.communicate()
    found, _ = newest_checkpoint(tmp_path / "runs/a/checkpoints")
    assert found is not None
    last = (f"trainer.steps={found.step + 5}", every, "run=a", "trainer.schedule=constant")
    with _start(tmp_path, "-O", "-m", "sde_gen.train", *TINY, *ENDLESS, *last) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert f"continued from step {found.step}" in out


def test_a_second_interrupt_aborts_with_130(tmp_path: Path) -> None:
    # The first signal is noted but no step ever ends, because the network sleeps.
    (tmp_path / "sleepy_xyz.py").write_text(
        "import pathlib, time\nfrom sde_gen.networks import MLP\n\n\nclass Sleepy(MLP):\n"
        "    def forward(self, x, c_noise, label=None):\n"
        "        pathlib.Path('asleep').touch()\n        time.sleep(60)\n"
    )
    # The size of the network's input follows from the data for the library's own networks only; 2 is its default.
    mine = ("network._target_=sleepy_xyz.Sleepy", "trust=[sleepy_xyz]")
    with _start(tmp_path, "-m", "sde_gen.train", *TINY, *mine, "run=a") as process:
        until = time.monotonic() + 60
        while not (tmp_path / "asleep").exists() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.05)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert err.strip().splitlines()[-1] == "aborted"


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.EIO, "gone"), OSError(errno.ENOSPC, "full"), None])
def test_a_reader_that_goes_away_ends_no_run(monkeypatch: pytest.MonkeyPatch, error: OSError | None) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise error or AssertionError

    monkeypatch.setattr(sys, "stdout", Gone() if error else None)
    say("one")
    say("two")
    sys.stdout.close()  # what it speaks to now is a file of its own


def test_help_lists_groups_without_importing_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom sde_gen.train import main\ncode = main(['--help'])\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules)\nsys.exit(code)"
    )
    with _start(tmp_path, "-c", code) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "sde: cosine, ddpm, edm, flow, linear, ncsn, subvp, table, ve, [vp]" in out
    assert "data: array_file, checkerboard, cifar10, csv_file, [digits], fashion_mnist" in " ".join(out.split())
    assert out.strip().endswith("False False"), "neither torch nor numpy is loaded for --help"
    assert os.listdir(tmp_path) == []
