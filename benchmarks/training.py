r"""What the trainer costs beside a bare loop of the same network, in CPU time per step.

    OMP_NUM_THREADS=1 python benchmarks/training.py --out training.json

The trainer runs as it does for users: data order, times and noise keyed by (seed, step), loss, clipping, averaged
weights, rows of metrics, checks for faults. The bare loop does what no loop can do without: a batch by random indices,
random times and noise from torch's global generator, the noisy state, the network, the squared error, backward, Adam.
The two run in turn, many times, in one process with one thread; the medians of the repeats are compared, since
neighbours on a machine disturb a mean. Networks: one that costs next to nothing (a linear layer), and a U-Net.
On a GPU (--device cuda) the time is that of the wall clock around synchronised runs.
"""

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import sde_gen as sg
from sde_gen.data import Affine, Dataset
from sde_gen.training import MetricsFile, Trainer, TrainerSettings


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
    network = network.to(device)
    if settings.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if settings.compile:
        network.compile()
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
            trainer._one_step()
            trainer.step += 1
            if trainer.step % settings.log_every == 0:
                trainer._log()

    return run


def measure(name: str, make: Callable[[], nn.Module], data: Dataset, settings: TrainerSettings, steps: int,
            repeats: int, device: torch.device) -> dict[str, object]:  # fmt: skip
    """Medians over the repeats, of the two and of their difference."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        runs = {
            "bare": bare(make(), data, settings, device),
            "ours": ours(make(), data, settings, device, Path(folder)),
        }
        times: dict[str, list[float]] = {key: [] for key in runs}
        for repeat in range(repeats + 1):
            # Each in turn goes first; the first round warms up.
            for key in sorted(runs, reverse=bool(repeat % 2)):
                if device.type == "cuda":
                    torch.cuda.synchronize()
                began = clock()
                runs[key](steps)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if repeat:
                    times[key].append((clock() - began) / steps * 1e3)
    medians = {key: statistics.median(values) for key, values in times.items()}
    extra = [b - a for a, b in zip(times["bare"], times["ours"], strict=True)]
    low, high = (statistics.quantiles(extra, n=4)[i] for i in (0, 2)) if len(extra) > 1 else (extra[0], extra[0])
    return {
        "network": name,
        "parameters": sum(p.numel() for p in make().parameters()),
        "batch": settings.batch_size,
        "bare_ms": medians["bare"],
        "trainer_ms": medians["ours"],
        "extra_ms": statistics.median(extra),
        "extra_quartiles_ms": [low, high],
        "extra_percent": 100 * statistics.median(extra) / medians["bare"],
        "steps_per_second": 1e3 / medians["ours"],
        "precision": settings.precision,
        "compile": settings.compile,
    }


def main() -> None:
    """Run, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--steps", type=int, default=100, help="steps of the free network in one repeat")
    parser.add_argument("--unet-steps", type=int, default=2, help="steps of the U-Net in one repeat")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=None, help="also write the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    settings = TrainerSettings(batch_size=128, log_every=50, steps=10**9, schedule="constant")
    rows = [measure("linear, 2-D", Free, points(), settings, options.steps, options.repeats, device)]
    wide = TrainerSettings(batch_size=32, log_every=50, steps=10**9, schedule="constant")
    if device.type == "cpu":
        make, data = (lambda: sg.UNet(1)), images(28, 1)
        rows.append(measure("U-Net, 1x28x28", make, data, wide, options.unet_steps, options.repeats, device))
    else:
        make, data = (lambda: sg.UNet(3, width=128, blocks=2)), images(32, 3)
        for precision, compiled in (("float32", False), ("bf16", False), ("bf16", True)):
            large = dataclasses.replace(settings, precision=precision, compile=compiled)
            rows.append(measure("U-Net, 3x32x32", make, data, large, 10 * options.unet_steps, options.repeats, device))
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} thread, {os.cpu_count()} cores; "
          f"medians of {options.repeats} interleaved repeats")  # fmt: skip
    print("| network | parameters | batch | bare loop, ms/step | trainer, ms/step | extra, ms (quartiles) | extra, % |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        low, high = row["extra_quartiles_ms"]  # type: ignore[misc]
        kind = "" if row["precision"] == "float32" else f", {row['precision']}{', compiled' if row['compile'] else ''}"
        print(
            f"| {row['network']}{kind} | {row['parameters']:,} | {row['batch']} | {row['bare_ms']:.3f} | "
            f"{row['trainer_ms']:.3f} | {row['extra_ms']:+.3f} ({low:+.3f} .. {high:+.3f}) | "
            f"{row['extra_percent']:+.1f} |"
        )
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
