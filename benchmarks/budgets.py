"""The best deterministic sampler at every budget: ours, fitted to the model or not, beside other libraries.

    python benchmarks/budgets.py [--out docs/verification] [--budgets 5 10 20 50 100] [--others 4] [--no-peers]

Problems: the two mixtures of benchmarks/problems.py, exact score, VP(0.1, 20), float64; `--others` adds random ones of
the same kind. Error: root mean square (and median over samples) of the distance per dimension between the final sample
and the exact probability-flow solution at noise level 0 from the same start. The starts are not those of any
calibration. Calls are counted where the model is asked; calibration calls are listed apart.

With `--run runs/NAME --shape 1 8 8` a trained network is measured instead, against its own 500-call solution.

Writes budgets.md, budgets.json and budgets.png.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from problems import exact_flow, plane, random_mixture, space
from torch import Tensor

import sde_gen as sg

#: Start count by dimension: in few dimensions the error hangs on the few paths that change mode.
STARTS = {2: 1000, 64: 300}
CLASSICAL = {
    "DDIM": sg.DDIM,
    "DPMSolverPP2M": sg.DPMSolverPP2M,
    "DPMSolverPP3M": sg.DPMSolverPP3M,
    "UniPC": sg.UniPC,
    "AdamsBashforth(4, velocity)": lambda steps: sg.AdamsBashforth(
        order=4, prediction="velocity", steps=max(1, steps - (steps > 3)), grid="lambda"
    ),
    "DEIS": sg.DEIS,
    "LMS": lambda steps: sg.LMS(steps=max(1, steps - (steps > 3))),
    "PLMS": sg.PLMS,
    "Heun": lambda steps: sg.Heun(steps=(steps + 1) // 2),
}


def default(nfe: int) -> tuple[sg.GridSampler, int]:
    """The documented default of a budget, and its number of times: to be run on `fit_grid` of the model."""
    if nfe <= 20:
        return sg.UniPC(order=3, prediction="velocity"), nfe
    return sg.AdamsBashforth(order=4, prediction="velocity"), nfe - 1


def distance(x: Tensor, truth: Tensor) -> dict[str, float]:
    """Root mean square and median over samples of the distance per dimension."""
    each = (x - truth).flatten(1).norm(dim=1) / truth[0].numel() ** 0.5
    return {"rmse": float(each.square().mean().sqrt()), "median": float(each.median())}


def ours(model: sg.ScoreModel, start: Tensor, truth: Tensor, nfe: int) -> Iterator[dict[str, object]]:
    """Rows of the samplers of this package."""
    shape = tuple(start.shape[1:])
    for name, make in CLASSICAL.items():
        result = make(steps=nfe)(model, start=start)
        yield {"sampler": name, "nfe": result.nfe, **distance(result.x, truth)}
    rule, times = default(nfe)
    grid = sg.fit_grid(model, times, rule, shape=shape, tries=40)
    result = type(rule)(order=rule.order, prediction=rule.prediction, grid=grid)(model, start=start)
    yield {"sampler": "default", "rule": repr(rule), "nfe": result.nfe, **distance(result.x, truth)}
    auto = sg.Auto(nfe=nfe)
    choice = auto.choose(model, shape)
    result = auto(model, start=start)
    label = min(choice.tried, key=lambda pair: pair[1])[0]
    yield {"sampler": "auto", "rule": label, "nfe": result.nfe, "held_out": choice.error,
           "calibration_nfe": choice.calibration_nfe, "calibration_seconds": choice.calibration_seconds,
           **distance(result.x, truth)}  # fmt: skip


def cells(name: str, law: sg.GaussianMixture, budgets: list[int], peers: bool) -> Iterator[dict[str, object]]:
    """Rows of one mixture."""
    p = sg.VP()
    model, count = law.model(p), STARTS.get(law.dim, 500)
    start = torch.randn(count, law.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = exact_flow(law, p, start, p.t_max)
    for nfe in budgets:
        rows = [{"peer": False, **row} for row in ours(model, start, truth, nfe)]
        if peers:
            from peer_samplers import results

            rows += [{"peer": True, "sampler": peer, "nfe": calls, **distance(x, truth)}
                     for peer, x, calls in results(law, start, nfe)]  # fmt: skip
        for row in rows:
            yield {"problem": name, "budget": nfe, **row}
        print(name, nfe, summary(rows), flush=True)


def summary(rows: list[dict]) -> str:
    """One line: peers' best, default, auto."""
    others = [r for r in rows if r["peer"]]
    best = min(others, key=lambda r: r["rmse"]) if others else None
    parts = [] if best is None else [f"peers {best['rmse']:.3g} ({best['sampler']})"]
    parts += [f"{r['sampler']} {r['rmse']:.3g}" for r in rows if r["sampler"] in ("default", "auto")]
    return "; ".join(parts)


def markdown(rows: list[dict]) -> str:
    """The tables."""
    lines = ["# Error at every budget", "", "`python benchmarks/budgets.py` prints and writes this page.", ""]
    budgets = list(dict.fromkeys(r["budget"] for r in rows))
    for problem in dict.fromkeys(r["problem"] for r in rows):
        mine = [r for r in rows if r["problem"] == problem]
        lines += [f"## {problem}: RMSE (median) per dimension", "",
                  "| sampler | " + " | ".join(f"{n} calls" for n in budgets) + " |",
                  "|---|" + "---|" * len(budgets)]  # fmt: skip
        found = [[r for r in mine if r["budget"] == n and r["peer"]] for n in budgets]
        best = [min(rs, key=lambda r: r["rmse"]) for rs in found if rs]
        if best:
            shown = " | ".join(f"{r['rmse']:.2g} ({r['median']:.2g})" for r in best)
            lines.append(f"| best of other libraries | {shown} |")
            lines.append("| which | " + " | ".join(r["sampler"] for r in best) + " |")
        for name in dict.fromkeys(r["sampler"] for r in mine if not r["peer"]):
            chosen = [r for r in mine if r["sampler"] == name and not r["peer"]]
            lines.append(f"| {name} | " + " | ".join(f"{r['rmse']:.2g} ({r['median']:.2g})" for r in chosen) + " |")
        auto = [r for r in mine if r["sampler"] == "auto"]
        lines.append("| auto took | " + " | ".join(r["rule"] for r in auto) + " |")
        lines.append("| its calibration calls | " + " | ".join(f"{r['calibration_nfe']:,}" for r in auto) + " |")
        if best:
            for name in ("default", "auto"):
                rs = [r for r in mine if r["sampler"] == name]
                shares = " | ".join(f"{r['rmse'] / b['rmse']:.2f}" for r, b in zip(rs, best, strict=True))
                lines.append(f"| {name} / best of others | {shares} |")
        lines.append("")
    return "\n".join([*lines, "![error against calls](budgets.png)", ""])


def picture(rows: list[dict], path: Path) -> None:
    """RMSE against calls."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    problems = list(dict.fromkeys(r["problem"] for r in rows))
    figure = Figure(figsize=(5.5 * len(problems), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, problem in zip(figure.subplots(1, len(problems), squeeze=False)[0], problems, strict=True):
        mine = [r for r in rows if r["problem"] == problem]
        peers: dict[int, float] = {}
        for r in (r for r in mine if r["peer"]):
            peers[r["budget"]] = min(r["rmse"], peers.get(r["budget"], float("inf")))
        if peers:
            axes.loglog(list(peers), list(peers.values()), "k--", label="best of other libraries")
        for name in dict.fromkeys(r["sampler"] for r in mine if not r["peer"]):
            points = [r for r in mine if r["sampler"] == name and not r["peer"]]
            bold = name in ("default", "auto")
            axes.loglog([r["budget"] for r in points], [r["rmse"] for r in points], "o-" if bold else ".-",
                        linewidth=2.5 if bold else 0.9, label=name)  # fmt: skip
        axes.set(title=problem, xlabel="network calls", ylabel="RMSE per dimension")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def trained(run: Path, shape: list[int], budgets: list[int]) -> Iterator[dict[str, object]]:
    """Rows of a trained network, against its own 500-call solution."""
    from sde_gen.config.restore import load_model

    model = load_model(run)
    start = torch.randn(64, *shape, generator=torch.Generator().manual_seed(1)) * model.perturbation.prior_std
    truth = sg.DPMSolverPP3M(steps=500, grid="lambda")(model, start=start.double()).x
    for nfe in budgets:
        rows = [{"peer": False, **row} for row in ours(model, start.double(), truth, nfe)]
        print(run, nfe, summary(rows), flush=True)
        for row in rows:
            yield {"problem": run.name, "budget": nfe, **row}


def main() -> None:
    """Compute, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/verification"))
    parser.add_argument("--budgets", type=int, nargs="+", default=[5, 10, 20, 50, 100])
    parser.add_argument("--others", type=int, default=0)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--shape", type=int, nargs="+", default=[1, 8, 8])
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.run:
        found = trained(args.run, args.shape, args.budgets)
    else:
        problems = {"2-D, 16 modes": plane(), "64-D, 8 modes": space()}
        if args.others:
            problems = {f"mixture {i}": random_mixture(i) for i in range(args.others)}
        found = (row for name, law in problems.items() for row in cells(name, law, args.budgets, not args.no_peers))
    rows: list[dict] = []
    for row in found:
        rows.append(row)
        (args.out / "budgets.json").write_text(json.dumps(rows, indent=1))
    text = markdown(rows)
    print(text)
    (args.out / "budgets.md").write_text(text)
    picture(rows, args.out / "budgets.png")


if __name__ == "__main__":
    main()
