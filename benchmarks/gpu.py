"""What every network of the package reaches on a GPU: step time, samples per second, memory, fraction of the peak.

    python benchmarks/gpu.py

prints one table, and `--out FILE.json` writes its numbers. Each network has the size that its paper has for 32x32, and
is trained by the trainer as it is for users (fused optimiser, averaged weights, clipping, channels last), on noise of
the shape of CIFAR-10: in float32, in bf16, and in bf16 with torch.compile, whose first step is timed apart. Rates count
the matrix products and convolutions of the network, forward and backward, beside the bf16 rate that the maker's data
sheet has for dense products, and beside what one large product reaches on the device itself.

Without a GPU it says so and ends. `--device cpu` runs the smallest sizes for one step on one thread, which shows that
the script works, and no more.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from training import PEAKS, images, operations, product_rate

import sde_gen as sg
from sde_gen.training import Trainer, TrainerSettings

#: Name, how it is made for 3x32x32, and in the smallest size.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "UNet cifar10": (lambda: sg.UNet(3, size="cifar10"), lambda: sg.UNet(3)),
    "DDPMpp cifar10_edm": (lambda: sg.DDPMpp(3, size="cifar10_edm"), lambda: sg.DDPMpp(3)),
    "NCSNpp cifar10": (lambda: sg.NCSNpp(3, size="cifar10"), lambda: sg.NCSNpp(3)),
    "DiT B/2": (lambda: sg.DiT(3, size="B", rms_norm=True), lambda: sg.DiT(3)),
    "EDM2 XS": (lambda: sg.EDM2(3, size="XS", attention=(1, 2)), lambda: sg.EDM2(3)),
}
WAYS = (("float32", False), ("bf16", False), ("bf16", True))


def seconds(run: Callable[[], Any], times: int, device: torch.device) -> float:
    """Of the wall clock, for one run of several."""
    finish = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    finish()
    began = time.perf_counter()
    for _ in range(times):
        run()
    finish()
    return (time.perf_counter() - began) / times


def measured(make: Callable[[], nn.Module], precision: Any, compiled: bool, batch: int, steps: int,
             device: torch.device) -> dict[str, Any]:  # fmt: skip
    """One row."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    network, data = make(), images(32, 3)
    settings = TrainerSettings(batch_size=batch, precision=precision, compile=compiled, steps=10**9)
    work = operations(network.to(device), data.train[:1].to(device)) * batch
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trainer = Trainer(sg.ScoreModel(network, sg.VP()), data, settings=settings, device=device)
    first = seconds(trainer.update, 1, device)
    seconds(trainer.update, max(1, steps // 5), device)
    taken = seconds(trainer.update, steps, device)
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return {"parameters": sum(p.numel() for p in network.parameters()), "precision": precision, "compile": compiled,
            "batch": batch, "first_step_s": first, "step_ms": 1e3 * taken, "samples_per_s": batch / taken,
            "teraflops": work / taken / 1e12, "memory_gib": memory}  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    on_gpu = device.type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        print(
            f"torch {torch.__version__} sees no CUDA device here, so nothing is measured; run this where there is one"
        )
        return
    name = torch.cuda.get_device_name(device) if on_gpu else "CPU, the smallest sizes"
    peak = next((value for key, value in PEAKS.items() if on_gpu and key in name), None)
    reached = product_rate(device) if on_gpu else None
    batch, steps = (asked.batch, asked.steps) if on_gpu else (4, 1)
    torch.set_num_threads(1)  # the host only hands out work
    product = "unknown" if reached is None else f"{reached:.0f}"
    print(f"{name}, torch {torch.__version__}, 3x32x32, batch {batch}; bf16 peak {peak or 'unknown'} TFLOP/s, "
          f"one large product {product}\n")  # fmt: skip
    head = ("network", "parameters", "precision", "compiled", "step, ms", "samples/s", "TFLOP/s", "of peak",
            "of product", "memory, GiB", "first step, s")  # fmt: skip
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    rows = []
    for key in asked.networks:
        for precision, compiled in WAYS if on_gpu else WAYS[:2]:
            make = NETWORKS[key][0 if on_gpu else 1]
            row = {"network": key if on_gpu else key.split()[0]}
            row |= measured(make, precision, compiled, batch, steps, device)
            row |= {"of_peak": peak and row["teraflops"] / peak, "of_product": reached and row["teraflops"] / reached}
            rows.append(row)
            shares = ["" if row[k] is None else f"{row[k]:.1%}" for k in ("of_peak", "of_product")]
            memory = "" if row["memory_gib"] is None else f"{row['memory_gib']:.1f}"
            cells = [row["network"], f"{row['parameters']:,}", precision, "yes" if compiled else "",
                     f"{row['step_ms']:.1f}", f"{row['samples_per_s']:.0f}", f"{row['teraflops']:.2f}", *shares,
                     memory, f"{row['first_step_s']:.1f}"]  # fmt: skip
            print(f"| {' | '.join(cells)} |", flush=True)
    if asked.out is not None:
        about = {"device": name, "torch": torch.__version__, "peak_teraflops": peak, "product_teraflops": reached}
        asked.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
