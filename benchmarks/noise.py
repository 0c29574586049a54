"""`Auto(nfe)` beside `Auto(nfe, noise="auto")`: does noise bring a network's samples nearer to data not seen before?

    python benchmarks/noise.py [--runs runs] [--out docs/verification] [--calls 10 20 50]

Two networks for digits, the same at two ages, are trained by `python -m sde_gen.train` unless they are there: half of
the digits (900) train, the rest is held out. One half of that (449) is what the noise is judged by; all that is printed
is measured on the other half (448) and on other starts: the energy distance without bias of 1,024 samples of each
choice, and by how much the noisy one is nearer, paired by starts, with its standard error. Beside it, the distance of
the 900 training digits. What was measured before is not measured again, unless the JSON is removed.

Writes noise.md and noise.json.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sde_gen as sg
from sde_gen.config.restore import load_model
from sde_gen.data import digits
from sde_gen.jobs.beforehand import said
from sde_gen.tuning.noise_amount import nearness, paired_gain

#: Steps of training of each network.
AGES = {"young": 300, "older": 1200}
CALLS, HELD_OUT, COUNT, SEED = (10, 20, 50), 897, 1024, 100
#: Batch calls that the choice may make, at most: the default for the fewest.
MOST = 2600


def trained(steps: int, runs: Path) -> sg.ScoreModel:
    """The network of so many steps."""
    run = runs / f"noise_{steps}"
    if not (run / "loss.png").is_file():
        command = [sys.executable, "-m", "sde_gen.train", "sde=vp", "data=digits", f"data.held_out={HELD_OUT}",
                   f"run={run.name}", f"runs_dir={runs}", f"trainer.steps={steps}"]  # fmt: skip
        print(" ".join(command[1:]), flush=True)
        subprocess.run(command, check=True)
    return load_model(run)


def distance(x: Tensor, data: Tensor) -> float:
    """The energy distance without bias; it may be negative where the laws are equal."""
    y = data.flatten(1).double()
    return nearness(x, data) - float(torch.pdist(y).mean())


def measure(age: str, model: sg.ScoreModel, nfe: int) -> dict[str, Any]:
    """One row: both choices, on starts and data that neither was chosen on."""
    data = digits(held_out=HELD_OUT)
    shuffled = data.test[torch.randperm(HELD_OUT, generator=torch.Generator().manual_seed(SEED))]
    seen, fresh = shuffled[: HELD_OUT // 2 + 1], shuffled[HELD_OUT // 2 + 1 :]
    shape = tuple(seen.shape[1:])
    plain = sg.Auto(nfe=nfe).choose(model, shape)
    auto = sg.Auto(nfe=nfe, noise="auto", data=seen)
    noisy = replace(auto, calls=min(auto.most_calls or MOST, MOST)).choose(model, shape)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    if noisy.gain is None:
        raise RuntimeError(f"the noise of {age} at {nfe} calls was not measured")
    one, other = (c.sampler(model, (COUNT, *shape), seed=SEED).x for c in (plain, noisy))
    gain, error = paired_gain(one, other, fresh)
    return {"network": age, "steps": AGES[age], "nfe": nfe, "chosen": said(noisy.sampler),
            "plain": distance(one, fresh), "noisy": distance(other, fresh), "gain": gain, "error": error,
            "gain when chosen": list(noisy.gain), "real": distance(data.train, fresh),
            "commit": commit.stdout.strip(),
            "calls": noisy.calibration_nfe, "seconds": round(noisy.calibration_seconds, 1)}  # fmt: skip


def markdown(rows: list[dict[str, Any]]) -> str:
    """The page."""
    real, commits = rows[0]["real"], ", ".join(sorted({r["commit"] for r in rows}))
    lines = [
        "# Noise chosen by held-out data",
        "",
        "`python benchmarks/noise.py` writes this page; its head says what is measured. Energy distances to held-out",
        "digits that nothing was chosen on, of starts that nothing was chosen on, and how much nearer the chosen noise",
        "brings the samples, with its standard error.",
        "",
        f"Training digits beside the same held-out ones: {real:.4f}. Measured at commit {commits}.",
        "",
        '| network | calls | `Auto(nfe)` | `Auto(nfe, noise="auto")` | nearer by | chosen | its batch calls, seconds |',
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['network']}, {r['steps']:,} steps | {r['nfe']} | {r['plain']:.4f} | {r['noisy']:.4f} "
        f"| {r['gain']:.4f} ± {r['error']:.4f} | `{r['chosen']}` | {r['calls']:,}, {r['seconds']:.0f} |"
        for r in rows
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "verification")
    parser.add_argument("--calls", type=int, nargs="+", default=CALLS)
    args = parser.parse_args()
    path = args.out / "noise.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.is_file() else []
    for nfe in args.calls:
        for age, steps in AGES.items():
            if any((r["network"], r["nfe"]) == (age, nfe) for r in rows):
                continue
            rows.append(measure(age, trained(steps, args.runs), nfe))
            rows.sort(key=lambda r: (list(AGES).index(r["network"]), r["nfe"]))
            path.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
            (args.out / "noise.md").write_text(markdown(rows), "utf-8")
            print(markdown(rows), flush=True)


if __name__ == "__main__":
    main()
