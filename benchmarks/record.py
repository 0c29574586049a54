r"""What the record of a training run costs, in CPU time, as a share of the steps of a U-Net.

    OMP_NUM_THREADS=1 python benchmarks/record.py --out docs/verification/record.json

The parts are timed by themselves, which a difference of whole steps on a machine with neighbours would not resolve:

kept    what a step puts aside: losses, times, the norms of each parameter's gradient
read    reading and sorting it, once for each row: loss, gradient norm, loss by noise level, gradient norm by block
row     writing the rows of metrics.csv, levels.csv and gradients.csv
page    writing training.html after 1,000 rows, at most once in ten seconds

A row is due every 50 steps (the default). The bar: at most 1 % of a step, all together.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import sde_gen as sg
from sde_gen import pictures
from sde_gen.data import Affine, Dataset
from sde_gen.training import MetricsFile, Trainer, TrainerSettings, read_metrics


def cpu(function: Callable[[], object], repeats: int = 1) -> float:
    """Seconds of CPU time of one call."""
    began = time.process_time()
    for _ in range(repeats):
        function()
    return (time.process_time() - began) / repeats


def measure(rounds: int, batch: int, every: int) -> dict[str, Any]:
    """Seconds of each part, and their share of a step."""
    x = torch.rand(600, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    network = sg.UNet(1)
    settings = TrainerSettings(batch_size=batch, steps=10**6, log_every=every)
    trainer = Trainer(
        sg.ScoreModel(network, sg.VP()), Dataset("noise", "image", x[:500], x[500:], Affine()), settings=settings
    )
    record, update = trainer.record, trainer._update
    times: dict[str, list[float]] = {name: [] for name in ("step", "kept", "read", "row", "page")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {
            "log": MetricsFile(folder / "metrics.csv"),
            "levels": MetricsFile(folder / "levels.csv", columns=("step", *record.levels.names)),
            "blocks": MetricsFile(folder / "gradients.csv", columns=("step", *record.blocks.names)),
        }
        losses = torch.rand(batch)

        def kept() -> None:
            record.losses[0][:batch].copy_(losses)
            record.times.append(losses)
            record.norms[0].copy_(losses[0])
            record.each.append(update.norms)

        def write(rows: dict[str, Any]) -> None:
            for event, row in rows.items():
                files[event].add(row)

        def page() -> None:
            tables = {event: read_metrics(file.path, None) for event, file in files.items()}
            tables["metrics"] = tables.pop("log")
            (folder / "training.html").write_text(pictures.training_page("run", {}, tables, [], True))

        for k in range(rounds):
            times["step"].append(cpu(trainer.update, every))
            seen, each = list(record.times), list(record.each)
            times["kept"].append(cpu(kept, 2000))
            record.times, record.each = seen, each
            rows: dict[str, Any] = {}

            def read(rows: dict[str, Any] = rows) -> None:
                record.read(trainer.step)
                rows["log"] = record.row(batch)
                rows |= record.tables(None)

            times["read"].append(cpu(read))
            for n in range(1000 // rounds):
                for row in rows.values():
                    row["step"] = k * 1000 + n
                times["row"].append(cpu(lambda rows=rows: write(rows)))
        times["page"] = [cpu(page) for _ in range(3)]
    found: dict[str, Any] = {f"{name}_s": statistics.median(values) for name, values in times.items()}
    step = found["step_s"]
    found["per_step_s"] = found["kept_s"] + (found["read_s"] + found["row_s"]) / every
    found["percent_of_step"] = 100 * found["per_step_s"] / step
    found["page_percent"] = 100 * found["page_s"] / max(10.0, 100 * found["page_s"])
    found["percent"] = found["percent_of_step"] + found["page_percent"]
    parameters = sum(p.numel() for p in network.parameters())
    return {"parameters": parameters, "batch": batch, "rounds": rounds, "log_every": every, **found}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--every", type=int, default=50, help="steps between two rows")
    parser.add_argument("--out", type=Path, default=None, help="JSON to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    row = measure(options.rounds, options.batch, options.every)
    for name, value in row.items():
        print(f"{name:<18} {value:,.4g}" if isinstance(value, float) else f"{name:<18} {value:,}")
    if options.out is not None:
        options.out.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
