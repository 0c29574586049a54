"""The figures that docs/compare.md quotes, shortened from what a comparison wrote: means over the seeds.

Usage, after `python -m sde_gen.compare experiment=oracle_2d`:
python benchmarks/compare_numbers.py runs/comparisons/oracle_2d/rows.json --out docs/verification/oracle_2d.json
"""

import argparse
import json
import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Any


def shortened(values: dict[str, Any]) -> dict[str, Any]:
    """Means over the seeds of each cell, what real samples reach, and the fitted orders."""
    measure = values["comparison"]["measures"][0]
    cells: dict[tuple[str, str, int | None], list[dict[str, Any]]] = {}
    for row in values["rows"]:
        if row["status"] == "ok":
            cells.setdefault((row["formulation"], row["sampler"], row["budget"]), []).append(row)
    real = [row[measure] for row in values["real"] if row["status"] == "ok"]
    return {
        "measure": measure,
        "real": fmean(real) + 2 * stdev(real) / math.sqrt(len(real)),
        "cells": [
            {"formulation": f, "sampler": s, "budget": b, "calls": max(row["nfe"] for row in rows),
             "mean": round(fmean(row[measure] for row in rows), 6)}
            for (f, s, b), rows in cells.items()
        ],
        "orders": [
            {key: row[key] for key in ("formulation", "sampler", "claimed")} | {"fitted": round(row["fitted"], 3)}
            for row in values["orders"] if row.get("fitted") is not None
        ],
    }  # fmt: skip


def main() -> None:
    """Read, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/verification/oracle_2d.json"))
    args = parser.parse_args()
    args.out.write_text(json.dumps(shortened(json.loads(args.rows.read_text())), indent=1) + "\n")


if __name__ == "__main__":
    main()
