"""The recipe for SLURM in docs/training.md, run as it stands, with small programs in the place of SLURM's own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sde_gen
from sde_gen.training import newest_checkpoint
from tests.faults.ranks import free_port

ROOT = Path(sde_gen.__file__).parents[1]
PAGE = ROOT / "docs" / "training.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="an installed package has no docs")

#: Runs the script as a job, and once more whenever it asked to be put back into the queue.
SBATCH = r"""#!/bin/sh
export SLURM_JOB_NODELIST='node[1-2]' SLURM_NTASKS=2
export SIGNAL=$(sed -n 's/^#SBATCH.*--signal=\([A-Z0-9]*\)@.*/\1/p' "$1")
while true; do
  rm -f requeued
  bash "$1"; code=$?
  echo "job ended with $code" >> slurm.log
  [ -e requeued ] || exit $code
  grep -q '^#SBATCH.*--requeue' "$1" || exit 99
done
"""
SCONTROL = r"""#!/bin/sh
case "$1" in
  show) [ "$2 $3" = 'hostnames node[1-2]' ] && printf 'localhost\nelsewhere\n' ;;
  requeue) [ "$2" = "$SLURM_JOB_ID" ] && touch requeued && echo requeued >> slurm.log ;;
esac
"""
#: Starts the tasks of a step; the first time they are signalled when they have written metrics, as the time is up.
SRUN = r"""#!/bin/sh
[ "$1" = --kill-on-bad-exit=0 ] || exit 98
shift
tasks=
for task in 0 1; do
  SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
  tasks="$tasks $!"
done
if [ ! -e signalled ]; then
  touch signalled
  until [ "$(wc -l < runs/first/metrics.csv 2>/dev/null || echo 0)" -gt 2 ]; do
    for task in $tasks; do kill -0 $task 2>/dev/null || break 2; done
    sleep 0.05
  done
  kill -$SIGNAL $tasks
fi
most=0
for task in $tasks; do
  wait $task; code=$?
  [ $code -gt $most ] && most=$code
done
exit $most
"""
#: The recipe's run, made small; the first is endless, the second has five steps to go.
PYTHON = rf"""#!/bin/sh
last=$(ls runs/first/checkpoints 2>/dev/null | sed -n 's/^step_0*//p' | tail -n 1)
steps=1000000; [ -n "$last" ] && steps=$((last + 5))
exec {sys.executable} "$@" network=unet network.width=8 network.multipliers=[1] network.blocks=1 network.attention=[] \
  trainer.batch_size=4 trainer.log_every=1 trainer.checkpoint_every=0 trainer.keep_best=0 trainer.preview_samples=0 \
  trainer.schedule=constant device=cpu trainer.steps=$steps
"""


def _submit(folder: Path, python: str) -> subprocess.CompletedProcess[str]:
    found = re.search(
        r"<!-- run by tests/faults/test_slurm\.py -->\n```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    assert found is not None, "there is no recipe"
    (folder / "job.sh").write_text(found[1])
    programs = folder / "bin"
    programs.mkdir()
    stand_ins = {"sbatch": SBATCH, "scontrol": SCONTROL, "srun": SRUN, "python": python}
    for name, text in stand_ins.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
                   "OMP_NUM_THREADS": "1", "SLURM_JOB_ID": str(free_port() - 10000)}  # fmt: skip
    return subprocess.run(
        ["sbatch", "job.sh"], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
def test_a_job_whose_time_is_up_goes_back_into_the_queue_and_ends(tmp_path: Path) -> None:
    job = _submit(tmp_path, PYTHON)
    told = (job.stdout, job.stderr)
    assert (tmp_path / "slurm.log").read_text().splitlines() == [
        "requeued", "job ended with 75", "job ended with 0"
    ], told  # fmt: skip
    assert job.returncode == 0, told
    assert "stopped by SIGUSR1 at step" in job.stderr
    found = re.search(r"continued from step (\d+)", job.stdout)
    assert found is not None, told
    assert job.stdout.count("2 processes") == 2
    checkpoint, skipped = newest_checkpoint(tmp_path / "runs/first/checkpoints")
    assert checkpoint is not None
    assert (checkpoint.step, skipped) == (int(found[1]) + 5, [])


@pytest.mark.parametrize("code", [2, 70])
def test_a_job_that_fails_does_not_go_back_and_says_so(tmp_path: Path, code: int) -> None:
    (tmp_path / "signalled").touch()
    job = _submit(tmp_path, f"#!/bin/sh\nexit {code}\n")
    assert job.returncode == code
    assert (tmp_path / "slurm.log").read_text() == f"job ended with {code}\n"
