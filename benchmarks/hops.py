"""How far a value walks through the code: functions, files, and changes of file of some everyday journeys.

    python benchmarks/hops.py

Counted are calls of functions of this package (lambdas and comprehensions not), the files they lie in, and how often
two calls in turn lie in different files. The second run of a journey is counted, when what is made once is there.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

import sde_gen as sg
from sde_gen.training import Trainer

ROOT = os.path.dirname(os.path.abspath(sg.__file__))


def walked(journey: Callable[[], Any]) -> tuple[int, int, int]:
    """(functions, files, changes of file) of one journey."""
    calls: list[tuple[str, str, int]] = []

    def look(frame: Any, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(ROOT) and not code.co_name.startswith("<"):
            calls.append((code.co_filename, code.co_qualname, code.co_firstlineno))

    journey()
    sys.setprofile(look)
    try:
        journey()
    finally:
        sys.setprofile(None)
    if os.environ.get("HOPS_SHOW"):
        for file, name, _ in calls:
            print(f"    {os.path.relpath(file, ROOT)}: {name}")
    files = [file for file, _, _ in calls]
    return len(set(calls)), len(set(files)), sum(a != b for a, b in pairwise(files))


def journeys() -> dict[str, Callable[[], Any]]:
    """Name to what is done."""
    model = sg.ScoreModel(sg.MLP(features=2), sg.VP())
    x0, start = torch.randn(16, 2), torch.randn(16, 2)
    objective, sampler = sg.DenoisingScoreMatching(), sg.DDIM(steps=4)
    trainer = Trainer(sg.ScoreModel(sg.MLP(features=2), sg.VP()), torch.randn(64, 2))

    def cells() -> None:
        with tempfile.TemporaryDirectory() as cache:
            sg.Comparison(
                formulations={"VP": sg.VP()}, samplers={"DDIM": sg.DDIM(steps=4)}, data=_MIXTURE, seeds=(0,),
                num_samples=64, orders=False, trajectories=False,
            ).run(cache)  # fmt: skip

    return {
        "x0 through one loss": lambda: objective(model, x0),
        "x_T drawn, DDIM, 4 steps": lambda: sampler(model, (16, 2), seed=0),
        "x_T given, DDIM, 4 steps": lambda: sampler(model, start=start),
        "one optimiser step of the trainer": trainer.update,
        "two cells of a comparison": cells,
    }


_MIXTURE = sg.GaussianMixture([1.0], [[0.0, 0.0]], [[[1.0, 0.0], [0.0, 1.0]]])


def main() -> None:
    """Print the table."""
    print(f"{'journey':<34} {'functions':>9} {'files':>6} {'changes':>8}")
    for name, journey in journeys().items():
        functions, files, changes = walked(journey)
        print(f"{name:<34} {functions:>9} {files:>6} {changes:>8}")


if __name__ == "__main__":
    main()
