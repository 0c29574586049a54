"""What a report consists of, apart from how it is written: one list of sections, rendered twice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Text:
    """A paragraph; `words` in backticks are code."""

    words: str


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    text: str


@dataclass(frozen=True)
class Badge:
    """A word in a table that is shown as a mark: pass, fail, tie, ..."""

    word: str


@dataclass(frozen=True)
class Table:
    """A table; cells are text or badges.

    Attributes:
        header: column titles.
        rows: cells, as many as titles.
        caption: said above the table.
        numbers: indices of columns that hold numbers.
        faint: indices of rows that are there for reference.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | Badge]]
    caption: str = ""
    numbers: Sequence[int] = ()
    faint: Sequence[int] = ()


@dataclass(frozen=True)
class Picture:
    """A picture as bytes, PNG or SVG.

    Attributes:
        name: of its file beside the Markdown.
        kind: "png" or "svg".
        alt: what it shows, for who cannot see it.
        caption: said below.
        sharp: whether enlarged pixels keep their edges.
    """

    name: str
    kind: str
    data: bytes
    alt: str
    caption: str = ""
    sharp: bool = False


@dataclass(frozen=True)
class Gallery:
    """Pictures beside each other.

    Attributes:
        pictures: in rows, one after the other.
        layout: "grid": small ones, as many in a row as fit; "plots": larger ones; "wide": one in a row.
        columns: of a grid, on a page that is wide enough for them; 0: as many as fit.
    """

    pictures: Sequence[Picture]
    layout: str = "grid"
    columns: int = 0


@dataclass(frozen=True)
class Fold:
    """Blocks that are hidden until asked for."""

    title: str
    blocks: Sequence[Any]


@dataclass(frozen=True)
class Player:
    """Moving particles, in HTML only; `instead` is what Markdown says."""

    data: Mapping[str, Any]
    instead: str


@dataclass(frozen=True)
class Section:
    """A heading with its blocks."""

    title: str
    blocks: Sequence[Any] = field(default_factory=tuple)


@dataclass(frozen=True)
class Page:
    """A whole report."""

    title: str
    lead: str
    sections: Sequence[Section]
