"""Vectors from CSV files."""

import codecs
import csv
import io
from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path

import numpy as np
import torch

from sde_gen.checks import choice
from sde_gen.data.columns import IMPUTE, is_number, read_column, with_point
from sde_gen.data.dataset import Dataset
from sde_gen.data.labels import encode
from sde_gen.data.making import from_raw
from sde_gen.data.reading import located, refuse_foreign, sentence
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
    categories: Sequence[str | int] = (),
    ordinal: Mapping[str, Sequence[str | int]] | None = None,
    impute: str | None = None,
    ignore: Sequence[str | int] = (),
    decimal: str = ".",
    encoding: str = "utf-8",
    held_out: int | float = 0.1,
    seed: int = 0,
) -> Dataset:
    r"""Vectors from a CSV file in UTF-8 (or with a byte order mark): a sample a line.

    A first column without a name that counts the lines from 0 or 1, as pandas writes it, is left out.
    Columns of numbers are standardised. A column of text whose values come back is one of categories: a feature for
    each value, 1 where it is that one and else 0 (1, -1 on the model's scale); samples have the value of the largest.

    Args:
        path: the file.
        label: column of the class labels (any text; -1: no label): its name in the header, or its 0-based place; None:
            there are none.
        header: whether the first line names the columns; None: it does where none of its fields is a number.
        delimiter: the character between the fields, "\t" or "tab" for a tab. A file without commas is split at tabs,
            semicolons, bars or blanks where just one of them gives all its lines the same number of fields.
        categories: columns, by name or place, whose numbers are categories too.
        ordinal: columns whose values have an order, with the values in it: {"size": ["S", "M", "L"]}. One feature 0, 1,
            ..., standardised; samples have the nearest.
        impute: what takes the place of missing fields: "mean" or "median" for numbers and the most frequent value for
            categories, or "most_frequent"; None: they are refused.
        ignore: columns, by name or place, that are left out.
        decimal: "," for numbers such as 3,14.
        encoding: of a file without a byte order mark, such as "cp1252" of Windows.
        held_out: fraction in (0, 1), or number of samples, to hold out.
        seed: picks the held-out samples.

    Raises:
        MissingInputError: no such file.
        DataError: a file of another program, a field that is not a finite number or missing, an empty label, a line of
            another length (each is named), no lines.
        ConfigError: a column that is not there, other arguments outside their range.
    """
    file = located(path, "path (data.path) must be a CSV file")
    refuse_foreign(file)
    delimiter = _SPELLED.get(delimiter, delimiter)
    if len(delimiter) != 1 or delimiter in '"\r\n\0':
        raise ConfigError(f"delimiter must be one character other than quotes and line ends, or tab, got {delimiter!r}")
    lines = _lines(file, delimiter, encoding, decimal)
    if not lines:
        raise DataError(f"{file}: holds no data")
    width = len(lines[0][1])
    whole = isinstance(label, Integral) and not isinstance(label, bool)
    place = int(label) % width if whole and -width <= label < width else None  # type: ignore[arg-type,operator]
    if header is None:
        first, *others = [[with_point(field) for field in row] if decimal == "," else row for _, row in lines]
        fields = [field for column, field in enumerate(first) if column != place]
        header = isinstance(label, str) or _names_columns(fields, others, place)
    names = [field.strip() for field in lines.pop(0)[1]] if header else [f"#{column}" for column in range(width)]
    if isinstance(label, str) and label in names:
        place = names.index(label)
    if label is not None and place is None:
        raise ConfigError(f"{file}: no column {label!r} for the labels; the columns are {', '.join(names)}")
    if not lines:
        raise DataError(f"{file}: holds a header, but no data")
    if impute is not None:
        choice(str(file), "impute", impute, IMPUTE)
    choice(str(file), "decimal", decimal, (".", ","))
    passed = {_place(file, names, column, "ignore") for column in ignore}
    asked = {_place(file, names, column, "categories") for column in categories}
    orders = {_place(file, names, column, "ordinal"): list(map(str, v)) for column, v in (ordinal or {}).items()}
    for number, fields in lines:
        if len(fields) != width:
            raise DataError(f"{file}, line {number}: has {len(fields)} columns, but the first line has {width}")
    if width == 1 and place is not None:
        raise DataError(f"{file}: the labels are its only column; there must be at least one column of numbers")
    columns, features, labels = [], [], None
    for index, name in enumerate(names):
        fields = [row[index] for _, row in lines]
        where = partial(_where, file, lines, index, name)
        if index in passed or (index == 0 and not name and len(names) > 1 and _counts(fields)):
            continue
        if index == place:
            for row, field in enumerate(fields):
                if not field.strip():
                    raise DataError(f"{where(row)}: the label is empty; write -1 for a sample without a label")
            labels = [field.strip() for field in fields]
            continue
        column, found = read_column(
            name, fields, where, category=index in asked, ordinal=orders.get(index), impute=impute, decimal=decimal
        )  # fmt: skip
        columns.append(column)
        features.append(found)
    if not columns:
        raise ConfigError(f"{file}: ignore and label leave no column; there must be at least one")
    numbers, classes = (None, ()) if labels is None else encode(str(file), np.array(labels))
    raw = torch.from_numpy(np.concatenate(features, 1))
    return from_raw(file.stem, "vector", raw, numbers, None, held_out, seed, classes, columns=tuple(columns))


def _counts(fields: list[str]) -> bool:
    """Whether these are the numbers of the lines, from 0 or 1."""
    first = fields[0].strip()
    return first in ("0", "1") and all(field.strip() == str(k) for k, field in enumerate(fields, int(first)))


def _names_columns(first: list[str], others: list[list[str]], label: int | None) -> bool:
    """Whether the first line names the columns: none of its fields is a number, and it stands apart from the others.

    Of a table that is text throughout the first line is taken for names where none of them comes back below it.
    """
    if any(is_number(field) for field in first):
        return False
    places = [k for k in range(len(first) + (label is not None)) if k != label]
    columns = [[row[k] for row in others if len(row) > k] for k in places]
    if any(is_number(field) for column in columns for field in column):
        return True
    return not any(field in column for field, column in zip(first, columns, strict=False))


def _where(file: Path, lines: list[tuple[int, list[str]]], column: int, name: str, row: int) -> str:
    return f"{file}, line {lines[row][0]}, column {column + 1} ({name})"


def _place(file: Path, names: list[str], column: str | int, argument: str) -> int:
    if isinstance(column, str) and column in names:
        return names.index(column)
    if isinstance(column, int) and not isinstance(column, bool) and -len(names) <= column < len(names):
        return int(column) % len(names)
    raise ConfigError(f"{file}: {argument} names no column {column!r}; the columns are {', '.join(names)}")


def _lines(file: Path, delimiter: str, encoding: str, decimal: str) -> list[tuple[int, list[str]]]:
    """(line number, fields) of the lines that are not blank."""
    try:
        content = file.read_bytes()
        plain = "utf-8-sig" if content.startswith(codecs.BOM_UTF8) else encoding
        text = content.decode(next((name for mark, name in _BOMS if content.startswith(mark)), plain))
        lines = _split(text, delimiter)
        commas = any("," in field or len(row) > 1 for _, row in lines[:1] for field in row)
        if delimiter == "," and (decimal == "," or not commas):
            others = [found for found in (_split(text, other) for other in "\t;| ") if _regular(found)]
            lines = others[0] if len(others) == 1 else lines
        return lines
    except LookupError:
        raise ConfigError(f"{file}: encoding must be one that Python knows, such as 'utf-8' or 'cp1252', "
                          f"got {encoding!r}") from None  # fmt: skip
    except (UnicodeError, csv.Error, OSError) as error:
        hint = "; a file of Windows may be data.encoding=cp1252" if isinstance(error, UnicodeError) else ""
        raise DataError(f"{file}: cannot be read as CSV in {encoding.upper()} ({sentence(error)}){hint}") from None


def _split(text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=delimiter == " ")
    return [(reader.line_num, row) for row in reader if any(field.strip() for field in row)]


def _regular(lines: list[tuple[int, list[str]]]) -> bool:
    """Whether all lines have the same number of fields, at least 2."""
    widths = {len(row) for _, row in lines}
    return len(widths) == 1 and min(widths) > 1
