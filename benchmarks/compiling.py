r"""What torch.compile takes and gives on a CPU: CPU seconds of the first step, and of later ones, of every network.

    OMP_NUM_THREADS=1 python benchmarks/compiling.py --out compiling.json

Each network in its smallest size is trained by the trainer on noise, in one thread, as it is and with
trainer.compile=true; the compiler starts from nothing, in the same thread, and what it calls is counted. Weights after
all steps are compared. `benchmarks/gpu.py` does the same where there is a GPU.
"""

import argparse
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}

import torch
from torch import nn

import sde_gen as sg
from sde_gen.data import Affine, Dataset
from sde_gen.training import Trainer, TrainerSettings

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MLP": sg.MLP, "UNet": sg.UNet, "DiT": sg.DiT, "EDM2": sg.EDM2, "DDPMpp": sg.DDPMpp, "NCSNpp": sg.NCSNpp,
}  # fmt: skip
BATCH, STEPS = 8, 10


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


def trained(name: str, compiled: bool) -> tuple[float, float, torch.Tensor]:
    """CPU seconds of the first step and of each later one; all weights."""
    torch.manual_seed(0)
    network, generator = NETWORKS[name](), torch.Generator().manual_seed(0)
    shape, kind = ((2,), "vector") if name == "MLP" else ((1, 8, 8), "image")
    x = torch.rand(64, *shape, generator=generator) * 2 - 1
    data = Dataset("noise", kind, x[:48], x[48:], Affine())
    settings = TrainerSettings(batch_size=BATCH, compile=compiled)
    trainer = Trainer(sg.ScoreModel(network, sg.VP()), data, settings=settings)
    began = cpu_seconds()
    trainer.update()
    first = cpu_seconds()
    for _ in range(STEPS):
        trainer.update()
    weights = torch.cat([p.detach().flatten() for p in network.parameters()])
    return first - began, (cpu_seconds() - first) / STEPS, weights


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # of what the compiler imports
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    print(
        "| network | first step, CPU s | step, ms | compiled, ms | weights differ by |\n|---|---|---|---|---|",
        flush=True,
    )
    for name in asked.networks:
        _, plain, weights = trained(name, False)
        torch._dynamo.reset()
        first, step, again = trained(name, True)
        apart = float((again - weights).abs().max())
        rows.append({"network": name, "first_step_cpu_s": first, "step_ms": 1e3 * plain, "compiled_ms": 1e3 * step,
                     "weights_apart": apart})  # fmt: skip
        print(f"| {name} | {first:.0f} | {1e3 * plain:.1f} | {1e3 * step:.1f} | {apart:.0e} |", flush=True)
        if asked.out is not None:
            asked.out.write_text(
                json.dumps({"torch": torch.__version__, "batch": BATCH, "rows": rows}, indent=1) + "\n"
            )


if __name__ == "__main__":
    main()
