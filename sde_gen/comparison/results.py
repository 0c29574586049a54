"""What came out: tidy rows, and everything that the report shows."""

import csv
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sde_gen.comparison.cells.quality import badness
from sde_gen.comparison.cells.store import Cell, Store
from sde_gen.comparison.findings import Finding
from sde_gen.comparison.ranking import Ranked, by_entry, groups, mean_of, ranking
from sde_gen.data import Dataset
from sde_gen.errors import MissingInputError
from sde_gen.files import make_folder, write_text

#: Columns of every row, before and after the measures.
BEFORE = (
    "comparison",
    "mode",
    "formulation",
    "sampler",
    "budget",
    "seed",
    "status",
    "reason",
    "steps",
    "nfe",
    "seconds",
)
WHOLE = ("budget", "seed", "steps", "nfe")
AFTER = (
    "nll", "nll_standard_error", "bits_per_dim", "training_loss", "held_out_loss", "training_seconds",
    "note", "cell", "code", "data", "device", "date", "command",
)  # fmt: skip


@dataclass(frozen=True)
class Results:
    """The results of a comparison.

    Attributes:
        spec: the comparison as plain data.
        rows: one for each cell and seed, as mappings of the columns; skipped and failed ones say why.
        orders: fitted orders of convergence (mode "oracle").
        likelihoods: negative log-likelihoods of the formulations.
        real: the measures of as many real samples, one row for each seed.
        networks: what was trained, by formulation.
        choices: what samplers that measure first chose, by formulation and budget, and what that cost.
        findings: claims with their verdicts.
        data: the data set.
    """

    spec: Mapping[str, Any]
    rows: list[dict[str, Any]]
    orders: list[dict[str, Any]]
    likelihoods: list[dict[str, Any]]
    real: list[dict[str, Any]]
    networks: list[dict[str, Any]]
    data: Dataset
    store: Store
    cells: Sequence[Cell] = field(default_factory=tuple, repr=False)
    span: tuple[float, float] | None = None
    trust: tuple[str, ...] = ()
    choices: list[dict[str, Any]] = field(default_factory=list)
    command: str = "python -m sde_gen.compare spec=comparison.json"

    def with_command(self, command: str) -> "Results":
        """The same with the command line that makes the comparison again."""
        return replace(self, command=command)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the tidy table."""
        measures = [column for m in self.spec["measures"] for column in (m, f"{m}_standard_error")]
        return (*BEFORE, *measures, *AFTER)

    @property
    def _numbers(self) -> set[str]:
        """The columns that hold numbers, whether or not a row has them."""
        measures = {column for m in self.spec["measures"] for column in (m, f"{m}_standard_error")}
        return {*WHOLE, *measures, "seconds", *AFTER[: AFTER.index("note")]}

    @property
    def measure(self) -> str:
        """The measure that decides the ranking."""
        return str(self.spec["measures"][0])

    @property
    def complete(self) -> bool:
        """Whether every cell has a result."""
        return all(row["status"] != "missing" for row in self.rows)

    @property
    def findings(self) -> list[dict[str, Any]]:
        """The findings stated beforehand, checked."""
        claims = [Finding.of(f) for f in self.spec["findings"]]
        return [claim.check(self.rows, self.orders, self.floor, self.measure) for claim in claims]

    @property
    def floor(self) -> dict[str, float]:
        """Each measure's mean for real samples against real samples."""
        ok = [row for row in self.real if row["status"] == "ok"]
        return {m: mean_of(row[m] for row in ok).mean for m in self.spec["measures"]} if ok else {}

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
            "comparison": dict(self.spec),
            "rows": self.tidy(),
            "orders": self.orders,
            "likelihoods": self.likelihoods,
            "real": self.real,
            "networks": self.networks,
            "choices": self.choices,
            "findings": self.findings,
        }
        return write_text(Path(path), json.dumps(values, indent=1) + "\n", "the table")

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
        return frame.astype({c: "Int64" if c in WHOLE else "float64" for c in self.columns if c in self._numbers})

    def report(self, folder: Any) -> Path:
        """Write report.html, report.md with its pictures, rows.csv, rows.json and comparison.json; return the HTML.

        Raises:
            OutputError: the folder cannot be written.
        """
        from sde_gen.comparison.report import write_report

        place = make_folder(Path(folder).expanduser(), "the folder of the report")
        if self.command == Results.command:  # made in Python: the description beside the report is what reruns it
            words = [f"spec={place / 'comparison.json'}", f"cache={self.store.root}"]
            own = [name for name in self.trust if name != "__main__"]  # what a script defines, no other can build
            words += [f"trust=[{','.join(own)}]"] if own else []
            return self.with_command(" ".join(["python -m sde_gen.compare", *map(shlex.quote, words)])).report(folder)
        self.to_csv(place / "rows.csv")
        self.to_json(place / "rows.json")
        write_text(place / "comparison.json", json.dumps(dict(self.spec), indent=1) + "\n", "the comparison")
        return write_report(self, place)
