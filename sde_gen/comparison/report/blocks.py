"""What a report consists of, apart from how it is written: one list of sections, rendered twice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Text(NamedTuple):
    """A paragraph; `words` in backticks are code."""

    words: str


class Code(NamedTuple):
    """Lines to copy."""

    text: str


class Badge(NamedTuple):
    """A word in a table that is shown as a mark: pass, fail, tie, ..."""

    word: str


class Table(NamedTuple):
    """Titles of columns, and rows of cells, each text or a badge, as many as titles.

    `caption` is said above; `numbers` are indices of columns of numbers, `faint` of rows that are there for reference.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | Badge]]
    caption: str = ""
    numbers: Sequence[int] = ()
    faint: Sequence[int] = ()


@dataclass(frozen=True)
class Picture:
    """A picture as bytes.

    Attributes:
        name: of its file beside the Markdown.
        kind: "png" or "svg".
        alt: what it shows, for who cannot see it.
        caption: said with it.
        sharp: whether enlarged pixels keep their edges.
    """

    name: str
    kind: str
    data: bytes
    alt: str
    caption: str = ""
    sharp: bool = False


class Gallery(NamedTuple):
    """Pictures: in a "grid" of so many `columns` (0: as many as fit), larger as "plots", or "wide", one in a row."""

    pictures: Sequence[Picture]
    layout: str = "grid"
    columns: int = 0


class Fold(NamedTuple):
    """Blocks that are hidden until asked for."""

    title: str
    blocks: Sequence[Any]


class Player(NamedTuple):
    """Moving particles, in HTML only; `instead` is what Markdown says."""

    data: Mapping[str, Any]
    instead: str


class Section(NamedTuple):
    """A heading with its blocks."""

    title: str
    blocks: Sequence[Any]


class Page(NamedTuple):
    """A whole report."""

    title: str
    lead: str
    sections: Sequence[Section]
