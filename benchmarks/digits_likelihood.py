"""Bits per dimension of held-out digits: DDPM, VP and sub-VP, with and without likelihood weighting.

    python benchmarks/digits_likelihood.py --out docs/verification/digits_likelihood.md

One network, one budget and one order of data for all (`python -m sde_gen.train`), trained on dequantised digits. The
360 held-out digits are dequantised with one seed. Negative log-likelihoods by the probability-flow ODE on a grid of
98 nodes with 4 Walsh probes a node; chains have the variational bound beside it. All models see the same noise and the
same probes, so the differences to VP are paired and their standard errors small. What is trained is not trained again.
Also writes a picture of digits between two digits, through the latent.
"""

import argparse
import json
import math
import subprocess
import sys
import warnings
from pathlib import Path

import torch

import sde_gen as sg
from sde_gen import pictures
from sde_gen.config.restore import load_model
from sde_gen.data import digits

SYSTEMS = {
    "VP": ["sde=vp"],
    "VP, likelihood weighting": ["sde=vp", "objective=likelihood"],
    "sub-VP": ["sde=subvp"],
    "sub-VP, likelihood weighting": ["sde=subvp", "objective=likelihood"],
    "DDPM": ["sde=ddpm"],
}
DEQUANTISATIONS = 1


def train(name: str, steps: int, runs: Path, extra: list[str]) -> Path:
    """Train one system unless its run is there; return the run's folder."""
    run = runs / ("likelihood_" + name.lower().replace(", ", "_").replace(" ", "_"))
    if not (run / "loss.png").is_file():
        command = [sys.executable, "-m", "sde_gen.train", f"run={run.name}", f"runs_dir={runs}",
                   f"trainer.steps={steps}", "trainer.dequantise=true", *SYSTEMS[name], *extra]  # fmt: skip
        print(" ".join(command[1:]), flush=True)
        subprocess.run(command, check=True)
    return run


def bits(model: sg.ScoreModel) -> tuple[torch.Tensor, int, float]:
    """Bits per dimension of each held-out digit (mean over dequantisations), network calls, part due to the probes."""
    data = digits()
    each, probes = [], []
    for seed in range(DEQUANTISATIONS):
        x = data.transform.dequantise(data.test, seed=seed)
        ll = sg.log_likelihood(
            model, x, divergence="hutchinson", steps=98, probes=4, seed=seed, transform=data.transform
        )  # fmt: skip
        each.append(ll.bits_per_dim)
        probes.append(float(ll.bits_per_dim_error.square().mean()))
    return torch.stack(each).mean(0), ll.nfe, math.sqrt(sum(probes) / len(probes) / DEQUANTISATIONS / len(x))


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, help="Markdown; JSON and a picture go beside it")
    parser.add_argument("--systems", nargs="*", default=list(SYSTEMS), choices=list(SYSTEMS))
    args, extra = parser.parse_known_args()
    rows: list[dict[str, object]] = []
    base: torch.Tensor | None = None
    picture = None
    for name in args.systems:
        model = load_model(train(name, args.steps, args.runs, [e for e in extra if e != "--"]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sg.BetweenNodesWarning)  # the docs say what is interpolated
            each, nfe, probes = bits(model)
        base = each if base is None else base
        paired = each - base
        row: dict[str, object] = {
            "model": name, "bits/dim": float(each.mean()), "standard error": float(each.std()) / len(each) ** 0.5,
            "of it by probes": probes, "difference": float(paired.mean()),
            "its standard error": float(paired.std()) / len(each) ** 0.5, "NFE": nfe,
        }  # fmt: skip
        if model.perturbation.is_chain:
            data = digits()
            bound = sg.variational_bound(model, data.test, transform=data.transform, terms=64, seed=0)
            row["bound on levels"] = float(bound.bits_per_dim.mean())
            row["its error"] = float(bound.bits_per_dim.std()) / len(data.test) ** 0.5
        rows.append(row)
        print(row, flush=True)
        if picture is None:
            picture = model
    names = ["model", "bits/dim", "standard error", "of it by probes", "difference", "its standard error", "NFE",
             "bound on levels", "its error"]  # fmt: skip
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = (row.get(n, "") for n in names)
        lines.append("| " + " | ".join(f"{v:.4f}" if isinstance(v, float) else str(v) for v in cells) + " |")
    text = (
        "# Bits per dimension of held-out digits\n\n"
        "`python benchmarks/digits_likelihood.py --out docs/verification/digits_likelihood.md`\n\n"
        f"{args.steps} steps each. Differences are to the first row, paired sample by sample.\n\n"
    ) + "\n".join(lines)
    print("\n" + text)
    if args.out and picture is not None:
        args.out.write_text(text + "\n")
        args.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
        test = digits().test
        pairs = ((0, 1), (2, 3), (4, 5), (6, 7))
        strips = [sg.interpolate(picture, test[a], test[b], 9, rtol=1e-4, atol=1e-4).x for a, b in pairs]
        pictures.save_image(pictures.image_grid(torch.cat(strips), columns=9), args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
