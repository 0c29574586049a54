r"""What a checkpoint costs a run: how long training waits, and its steps while a thread writes.

    OMP_NUM_THREADS=1 python benchmarks/saving.py --out docs/verification/saving.json

The U-Net of `size=cifar10` (29.7 million parameters; a checkpoint of 475 MB) is trained on noise of 3x32x32. In each
round some steps are timed, a checkpoint is saved within the step (`async_save=false`), a checkpoint is begun
(`async_save=true`), and steps are timed until it is written. A wait is the time that passes before the next step
begins. Waits and steps are timed by the wall clock, and in CPU time of the training thread alone (`_cpu`), which
depends neither on the disk nor on how many cores are free. All ratios are of medians over rounds in one process.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import sde_gen as sg
from sde_gen.data import Affine, Dataset
from sde_gen.training import Trainer, TrainerSettings
from sde_gen.training.checkpoint import checkpoint_folders


def measure(rounds: int, batch: int, plain: int) -> dict[str, Any]:
    """Waits and steps, in seconds."""
    x = torch.rand(96, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    network = sg.UNet(3, size="cifar10")
    settings = TrainerSettings(batch_size=batch, steps=10**6, log_every=1000, keep_last=1, keep_best=0)
    names = ("at_once", "copy", "step_plain", "step_writing")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    written: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            sg.ScoreModel(network, sg.VP()), Dataset("noise", "image", x[:64], x[64:], Affine()), settings=settings,
            checkpoints=folder,
        )  # fmt: skip

        def step(name: str) -> None:
            wall, cpu = time.perf_counter(), time.thread_time()
            trainer.update()
            times[name].append((time.perf_counter() - wall, time.thread_time() - cpu))

        def save(name: str) -> None:
            wall, cpu = time.perf_counter(), time.thread_time()
            trainer._save_later()
            times[name].append((time.perf_counter() - wall, time.thread_time() - cpu))

        trainer.update()
        for k in range(rounds + 1):
            for _ in range(plain):
                step("step_plain")
            trainer._saver.apart = False
            save("at_once")
            trainer.update()
            trainer._saver.apart = True
            with trainer._saver.running():
                save("copy")
                began = time.perf_counter()
                (pending,) = trainer._saver._pending.values()
                while not pending.done():
                    step("step_writing")
                written.append(time.perf_counter() - began)
                times["step_writing"].pop()  # in the middle of which it was done
                trainer._saver.settle()
            if k == 0:  # warms up
                for found in (*times.values(), written):
                    found.clear()
        size = sum(path.stat().st_size for path in checkpoint_folders(Path(folder))[0].iterdir())
    row: dict[str, Any] = {
        "parameters": sum(p.numel() for p in network.parameters()), "bytes": size, "batch": batch, "rounds": rounds,
        "cores": os.cpu_count(), "load": os.getloadavg()[0],
    }  # fmt: skip
    for name, found in times.items():
        row[f"{name}_s"], row[f"{name}_cpu_s"] = (statistics.median(k) for k in zip(*found, strict=True))
    row["written_s"] = statistics.median(written)
    for kind in ("", "_cpu"):
        row[f"wait_ratio{kind}"] = row[f"copy{kind}_s"] / row[f"at_once{kind}_s"]
        row[f"step_ratio{kind}"] = row[f"step_writing{kind}_s"] / row[f"step_plain{kind}_s"]
    return row


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--plain", type=int, default=8, help="steps in a round during which nothing is written")
    parser.add_argument("--out", type=Path, default=None, help="JSON to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    row = measure(options.rounds, options.batch, options.plain)
    for name, value in row.items():
        print(f"{name:<22} {value:,.4g}" if isinstance(value, float) else f"{name:<22} {value:,}")
    if options.out is not None:
        options.out.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
