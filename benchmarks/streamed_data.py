r"""Images that stay on the disk: peak memory against their number, and what a training step pays for it.

    OMP_NUM_THREADS=1 python benchmarks/streamed_data.py --out docs/verification/streamed_data.md

For each number of images a process of its own reads a `.npy` of bytes with `stream=True`, trains a small U-Net for
some steps, and tells its peak memory (VmHWM of /proc, Linux). Then two trainers of one U-Net, one on a folder of PNGs
that is streamed and one on the same images in memory, take turns step by step. Time is that of the CPU, and batches are
read where they are asked for (`workers=0`): with threads, a free core or the other trainer's turn would pay for them.
Given are the medians of the step from memory and of the differences, with an interval for the true median of 95 %.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binom

SIDE = 16
_TRAIN = """
import sys, torch, sde_gen as sg
from sde_gen.data import array_file
data = array_file(sys.argv[1], stream=sys.argv[2] == "True")
model = sg.ScoreModel(sg.UNet(1, width=8, multipliers=(1, 2), blocks=1), sg.VP())
settings = sg.TrainerSettings(steps=20, batch_size=32, eval_every=0, keep_best=0, preview_samples=0)
sg.Trainer(model, data, settings=settings).train()
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


def peak(count: int, folder: Path, stream: bool) -> float:
    """Peak memory in MiB of a process that trains on so many images."""
    file = folder / f"{count}.npy"
    if not file.exists():
        images = np.lib.format.open_memmap(file, "w+", np.uint8, (count, SIDE, SIDE))
        rng = np.random.default_rng(0)
        for first in range(0, count, 10_000):
            images[first : first + 10_000] = rng.integers(0, 256, (min(10_000, count - first), SIDE, SIDE), np.uint8)
        del images
    done = subprocess.run(
        [sys.executable, "-c", _TRAIN, str(file), str(stream)], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1]) / 1024


def step_cost(folder: Path, count: int, side: int, steps: int) -> tuple[float, list[float]]:
    """CPU seconds of a step from memory; what streaming adds as a share of it: median, and the ends of its interval."""
    from PIL import Image

    import sde_gen as sg
    from sde_gen.data import image_folder

    rng = np.random.default_rng(0)
    (folder / "png").mkdir()
    for k in range(count):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(folder / "png" / f"{k:05d}.png")
    trainers = []
    for stream in (False, True):
        torch.manual_seed(0)
        model = sg.ScoreModel(sg.UNet(3, width=32, multipliers=(1, 2), blocks=1), sg.VP())
        settings = sg.TrainerSettings(steps=10**6, batch_size=64, log_every=10**4, preview_samples=0)
        data = image_folder(folder / "png", stream=stream, workers=0)
        trainer = sg.Trainer(model, data, settings=settings)
        trainers.append(trainer)
    times: list[list[float]] = [[], []]
    for turn in range(-3, steps):  # the first three warm up
        for which in (0, 1) if turn % 2 else (1, 0):
            began = time.process_time()
            trainers[which].update()
            if turn >= 0:
                times[which].append(time.process_time() - began)
    held = statistics.median(times[0])
    shares = sorted((b - a) / held for a, b in zip(*times, strict=True))
    reach = int(binom.ppf(0.025, steps, 0.5))  # order statistics, whatever the distribution
    return held, [statistics.median(shares), shares[reach - 1], shares[-reach]]


def markdown(found: dict) -> str:
    """The page."""
    lines = ["# Images that stay on the disk", "", "    " + found["command"], "",
             f"Peak memory of a process that trains on images of {SIDE} x {SIDE} bytes:", "",
             "| images | streamed, MiB | in memory, MiB |", "|---|---|---|"]  # fmt: skip
    for row in found["memory"]:
        held = "" if row["held"] is None else f"{row['held']:.0f}"
        lines.append(f"| {row['images']:,} | {row['streamed']:.0f} | {held} |")
    middle, low, high = (f"{100 * share:.1f}" for share in found["added"])
    step = f"{found['step']:.3f} s of CPU time from memory"
    lines += ["", f"A training step of a U-Net on PNGs of 32 x 32, batch 64, takes {step};",
              f"reading and decoding the batch in the same thread adds {middle} % ({low} to {high})."]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        memory = [{"images": n, "streamed": peak(n, Path(folder), True),
                   "held": peak(n, Path(folder), False) if n <= 100_000 else None} for n in given.counts]  # fmt: skip
        step, added = step_cost(Path(folder), 600, 32, given.steps)
    threads = os.environ.get("OMP_NUM_THREADS")
    command = f"{f'OMP_NUM_THREADS={threads} ' if threads else ''}python benchmarks/streamed_data.py"
    found = {"command": command, "memory": memory, "step": step, "added": added}
    print(markdown(found))
    if given.out is not None:
        given.out.write_text(markdown(found), encoding="utf-8")
        given.out.with_suffix(".json").write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
