r"""What several processes on one job add to the sum of its parts: DDP, a U-Net, gloo, in CPU time.

    OMP_NUM_THREADS=1 python benchmarks/processes.py --out docs/verification/processes.json

For 2 and for 4 processes, in each process and in turn: steps of the trainer on its own rows alone, all-reduces of one
tensor with the bytes of the gradient, and steps of the trainer on the job. The ratio is that of the last to the sum of
the first two, in CPU time of the whole process (all its threads), the median over rounds, of the worst process. The bar
is 1.05.

It shows the work that is done, on any number of cores and beside any neighbours. It cannot show what is waited for: how
much of the exchange the backward pass hides, and what a slow network or a slow process costs the others.
"""

import argparse
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

import sde_gen as sg
from sde_gen.data import Affine, Dataset
from sde_gen.distributed import Processes, Pulse, leave, start
from sde_gen.training import Trainer, TrainerSettings


def trainer(processes: Processes, batch: int) -> Trainer:
    """Of a U-Net, the same in every process."""
    torch.manual_seed(0)
    x = torch.rand(600, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    settings = TrainerSettings(batch_size=batch, steps=10**6, log_every=1000)
    data = Dataset("noise", "image", x[:500], x[500:], Affine())
    return Trainer(sg.ScoreModel(sg.UNet(1), sg.VP()), data, settings=settings, processes=processes)


def work(rank: int, world: int, port: int, options: argparse.Namespace, folder: str) -> None:
    """What one process does: its seconds of CPU time for each part and round."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port))  # fmt: skip
    torch.set_num_threads(1)
    processes = start(timeout=600.0)
    alone, together = trainer(Processes(), options.batch), trainer(processes, world * options.batch)
    gradient = torch.zeros(sum(p.numel() for p in alone.network.parameters()))
    pulse = Pulse(processes)

    def job() -> None:
        together.update()
        pulse.exchange(False, 0.0)

    parts: dict[str, Callable[[], object]] = {
        "compute": alone.update,
        "all_reduce": lambda: dist.all_reduce(gradient),
        "job": job,
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(options.rounds + 1):
        for name, part in parts.items():
            processes.wait()
            began = time.process_time()
            for _ in range(options.steps):
                part()
            times[name].append((time.process_time() - began) / options.steps)
    pulse.close()
    for found in times.values():
        found.pop(0)  # which warms up
    Path(folder, f"{world}-{rank}.json").write_text(json.dumps(times | {"bytes": [4 * gradient.numel()]}))
    processes.wait()
    leave()


def measure(world: int, options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """The row of the table."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(work, (world, port, options, folder), nprocs=world)
    ranks = [json.loads(Path(folder, f"{world}-{rank}.json").read_text()) for rank in range(world)]
    ratios = [
        statistics.median(
            job / (compute + reduce)
            for compute, reduce, job in zip(r["compute"], r["all_reduce"], r["job"], strict=True)
        )
        for r in ranks
    ]
    row: dict[str, Any] = {"processes": world, "batch_each": options.batch, "gradient_bytes": ranks[0]["bytes"][0]}
    for name in ("compute", "all_reduce", "job"):
        row[f"{name}_ms"] = 1e3 * statistics.median(v for r in ranks for v in r[name])
    return row | {"ratio": max(ratios), "rounds": options.rounds, "steps": options.steps, "cores": os.cpu_count()}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="of each part in one round")
    parser.add_argument("--batch", type=int, default=32, help="samples of each process")
    parser.add_argument("--worlds", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--out", type=Path, default=None, help="JSON to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(world, options, folder) for world in options.worlds]
    for row in rows:
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    if options.out is not None:
        options.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
