"""`metrics.csv`, and the tables beside it: one row per line of progress."""

import csv
import io
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from sde_gen.errors import ConfigError, DataError, MissingInputError, SDEGenError, WriteError
from sde_gen.files import read_text, write_text, writing

METRIC_COLUMNS: tuple[str, ...] = (
    "step", "loss", "grad_norm", "learning_rate", "seconds", "steps_per_second", "held_out_loss", "skipped",
)  # fmt: skip
_FEWEST_COLUMNS = 7  # files of older runs end before "skipped"
_MOST_FAILURES = 3
_MOST_BYTES = 2**31


class MetricsFile:
    """A `metrics.csv` that rows are added to, flushed at once; a resumed run continues it after the resumed step.

    Args:
        path: the file. One that cannot be read as metrics, such as one that a crash has emptied or a spreadsheet has
            changed, is renamed, and a new one begun.
        step: rows after this step are dropped: they belong to steps that will be done again.
        columns: of the file, the first of them `step`.

    Attributes:
        set_aside: where the file went that could not be read; None if there was none.
    """

    def __init__(self, path: Path, step: int = 0, columns: Sequence[str] = METRIC_COLUMNS) -> None:
        self.path, self.set_aside, self._columns = path, None, tuple(columns)
        self._waiting: list[dict[str, float]] = []
        self._failures = 0
        kept: list[dict[str, float]] = []
        if os.path.lexists(path):
            try:
                kept = [row for row in read_metrics(path, self._columns) if row["step"] <= step]
            except SDEGenError:
                self.set_aside = path.with_name(f"damaged-{path.stem}-{secrets.token_hex(4)}{path.suffix}")
                with writing(path, "the metrics file"):
                    path.rename(self.set_aside)
        write_text(path, _text(kept, self._columns, header=True), "the metrics file")

    def add(self, row: Mapping[str, float]) -> bool:
        """Append one row; columns that `row` lacks stay empty.

        A row that cannot be written, because the disk is full, waits for the next; whether all are written is returned.

        Raises:
            WriteError: the third time in a row.
        """
        if unknown := set(row) - set(self._columns):
            raise ConfigError(
                f"{self.path.name} has no column {sorted(unknown)}; its columns are {', '.join(self._columns)}"
            )
        self._waiting.append(dict(row))
        try:
            with writing(self.path, "the metrics file"):
                self._append()
        except WriteError:
            self._failures += 1
            if self._failures >= _MOST_FAILURES:
                raise
            return False
        self._failures = 0
        return True

    def _append(self) -> None:
        with self.path.open("ab", buffering=0) as stream:
            whole, data = stream.tell(), _text(self._waiting, self._columns).encode()
            try:
                while data:
                    data = data[stream.write(data) :]
            except OSError:
                stream.truncate(whole)  # not half a row, to which the next would be glued
                raise
        self._waiting.clear()


def read_metrics(path: Path, expected: Sequence[str] | None = METRIC_COLUMNS) -> list[dict[str, float]]:
    """The rows of a `metrics.csv`; empty cells are left out, and so are rows that a crash or a fault has damaged.

    Args:
        path: the file.
        expected: its columns; None: any, such as those of a `levels.csv`.

    Raises:
        MissingInputError: it cannot be read.  DataError: it is no such file.
    """
    try:
        text = read_text(path, _MOST_BYTES, "replace")
    except OSError as error:
        raise MissingInputError(f"cannot read {path}: {error.strerror}") from error
    whole = io.StringIO(text[: text.rfind("\n") + 1], newline="")  # what follows the last line break is half a row
    reader = csv.DictReader(whole, quoting=csv.QUOTE_NONE)
    rows = []
    try:
        columns = tuple(reader.fieldnames or ())
        fewest = _FEWEST_COLUMNS if expected is METRIC_COLUMNS else len(expected or ())
        if columns[:1] != ("step",) or (expected and columns != tuple(expected)[: max(fewest, len(columns))]):
            raise DataError(
                f"{path} is not a metrics file of a run: its first line must be {','.join(expected or ('step',))}"
            )
        for cells in reader:
            if None not in cells and None not in cells.values() and cells["step"].isdigit():
                with suppress(ValueError):
                    rows.append({name: float(cell) for name, cell in cells.items() if cell})
    except csv.Error as error:
        raise DataError(f"{path} is not a metrics file of a run: {error}") from error
    return rows


def _text(rows: Sequence[Mapping[str, float]], columns: Sequence[str], header: bool = False) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows({k: int(v) if k == "step" else float(v) for k, v in row.items()} for row in rows)
    return buffer.getvalue()
