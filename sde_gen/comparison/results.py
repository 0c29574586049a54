"""What came out: tidy rows, and everything that the report shows."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sde_gen.comparison.cells.cell import Cell
from sde_gen.comparison.cells.store import Store
from sde_gen.comparison.definition import ComparisonSettings, Formulation
from sde_gen.comparison.plan import Plan
from sde_gen.comparison.ranking import Ranked, badness, by_entry, groups, mean_of, ranking
from sde_gen.data import Dataset
from sde_gen.errors import MissingInputError
from sde_gen.files import write_json, write_text
from sde_gen.samplers import Sampler

#: Columns of every row, before and after the measures.
BEFORE = (
    "comparison", "mode", "formulation", "sampler", "budget", "seed", "status", "reason", "steps", "nfe", "seconds",
)  # fmt: skip
WHOLE = ("budget", "seed", "steps", "nfe")
AFTER = (
    "nll", "nll_standard_error", "bits_per_dim", "training_loss", "held_out_loss", "training_seconds",
    "note", "cell", "code", "data", "device", "date", "command",
)  # fmt: skip


@dataclass(frozen=True)
class ResultTable:
    """The results of a comparison; see `Results`."""

    settings: ComparisonSettings
    rows: list[dict[str, Any]]
    orders: list[dict[str, Any]]
    likelihoods: list[dict[str, Any]]
    real: list[dict[str, Any]]
    networks: list[dict[str, Any]]
    choices: list[dict[str, Any]]
    data: Dataset
    store: Store
    cells: Sequence[Cell]
    span: tuple[float, float] | None
    command: str = ""

    @property
    def spec(self) -> dict[str, Any]:
        """The comparison as plain data."""
        return self.settings.spec

    @property
    def formulations(self) -> Mapping[str, Formulation]:
        """Those of the comparison, by name."""
        return self.settings.formulations

    @property
    def samplers(self) -> Mapping[str, Sampler]:
        """Those of the comparison, by name."""
        return self.settings.samplers

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the tidy table."""
        return (*BEFORE, *self._measures, *AFTER)

    @property
    def _measures(self) -> list[str]:
        return [column for m in self.settings.measures for column in (m, f"{m}_standard_error")]

    @property
    def measure(self) -> str:
        """The measure that decides the ranking."""
        return self.settings.measures[0]

    @property
    def complete(self) -> bool:
        """Whether every cell has a result."""
        return all(row["status"] != "missing" for row in self.rows)

    @property
    def findings(self) -> list[dict[str, Any]]:
        """The findings stated beforehand, checked."""
        return [f.check(self.rows, self.orders, self.floor, self.measure) for f in self.settings.findings]

    @property
    def floor(self) -> dict[str, float]:
        """Each measure's mean for real samples against real samples."""
        ok = [row for row in self.real if row["status"] == "ok"]
        return {m: mean_of(row[m] for row in ok).mean for m in self.settings.measures} if ok else {}

    @property
    def budgets(self) -> list[Any]:
        """Budgets that have results; None last, for samplers with steps of their own."""
        return groups(self.rows)

    def ranking(self, budget: int | None, measure: str | None = None) -> list[Ranked]:
        """The entries of one budget (None: samplers with steps of their own), best first, ties sharing a rank."""
        name = measure or self.measure
        rows = [row for row in self.rows if row["budget"] == budget]
        lines = ranking(by_entry(rows, name, badness))
        raw, errors = by_entry(rows, name), by_entry(rows, f"{name}_standard_error")
        result = []
        for line in lines:  # shown as measured; with one seed, the error is that of the two finite sets
            mean = mean_of(raw[line.entry].values())
            own = next(iter(errors.get(line.entry, {}).values()), None) if mean.n == 1 else mean.error
            result.append(line._replace(value=mean._replace(error=own)))
        return result

    def tidy(self) -> list[dict[str, Any]]:
        """The rows with all columns, in order."""
        commands = {row["cell"]: f"{self.command} cell={row['cell']}" for row in self.rows if row.get("cell")}
        return [{c: row.get(c) for c in self.columns} | {"command": commands.get(row.get("cell"))} for row in self.rows]

    def to_csv(self, path: Any) -> Path:
        """Write the rows as CSV."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.tidy())
        return write_text(Path(path), buffer.getvalue(), "the table")

    def to_json(self, path: Any) -> Path:
        """Write rows, orders, likelihoods, real samples and findings as JSON."""
        values = {
            "comparison": self.spec,
            "rows": self.tidy(),
            "orders": self.orders,
            "likelihoods": self.likelihoods,
            "real": self.real,
            "networks": self.networks,
            "choices": self.choices,
            "findings": self.findings,
        }
        return write_json(Path(path), values, "the table")

    def to_dataframe(self) -> Any:
        """The rows as a pandas DataFrame: whole numbers as "Int64", which may be missing, other numbers as float64.

        Raises:
            MissingInputError: pandas is not installed.
        """
        try:
            import pandas as pd  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingInputError("to_dataframe needs pandas, which is not installed; pip install pandas") from error
        frame = pd.DataFrame(self.tidy(), columns=list(self.columns))
        numbers = {*WHOLE, *self._measures, "seconds", *AFTER[: AFTER.index("note")]}
        return frame.astype({c: "Int64" if c in WHOLE else "float64" for c in self.columns if c in numbers})


def gathered(
    settings: ComparisonSettings, plan: Plan, found: Mapping[str, dict[str, Any]], store: Store
) -> dict[str, Any]:
    """The fields of a table, from the results of all cells by their keys."""
    kinds = {"model": "networks", "choice": "choices", "real": "real", "likelihood": "likelihoods", "order": "orders"}
    lists: dict[str, list[dict[str, Any]]] = {name: [] for name in kinds.values()}
    drawn: list[tuple[Cell | None, dict[str, Any]]] = [(None, row) for row in plan.skipped]
    nll: dict[tuple[str, str], dict[str, Any]] = {}
    for cell in plan.cells:
        row = {**cell.labels, **found[cell.key], "cell": cell.key, "code": cell.code}
        if cell.kind in kinds:
            lists[kinds[cell.kind]].append(row)
        if cell.kind == "likelihood" and row["status"] == "ok":
            nll[row["formulation"], _model(cell)] = row
        elif cell.kind == "samples":
            drawn.append((cell, row))
    trained = {row["cell"]: row for row in lists["networks"]}
    rows = []
    for cell, row in drawn:
        network, likely = trained.get(_model(cell), {}), nll.get((row["formulation"], _model(cell)), {})
        rows.append({
            "comparison": settings.name, "mode": settings.mode, **row,
            **{name: likely.get(name) for name in ("nll", "nll_standard_error", "bits_per_dim")},
            "training_loss": network.get("loss"), "held_out_loss": network.get("held_out_loss"),
            "training_seconds": network.get("seconds"),
            "data": plan.data.fingerprint[:16], "device": settings.device,
        })  # fmt: skip
    f, s = ({name: i for i, name in enumerate(names)} for names in (settings.formulations, settings.samplers))
    rows.sort(key=lambda r: (f[r["formulation"]], s[r["sampler"]], r["budget"] or 0, r["seed"] or 0))
    shared = {"data": plan.data, "store": store, "cells": plan.cells, "span": plan.span}
    return {"settings": settings, "rows": rows, **lists, **shared}


def _model(cell: Cell | None) -> str:
    """Key of the cell whose network a cell asks; empty where it is none of this comparison's."""
    source = getattr(cell, "source", None)
    return source.key if isinstance(source, Cell) else ""
