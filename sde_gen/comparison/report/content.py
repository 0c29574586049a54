"""What the report says first: the answer in short, what was expected, who is better."""

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
    asked, data, span = results.settings, results.data, results.span
    held, n = min(asked.num_samples, len(data.test)), len(asked.seeds)
    same = (
        f"on the same {'noise levels' if asked.grid == 'matched' else 'budgets'}, "
        f"with the same noise in every cell, for {n} seed{'s' if n > 1 else ''}"
    )
    words = (
        f"{len(asked.formulations)} formulations and {len(asked.samplers)} samplers {same}. {held} samples of each "
        f"cell are compared with {held} held-out {_kind(results)}. {_MODES[asked.mode]}"
    )
    if asked.mode == "oracle" and data.law is None:
        words += " The law it is exact for is that of the training samples, which a perfect sampler repeats."
    if span is not None:
        words += f" Half log-SNRs visited by all: {span[0]:.2f} to {span[1]:.2f}."
    needed = _needed(results)
    blocks: list[Any] = [Text(words), *([needed] if needed is not None else [])]
    winners = [_winner(results, budget) for budget in results.budgets]
    if winners:
        header = ["calls, at most", "lowest", title_of(results.measure), "others that cannot be told from it"]
        blocks.append(Table(header, winners, "The best at each budget.", [2]))
    if n < 2:
        blocks.append(Text("One seed: nothing is said about what can be told apart."))
    missing = sum(row["status"] == "missing" for row in results.rows)
    if missing:
        blocks.append(Text(f"{missing} rows are not computed yet: this report shows what the cache holds so far."))
    return blocks


def _kind(results: ResultTable) -> str:
    data, size = results.data, "x".join(map(str, results.data.shape))
    return f"images of {data.name} ({size})" if data.kind == "image" else f"points of {data.name} ({size} numbers each)"


def _needed(results: ResultTable) -> Table | None:
    """The fewest calls with which each sampler is as good as real samples under each formulation."""
    name, names = results.measure, list(results.formulations)
    real = [badness(name, row[name]) for row in results.real if row["status"] == "ok"]
    values = by_entry(results.rows, name, badness)
    if not real or not values:
        return None
    m = mean_of(real)
    bound = m.mean + 2 * (m.error or 0.0)
    calls = {entry: max(of_seed.values()) for entry, of_seed in by_entry(results.rows, "nfe").items()}

    def cell(f: str, s: str) -> str:
        mine = sorted(
            (int(calls[entry]), mean_of(v.values()).mean) for entry, v in values.items() if entry[:2] == (f, s)
        )
        found = next((str(n) for n, value in mine if value <= bound), None)
        return found or (f"over {mine[-1][0]}" if mine else "-")

    words = (
        f"Network calls, of those tried, from which a sampler is as good as real samples: {title_of(name)} of at most "
        f"{bound:.2g}, the mean of as many real samples and two standard errors."
    )
    rows = [[s, *(cell(f, s) for f in names)] for s in results.samplers]
    return Table(["sampler", *names], rows, words, range(1, 1 + len(names)))


def _winner(results: ResultTable, budget: int | None) -> list[str | Badge]:
    first, *others = results.ranking(budget)
    ties = [f"{line.entry[0]}, {line.entry[1]}" for line in others if line.tied]
    more = f" and {len(ties) - 3} more of {len(others)}" if len(ties) > 3 else ""
    told = "" if len(results.settings.seeds) < 2 else ("; ".join(ties[:3]) or "none") + more
    where = str(budget) if budget is not None else "steps of their own"
    return [where, ", ".join(first.entry[:2]), with_error(*first.value[:2]), told]


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
        return sum(line.tied for line in lines) / max(1, len(lines) - 1)

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
    measures = results.settings.measures
    rows: list[list[Any]] = []
    for line in results.ranking(budget):
        keys = ("formulation", "sampler", "budget")
        mine = [r for r in results.rows if tuple(r[k] for k in keys) == line.entry and r["status"] == "ok"]
        rank = str(line.rank) if line.rank == line.last else f"{line.rank}–{line.last}"
        behind = "" if line.behind is None else difference_with_interval(line.behind).partition(" (")[0]
        mark: Any = Badge("best") if line.behind is None else Badge("tie") if line.tied else ""
        mark = mark if len(results.settings.seeds) > 1 else ""
        others = [mean_with_error([r[m] for r in mine if r.get(m) is not None]) for m in measures[1:]]
        calls, seconds = sorted({r["nfe"] for r in mine}), mean_of(r["seconds"] for r in mine).mean
        span = "–".join(map(str, calls[:1] + calls[1:][-1:]))
        entry, value = ", ".join(line.entry[:2]), with_error(*line.value[:2])
        rows.append([rank, mark, entry, value, behind, span, *others, f"{seconds:.2f}"])
    floor = [r for r in results.real if r["status"] == "ok"]
    if floor:
        values = [mean_with_error([r[m] for r in floor]) for m in measures]
        rows.append(["", "", "real samples", values[0], "", "", *values[1:], ""])
    title = f"At most {budget} network calls" if budget is not None else "Samplers with steps of their own"
    header = ["rank", "", "formulation, sampler", title_of(measures[0]), "behind the first (95 %)", "calls",
              *[title_of(m) for m in measures[1:]], "seconds"]  # fmt: skip
    numbers = [0, *range(3, 7 + len(measures) - 1)]
    return Table(header, rows, title, numbers, [len(rows) - 1] if floor else [])
