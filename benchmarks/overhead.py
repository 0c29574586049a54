"""What a sampler's step costs beyond the network: time per network call as a ratio to a floor of the same run.

    python benchmarks/overhead.py [--steps 200] [--out overhead.json]

The network returns its input. The floor of a deterministic rule is two element-wise operations (y = a x; y += b x);
that of a rule that draws noise adds one Gaussian draw. Both are timed in turn with the sampler, and the median ratio
over the repetitions is printed. The contract: at most 3 (64 images) and 8 (one image) for one-step deterministic rules
and second-order multistep; at most 5 (64 images) for `Fitted`; at most 1.15 for one-noise rules on 64 images.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import sde_gen as sg
from sde_gen.tuning.fitted import expand

SHAPES = ((64, 3, 32, 32), (1, 3, 32, 32))


def fitted(steps: int) -> sg.Fitted:
    """UniPC of velocities as a solver of given numbers, as many as one that was fitted has."""
    lambdas = torch.linspace(-4, 5, steps, dtype=torch.float64)
    of_state, weights = expand(sg.VP(), sg.UniPC(order=3, prediction="velocity"), lambdas)
    rows = [row[: k + 1] for k, row in enumerate(weights.tolist())]
    return sg.Fitted(lambdas=lambdas.tolist(), of_state=of_state.tolist(), of_estimates=rows)


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def floor(x: torch.Tensor, draws: bool, steps: int) -> Callable[[], None]:
    """`steps` times the least that a step does."""

    def run() -> None:
        for _ in range(steps):
            y = x * 0.9
            y.add_(x, alpha=0.1)
            if draws:
                torch.randn(x.shape, device=x.device)

    return run


def main() -> None:
    """Print the table; write it as JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="file for the ratios as JSON")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    steps = args.steps
    device = torch.device(args.device)

    def identity(x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        return x

    model = sg.ScoreModel(identity, sg.VP()).to(device)
    samplers = {
        "DDIM": sg.DDIM(steps=steps),
        "EulerMaruyama(eta=0)": sg.EulerMaruyama(steps=steps, eta=0.0),
        "DPMSolverPP2M": sg.DPMSolverPP2M(steps=steps),
        "DPMSolverPP3M": sg.DPMSolverPP3M(steps=steps),
        "UniPC(order=3)": sg.UniPC(steps=steps),
        "LimitedUniPC": sg.LimitedUniPC(steps=steps),
        "Fitted": fitted(steps),
        "Ancestral": sg.Ancestral(steps=steps),
        "ReverseDiffusion": sg.ReverseDiffusion(steps=steps),
        "EulerMaruyama": sg.EulerMaruyama(steps=steps),
        "DDIM(eta=1)": sg.DDIM(steps=steps, eta=1.0),
    }
    rows = []
    print(f"{'sampler':22s} {'shape':18s} {'ratio':>6s} {'microseconds/call':>18s}")
    for shape in SHAPES:
        start = torch.randn(shape, device=device)
        for name, sampler in samplers.items():
            bare = floor(start, sampler.is_stochastic, steps)
            run = lambda: sampler(model, start=start)  # noqa: E731
            bare(), run()
            pairs = [(seconds(run, device), seconds(bare, device)) for _ in range(args.repeats)]
            ratio = statistics.median(a / b for a, b in pairs)
            each = statistics.median(a for a, _ in pairs) / steps * 1e6
            print(f"{name:22s} {shape!s:18s} {ratio:6.2f} {each:18.1f}")
            rows.append({"sampler": name, "shape": shape, "ratio": ratio, "microseconds_per_call": each})
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
