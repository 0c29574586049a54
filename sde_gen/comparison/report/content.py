"""What the report says: the tables, and the words that go with them."""

from collections.abc import Sequence
from typing import Any

from sde_gen.comparison.findings import falls_short, shown
from sde_gen.comparison.quality import title_of
from sde_gen.comparison.ranking import Ranked, mean_of
from sde_gen.comparison.report.blocks import Badge, Fold, Section, Table, Text
from sde_gen.comparison.results import Results

_MODES = {
    "oracle": "Every score is exact: no network, so what differs is what the discretisation costs.",
    "network": "Each formulation trained its own network, of one configuration, from the same first weights, with the "
    "same data in the same order: what differs includes what the formulation costs in learning.",
    "shared": "One trained network serves every formulation by an exact change of variables: what differs is what the "
    "formulation costs in sampling, learning held fixed.",
}


def summary(results: Results) -> list[Any]:
    """What was compared, and the answer in a few lines."""
    spec, data = results.spec, results.data
    held = min(spec["num_samples"], len(data.test))
    n = len(spec["seeds"])
    same = (
        f"on the same {'noise levels' if spec['grid'] == 'matched' else 'budgets'}, "
        f"with the same noise in every cell, for {n} seed{'s' if n > 1 else ''}"
    )
    span = results.span
    levels = "" if span is None else f" Half log-SNRs visited by all: {span[0]:.2f} to {span[1]:.2f}."
    words = (
        f"{len(spec['formulations'])} formulations and {len(spec['samplers'])} samplers {same}. {held} samples of each "
        f"cell are compared with {held} held-out {_kind(results)}. {_MODES[spec['mode']]}{levels}"
    )
    blocks: list[Any] = [Text(words)]
    winners = [_winner(results, budget) for budget in results.budgets]
    if winners:
        header = ["calls, at most", "lowest", title_of(results.measure), "others that cannot be told from it"]
        blocks.append(Table(header, winners, "", [2]))
    if n < 2:
        blocks.append(Text("One seed: nothing is said about what can be told apart."))
    if not results.complete:
        missing = sum(row["status"] == "missing" for row in results.rows)
        blocks.append(Text(f"{missing} rows are not computed yet: this report shows what the cache holds so far."))
    return blocks


def _kind(results: Results) -> str:
    data, size = results.data, "x".join(map(str, results.data.shape))
    return f"images of {data.name} ({size})" if data.kind == "image" else f"points of {data.name} ({size} numbers each)"


def _winner(results: Results, budget: int | None) -> list[str | Badge]:
    lines = results.ranking(budget)
    ties = [line.entry for line in lines[1:] if line.behind is not None and line.behind.sign == 0]
    told = "none" if not ties else ", ".join(f"{f} {s}" for f, s, _ in ties[:4])
    more = f" and {len(ties) - 4} more of {len(lines) - 1}" if len(ties) > 4 else ""
    told = "" if len(results.spec["seeds"]) < 2 else told + more
    where = str(budget) if budget is not None else "steps of their own"
    return [where, f"{lines[0].entry[0]} with {lines[0].entry[1]}", _pm(lines[0]), told]


def findings(results: Results) -> Section | None:
    """The claims stated beforehand, with their verdicts."""
    checked = results.findings
    if not checked:
        return None
    rows = [[Badge(row["verdict"]), row["claim"], row["numbers"]] for row in checked]
    words = (
        "Stated before the run. A claim about two entries passes or fails where the mean of their paired "
        "differences over "
        "the seeds exceeds its 95 % interval, and is a tie elsewhere."
    )
    return Section("What was expected", [Text(words), Table(["verdict", "claim", "numbers"], rows)])


def rankings(results: Results) -> Section:
    """A table for each budget, the last one open."""
    n = len(results.spec["seeds"])
    words = (
        f"Sorted by {title_of(results.measure)}, mean over {n} seed{'s' if n > 1 else ''} ± standard error. A rank is "
        "the range that the errors leave open: two entries count as different only where the mean of their paired "
        "differences over the common seeds exceeds its 95 % interval. `tie` marks what cannot be told from the first. "
        f"With many pairs some will exceed it by chance. {_what_varies(results)}"
        + (" Calls of a calibration are apart: see Calibration." if results.choices else "")
    )
    blocks: list[Any] = [Text(words)]
    budgets = results.budgets
    open_one = budgets[-1] if budgets[-1:] != [None] or len(budgets) == 1 else budgets[-2]
    for budget in sorted(budgets, key=lambda b: (b != open_one, b is None, b or 0)):
        table = _ranking(results, budget)
        title = f"At most {budget} network calls" if budget is not None else "Steps of their own"
        blocks.append(table if budget == open_one else Fold(title, [table]))
    return Section("Ranking", blocks)


def _what_varies(results: Results) -> str:
    if results.spec["mode"] == "oracle":
        return "What varies from seed to seed is the noise."
    if results.spec["train_each_seed"]:
        return "Each seed trained its own network, so the error includes that of training."
    return (
        "All seeds share one trained network, so the error is that of sampling; another training would differ by more."
    )


def _ranking(results: Results, budget: int | None) -> Table:
    measures = list(results.spec["measures"])
    rows: list[list[Any]] = []
    for line in results.ranking(budget):
        mine = [
            r
            for r in results.rows
            if (r["formulation"], r["sampler"], r["budget"]) == line.entry and r["status"] == "ok"
        ]
        rank = str(line.rank) if line.rank == line.last else f"{line.rank}–{line.last}"
        behind: Any = "" if line.behind is None else shown(line.behind).partition(" (")[0]
        mark: Any = Badge("best") if line.behind is None else Badge("tie") if line.behind.sign == 0 else ""
        if len(results.spec["seeds"]) < 2:
            mark = ""
        others = [_mean_pm([r[m] for r in mine if r.get(m) is not None]) for m in measures[1:]]
        calls, seconds = _span([r["nfe"] for r in mine]), mean_of(r["seconds"] for r in mine).mean
        rows.append([rank, mark, *line.entry[:2], calls, _pm(line), behind, *others, f"{seconds:.2f}"])
    floor = [r for r in results.real if r["status"] == "ok"]
    if floor:
        values = [_mean_pm([r[m] for r in floor]) for m in measures]
        rows.append(["", "", "real samples", "", "", values[0], "", *values[1:], ""])
    title = f"At most {budget} network calls" if budget is not None else "Samplers with steps of their own"
    header = ["rank", "", "formulation", "sampler", "calls", title_of(measures[0]), "behind the first (95 %)",
              *[title_of(m) for m in measures[1:]], "seconds"]  # fmt: skip
    numbers = [4, 5, 6, *range(7, 8 + len(measures) - 1)]
    return Table(header, rows, title, numbers, [len(rows) - 1] if floor else [])


def orders(results: Results) -> Section | None:
    """Claimed and fitted orders of convergence."""
    if not results.orders:
        return None
    names = list(results.spec["formulations"])
    rows = []
    for sampler in results.spec["samplers"]:
        mine = {r["formulation"]: r for r in results.orders if r["sampler"] == sampler}
        ok = [r for r in mine.values() if r["status"] == "ok"]
        if not mine:
            continue
        if not ok:
            rows.append([sampler, "", "none", *["" for _ in names], next(iter(mine.values()))["reason"]])
            continue
        cells = [_order(mine.get(name)) for name in names]
        low = [r for r in ok if falls_short(r)]
        mark = Badge("below its claim") if low else Badge("as claimed")
        rows.append([sampler, ok[0]["error_kind"], f"{ok[0]['claimed']:g}", *cells, mark])
    words = (
        "The slope of log error against log steps, with the standard error of the fit, over 64 to 512 steps even in "
        "the "
        "half log-SNR between -3 (or where the process begins) and 2.5. Deterministic samplers (strong): error "
        "against the exact solution of the "
        "probability-flow ODE for three Gaussians in the plane. Stochastic samplers (weak): error of the exact "
        "variance of "
        "the output for Gaussian data, read off from unit noises without any sampling. A slope above the claim "
        "means that "
        "an error term happens to vanish on this problem."
    )
    header = ["sampler", "kind", "claimed", *names, ""]
    return Section("Orders of convergence", [Text(words), Table(header, rows, "", range(2, 3 + len(names)))])


def _order(row: Any) -> str:
    if row is None or row["status"] != "ok":
        return "-"
    return f"{row['fitted']:.2f} ± {row['standard_error']:.2f}"


def likelihoods(results: Results) -> Section | None:
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
        "probability-flow ODE, ± its standard error over the points (they are the same points for all, so the "
        "difference of "
        "two formulations is known better than each). Lower is better. Bits a dimension are those of the raw "
        "data, whose levels are spread out by uniform noise."
    )
    header = ["formulation", "training seed", "nats/dimension", "of the exact law", "bits/dimension", "calls"]
    used = [i for i in range(len(header)) if i < 3 or any(row[i] for row in rows)]
    header, rows = [header[i] for i in used], [[row[i] for i in used] for row in rows]
    return Section("Likelihood", [Text(words), Table(header, rows, "", range(1, len(header)))])


def _pm(line: Ranked) -> str:
    return _with_error(line.value.mean, line.value.error)


def _mean_pm(values: Sequence[float]) -> str:
    if not values:
        return ""
    m = mean_of(values)
    return _with_error(m.mean, m.error)


def _with_error(mean: float, error: float | None) -> str:
    """A number with as many digits as its error has something to say about."""
    if error is None or error <= 0 or error != error:
        return f"{mean:.4g}"
    import math

    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{mean:.{min(digits, 8)}f} ± {error:.{min(digits, 8)}f}"


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}–{high}"
