"""What an evaluation found, as JSON, as a tidy table (CSV), and as lines for a person."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sde_gen.evaluation.likelihood import HeldOutLikelihood
from sde_gen.files import write_json, write_text
from sde_gen.metrics import MetricResult

COLUMNS: tuple[str, ...] = (
    "name",
    "title",
    "value",
    "standard_error",
    "low",
    "high",
    "real_against_real",
    "real_standard_error",
    "real_low",
    "real_high",
    "n",
    "m",
    "better",
    "seconds",
)


@dataclass(frozen=True)
class Evaluation:
    """What `python -m sde_gen.evaluate` found.

    Attributes:
        about: what was evaluated, as plain data.
        likelihoods: of the held-out data.
        metrics: distances of samples from the held-out data.
    """

    about: Mapping[str, Any]
    likelihoods: Sequence[HeldOutLikelihood] = ()
    metrics: Sequence[MetricResult] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **self.about,
            "likelihood": {found.kind: found.to_dict() for found in self.likelihoods},
            "metrics": [found.to_dict() for found in self.metrics],
        }

    def write(self, folder: Path) -> None:
        """`evaluation.json` and `evaluation.csv` in `folder`."""
        write_json(folder / "evaluation.json", self.to_dict(), "the evaluation")
        stream = io.StringIO()
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows(self):
            writer.writerow({key: "" if value is None else value for key, value in row.items()})
        write_text(folder / "evaluation.csv", stream.getvalue(), "the table")

    def lines(self) -> list[str]:
        """A table for a person: value, error, and what two sets of real data give."""
        result = [
            (row["title"], _shown(row, ""), _shown(row, "real_") and f"(real data: {_shown(row, 'real_')})")
            for row in rows(self)
        ]
        widths = [max((len(line[i]) for line in result), default=0) for i in (0, 1)]
        return [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in result]


def rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One mapping of `COLUMNS` for each number: likelihoods first, then distances.

    The `real_against_real` of a likelihood is that of the exact law, where it is known.
    """
    table = []
    for found in evaluation.likelihoods:
        what = "by the ODE" if found.kind == "ode" else "bound"
        common = {"n": found.n, "better": "lower", "seconds": round(found.seconds, 3)}
        exact = {"real_against_real": found.exact_nll, "real_standard_error": found.exact_nll_error}
        for name, title, value, error, more in (
            ("nll", f"NLL {what}, nats", found.nll, found.nll_error, exact),
            ("bits_per_dim", f"bits/dim {what}", found.bits_per_dim, found.bits_per_dim_error, {}),
        ):
            row = {"name": f"{name}_{found.kind}", "title": title, "value": value, "standard_error": error}
            table.append(dict.fromkeys(COLUMNS) | row | common | more)
    for metric in evaluation.metrics:
        row = {name: value for name, value in metric.to_dict().items() if name in COLUMNS}
        for end, interval in (("", metric.interval), ("real_", metric.real_interval)):
            row[f"{end}low"], row[f"{end}high"] = interval or (None, None)
        table.append(dict.fromkeys(COLUMNS) | row | {"seconds": round(metric.seconds, 3)})
    return table


def _shown(row: Mapping[str, Any], which: str) -> str:
    value = row["real_against_real"] if which else row["value"]
    if value is None:
        return ""
    error, low, high = (row[f"{which}{key}"] for key in ("standard_error", "low", "high"))
    if error is not None:
        return f"{_number(value)} +- {_number(error)}"
    return _number(value) if low is None else f"{_number(value)} [{_number(low)}, {_number(high)}]"


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"
