"""The programs in docs/guidance.md run, and do what the page says."""

import re
from pathlib import Path
from typing import Any

import pytest

import sde_gen

PAGE = Path(sde_gen.__file__).parents[1] / "docs" / "guidance.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="an installed package has no docs")


def test_the_programs_of_the_page() -> None:
    programs = re.findall(r"<!-- run by (\S+) -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert [place for place, _ in programs] == ["tests/guidance/test_page.py"] * 3
    names: dict[str, Any] = {}
    for _, program in programs:
        exec(compile(program, str(PAGE), "exec"), names)  # noqa: S102 - our own page
    assert names["right"] < 0.6 * names["off"]
    assert float((names["y"][:, 0] > 0.8).float().mean()) > 0.8
