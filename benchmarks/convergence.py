"""The convergence table: every sampler under every perturbation, with exact scores.

    python benchmarks/convergence.py [--out docs/verification] [--quick]

1. Orders. Claimed and fitted order, with the standard error of the fit. Deterministic samplers: error against the exact
   flow of a 2-D mixture. Stochastic samplers: error of the exact variance of the output for Gaussian data (weak order),
   read off from unit noises, so without sampling.
2. Error against network calls on two public problems (benchmarks/problems.py). Deterministic samplers: root mean square
   and median distance, per dimension, to the exact solution at noise level 0 from the same start. Stochastic samplers:
   sliced Wasserstein distance of 2,000 samples, with that between two exact sets beside it.

Writes convergence.md, convergence.json and convergence.png.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from problems import PROBLEMS, exact_flow, plane

import sde_gen as sg
from sde_gen.metrics import sliced_wasserstein

PERTURBATIONS = [sg.VP(), sg.SubVP(), sg.VE(), sg.EDM(), sg.Cosine(), sg.FlowMatching(), sg.DDPM(), sg.NCSN()]
DETERMINISTIC: dict[str, Callable[..., sg.GridSampler]] = {
    "DDIM": sg.DDIM,
    "EulerMaruyama(eta=0)": lambda **k: sg.EulerMaruyama(eta=0.0, **k),
    "Heun": sg.Heun,
    "DPMSolverPP2M": sg.DPMSolverPP2M,
    "DPMSolverPP2M(exact=False)": lambda **k: sg.DPMSolverPP2M(exact=False, **k),
    "DPMSolverPP3M": sg.DPMSolverPP3M,
    "AdamsBashforth(4)": lambda **k: sg.AdamsBashforth(order=4, **k),
    "UniPC": sg.UniPC,
    "LMS": sg.LMS,
    "SingleStep(3)": lambda **k: sg.SingleStep(order=3, **k),
}
STOCHASTIC: dict[str, Callable[..., sg.GridSampler]] = {
    "EulerMaruyama": sg.EulerMaruyama,
    "ReverseDiffusion": sg.ReverseDiffusion,
    "Ancestral(small)": sg.Ancestral,
    "Ancestral(large)": lambda **k: sg.Ancestral(variance="large", **k),
    "DDIM(eta=1)": lambda **k: sg.DDIM(eta=1.0, **k),
    "ExponentialSDE": sg.ExponentialSDE,
    "SDEDPMSolverPP(2)": sg.SDEDPMSolverPP,
    "SDEDPMSolverPP(3)": lambda **k: sg.SDEDPMSolverPP(solver_order=3, **k),
    "StochasticHeun": sg.StochasticHeun,
    "PredictorCorrector": sg.PredictorCorrector,
}
BUDGETS = (5, 10, 20, 50, 100)
FITTED = (128, 256, 512, 1024)


def steps_for(name: str, nfe: int) -> int | None:
    """Steps with which a sampler makes at most `nfe` calls."""
    if name in ("Heun", "StochasticHeun"):
        return (nfe + 1) // 2
    if name == "SingleStep(3)":
        return (nfe + 2) // 3
    if name in ("AdamsBashforth(4)", "LMS"):  # their start-up takes a call
        return nfe - 1
    if name == "PredictorCorrector":
        return nfe // 2
    return nfe


def fit(steps: tuple[int, ...], errors: list[float]) -> tuple[float, float]:
    """Slope of log error against log steps, negated, and its standard error."""
    x, y = np.log(steps), np.log(errors)
    slope, intercept = np.polyfit(x, y, 1)
    rest = y - slope * x - intercept
    return float(-slope), math.sqrt((rest**2).sum() / (len(x) - 2) / ((x - x.mean()) ** 2).sum())


def grid_of(p: sg.Perturbation) -> str | None:
    """The sampler's own grid, or one between the nodes of a chain, which are too few for a fit."""
    return "lambda" if p.is_chain else None


def strong_order(make: Callable[..., sg.GridSampler], p: sg.Perturbation) -> tuple[float, float]:
    """Fitted order on the 2-D mixture, from t_max to where samplers stop."""
    law = plane()
    model = law.model(p)
    t, end = float(p.t_max), float(p.t_sample)
    noise = torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = noise * float((p.alpha(t) ** 2 + p.sigma(t) ** 2).sqrt())
    truth = exact_flow(law, p, start, t, end)
    errors = []
    for n in FITTED:
        x = make(steps=n, grid=grid_of(p), denoise=False)(model, start=start).x
        errors.append(float((x - truth).norm(dim=1).median()))  # the few that change mode converge later
    return fit(FITTED, errors)


class UnitNoise:
    """One unit noise for each row of the batch: row r is 1 at step r, all else 0."""

    def __call__(self, like: torch.Tensor, step: int, draw: int) -> torch.Tensor:
        noise = torch.zeros_like(like)
        if step + 2 < len(like):
            noise[step + 2] = 1.0
        return noise


def weak_order(make: Callable[..., sg.GridSampler], p: sg.Perturbation) -> tuple[float, float]:
    """Fitted order of the output's variance for Gaussian data of standard deviation 0.5, started exactly."""
    law = sg.GaussianMixture([1.0], [[0.0]], [[[0.25]]])
    model = law.model(p)
    t, end = p.t_max, p.t_sample

    def variance(at: float) -> float:
        return float(0.25 * p.alpha(at) ** 2 + p.sigma(at) ** 2)

    errors = []
    for n in FITTED:
        start = torch.zeros(n + 2, 1, dtype=torch.float64)
        start[1] = variance(t) ** 0.5
        x = make(steps=n, grid=grid_of(p), denoise=False)(model, start=start, noise=UnitNoise()).x
        errors.append(abs(float((x[1:] - x[0]).square().sum()) - variance(end)))
    return fit(FITTED, errors)


def orders() -> Iterator[dict[str, object]]:
    """One row for each sampler and perturbation."""
    cases = [(n, m, strong_order, "strong") for n, m in DETERMINISTIC.items()]
    cases += [(n, m, weak_order, "weak") for n, m in STOCHASTIC.items() if n != "PredictorCorrector"]
    for name, make, order, kind in cases:
        for p in PERTURBATIONS:
            fitted, error = order(make, p)
            yield {"sampler": name, "perturbation": type(p).__name__, "kind": kind, "claimed": make(steps=1).order,
                   "fitted": round(fitted, 3), "standard_error": round(error, 3)}  # fmt: skip


def errors(problem: str, quick: bool) -> Iterator[dict[str, object]]:
    """One row for each sampler, perturbation and budget."""
    law = PROBLEMS[problem]()
    dim, count = law.dim, 500 if quick else 2000
    noise = torch.randn(200, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    real = law.sample(count, seed=1)
    floor = sliced_wasserstein(law.sample(count, seed=2), real)
    truths: dict[tuple[float, float], torch.Tensor] = {}
    for p in PERTURBATIONS:
        model = law.model(p)
        start = noise * float((p.alpha(p.t_max) ** 2 + p.sigma(p.t_max) ** 2).sqrt())
        truth = truths.setdefault((float(p.half_log_snr(p.t_max)), 0.0), exact_flow(law, p, start, p.t_max))
        for name, make in (DETERMINISTIC | STOCHASTIC).items():
            for nfe in BUDGETS:
                sampler = make(steps=steps_for(name, nfe))
                row = {"problem": problem, "sampler": name, "perturbation": type(p).__name__, "budget": nfe}
                if name in DETERMINISTIC:
                    result = sampler(model, start=start)
                    distance = (result.x - truth).norm(dim=1) / dim**0.5
                    row |= {"nfe": result.nfe, "rmse": float(distance.square().mean().sqrt()),
                            "median": float(distance.median())}  # fmt: skip
                else:
                    result = sampler(model, (count, dim), seed=3, dtype=torch.float64)
                    row |= {"nfe": result.nfe, "sliced_w2": sliced_wasserstein(result.x, real), "floor": floor}
                yield row


def markdown(order_rows: list[dict], error_rows: list[dict]) -> str:
    """The tables."""
    names = [type(p).__name__ for p in PERTURBATIONS]
    lines = ["# Convergence", "", "`python benchmarks/convergence.py` prints and writes this page.", ""]
    lines += ["## Orders: claimed, and fitted with its standard error", ""]
    lines += ["| sampler | kind | claimed | " + " | ".join(names) + " |", "|---|---|---|" + "---|" * len(names)]
    for name in dict.fromkeys(r["sampler"] for r in order_rows):
        rows = [r for r in order_rows if r["sampler"] == name]
        cells = " | ".join(f"{r['fitted']:.2f} ± {r['standard_error']:.2f}" for r in rows)
        lines.append(f"| {name} | {rows[0]['kind']} | {rows[0]['claimed']:g} | {cells} |")
    for problem in PROBLEMS:
        mine = [r for r in error_rows if r["problem"] == problem]
        floor = next(r["floor"] for r in mine if "floor" in r)
        for kind, key, title in (
            ("rmse", "rmse", "deterministic: RMSE (median) to the exact solution, per dimension"),
            ("sliced_w2", "sliced_w2", f"stochastic: sliced W2 to exact samples ({floor:.3f} for two exact sets)"),
        ):
            lines += ["", f"## {problem}, {title}", "",
                      "| sampler | perturbation | " + " | ".join(f"{n} calls" for n in BUDGETS) + " |",
                      "|---|---|" + "---|" * len(BUDGETS)]  # fmt: skip
            chosen = [r for r in mine if kind in r]
            for name, p in dict.fromkeys((r["sampler"], r["perturbation"]) for r in chosen):
                cells = [r for r in chosen if (r["sampler"], r["perturbation"]) == (name, p)]
                shown = [f"{r[key]:.2g}" + (f" ({r['median']:.2g})" if kind == "rmse" else "") for r in cells]
                lines.append(f"| {name} | {p} | " + " | ".join(shown) + " |")
    return "\n".join([*lines, "", "![error against calls](convergence.png)", ""])


def picture(error_rows: list[dict], path: Path) -> None:
    """Error against calls under VP, one panel for each problem and kind."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2)
    for row, problem in enumerate(PROBLEMS):
        for column, key in enumerate(("median", "sliced_w2")):
            axes = panels[row][column]
            mine = [r for r in error_rows if r["problem"] == problem and r["perturbation"] == "VP" and key in r]
            for name in dict.fromkeys(r["sampler"] for r in mine):
                points = [r for r in mine if r["sampler"] == name]
                axes.loglog([r["nfe"] for r in points], [r[key] for r in points], "o-", label=name)
            if key == "sliced_w2":
                axes.axhline(mine[0]["floor"], color="black", linestyle=":", label="two exact sets")
            axes.set(title=f"{problem}, VP", xlabel="network calls",
                     ylabel="median error per dimension" if key == "median" else "sliced W2")  # fmt: skip
            axes.legend(fontsize=8)
            axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Compute, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/verification"))
    parser.add_argument("--quick", action="store_true", help="fewer samples")
    args = parser.parse_args()
    order_rows = list(orders())
    error_rows = [row for problem in PROBLEMS for row in errors(problem, args.quick)]
    text = markdown(order_rows, error_rows)
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "convergence.md").write_text(text)
    (args.out / "convergence.json").write_text(json.dumps({"orders": order_rows, "errors": error_rows}, indent=1))
    picture(error_rows, args.out / "convergence.png")


if __name__ == "__main__":
    main()
