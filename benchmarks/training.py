r"""What the trainer costs beside a bare loop of the same network, in CPU time per step.

    OMP_NUM_THREADS=1 python benchmarks/training.py --out docs/verification/training.md

The trainer runs as it does for users: data order, times and noise keyed by (seed, step), loss, clipping, averaged
weights, rows of metrics, checks for faults. The bare loop does what no loop can do without: a batch by random indices,
random times and noise from torch's global generator, the noisy state, the network, the squared error, backward, Adam.
Both train one and the same network, in one process with one thread, in turn, a few steps at a time and in every order,
and so does a second bare loop: what that one seems to cost is the error of the measurement. Given are medians of the
differences of each round, which neighbours on the machine do not disturb as they do a mean, with an interval that
covers the true median with a probability of 95 % (by order statistics, whatever the distribution).

Networks: one that costs next to nothing (a linear layer), and a U-Net. On a GPU (--device cuda) the time is that of the
wall clock around synchronised runs, in float32, in bf16, and in bf16 with torch.compile, with the fraction of the
device's peak that the arithmetic of the network reaches.
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import sde_gen as sg
from sde_gen.data import Affine, Dataset
from sde_gen.training import MetricsFile, Trainer, TrainerSettings

#: Dense bf16 products, in 1e12 operations per second, from the makers' data sheets; the first name that fits counts.
PEAKS = {"H200": 989.5, "H100": 989.5, "A100": 312.0, "L40S": 362.0, "RTX 4090": 165.2, "L4": 121.0}


class Free(nn.Module):
    """Next to no work, the least that can be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.layer(x)


def points() -> Dataset:
    """Points in the plane."""
    x = torch.randn(4096, 2, generator=torch.Generator().manual_seed(0))
    return Dataset("points", "vector", x[:4000], x[4000:], Affine())


def images(side: int, channels: int) -> Dataset:
    """Noise, shaped like images."""
    x = torch.rand(600, channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Dataset("images", "image", x[:500], x[500:], Affine())


def bare(network: nn.Module, data: Dataset, settings: TrainerSettings, device: torch.device) -> Callable[[int], None]:
    """The loop that anybody would write."""
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate, fused=True)
    x = data.train.to(device)
    size = settings.batch_size

    def run(steps: int) -> None:
        for _ in range(steps):
            x0 = x[torch.randint(len(x), (size,), device=device)]
            if x0.ndim == 4 and settings.channels_last:
                x0 = x0.contiguous(memory_format=torch.channels_last)
            t = torch.rand(size, device=device)
            noise = torch.randn_like(x0)
            log_alpha = -(t**2) * 19.9 / 4 - t * 0.05
            shape = (size, *[1] * (x0.ndim - 1))
            alpha, sigma = log_alpha.exp().view(shape), (-torch.expm1(2 * log_alpha)).sqrt().view(shape)
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                loss = (network(alpha * x0 + sigma * noise, t) - noise).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def ours(
    network: nn.Module, data: Dataset, settings: TrainerSettings, device: torch.device, folder: Path
) -> Callable[[int], None]:
    """The trainer, with everything on."""
    metrics = MetricsFile(folder / "metrics.csv")
    trainer = Trainer(
        sg.ScoreModel(network, sg.VP()), data, sg.DenoisingScoreMatching(), settings, device=device,
        listeners=[lambda event, _, values: metrics.add(values) and None if event == "log" else None],
    )  # fmt: skip

    def run(steps: int) -> None:
        for _ in range(steps):
            trainer.update()
            if trainer.step % settings.log_every == 0:
                trainer._log()

    return run


def measure(name: str, make: Callable[[], nn.Module], data: Dataset, settings: TrainerSettings, steps: int,
            rounds: int, device: torch.device) -> dict[str, Any]:  # fmt: skip
    """Milliseconds per step of the loops, round by round, and what follows from them."""
    torch.manual_seed(0)
    network = make()
    with tempfile.TemporaryDirectory() as folder:
        trainer = ours(network, data, settings, device, Path(folder))  # moves, lays out and compiles the network
        runs = {"trainer": trainer}
        runs |= {key: bare(network, data, settings, device) for key in ("bare", "control")}
        times: dict[str, list[float]] = {key: [] for key in runs}
        for order in itertools.islice(itertools.cycle(itertools.permutations(runs)), rounds + 1):
            taken = {key: _milliseconds(runs[key], steps, device) for key in order}
            for key in runs:
                times[key].append(taken[key])
        times = {key: values[1:] for key, values in times.items()}  # the first round warms up
    floor = statistics.median(times["bare"])
    row: dict[str, Any] = {
        "network": name,
        "parameters": sum(p.numel() for p in network.parameters()),
        "batch": settings.batch_size,
        "precision": settings.precision,
        "compile": settings.compile,
        "bare_ms": floor,
        "trainer_ms": statistics.median(times["trainer"]),
    }
    for key in ("trainer", "control"):
        middle, low, high = median_with_interval([b - a for a, b in zip(times["bare"], times[key], strict=True)])
        row[f"{key}_extra_ms"], row[f"{key}_interval_ms"] = middle, [low, high]
        row[f"{key}_extra_percent"] = 100 * middle / floor
        row[f"{key}_interval_percent"] = [100 * low / floor, 100 * high / floor]
    if device.type == "cuda":
        row |= arithmetic(network, data.train[: settings.batch_size].to(device), row["trainer_ms"])
    return row


def _milliseconds(run: Callable[[int], None], steps: int, device: torch.device) -> float:
    """Of one step: CPU time of this process; on a GPU, of the wall clock."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = clock()
    run(steps)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (clock() - began) / steps * 1e3


def median_with_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Median, and the closest order statistics that have the true one between them with probability `level`."""
    ranked, n = sorted(values), len(values)
    outside, k = 0.0, 0  # P(fewer than k of n lie below the true median) = sum_{j<k} C(n, j) / 2^n
    while k < n // 2 and 2 * (outside + math.comb(n, k) / 2**n) <= 1 - level:
        outside += math.comb(n, k) / 2**n
        k += 1
    return statistics.median(ranked), ranked[max(0, k - 1)], ranked[n - max(1, k)]


def arithmetic(network: nn.Module, x0: Tensor, milliseconds: float) -> dict[str, Any]:
    """Rate of the network's products in a step, and which part of the peak rate that is."""
    rate = operations(network, x0) / milliseconds / 1e9  # 1e12 per second
    reached, device = product_rate(x0.device), torch.cuda.get_device_name(x0.device)
    peak = next((value for name, value in PEAKS.items() if name in device), None)
    return {
        "teraflops": rate,
        "product_teraflops": reached,
        "fraction_of_product": rate / reached,
        "peak_teraflops": peak,
        "fraction_of_peak": None if peak is None else rate / peak,
    }


def operations(network: nn.Module, x0: Tensor) -> int:
    """Additions and multiplications in the matrix products and convolutions of one step."""
    with FlopCounterMode(display=False) as counter:
        network(x0, torch.zeros(len(x0), device=x0.device)).square().mean().backward()
    network.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())


def product_rate(device: torch.device, size: int = 8192, repeats: int = 20) -> float:
    """What a product of two large bf16 matrices reaches, in 1e12 operations per second."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)

    def run(times: int) -> None:
        for _ in range(times):
            torch.mm(a, b, out=out)

    run(3)
    return 2 * size**3 / _milliseconds(run, repeats, device) / 1e9


def markdown(rows: Sequence[dict[str, Any]], options: argparse.Namespace, where: str) -> str:
    """The page."""
    command = f"python benchmarks/training.py --device {options.device} --rounds {options.rounds}"
    lines = [
        "# What the trainer costs",
        "",
        f"`OMP_NUM_THREADS=1 {command} --out docs/verification/training.md`, {where}.",
        "",
        "Milliseconds per step of a bare loop, and what the trainer adds to it with averaged weights, clipping, checks",
        "for faults and rows of metrics: medians of the differences of interleaved rounds on one and the same network,",
        "with intervals that cover the true median with a probability of 95 %. A second bare loop is measured like the",
        "trainer: what it seems to cost is the error of the measurement.",
        "",
        "| network | parameters | batch | bare loop | trainer adds, ms | trainer adds, % | second bare loop, % |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        kind = "" if row["precision"] == "float32" else f", {row['precision']}{', compiled' if row['compile'] else ''}"
        cells = [row["network"] + kind, f"{row['parameters']:,}", row["batch"], f"{row['bare_ms']:.3f}"]
        for key, unit, digits in (("trainer", "ms", 3), ("trainer", "percent", 1), ("control", "percent", 1)):
            low, high = row[f"{key}_interval_{unit}"]
            cells.append(f"{row[f'{key}_extra_{unit}']:+.{digits}f} ({low:+.{digits}f} .. {high:+.{digits}f})")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    if any("teraflops" in row for row in rows):
        lines += [
            "",
            "| network | TFLOP/s | of a large bf16 product | of the data sheet's bf16 peak |",
            "|---|---|---|---|",
        ]
        for row in rows:
            if "teraflops" in row:
                kind = f"{row['network']}, {row['precision']}{', compiled' if row['compile'] else ''}"
                peak = "unknown" if row["fraction_of_peak"] is None else f"{row['fraction_of_peak']:.1%}"
                lines.append(f"| {kind} | {row['teraflops']:.1f} | {row['fraction_of_product']:.1%} | {peak} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--steps", type=int, default=100, help="steps of the free network in one round")
    parser.add_argument("--unet-steps", type=int, default=2, help="steps of the U-Net in one round (10 times on a GPU)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=None, help="page to write, the numbers beside it as JSON")
    options = parser.parse_args()
    if options.rounds < 6:
        parser.error("--rounds must be at least 6: fewer have no interval of 95 %")
    torch.set_num_threads(1)
    device = torch.device(options.device)
    steps = options.unet_steps if device.type == "cpu" else 10 * options.unet_steps
    free = TrainerSettings(batch_size=128, log_every=50, steps=10**9, schedule="constant")
    # A row of metrics in every round: more often than the trainer's default, so that its cost is in the median.
    wide = dataclasses.replace(free, log_every=steps)
    rows = [measure("linear, 2-D", Free, points(), free, options.steps, options.rounds, device)]
    if device.type == "cpu":
        wide = dataclasses.replace(wide, batch_size=32)
        rows.append(measure("U-Net, 1x28x28", lambda: sg.UNet(1), images(28, 1), wide, steps, options.rounds, device))
    else:
        make, data = (lambda: sg.UNet(3, width=128, blocks=2)), images(32, 3)
        for precision, compiled in (("float32", False), ("bf16", False), ("bf16", True)):
            large = dataclasses.replace(wide, precision=precision, compile=compiled)
            rows.append(measure("U-Net, 3x32x32", make, data, large, steps, options.rounds, device))
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()}, one thread"
    text = markdown(rows, options, f"torch {torch.__version__}, {machine}, {options.rounds} rounds")
    print(text)
    if options.out is not None:
        options.out.write_text(text)
        options.out.with_suffix(".json").write_text(
            json.dumps({"cores": os.cpu_count(), "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
