"""Five systems on one network, one configuration and one budget, against real data: digits, or a 2-D mixture.

    python benchmarks/quality.py                      # digits, 3 minutes of training each
    python benchmarks/quality.py --data mixture       # 2-D mixture, 1 minute each
    python benchmarks/quality.py --systems vp ve --seconds 60

Each system is trained by `python -m sde_gen.train` and sampled by its own sampler. For digits: energy distance
(V-statistic) of 360 generated to the 360 held-out digits, mean of three draws, over that of 360 training digits; and
the accuracy of a cross-validated RBF-SVM that tells generated from held-out, with that for real against real beside it.
Writes a table (Markdown and JSON) and one picture for each system. What is trained is not trained again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

import sde_gen as sg
from sde_gen import metrics, pictures
from sde_gen.config.restore import load_model
from sde_gen.data import digits, mixture

# sigma_max follows the rule of NCSNv2: about the largest distance between two data points.
LARGEST = {"digits": 12.0, "mixture": 6.0}
#: Configuration of all systems.
SHARED = {"digits": [], "mixture": ["trainer.batch_size=256", "trainer.learning_rate=2e-3"]}
SYSTEMS = {
    "vp": (["sde=vp"], sg.PredictorCorrector(corrector=sg.Langevin(snr=0.05), steps=150)),
    "subvp": (["sde=subvp"], sg.ProbabilityFlow()),
    "ve": (["sde=ve", "sde.sigma_max={largest}"], sg.PredictorCorrector(corrector=sg.Langevin(snr=0.05), steps=150)),
    "ddpm": (["sde=ddpm"], sg.Ancestral(steps=500)),
    "ncsn": (
        ["sde=ncsn", "sde.sigma_max={largest}", "sde.levels=100"],
        sg.AnnealedLangevin(snr=0.25, steps_per_level=3),
    ),
}


def train(name: str, data: str, seconds: float, runs: Path, extra: list[str]) -> Path:
    """Train one system unless its run is there; return the run's folder."""
    run = runs / f"{data}_{name}"
    if not (run / "loss.png").is_file():
        overrides = [o.format(largest=LARGEST[data]) for o in SYSTEMS[name][0]]
        command = [sys.executable, "-m", "sde_gen.train", f"data={data}", f"run={run.name}", f"runs_dir={runs}",
                   f"trainer.max_seconds={seconds}", "trainer.steps=100000",
                   *SHARED[data], *overrides, *extra]  # fmt: skip
        print(" ".join(command[1:]), flush=True)
        subprocess.run(command, check=True)
    return run


def measure(name: str, run: Path, dataset: object, draws: int) -> dict[str, object]:
    """Sample a trained system and compare with held-out data."""
    model, sampler = load_model(run), SYSTEMS[name][1]
    held_out = dataset.test[:2000]
    energies, accuracies, seconds, nfe, first = [], [], 0.0, 0, None
    for draw in range(draws):
        result = sampler(model, held_out.shape, seed=draw)
        first = result.x if first is None else first
        energies.append(metrics.energy_distance(result.x, held_out))
        accuracies.append(metrics.classifier_accuracy(result.x, held_out))
        seconds, nfe = seconds + result.seconds / draws, result.nfe
    shown = first[:64] if first.ndim == 4 else first
    drawn = pictures.picture_of(shown) if shown.ndim == 4 else pictures.density({name: shown, "held-out": held_out})
    pictures.save_image(drawn, run / f"{name}.png")
    order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(0))
    reals = [dataset.train[part[: len(held_out)]] for part in order.split(len(held_out)) if len(part) == len(held_out)]
    real = sum(metrics.energy_distance(r, held_out) for r in reals) / len(reals)
    energy = sum(energies) / draws
    return {
        "system": name,
        "sampler": type(sampler).__name__,
        "nfe": nfe,
        "seconds": round(seconds, 1),
        "energy": round(energy, 4),
        "energy_real": round(real, 4),
        "ratio": round(energy / real, 3),
        "svm": round(sum(accuracies) / draws, 3),
        "svm_real": round(sum(metrics.classifier_accuracy(r, held_out) for r in reals) / len(reals), 3),
    }


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "mixture"), default="digits")
    parser.add_argument("--systems", nargs="+", choices=tuple(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--seconds", type=float, help="training budget of each system")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"))
    parser.add_argument("extra", nargs="*", help="overrides for the training command, after --")
    args = parser.parse_args()
    seconds = args.seconds or (180.0 if args.data == "digits" else 60.0)
    dataset = digits() if args.data == "digits" else mixture()
    rows = []
    for name in args.systems:
        rows.append(measure(name, train(name, args.data, seconds, args.runs, args.extra), dataset, args.draws))
        print(json.dumps(rows[-1]), flush=True)
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row[c]) for c in columns) + " |" for row in rows]
    table = "\n".join(lines)
    print(table)
    (args.runs / f"{args.data}.md").write_text(table + "\n")
    (args.runs / f"{args.data}.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
