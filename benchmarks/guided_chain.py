"""What particles that correct guidance tend to when there are infinitely many: the chain's own law and evidence.

    python benchmarks/guided_chain.py [--out docs/verification]

Two mixtures of numbers, two classes each, guided towards the first with w = 2 by exact scores. The chain and its
weights are integrated over the line, step by step, on points that resolve its kernel, so that there is no noise: what
is left is the bias of the steps. The target is p(x|c)^w p(x)^(1-w), its integral Z.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sde_gen as sg

F64 = torch.float64
W, STEPS = 2.0, (50, 100, 200, 400)
#: Variances of the components, whose means lie about 1 apart.
PROBLEMS = {"wide": (0.06, 0.1), "narrow": (0.02, 0.03)}
PERTURBATIONS = {"VP": sg.VP(), "VE": sg.VE(), "flow matching": sg.FlowMatching()}
#: sigma/alpha below which the models agree, and no step changes a weight.
_LEAST = 0.02


def law(variances: tuple[float, float]) -> sg.GaussianMixture:
    """Four modes, the classes in turn."""
    covariances = [[[variances[k % 2]]] for k in range(4)]
    return sg.GaussianMixture([0.3, 0.2, 0.2, 0.3], [[-1.4], [-0.5], [0.5], [1.4]], covariances, labels=[0, 1, 0, 1])


def line(low: float, high: float, spacing: float) -> Tensor:
    """Points of the line, evenly."""
    return torch.linspace(low, high, int((high - low) / spacing) + 2, dtype=F64)


def chain(mixture: sg.GaussianMixture, half_log_snr: Tensor, w: float = W) -> tuple[float, Tensor, Tensor]:
    """Z of the chain at these times, and where its law ends: points (n,) and their probabilities."""
    rho = (-half_log_snr).exp()
    low, high = float(mixture.means.min()) - 1.5, float(mixture.means.max()) + 1.5
    y = line(low - 6.5 * float(rho[0]), high + 6.5 * float(rho[0]), 0.1 * float(rho[0]))
    one = torch.ones((), dtype=F64)
    density = torch.distributions.Normal(0.0, rho[0]).log_prob(y).exp()
    for now, after in zip(rho, [*rho[1:], None], strict=True):
        given, other = (mixture.denoise(y[:, None], one, now, *told)[:, 0] for told in ([torch.tensor(0)], []))
        denoised, rate = other + w * (given - other), 0.5 * w * (w - 1) * (given - other).square()
        if after is None or now < _LEAST:
            weight = density * (rate / now.square()).exp() * (y[1] - y[0])
            return float(weight.sum()), denoised, weight / weight.sum()
        share = 1 - (after / now).square()
        variance = (now.square() - after.square()) * after / now
        mass = density * (rate * share.square() / variance).exp() * (y[1] - y[0])
        centres = (1 - share) * y + share * denoised
        y = line(low - 6.5 * float(after), high + 6.5 * float(after), 0.4 * float(variance.sqrt()))
        kernel = torch.distributions.Normal(centres, variance.sqrt())
        density = torch.cat([(kernel.log_prob(part[:, None]).exp() * mass).sum(1) for part in y.split(1000)])
    raise AssertionError("the last step returns")


def target(mixture: sg.GaussianMixture, w: float = W) -> tuple[float, Tensor, Tensor]:
    """The same of the law that is aimed at."""
    x = line(-6.0, 6.0, 6e-4)
    weight = (w * mixture.of_class(0).log_prob(x[:, None]) + (1 - w) * mixture.log_prob(x[:, None])).exp()
    weight = weight * (x[1] - x[0])
    return float(weight.sum()), x, weight / weight.sum()


def row(problem: str, formulation: str, steps: int) -> dict[str, Any]:
    """Ratio of Z to its exact value; error of the mean and of the standard deviation in units of the exact one."""
    mixture, p = law(PROBLEMS[problem]), PERTURBATIONS[formulation]
    guided = sg.guidance.ClassifierFree(mixture.model(p), W)
    moments = []
    times = sg.TwistedSMC(steps=steps).times(guided)
    for z, x, weight in (chain(mixture, p.half_log_snr(times)), target(mixture)):
        mean = (weight * x).sum()
        moments.append((z, float(mean), float((weight * (x - mean).square()).sum().sqrt())))
    (z, mean, std), (z0, mean0, std0) = moments
    return {"problem": problem, "formulation": formulation, "steps": steps, "evidence": z / z0,
            "mean": (mean - mean0) / std0, "std": std / std0 - 1}  # fmt: skip


def markdown(rows: list[dict[str, Any]]) -> str:
    """The page."""
    lines = [
        "# What corrected guidance leaves",
        "",
        "`python benchmarks/guided_chain.py` prints and writes this page; its head says what is measured. Evidence:",
        "Z of the chain over the exact one; then the error of the mean in standard deviations. Both fall as one over",
        "the steps, and more particles do not change them.",
        "",
        "| modes | formulation | " + " | ".join(f"{n} steps" for n in STEPS) + " |",
        "|---|---|" + "---|" * len(STEPS),
    ]
    for problem, formulation in dict.fromkeys((r["problem"], r["formulation"]) for r in rows):
        mine = [r for r in rows if (r["problem"], r["formulation"]) == (problem, formulation)]
        cells = " | ".join(f"{r['evidence']:.3f}, {r['mean']:+.3f}" for r in mine)
        lines.append(f"| {problem} | {formulation} | {cells} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Compute, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/verification"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row(problem, formulation, n) for problem in PROBLEMS for formulation in PERTURBATIONS for n in STEPS]
    text = markdown(rows)
    print(text)
    (args.out / "guided_chain.json").write_text(json.dumps(rows, indent=1))
    (args.out / "guided_chain.md").write_text(text)


if __name__ == "__main__":
    main()
