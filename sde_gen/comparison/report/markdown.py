"""A page as Markdown, with its pictures as files beside it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sde_gen.comparison.report.blocks import Badge, Code, Fold, Gallery, Page, Picture, Player, Table, Text
from sde_gen.files import make_folder, publish, write_text

FOLDER = "pictures"


def write_markdown(page: Page, folder: Path) -> Path:
    """Write report.md and its pictures below `folder`."""
    lines = [f"# {_text(page.title)}", "", _text(page.lead), ""]
    pictures = _Pictures(folder)
    for section in page.sections:
        lines += [f"## {_text(section.title)}", ""]
        for block in section.blocks:
            lines += [*_lines(block, pictures), ""]
    return write_text(folder / "report.md", "\n".join(lines).rstrip() + "\n", "the report")


def _lines(block: Any, pictures: "_Pictures") -> Iterator[str]:
    if isinstance(block, Text):
        yield _text(block.words)
    elif isinstance(block, Code):
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block.text)), default=0))
        yield from (fence, *block.text.splitlines(), fence)
    elif isinstance(block, Table):
        yield from _table(block)
    elif isinstance(block, Gallery):
        for picture in block.pictures:
            yield from (f"{_text(picture.caption)}:" if picture.caption else "", "", pictures.link(picture), "")
    elif isinstance(block, Fold):
        yield from (f"### {_text(block.title)}", "")
        for inner in block.blocks:
            yield from (*_lines(inner, pictures), "")
    elif isinstance(block, Player):
        yield block.instead


def _table(table: Table) -> Iterator[str]:
    if table.caption:
        yield from (_text(table.caption), "")
    yield "| " + " | ".join(map(_text, table.header)) + " |"
    yield "|" + "|".join("---:" if i in table.numbers else "---" for i in range(len(table.header))) + "|"
    for row in table.rows:
        cells = [f"**{cell.word}**" if isinstance(cell, Badge) else _text(cell) for cell in row]
        yield "| " + " | ".join(cells) + " |"


class _Pictures:
    """Pictures as files, each under a name of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._taken = folder / FOLDER, set[str]()

    def link(self, picture: Picture) -> str:
        name, number = f"{picture.name}.{picture.kind}", 1
        while name in self._taken:  # two names that differ in other letters than those of files
            number += 1
            name = f"{picture.name}_{number}.{picture.kind}"
        self._taken.add(name)
        place = make_folder(self._folder, "the folder of the pictures") / name
        publish(place, lambda temporary: temporary.write_bytes(picture.data), "a picture of the report")
        return f"![{_text(picture.alt).replace('[', '(').replace(']', ')')}]({FOLDER}/{name})"


def _text(words: str) -> str:
    """Words that make no tag, entity, link, column or new line."""
    words = " ".join(words.split()).replace("&", "&amp;").replace("<", "&lt;")
    return words.replace("](", "]\\(").replace("|", "\\|")
