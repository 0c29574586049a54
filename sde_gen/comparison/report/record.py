"""What the report says of its own making: networks, what was left out, configuration and commands."""

import json
from typing import Any

from sde_gen.comparison.description import short
from sde_gen.comparison.report.blocks import Badge, Code, Fold, Section, Table, Text
from sde_gen.comparison.results import ResultTable


def networks(results: ResultTable) -> Section | None:
    """What was trained."""
    if not results.networks:
        return None
    rows: list[list[Any]] = []
    for r in results.networks:
        ok = r["status"] == "ok"
        losses = [f"{r[k]:.4g}" if ok and r.get(k) is not None else "" for k in ("loss", "held_out_loss")]
        told = [str(r["steps"]), f"{r['seconds']:.0f}"] if ok else [Badge(r["status"]), ""]
        rows.append([r["formulation"], str(r["seed"]), *told, *losses, r["cell"] if ok else r["reason"]])
    size = next((r["parameters"] for r in results.networks if r.get("parameters")), None)
    words = (
        f"One configuration{f' of {size:,} parameters' if size else ''} for all. Losses of different objectives or "
        "perturbations are on different scales and cannot be compared with each other."
    )
    header = ["formulation", "seed", "steps", "seconds", "loss", "held-out loss", "cell"]
    return Section("Networks", [Text(words), Table(header, rows, "", [1, 2, 3, 4, 5])])


def choices(results: ResultTable) -> Section | None:
    """What samplers that measure first chose, and what that cost."""
    if not results.choices:
        return None
    rows = []
    place = {name: i for i, name in enumerate(results.formulations)}
    for r in sorted(results.choices, key=lambda r: (r["sampler"], place[r["formulation"]], r["budget"] or 0)):
        told = [r.get("reason", ""), "", "", ""]
        if r["status"] == "ok":
            cost = [f"{r['error']:.2g}", f"{r['calibration_nfe']:,}", f"{r['seconds']:.1f}"]
            told = [_named(r["sampler_chosen"]), *cost]
        rows.append([r["formulation"], r["sampler"], str(r["budget"] or ""), *told])
    words = (
        "Chosen once for each model and budget, by measurement on that model, before any sample was drawn; all seeds "
        "use the one choice. These network calls are apart from the budget, which is what a sample costs afterwards: "
        "they are made for a batch of starts, and pay where many samples follow. The error is the root mean square "
        "distance, per number, to a fine solution, for starts that the choice was not made on."
    )
    header = ["formulation", "sampler", "budget", "chosen", "error", "calibration calls", "seconds"]
    return Section("Calibration", [Text(words), Table(header, rows, "", [2, 4, 5, 6])])


def _named(node: Any) -> str:
    """A chosen sampler without its long lists of numbers."""
    if "of_start" in node:
        return f"every number of {len(node['of_start'])} steps fitted"
    return f"{short({k: node[k] for k in ('_target_', 'order', 'prediction') if k in node})}, times chosen"


def left_out(results: ResultTable) -> Section | None:
    """Rows without a result, or not the one that was asked for, with the reason; those that share it share a line."""
    joined: dict[tuple[str, ...], set[Any]] = {}
    fitted = {row["sampler"] for row in results.orders if row["status"] == "ok"}
    orders = [{**row, "sampler": f"order of {row['sampler']}"} for row in results.orders if row["sampler"] in fitted]
    noted = [{**r, "status": "note", "reason": r["note"]} for r in results.rows if r["status"] == "ok" and r["note"]]
    for row in (*noted, *results.rows, *results.likelihoods, *orders):
        if row["status"] != "ok":
            key = (row["status"], row["formulation"], row.get("sampler", "likelihood"), row.get("reason") or "")
            joined.setdefault(key, set()).update({row.get("budget")} - {None})
    if not joined:
        return None
    rows = [[Badge(status), f, s, ", ".join(map(str, sorted(budgets))), reason]
            for (status, f, s, reason), budgets in joined.items()]  # fmt: skip
    return Section("What was left out", [Table(["", "formulation", "sampler", "budgets", "reason"], rows)])


def provenance(results: ResultTable) -> Section:
    """The exact configuration and commands."""
    spec = results.spec
    learned = [] if spec["mode"] == "oracle" else ["parameterization", "objective"]
    formulations = [
        [name, short(spec["formulations"][name]["perturbation"]), *(short(getattr(f, part)) for part in learned)]
        for name, f in results.formulations.items()
    ]
    samplers = [[name, short(sampler)] for name, sampler in results.samplers.items()]
    made = [row for row in results.rows if row.get("cell")]
    code = made[0]["code"] if made else ""
    dates = sorted(row["date"] for row in made if row.get("date"))
    when = f" Computed between {dates[0]} and {dates[-1]} UTC." if dates else ""
    known = [row["seconds"] for row in made if row.get("seconds")]
    words = (
        f"Version `{code}`, data `{results.data.fingerprint[:16]}`, device {spec['device']}.{when} Seconds are those "
        "of one sampling run in a process of one thread beside others, and vary."
    )
    table = results.tidy()
    cells = [_cell(r, results.measure) for r in table if r["cell"]]
    first = next((row["cell"] for row in made), "CELL")
    blocks: list[Any] = [
        Text(words),
        Text("This comparison again (what the cache holds is not computed again):"),
        Code(results.command),
        Text("Any one of its cells again, from the table below, compared with what the cache holds:"),
        Code(f"{results.command} cell={first}"),
        Table(["formulation", "perturbation", *learned], formulations),
        Table(["sampler", "settings other than the default"], samplers),
        Fold("The whole configuration", [Code(json.dumps(spec, indent=1).replace("<", "\\u003c"))]),
    ]
    if known:
        header = ["formulation", "sampler", "budget", "seed", "status", "calls", results.measure, "cell"]
        blocks.append(Fold(f"All {len(cells)} cells", [Table(header, cells, "", [2, 3, 5, 6])]))
    return Section("How it was made", blocks)


def _cell(row: Any, measure: str) -> list[Any]:
    status = Badge(row["status"]) if row["status"] != "ok" else "ok"
    labels = [row["formulation"], row["sampler"], str(row["budget"] or ""), str(row["seed"])]
    calls, value = row["nfe"], row[measure]
    numbers = ["" if calls is None else str(calls), "" if value is None else f"{value:.4g}"]
    return [*labels, status, *numbers, f"`{row['cell']}`"]
