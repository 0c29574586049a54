"""What the report says first: the answer in short, what was expected, who is better."""

from collections.abc import Sequence
from typing import Any

from sde_gen.comparison.numbers import difference_with_interval, mean_with_error, title_of, with_error
from sde_gen.comparison.ranking import badness, by_entry, mean_of
from sde_gen.comparison.report.blocks import Badge, Fold, Section, Table, Text
from sde_gen.comparison.results import ResultTable

_MODES = {
    "oracle": "Every score is exact: no network, so what differs is what the discretisation costs.",
    "network": "Each formulation trained its own network, of one configuration, from the same first weights, with the "
    "same data in the same order: what differs includes what the formulation costs in learning.",
    "shared": "One trained network serves every formulation by an exact change of variables: what differs is what the "
    "formulation costs in sampling, learning held fixed.",
}


def summary(results: ResultTable) -> list[Any]:
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
    repeats = spec["mode"] == "oracle" and data.law is None
    law = (
        " The law it is exact for is that of the training samples, which a perfect sampler repeats." if repeats else ""
    )
    words = (
        f"{len(spec['formulations'])} formulations and {len(spec['samplers'])} samplers {same}. {held} samples of each "
        f"cell are compared with {held} held-out {_kind(results)}. {_MODES[spec['mode']]}{law}{levels}"
    )
    blocks: list[Any] = [Text(words)]
    needed = _needed(results)
    blocks += [needed] if needed is not None else []
    winners = [_winner(results, budget) for budget in results.budgets]
    if winners:
        header = ["calls, at most", "lowest", title_of(results.measure), "others that cannot be told from it"]
        blocks.append(Table(header, winners, "The best at each budget.", [2]))
    if n < 2:
        blocks.append(Text("One seed: nothing is said about what can be told apart."))
    if not results.complete:
        missing = sum(row["status"] == "missing" for row in results.rows)
        blocks.append(Text(f"{missing} rows are not computed yet: this report shows what the cache holds so far."))
    return blocks


def _kind(results: ResultTable) -> str:
    data, size = results.data, "x".join(map(str, results.data.shape))
    return f"images of {data.name} ({size})" if data.kind == "image" else f"points of {data.name} ({size} numbers each)"


def _needed(results: ResultTable) -> Table | None:
    """The fewest calls with which each sampler is as good as real samples under each formulation."""
    name, spec = results.measure, results.spec
    real = [badness(name, row[name]) for row in results.real if row["status"] == "ok"]
    values = by_entry(results.rows, name, badness)
    if not real or not values:
        return None
    m = mean_of(real)
    bound = m.mean + 2 * (m.error or 0.0)
    calls = {(r["formulation"], r["sampler"], r["budget"]): r["nfe"] for r in results.rows if r["status"] == "ok"}
    reached = {entry for entry, of_seed in values.items() if mean_of(of_seed.values()).mean <= bound}

    def cell(f: str, s: str) -> str:
        mine = sorted((calls[entry], entry) for entry in values if entry[:2] == (f, s))
        found = next((str(n) for n, entry in mine if entry in reached), None)
        return found or (f"over {mine[-1][0]}" if mine else "-")

    names = list(spec["formulations"])
    rows = [[s, *(cell(f, s) for f in names)] for s in spec["samplers"]]
    words = (
        f"Network calls, of those tried, from which a sampler is as good as real samples: {title_of(name)} of at most "
        f"{bound:.2g}, the mean of as many real samples and two standard errors."
    )
    return Table(["sampler", *names], rows, words, range(1, 1 + len(names)))


def _winner(results: ResultTable, budget: int | None) -> list[str | Badge]:
    lines = results.ranking(budget)
    ties = [line.entry for line in lines[1:] if line.behind is not None and line.behind.sign == 0]
    told = "none" if not ties else "; ".join(f"{f}, {s}" for f, s, _ in ties[:3])
    more = f" and {len(ties) - 3} more of {len(lines) - 1}" if len(ties) > 3 else ""
    told = "" if len(results.spec["seeds"]) < 2 else told + more
    where = str(budget) if budget is not None else "steps of their own"
    f, s, _ = lines[0].entry
    return [where, f"{f}, {s}", with_error(*lines[0].value[:2]), told]


def findings(results: ResultTable) -> Section | None:
    """The claims stated beforehand, with their verdicts."""
    checked = results.findings
    if not checked:
        return None
    rows = [[Badge(row["verdict"]), row["claim"], row["numbers"]] for row in checked]
    words = (
        "Stated before the run. A claim about two entries passes or fails where the mean of their paired differences "
        "over the seeds exceeds its 95 % interval, and is a tie elsewhere."
    )
    return Section("What was expected", [Text(words), Table(["verdict", "claim", "numbers"], rows)])


def rankings(results: ResultTable) -> Section:
    """A table for each budget, the most telling one open."""
    n = len(results.spec["seeds"])
    words = (
        f"Sorted by {title_of(results.measure)}, mean over {n} seed{'s' if n > 1 else ''} ± standard error. A rank is "
        "the range that the errors leave open: two entries count as different only where the mean of their paired "
        "differences over the common seeds exceeds its 95 % interval. `tie` marks what cannot be told from the first. "
        f"With many pairs some will exceed it by chance. {_what_varies(results)}"
        + (" Calls of a calibration are apart: see Calibration." if results.choices else "")
    )
    blocks: list[Any] = [Text(words)]
    tables = {budget: _ranking(results, budget) for budget in results.budgets}
    open_one = _most_telling(results)
    for budget in [open_one, *(b for b in results.budgets if b != open_one)]:
        title = f"At most {budget} network calls" if budget is not None else "Steps of their own"
        blocks.append(tables[budget] if budget == open_one else Fold(title, [tables[budget]]))
    return Section("Ranking", blocks)


def _most_telling(results: ResultTable) -> int | None:
    """The budget at which the fewest entries tie with the first, as a share; the smallest of equals."""

    def ties(budget: int | None) -> float:
        lines = results.ranking(budget)
        return sum(line.behind is not None and line.behind.sign == 0 for line in lines) / max(1, len(lines) - 1)

    budgets = [b for b in results.budgets if b is not None] or results.budgets
    return min(budgets, key=ties)


def _what_varies(results: ResultTable) -> str:
    if results.spec["mode"] == "oracle":
        return "What varies from seed to seed is the noise."
    if results.spec["train_each_seed"]:
        return "Each seed trained its own network, so the error includes that of training."
    return (
        "All seeds share one trained network, so the error is that of sampling; another training would differ by more."
    )


def _ranking(results: ResultTable, budget: int | None) -> Table:
    measures = list(results.spec["measures"])
    rows: list[list[Any]] = []
    for line in results.ranking(budget):
        mine = [
            r
            for r in results.rows
            if (r["formulation"], r["sampler"], r["budget"]) == line.entry and r["status"] == "ok"
        ]
        rank = str(line.rank) if line.rank == line.last else f"{line.rank}–{line.last}"
        behind: Any = "" if line.behind is None else difference_with_interval(line.behind).partition(" (")[0]
        mark: Any = Badge("best") if line.behind is None else Badge("tie") if line.behind.sign == 0 else ""
        if len(results.spec["seeds"]) < 2:
            mark = ""
        others = [mean_with_error([r[m] for r in mine if r.get(m) is not None]) for m in measures[1:]]
        calls, seconds = _span([r["nfe"] for r in mine]), mean_of(r["seconds"] for r in mine).mean
        entry, value = ", ".join(line.entry[:2]), with_error(*line.value[:2])
        rows.append([rank, mark, entry, value, behind, calls, *others, f"{seconds:.2f}"])
    floor = [r for r in results.real if r["status"] == "ok"]
    if floor:
        values = [mean_with_error([r[m] for r in floor]) for m in measures]
        rows.append(["", "", "real samples", values[0], "", "", *values[1:], ""])
    title = f"At most {budget} network calls" if budget is not None else "Samplers with steps of their own"
    header = ["rank", "", "formulation, sampler", title_of(measures[0]), "behind the first (95 %)", "calls",
              *[title_of(m) for m in measures[1:]], "seconds"]  # fmt: skip
    numbers = [0, *range(3, 7 + len(measures) - 1)]
    return Table(header, rows, title, numbers, [len(rows) - 1] if floor else [])


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}–{high}"
