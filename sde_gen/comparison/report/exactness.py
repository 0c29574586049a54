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
    rows: list[list[str | Badge]] = []
    without: dict[str, list[str]] = {}
    for sampler in results.spec["samplers"]:
        mine = {r["formulation"]: r for r in results.orders if r["sampler"] == sampler}
        ok = [r for r in mine.values() if r["status"] == "ok"]
        if not mine:
            continue
        if not ok:
            without.setdefault(next(iter(mine.values()))["reason"], []).append(sampler)
            continue
        cells = [_order(mine.get(name)) for name in names]
        low = [r for r in ok if falls_short(r)]
        mark = Badge("below its claim") if low else Badge("as claimed")
        rows.append([sampler, ok[0]["error_kind"], f"{ok[0]['claimed']:g}", *cells, mark])
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


def _order(row: Any) -> str:
    if row is None or row["status"] != "ok":
        return "-"
    return f"{row['fitted']:.2f} ± {row['standard_error']:.2f}"


def likelihoods(results: ResultTable) -> Section | None:
    """Negative log-likelihoods of the formulations."""
    if not results.likelihoods:
        return None
    rows = []
    for r in results.likelihoods:
        if r["status"] == "ok":
            exact = "" if r.get("nll_exact") is None else f"{r['nll_exact']:.4f}"
            told = f"{r['nll']:.4f} ± {r['nll_standard_error']:.4f}"
            bits = ""
            if r.get("bits_per_dim") is not None:
                bits = f"{r['bits_per_dim']:.4f} ± {r['bits_per_dim_standard_error']:.4f}"
            rows.append([r["formulation"], str(r["seed"]), told, exact, bits, str(r["nfe"])])
        else:
            rows.append([r["formulation"], str(r["seed"]), Badge(r["status"]), r["reason"], "", ""])
    words = (
        f"Negative log-likelihood of {results.spec['likelihood']} held-out points in nats a dimension, by the "
        "probability-flow ODE, ± its standard error over the points. They are the same points for all, so the "
        "difference of two formulations is known better than each. Lower is better."
    )
    if any(r.get("bits_per_dim") is not None for r in results.likelihoods):
        words += " Bits a dimension are those of the raw data, whose levels are spread out by uniform noise."
    header = ["formulation", "training seed", "nats/dimension", "of the exact law", "bits/dimension", "calls"]
    trained = results.spec["mode"] != "oracle"
    used = [
        i for i in range(len(header)) if (i < 3 and (i != 1 or trained)) or (i >= 3 and any(row[i] for row in rows))
    ]
    header, rows = [header[i] for i in used], [[row[i] for i in used] for row in rows]
    return Section("Likelihood", [Text(words), Table(header, rows, "", range(1, len(header)))])
