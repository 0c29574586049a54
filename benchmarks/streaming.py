r"""Many samples in bounded memory: peak memory of small and large jobs, and what a kill -9 in the middle costs.

    OMP_NUM_THREADS=1 python benchmarks/streaming.py --out docs/verification/streaming.md

A network is trained for a moment (it is the streaming that is looked at), and sampled with ten steps of DDIM by
`python -m sde_gen.sample`: a small job in one go, several times, since the peak of one and the same job depends on
where the allocator finds room; a large one that is killed when half of its blocks are there, and resumed by the same
command. Compared with the small job are the first samples of the large one, which were drawn before the kill, and with
samples drawn anew through the library its last block, which was drawn after it. Peak memory is VmHWM of the process, as
the system keeps it (/proc, Linux).
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import sde_gen as sg
from sde_gen.config.restore import load_model
from sde_gen.streaming import block_length

STEPS = 10
REPEATS = 3  # of the small job


class Job(NamedTuple):
    """What is sampled."""

    data: str
    shape: tuple[int, ...]
    small: int
    large: int


JOBS = {
    "digits, 1x8x8": Job("digits", (1, 8, 8), 5_000, 50_000),
    "points in the plane": Job("two_moons", (2,), 100_000, 1_000_000),
}


class Run(NamedTuple):
    """One process of `python -m sde_gen.sample`."""

    code: int
    mebibytes: float
    seconds: float
    blocks: int


def sample(run: str, count: int, out: Path, runs: Path, kill_at: int = 0) -> Run:
    """Sample in a process of its own; with `kill_at`, kill it once so many blocks are there."""
    command = [sys.executable, "-m", "sde_gen.sample", f"run={run}", f"runs_dir={runs}", f"out={out}", "device=cpu",
               "sampler=ddim", f"sampler.steps={STEPS}", f"num_samples={count}", "metrics=false"]  # fmt: skip
    began, peak, blocks = time.monotonic(), 0.0, 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, high_water(process.pid))
            blocks = max(blocks, len(list(out.glob(".partial-*/block_*"))))
            if kill_at and blocks >= kill_at:
                time.sleep(0.2)  # into the next block
                peak = max(peak, high_water(process.pid))
                process.kill()
                break
            time.sleep(0.01)
    return Run(process.returncode, peak, time.monotonic() - began, blocks)


def high_water(process: int) -> float:
    """Peak resident memory of a process so far, in MiB; 0 once it has ended."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1024 if found else 0.0


def measure(name: str, job: Job, folder: Path, train_steps: int) -> dict[str, Any]:
    """Train, sample, kill, resume, compare."""
    runs = folder / "runs"
    train = [sys.executable, "-m", "sde_gen.train", f"data={job.data}", f"run={job.data}", f"runs_dir={runs}",
             f"trainer.steps={train_steps}", "trainer.warmup=10", "trainer.preview_samples=0", "trainer.keep_best=0",
             "device=cpu"]  # fmt: skip
    subprocess.run(train, check=True, stdout=subprocess.DEVNULL)
    block = min(job.large, block_length(job.shape))
    count = -(-job.large // block)
    smalls = [sample(job.data, job.small, folder / "small", runs) for _ in range(REPEATS)]
    killed = sample(job.data, job.large, folder / "large", runs, kill_at=count // 2)
    kept = len(list((folder / "large").glob(".partial-*/block_*")))
    resumed = sample(job.data, job.large, folder / "large", runs)
    codes = [run.code for run in (*smalls, killed, resumed)]
    if codes != [0] * REPEATS + [-9, 0]:
        raise RuntimeError(f"{name}: exit codes {codes}")
    first, last = _compare(job, folder, runs, block)
    return {
        "job": name,
        "samples": [job.small, job.large],
        "block": block,
        "blocks": count,
        "blocks_kept": kept,
        "peak_mib": {
            "small": [run.mebibytes for run in smalls],
            "killed": [killed.mebibytes],
            "resumed": [resumed.mebibytes],
        },
        "seconds": {"small": min(run.seconds for run in smalls), "killed": killed.seconds, "resumed": resumed.seconds},
        "result_mib": sum(path.stat().st_size for path in (folder / "large").rglob("*.npz")) / 2**20,
        "first_samples_differ_by": first,
        "last_block_differs_by": last,
        "left": sorted(path.name for path in (folder / "large").iterdir()),
    }


def _compare(job: Job, folder: Path, runs: Path, block: int) -> tuple[float, float]:
    """Largest differences of the first samples to the small job, and of the last block to one drawn anew."""
    with np.load(folder / "small/samples.npz") as small, np.load(folder / "large/samples.npz") as large:
        a, b = small["model_x"], large["model_x"]
    start = (len(b) - 1) // block * block
    model = load_model(runs / job.data)
    anew = sg.DDIM(steps=STEPS)(model, (len(b) - start, *job.shape), seed=0, first=start, chunk=block).x.numpy()
    return float(np.abs(a - b[: len(a)]).max()), float(np.abs(anew - b[start:]).max())


def markdown(rows: list[dict[str, Any]]) -> str:
    """The page."""
    command = "OMP_NUM_THREADS=1 python benchmarks/streaming.py --out docs/verification/streaming.md"
    lines = [
        "# Many samples in bounded memory",
        "",
        f"`{command}`, torch {torch.__version__}, {platform.machine()}, one thread.",
        "",
        f"`python -m sde_gen.sample` with {STEPS} steps of DDIM: a small job in one go, {REPEATS} times; a large one",
        "killed by SIGKILL when half of its blocks were there, and resumed by the same command. Peak memory is VmHWM",
        "of the process: Python with torch, and one block in the network.",
        "",
        "| job | samples | samples in a block | peak memory, MiB | seconds |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        small, large = (f"{count:,}" for count in row["samples"])
        kept = f"{large}, killed with {row['blocks_kept']} of {row['blocks']} blocks"
        for samples, key in ((small, "small"), (kept, "killed"), (f"{large}, resumed", "resumed")):
            peak = ", ".join(f"{value:.0f}" for value in row["peak_mib"][key])
            lines.append(f"| {row['job']} | {samples} | {row['block']:,} | {peak} | {row['seconds'][key]:.0f} |")
    lines.append("")
    for row in rows:
        first, last = row["first_samples_differ_by"], row["last_block_differs_by"]
        equal = "bit for bit" if first == last == 0 else f"up to {first:.1e} and {last:.1e}"
        lines.append(
            f"- {row['job']}: the result has {row['result_mib']:.0f} MiB. The first {row['samples'][0]:,} samples are "
            f"those of the small job, and the last block is the one drawn anew, {equal}."
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-steps", type=int, default=60)
    parser.add_argument("--share", type=float, default=1.0, help="a smaller part of each job, for a quick look")
    parser.add_argument("--out", type=Path, default=None, help="page to write, the numbers beside it as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    rows = []
    for name, job in JOBS.items():
        part = job._replace(small=round(job.small * options.share), large=round(job.large * options.share))
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, part, Path(folder), options.train_steps))
    text = markdown(rows)
    print(text)
    if options.out is not None:
        options.out.write_text(text)
        options.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
