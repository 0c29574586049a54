"""Columns of a table: numbers, categories and ordered categories, to features and back."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sde_gen.errors import ConfigError, DataError

Kind = Literal["number", "category", "ordinal"]
#: What people write for a number that is not there.
MISSING = ("", "na", "n/a", "nan", "null", "none", "?", "-")
IMPUTE = ("mean", "median", "most_frequent")
_MOST = 100  # categories that are taken for some without being asked


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        name: as in the header.
        kind: "number" is one feature as it is; "category" one feature for each value, 1 for the one that it is and 0
            for the others, and back the value of the largest; "ordinal" one feature 0, 1, ..., and back the nearest.
        values: of a category or ordinal column, in their order.
    """

    name: str
    kind: Kind = "number"
    values: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Number of features."""
        return len(self.values) if self.kind == "category" else 1

    def encode(self, known: Sequence[Any]) -> NDArray[np.float64]:
        """(N, width) features of N numbers, or of N texts among `values`."""
        if self.kind == "number":
            return np.array(known, dtype=np.float64)[:, None]
        places = np.array([self.values.index(value) for value in known])
        return np.eye(len(self.values))[places] if self.kind == "category" else places[:, None].astype(np.float64)

    def decode(self, features: NDArray[np.floating]) -> list[Any]:
        """The N numbers or texts that (N, width) features stand for."""
        if self.kind == "number":
            return features[:, 0].tolist()
        if self.kind == "category":
            places = features.argmax(1)
        else:
            places = np.rint(features[:, 0]).clip(0, len(self.values) - 1).astype(int)
        return [self.values[place] for place in places]

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        return {"name": self.name, "kind": self.kind, "values": list(self.values)}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "Column":
        """The column that `to_dict` wrote.

        Raises:
            ValueError: it is not one.
        """
        column = cls(given["name"], given["kind"], tuple(given["values"]))
        texts = all(isinstance(text, str) for text in (column.name, *column.values))
        if not texts or column.kind not in ("number", "category", "ordinal"):
            raise ValueError(f"no column: {given}")
        return column


def splits(columns: Sequence[Column], x: NDArray[np.floating]) -> list[tuple[Column, NDArray[np.floating]]]:
    """Each column with its features of (N, D)."""
    ends = np.cumsum([column.width for column in columns])
    return list(zip(columns, np.split(x, ends[:-1], axis=1), strict=True))


def feature_names(columns: Sequence[Column]) -> list[str]:
    """A name for each feature: of a category "colour=red"."""
    return [
        f"{column.name}={value}" if value else column.name
        for column in columns
        for value in (column.values if column.kind == "category" else ("",))
    ]


def read_column(
    name: str,
    fields: Sequence[str],
    where: Callable[[int], str],
    *,
    category: bool = False,
    ordinal: Sequence[str] | None = None,
    impute: str | None = None,
    decimal: str = ".",
) -> tuple[Column, NDArray[np.float64]]:
    """A column and its features, from the text of its fields.

    Without a word about it a column is one of numbers, or of categories where none of its fields is a number and values
    come back: at most 100 of them, each twice in the mean.

    Args:
        name: of the column.
        fields: its text, one for each sample.
        where: what messages call the field of sample i.
        category: whether its values are categories although they may look like numbers.
        ordinal: its values in their order.
        impute: what takes the place of what is missing: "mean" or "median" of the others for numbers, and for
            categories (or "most_frequent") the most frequent; None: refused.
        decimal: "," where numbers are written 3,14.

    Raises:
        DataError: naming the first field that is missing, no finite number, or not among `ordinal`.
        ConfigError: nothing to impute from.
    """
    fields = written = [field.strip() for field in fields]
    if decimal == "," and ordinal is None and not category:
        fields = [with_point(field) for field in fields]
    texts = [field for field in fields if field.casefold() not in MISSING]
    distinct = sorted(set(texts))
    free = not any(is_number(text) for text in texts)
    if ordinal is None and not category and free and 0 < 2 * len(distinct) <= len(texts):
        category = len(distinct) <= _MOST
    if not category and ordinal is None:
        return Column(name), _numbers(fields, written, where, impute, name)
    known = [field for field in fields if field]
    column = Column(name, "category", tuple(sorted(set(known)))) if ordinal is None else Column(
        name, "ordinal", tuple(map(str, ordinal))
    )  # fmt: skip
    for index, field in enumerate(fields):
        if not field and (impute is None or not known):
            raise DataError(f"{where(index)}: the field is empty; fill it, or say data.impute=most_frequent")
        if field and field not in column.values:
            raise DataError(f"{where(index)}: {field!r} is not one of {', '.join(column.values)} (data.ordinal)")
    usual = Counter(known).most_common(1)[0][0]
    return column, column.encode([field or usual for field in fields])


def with_point(field: str) -> str:
    """A number with a decimal comma as Python reads it; one with a point as none, other text as it is."""
    pointed = field.replace(",", ".")
    return f"{field}," if is_number(field) and "." in field else pointed if is_number(pointed) else field


def _numbers(
    fields: Sequence[str], written: Sequence[str], where: Callable[[int], str], impute: str | None, name: str
) -> NDArray[np.float64]:
    found = np.full(len(fields), np.nan)
    for index, field in enumerate(fields):
        if is_number(field) and np.isfinite(float(field)):
            found[index] = float(field)
        elif impute is None or field.casefold() not in MISSING:
            raise DataError(f"{where(index)}: {written[index]!r} is not a finite number{_hint(written[index], name)}")
    known = found[~np.isnan(found)]
    if not len(known):
        raise ConfigError(f"{where(0)}: impute={impute} has no number in this column to go by; leave the column out")
    fill = np.mean(known) if impute == "mean" else np.median(known)
    return np.where(np.isnan(found), fill, found)[:, None]


def _hint(text: str, name: str) -> str:
    """What to do about text that is no number."""
    if text.casefold() in MISSING:
        return "; fill it, or say data.impute=median"
    mark = next((mark for mark in "\t;|," if mark in text), None)
    if "," in text and is_number(text.replace(",", "").replace(".", "")):
        return (
            f'; is {mark!r} the delimiter (data.delimiter), or is there a decimal comma (data.decimal=",")? '
            "Marks between thousands are not read"
        )
    if mark is not None:
        return f"; is {mark!r} the delimiter (data.delimiter)?"
    if any(map(str.isdigit, text.replace(".", "", 1))) and is_number(text.replace(".", "")):
        return "; marks between thousands are not read"
    if is_number(text):
        return ""
    return f"; dates and other text are left out by data.ignore=[{name}], or are categories: data.categories=[{name}]"


def is_number(field: str) -> bool:
    """Whether a field is a number as every program writes it; Python alone reads 1_000."""
    try:
        float(field)
    except ValueError:
        return False
    return "_" not in field
