"""The best deterministic sampler at every budget: ours, fitted to the model or not, beside other libraries.

    python benchmarks/budgets.py [--problems plane space] [--budgets 5 10 20 50 100] [--no-peers]
    python benchmarks/budgets.py --problems mixture0 mixture1 mixture2 mixture3
    python benchmarks/budgets.py --problems --run runs/NAME --shape 1 8 8 --label "digits, VP"
    python benchmarks/budgets.py --quick [...]     what costs no more than seconds to calibrate, and nothing else

Problems: the two mixtures of benchmarks/problems.py, exact score, VP(0.1, 20), float64; `mixtureN` are random ones of
the same kind. Error: root mean square (and median over samples) of the distance per dimension between the final sample
and the exact probability-flow solution at noise level 0 from the same start. The starts are not those of any
calibration. Calls are counted where the model is asked; calibration calls are listed apart.

With `--run` a trained network is measured instead, against its own 500-call solution to the least noise level.

Each run adds its rows to those of earlier ones in budgets.json, and writes budgets.md, budgets.png and the table of
docs/which_sampler.md from all of them; stochastic.json of benchmarks/stochastic.py is shown beside them.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
from problems import exact_flow, plane, random_mixture, space
from torch import Tensor

import sde_gen as sg
from sde_gen.tuning.search import usual

BEGIN, END = "<!-- budgets: begin -->", "<!-- budgets: end -->"
#: Start count by dimension: in few dimensions the error hangs on the few paths that change mode.
STARTS = {2: 4000, 3: 4000}
MANY = 2000
#: What is compared with the best of the others.
OURS = ("uncalibrated", "300 calls", "default", "auto")
KEPT = 10  # configurations of other libraries that are written down, the best of a cell
CLASSICAL = {
    "DDIM": sg.DDIM,
    "DPMSolverPP2M": sg.DPMSolverPP2M,
    "DPMSolverPP3M": sg.DPMSolverPP3M,
    "UniPC": sg.UniPC,
    "AdamsBashforth(4, velocity)": lambda steps: sg.AdamsBashforth(
        order=4, prediction="velocity", steps=max(1, steps - (steps > 3)), grid="lambda"
    ),
    "UniPC(3, velocity), quadratic": lambda steps: sg.UniPC(
        order=3, prediction="velocity", steps=steps, grid="quadratic"
    ),
    "DEIS": sg.DEIS,
    "LMS": lambda steps: sg.LMS(steps=max(1, steps - (steps > 3))),
    "PLMS": sg.PLMS,
    "Heun": lambda steps: sg.Heun(steps=(steps + 1) // 2),
}


def distance(x: Tensor, truth: Tensor) -> dict[str, float]:
    """Root mean square and median over samples of the distance per dimension."""
    each = (x - truth).flatten(1).norm(dim=1) / truth[0].numel() ** 0.5
    return {"rmse": float(each.square().mean().sqrt()), "median": float(each.median())}


def ours(
    model: sg.ScoreModel, start: Tensor, truth: Tensor, nfe: int, args: argparse.Namespace
) -> Iterator[dict[str, object]]:
    """Rows of the samplers of this package."""
    shape = tuple(start.shape[1:])
    for name, auto in (("uncalibrated", sg.Auto(nfe=nfe, calls=0)), ("300 calls", sg.Auto(nfe=nfe))):
        choice = auto.choose(model, shape)
        result = auto(model, start=start)
        yield {"sampler": name, "rule": type(choice.sampler).__name__, "nfe": result.nfe,
               "calibration_nfe": choice.calibration_nfe, "calibration_seconds": choice.calibration_seconds,
               **distance(result.x, truth)}  # fmt: skip
    if args.quick:
        return
    for name, make in CLASSICAL.items():
        result = make(steps=nfe)(model, start=start)
        yield {"sampler": name, "nfe": result.nfe, **distance(result.x, truth)}
    if args.classical:
        return
    rule, times = usual(nfe)  # the documented default of a budget
    tries = max(1, round(120 * args.effort))
    grid = sg.fit_grid(model, times, rule, shape=shape, count=args.count, tries=tries, folder=args.folder)
    result = type(rule)(order=rule.order, prediction=rule.prediction, grid=grid)(model, start=start)
    yield {"sampler": "default", "rule": repr(rule), "nfe": result.nfe, **distance(result.x, truth)}
    auto = sg.Auto(nfe=nfe, count=args.count, effort=args.effort, folder=args.folder)
    choice = auto.choose(model, shape)
    result = auto(model, start=start)
    label = next(label for label, error in choice.tried if error == choice.error)
    yield {"sampler": "auto", "rule": label, "nfe": result.nfe, "held_out": choice.error,
           "calibration_nfe": choice.calibration_nfe, "calibration_seconds": choice.calibration_seconds,
           **distance(result.x, truth)}  # fmt: skip


def cells(name: str, law: sg.GaussianMixture, args: argparse.Namespace) -> Iterator[list[dict[str, object]]]:
    """Rows of one mixture, a budget at a time."""
    p = sg.VP()
    model, count = law.model(p), STARTS.get(law.dim, MANY)
    start = torch.randn(count, law.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = exact_flow(law, p, start, p.t_max)
    for nfe in args.budgets:
        rows = [{"peer": False, **row} for row in ours(model, start, truth, nfe, args)]
        if not (args.no_peers or args.quick):
            from peer_samplers import results

            theirs = [{"peer": True, "sampler": peer, "nfe": calls, **distance(x, truth)}
                      for peer, x, calls in results(law, start, nfe)]  # fmt: skip
            rows += sorted(theirs, key=lambda r: r["rmse"])[:KEPT]
        print(name, nfe, summary(rows), flush=True)
        yield [{"problem": name, "budget": nfe, **row} for row in rows]


def summary(rows: list[dict]) -> str:
    """One line: peers' best, default, auto."""
    others = [r for r in rows if r["peer"]]
    best = min(others, key=lambda r: r["rmse"]) if others else None
    parts = [] if best is None else [f"peers {best['rmse']:.3g} ({best['sampler']})"]
    parts += [f"{r['sampler']} {r['rmse']:.3g}" for r in rows if r["sampler"] in OURS]
    return "; ".join(parts)


def markdown(rows: list[dict], weak: list[dict]) -> str:
    """The tables."""
    lines = [
        "# Error at every budget",
        "",
        "`python benchmarks/budgets.py` writes this page; its head says what is measured, and how the mixtures",
        "of other seeds and trained networks are added.",
        "",
        "![error against calls](budgets.png)",
        "",
    ]
    for problem in dict.fromkeys(r["problem"] for r in rows):
        mine = [r for r in rows if r["problem"] == problem]
        budgets = sorted({r["budget"] for r in mine})
        lines += [f"## {problem}: RMSE (median) per dimension", "",
                  "| sampler | " + " | ".join(f"{n} calls" for n in budgets) + " |",
                  "|---|" + "---|" * len(budgets)]  # fmt: skip
        best = {n: best_peer(mine, n) for n in budgets}
        if any(best.values()):
            shown = " | ".join(f"{r['rmse']:.2g} ({r['median']:.2g})" if r else "" for r in best.values())
            lines.append(f"| best of other libraries | {shown} |")
            lines.append("| which | " + " | ".join(r["sampler"] if r else "" for r in best.values()) + " |")
        for name in dict.fromkeys(r["sampler"] for r in mine if not r["peer"]):
            by = {r["budget"]: r for r in mine if r["sampler"] == name and not r["peer"]}
            cells = (f"{by[n]['rmse']:.2g} ({by[n]['median']:.2g})" if n in by else "" for n in budgets)
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        auto = {r["budget"]: r for r in mine if r["sampler"] == "auto"}
        lines.append("| auto took | " + " | ".join(auto[n]["rule"] if n in auto else "" for n in budgets) + " |")
        made = (f"{auto[n]['calibration_nfe']:,} in {auto[n]['calibration_seconds']:.0f} s" if n in auto else ""
                for n in budgets)  # fmt: skip
        lines.append("| its calibration calls | " + " | ".join(made) + " |")
        for name in OURS:
            by = {r["budget"]: r for r in mine if r["sampler"] == name}
            shares = (f"{by[n]['rmse'] / b['rmse']:.2f}" if (b := best[n]) and n in by else "" for n in budgets)
            if any(best.values()):
                lines.append(f"| {name} / best of others | " + " | ".join(shares) + " |")
        lines.append("")
        noisy = [r for r in weak if r["problem"] == problem and r["nfe"] in (10, 20, 50)]
        if noisy:
            lines += ["Stochastic samplers: sliced W2 of 20,000 samples to exact ones (`benchmarks/stochastic.py`)", "",
                      "| sampler | 10 calls | 20 calls | 50 calls |", "|---|---|---|---|"]  # fmt: skip
            for name in dict.fromkeys(r["sampler"] for r in noisy):
                by = {r["nfe"]: r.get("public", r["sliced_w2"]) for r in noisy if r["sampler"] == name}
                lines.append(
                    f"| {name} | " + " | ".join(f"{by[n]:.3f}" if n in by else "" for n in (10, 20, 50)) + " |"
                )
            lines.append("")
    return "\n".join(lines)


def best_peer(rows: list[dict], budget: int) -> dict | None:
    """The least error of the other libraries."""
    others = [r for r in rows if r["peer"] and r["budget"] == budget]
    return min(others, key=lambda r: r["rmse"]) if others else None


def decision(rows: list[dict]) -> str:
    """The table of docs/which_sampler.md, and how other mixtures compare."""
    columns = ("problem", "calls", "best of diffusers and azula", "`Auto(nfe, calls=0)`", "`Auto(nfe)`",
               "one rule on `fit_grid`", "`Auto(nfe, effort=1)`")  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    shares: dict[str, list[float]] = {name: [] for name in OURS}
    for problem in dict.fromkeys(r["problem"] for r in rows):
        for n in sorted({r["budget"] for r in rows if r["problem"] == problem}):
            mine = [r for r in rows if r["problem"] == problem and r["budget"] == n]
            peer, by = best_peer(mine, n), {r["sampler"]: r for r in mine if not r["peer"]}
            if problem.startswith("mixture"):
                for name, values in shares.items():
                    values += [by[name]["rmse"] / peer["rmse"]] if peer and name in by else []
                continue
            first = "" if peer is None else f"{peer['rmse']:.2g} ({peer['sampler']})"
            mine = " | ".join(f"{by[name]['rmse']:.2g}" if name in by else "" for name in OURS)
            lines.append(f"| {problem} | {n} | {first} | {mine} |")
    if any(shares.values()):
        lines += ["", "On other random mixtures, as shares of the best of diffusers and azula:", ""]
        for name, values in shares.items():
            largest = ", ".join(f"{v:.2f}" for v in sorted(values)[-3:])
            if values:
                lines.append(
                    f"- {name}: {len(values)} cells, median {statistics.median(values):.2f}, largest {largest}"
                )
    return "\n".join(lines)


def picture(rows: list[dict], path: Path) -> None:
    """RMSE against calls."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    problems = [p for p in dict.fromkeys(r["problem"] for r in rows) if not p.startswith("mixture")]
    if not problems:
        return
    figure = Figure(figsize=(5.5 * len(problems), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, problem in zip(figure.subplots(1, len(problems), squeeze=False)[0], problems, strict=True):
        mine = sorted((r for r in rows if r["problem"] == problem), key=lambda r: r["budget"])
        peers = {n: b["rmse"] for n in sorted({r["budget"] for r in mine}) if (b := best_peer(mine, n))}
        if peers:
            axes.loglog(list(peers), list(peers.values()), "k--", linewidth=2, label="best of other libraries")
        for name in dict.fromkeys(r["sampler"] for r in mine if not r["peer"]):
            points = [r for r in mine if r["sampler"] == name and not r["peer"]]
            bold = name in OURS
            axes.loglog([r["budget"] for r in points], [r["rmse"] for r in points], "o-" if bold else ".-",
                        linewidth=2.5 if bold else 0.9, label=name)  # fmt: skip
        axes.set(title=problem, xlabel="network calls", ylabel="RMSE per dimension")
        axes.set_ylim(top=min(axes.get_ylim()[1], 2.0))
        axes.grid(alpha=0.3, which="both")
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=110)


def trained(args: argparse.Namespace) -> Iterator[list[dict[str, object]]]:
    """Rows of a trained network, against its own 500-call solution, a budget at a time."""
    from sde_gen.config.restore import load_model

    model, label = load_model(args.run), args.label or args.run.name
    start = torch.randn(args.starts, *args.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start = start * model.perturbation.prior_std
    # To the least noise that the network is asked at: stopping at the samplers' usual t = 1e-3 is an error of its own.
    p = model.perturbation
    low, high = model.times_within(p.t_min)
    ends = (float(p.half_log_snr(high)), float(p.half_log_snr(low)))
    grid = sg.GivenLambdas(tuple(torch.linspace(*ends, 500, dtype=torch.float64).tolist()))
    truth = sg.DPMSolverPP3M(grid=grid)(model, start=start).x
    for nfe in args.budgets:
        found = ours(model, start, truth, nfe, args)
        rows = [{"peer": False, "problem": label, "budget": nfe, **row} for row in found]
        print(label, nfe, summary(rows), flush=True)
        yield rows


def main() -> None:
    """Compute, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/verification"))
    parser.add_argument("--budgets", type=int, nargs="+", default=[5, 10, 20, 50, 100])
    parser.add_argument("--problems", nargs="*", default=["plane", "space"])
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--quick", action="store_true", help="only what is not searched for; peers stay as they were")
    parser.add_argument("--classical", action="store_true", help="only what is not fitted to the model")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--label")
    parser.add_argument("--shape", type=int, nargs="+", default=[1, 8, 8])
    parser.add_argument("--starts", type=int, default=64, help="of a trained network")
    parser.add_argument("--count", type=int, help="starts in its calibration batch")
    parser.add_argument("--folder", help="where grids and choices are kept for later runs")
    parser.add_argument("--effort", type=float, default=1.0, help="of its calibration")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    names = {"plane": "2-D, 16 modes", "space": "64-D, 8 modes"}
    laws = {"plane": plane, "space": space}
    for problem in args.problems:
        law = laws[problem]() if problem in laws else random_mixture(int(problem.removeprefix("mixture")))
        count = len(law.weights)
        name = names.get(problem) or f"{problem}: {law.dim}-D, {count} modes"
        for rows in cells(name, law, args):
            add(rows, args.out / "budgets.json")
    if args.run:
        for rows in trained(args):
            add(rows, args.out / "budgets.json")
    write(args.out)


def add(rows: list[dict], path: Path) -> None:
    """Put the rows of a cell in the place of earlier ones of the same samplers; of peers, of all."""
    known = json.loads(path.read_text()) if path.is_file() else []

    def key(row: dict) -> tuple:
        return row["problem"], row["budget"], "peers" if row["peer"] else row["sampler"]

    of = {key(r) for r in rows}
    rows = [r for r in known if key(r) not in of] + rows
    order = [*CLASSICAL, *OURS]
    rows.sort(key=lambda r: (r["problem"], r["budget"], r["peer"], 0 if r["peer"] else order.index(r["sampler"])))
    path.write_text(json.dumps(rows, indent=1))


def write(out: Path) -> None:
    """Page, picture and the table of docs/which_sampler.md."""
    rows = json.loads((out / "budgets.json").read_text())
    stochastic = out / "stochastic.json"
    weak = json.loads(stochastic.read_text())["distances"] if stochastic.is_file() else []
    text = markdown(rows, weak)
    print(text)
    (out / "budgets.md").write_text(text)
    picture(rows, out / "budgets.png")
    page = out.parent / "which_sampler.md"
    if page.is_file():
        before, _, rest = page.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        page.write_text(f"{before}{BEGIN}\n{decision(rows)}\n{END}{after}")


if __name__ == "__main__":
    main()
