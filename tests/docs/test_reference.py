"""Pages that the code writes are whole: every public name, every key with its words; docstrings keep their formulas."""

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sde_gen.config.commands import COMMANDS
from sde_gen.register import exports, homes, path_of

ROOT = Path(__file__).parents[2]
#: Rooms that are written for the package itself.
INSIDE = {"files", "distributed", "register", "bars", "jobs"}


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports an extension of the site, which needs no Sphinx to write its pages."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def test_every_public_name_has_its_place(extension: Any) -> None:
    rooms = extension("rooms")
    named = {room for _, page in rooms.PAGES.values() for room in page}
    there = {
        path.stem for path in (ROOT / "sde_gen").iterdir() if path.stem[0] != "_" and path_of(f"sde_gen.{path.stem}")
    }
    assert {room for room in there if exports(room)} - named <= INSIDE
    listed = re.findall(r"^api/(\w+)$", (ROOT / "docs/reference/index.md").read_text("utf-8"), re.MULTILINE)
    assert listed == list(rooms.PAGES)
    known = {name for room in named for name in exports(room)}
    assert set(homes()) <= known
    written = rooms.page(*rooms.PAGES["perturbations"])
    assert ".. autoclass:: sde_gen.VP\n" in written
    assert ".. automodule:: sde_gen.perturbations.continuous\n" in written


@pytest.mark.parametrize("page", ["keys_page", "choices_page"])
def test_every_key_has_its_words(extension: Any, page: str) -> None:
    text = getattr(extension("keys"), page)()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| `[\w.]+` \|", line)]
    assert len(rows) > 60
    assert [row[0] for row in rows if len(row) != 4 or not row[3].strip()] == []
    assert page == "choices_page" or all(f"## {command}\n" in text for command in COMMANDS)


def test_ranges_and_defaults_are_those_of_the_code(extension: Any) -> None:
    text = extension("keys").choices_page()
    assert "| `eta` | number ≥ 0, ≤ 1 | `0.0` | " in text  # DDIM
    assert "| `beta_max` | number > 0 | `20.0` | " in text  # VP


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("x - |y|^2 of `VP`", r"x - \|y\|^2 of `VP`"),
        ("a * b and x_ here", r"a \* b and x\_ here"),
        ("`Langevin(snr=0.05)`: x_s", "``Langevin(snr=0.05)``: x_s"),
        (".. math:: p(x | y)", ".. math:: p(x | y)"),
    ],
)
def test_formulas_are_not_taken_for_markup(extension: Any, given: str, meant: str) -> None:
    assert extension("docstrings").escaped([given]) == [meant]
