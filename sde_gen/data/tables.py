"""Vectors from CSV files."""

import codecs
import csv
import io
import math
from numbers import Integral
from pathlib import Path

import numpy as np
import torch

from sde_gen.data.dataset import Dataset, from_raw
from sde_gen.data.labels import encode
from sde_gen.data.reading import located, sentence
from sde_gen.errors import ConfigError, DataError

_SPELLED = {"\\t": "\t", "tab": "\t"}
_BOMS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
         (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip


def csv_file(
    path: str | Path,
    *,
    label: str | int | None = None,
    header: bool | None = None,
    delimiter: str = ",",
    held_out: int | float = 0.1,
    seed: int = 0,
) -> Dataset:
    r"""Vectors from a CSV file in UTF-8 (or with a byte order mark): a sample a line, but for the labels only numbers.

    Each column is standardised.

    Args:
        path: the file.
        label: column of the class labels (any text; -1: no label): its name in the header, or its 0-based place; None:
            there are none.
        header: whether the first line names the columns; None: it does where none of its fields is a number.
        delimiter: the character between the fields, "\t" or "tab" for a tab. A file without commas is split at tabs,
            semicolons, bars or blanks where just one of them gives all its lines the same number of fields.
        held_out: fraction in (0, 1), or number of samples, to hold out.
        seed: picks the held-out samples.

    Raises:
        MissingInputError: no such file.
        DataError: a field that is not a finite number, an empty label, a line of another length (each is named), no
            lines.
        ConfigError: a label column that is not there, other arguments outside their range.
    """
    file = located(path, "path (data.path) must be a CSV file")
    delimiter = _SPELLED.get(delimiter, delimiter)
    if len(delimiter) != 1 or delimiter in '"\r\n\0':
        raise ConfigError(f"delimiter must be one character other than quotes and line ends, or tab, got {delimiter!r}")
    lines = _lines(file, delimiter)
    if not lines:
        raise DataError(f"{file}: holds no data")
    width = len(lines[0][1])
    whole = isinstance(label, Integral) and not isinstance(label, bool)
    place = int(label) % width if whole and -width <= label < width else None  # type: ignore[arg-type,operator]
    if header is None:
        fields = [field for column, field in enumerate(lines[0][1]) if column != place]
        header = isinstance(label, str) or not any(_is_number(field) for field in fields)
    names = [field.strip() for field in lines.pop(0)[1]] if header else [f"#{column}" for column in range(width)]
    if isinstance(label, str) and label in names:
        place = names.index(label)
    if label is not None and place is None:
        raise ConfigError(f"{file}: no column {label!r} for the labels; the columns are {', '.join(names)}")
    if not lines:
        raise DataError(f"{file}: holds a header, but no data")
    rows, labels = [], []
    for number, fields in lines:
        if len(fields) != width:
            raise DataError(f"{file}, line {number}: has {len(fields)} columns, but the first line has {width}")
        row = []
        for column, field in enumerate(fields):
            if column == place and field.strip():
                labels.append(field.strip())
            elif column != place and _is_number(field) and math.isfinite(float(field)):
                row.append(float(field))
            else:
                what = f"{field!r} is not a finite number"
                if column == place:
                    what = "the label is empty; write -1 for a sample without a label"
                elif mark := next((mark for mark in "\t;|," if mark in field), None):
                    what += f"; is {mark!r} the delimiter (data.delimiter), or a decimal comma?"
                raise DataError(f"{file}, line {number}, column {column + 1} ({names[column]}): {what}")
        rows.append(row)
    if not rows[0]:
        raise DataError(f"{file}: the labels are its only column; there must be at least one column of numbers")
    numbers, classes = (None, ()) if place is None else encode(str(file), np.array(labels))
    raw = torch.tensor(rows, dtype=torch.float64)
    return from_raw(file.stem, "vector", raw, numbers, None, held_out, seed, classes)


def _lines(file: Path, delimiter: str) -> list[tuple[int, list[str]]]:
    """(line number, fields) of the lines that are not blank."""
    try:
        content = file.read_bytes()
        text = content.decode(next((name for mark, name in _BOMS if content.startswith(mark)), "utf-8-sig"))
        lines = _split(text, delimiter)
        if delimiter == "," and not any("," in field or len(row) > 1 for _, row in lines[:1] for field in row):
            others = [found for found in (_split(text, other) for other in "\t;| ") if _regular(found)]
            lines = others[0] if len(others) == 1 else lines
        return lines
    except (UnicodeError, csv.Error, OSError) as error:
        raise DataError(f"{file}: cannot be read as CSV in UTF-8 ({sentence(error)})") from None


def _split(text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=delimiter == " ")
    return [(reader.line_num, row) for row in reader if any(field.strip() for field in row)]


def _regular(lines: list[tuple[int, list[str]]]) -> bool:
    """Whether all lines have the same number of fields, at least 2."""
    widths = {len(row) for _, row in lines}
    return len(widths) == 1 and min(widths) > 1


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return "_" not in field  # Python reads 1_000 as a number; no other program does
