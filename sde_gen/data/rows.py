"""Samples as the rows of a table, as a person would store them."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sde_gen.data.columns import Column, splits
from sde_gen.files import publish


def named(columns: Sequence[Column], features: int) -> Sequence[Column]:
    """`columns`, or "x0", "x1", ... where data have no names for them."""
    return columns or [Column(f"x{k}") for k in range(features)]


def decoded(columns: Sequence[Column], raw: NDArray[np.floating]) -> list[tuple[Column, list[Any]]]:
    """Each column with its N numbers or texts, from raw samples (N, D)."""
    return [(column, column.decode(part)) for column, part in splits(named(columns, raw.shape[1]), raw)]


def write_csv(
    path: Path, columns: Sequence[Column], parts: Iterable[tuple[NDArray[np.floating], Sequence[str]]]
) -> Path:
    """A CSV file with a header, of raw samples (N, D) that come in parts, each with the classes of its rows or none.

    Raises:
        WriteError, OutputError: it could not be written.
    """

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            for index, (raw, classes) in enumerate(parts):
                found = decoded(columns, raw)
                if index == 0:
                    writer.writerow([column.name for column, _ in found] + ["class"] * bool(classes))
                writer.writerows(zip(*(values for _, values in found), *([classes] if classes else []), strict=True))

    return publish(path, write, "the table of samples")
