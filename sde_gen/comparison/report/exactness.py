"""What the report says of the things that have an exact answer: orders of convergence and likelihoods."""

from typing import Any

from sde_gen.comparison.findings import falls_short
from sde_gen.comparison.report.blocks import Badge, Section, Table, Text
from sde_gen.comparison.results import ResultTable


def orders(results: ResultTable) -> Section | None:
    """Claimed and fitted orders of convergence."""
    if not results.orders:
        return None
    names = list(results.spec["formulations"])
    rows: list[list[Any]] = []
    without: dict[str, list[str]] = {}
    for sampler in results.samplers:
        mine = {r["formulation"]: r for r in results.orders if r["sampler"] == sampler}
        ok = {name: r for name, r in mine.items() if r["status"] == "ok"}
        if ok:
            first = next(iter(ok.values()))
            cells = [f"{ok[n]['fitted']:.2f} ± {ok[n]['standard_error']:.2f}" if n in ok else "-" for n in names]
            mark = Badge("below its claim" if any(map(falls_short, ok.values())) else "as claimed")
            rows.append([sampler, first["error_kind"], f"{first['claimed']:g}", *cells, mark])
        elif mine:
            without.setdefault(next(iter(mine.values()))["reason"], []).append(sampler)
    words = (
        "The slope of log error against log steps, with the standard error of the fit, over 64 to 512 steps even in "
        "the half log-SNR between -3 (or where the process begins) and 2.5. Deterministic samplers (strong): error "
        "against the exact solution of the probability-flow ODE for three Gaussians in the plane. Stochastic samplers "
        "(weak): error of the exact variance of the output for Gaussian data, read off from unit noises without any "
        "sampling. A slope above the claim means that an error term happens to vanish on this problem."
    )
    header = ["sampler", "kind", "claimed", *names, ""]
    blocks: list[Any] = [Text(words)]
    blocks += [Table(header, rows, "", range(2, 3 + len(names)))] if rows else []
    blocks += [Text(f"Without an order: {', '.join(which)} ({reason}).") for reason, which in without.items()]
    return Section("Orders of convergence", blocks)


def likelihoods(results: ResultTable) -> Section | None:
    """Negative log-likelihoods of the formulations."""
    if not results.likelihoods:
        return None
    rows: list[list[Any]] = []
    for r in results.likelihoods:
        told: list[Any] = [Badge(r["status"]), r.get("reason", ""), "", ""]
        if r["status"] == "ok":
            exact = "" if r.get("nll_exact") is None else f"{r['nll_exact']:.4f}"
            told = [_with_error(r, "nll"), exact, _with_error(r, "bits_per_dim"), str(r["nfe"])]
        rows.append([r["formulation"], str(r["seed"]), *told])
    words = (
        f"Negative log-likelihood of {results.spec['likelihood']} held-out points in nats a dimension, by the "
        "probability-flow ODE, ± its standard error over the points. They are the same points for all, so the "
        "difference of two formulations is known better than each. Lower is better."
    )
    if any(r.get("bits_per_dim") is not None for r in results.likelihoods):
        words += " Bits a dimension are those of the raw data, whose levels are spread out by uniform noise."
    header = ["formulation", "training seed", "nats/dimension", "of the exact law", "bits/dimension", "calls"]
    used = [i for i in range(6) if any(row[i] for row in rows) and (i != 1 or results.settings.mode != "oracle")]
    header, rows = [header[i] for i in used], [[row[i] for i in used] for row in rows]
    return Section("Likelihood", [Text(words), Table(header, rows, "", range(1, len(header)))])


def _with_error(row: Any, name: str) -> str:
    return "" if row.get(name) is None else f"{row[name]:.4f} ± {row[f'{name}_standard_error']:.4f}"
