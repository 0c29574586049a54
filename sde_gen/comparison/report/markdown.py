"""A page as Markdown, with its pictures as files beside it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sde_gen.comparison.report.blocks import Badge, Code, Fold, Gallery, Page, Picture, Player, Table, Text
from sde_gen.files import make_folder, publish, write_text

FOLDER = "pictures"


def write_markdown(page: Page, folder: Path) -> Path:
    """Write report.md and its pictures below `folder`."""
    lines = [f"# {_escape(page.title)}", "", page.lead, ""]
    for section in page.sections:
        lines += [f"## {_escape(section.title)}", ""]
        for block in section.blocks:
            lines += [*_lines(block, folder), ""]
    return write_text(folder / "report.md", "\n".join(lines).rstrip() + "\n", "the report")


def _lines(block: Any, folder: Path) -> Iterator[str]:
    if isinstance(block, Text):
        yield block.words
    elif isinstance(block, Code):
        yield from ("```", *block.text.splitlines(), "```")
    elif isinstance(block, Table):
        yield from _table(block)
    elif isinstance(block, Picture):
        yield _image(block, folder)
        if block.caption:
            yield from ("", f"*{block.caption}*")
    elif isinstance(block, Gallery):
        for picture in block.pictures:
            yield from (f"{picture.caption}:" if picture.caption else "", "", _image(picture, folder), "")
    elif isinstance(block, Fold):
        yield from (f"### {_escape(block.title)}", "")
        for inner in block.blocks:
            yield from (*_lines(inner, folder), "")
    elif isinstance(block, Player):
        yield block.instead


def _table(table: Table) -> Iterator[str]:
    if table.caption:
        yield from (table.caption, "")
    yield "| " + " | ".join(map(_escape, table.header)) + " |"
    yield "|" + "|".join("---:" if i in table.numbers else "---" for i in range(len(table.header))) + "|"
    for row in table.rows:
        cells = [f"**{cell.word}**" if isinstance(cell, Badge) else _escape(cell) for cell in row]
        yield "| " + " | ".join(cells) + " |"


def _image(picture: Picture, folder: Path) -> str:
    name = f"{picture.name}.{picture.kind}"
    place = make_folder(folder / FOLDER, "the folder of the pictures") / name
    publish(place, lambda temporary: temporary.write_bytes(picture.data), "a picture of the report")
    return f"![{_escape(picture.alt)}]({FOLDER}/{name})"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
