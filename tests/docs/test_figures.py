"""Figures on pages are those of the JSON that scripts wrote: pages are rendered again, quotations are computed."""

import importlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "verification"


def numbers(name: str) -> Any:
    return json.loads((PAGES / f"{name}.json").read_text("utf-8"))


def page(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a script of `benchmarks/`, which import each other by their bare names."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def rows_of(text: str) -> list[str]:
    """The lines of a page that hold figures in tables."""
    return [line for line in text.splitlines() if line.startswith("|") and re.search(r"\d", line)]


RENDERED = {
    "budgets": lambda m, d: m.markdown(d, numbers("stochastic")["distances"]),
    "convergence": lambda m, d: m.markdown(d["orders"], d["errors"]),
    "stochastic": lambda m, d: m.markdown(d["distances"], d["weak"], 300.0),
    "picard": lambda m, d: m.markdown(d),
    "streaming": lambda m, d: m.markdown(d),
    "digits_likelihood": lambda m, d: m.table(d, 3000),
    "likelihood": lambda m, d: "\n".join(m.table(rows) for rows in d.values()),
}


@pytest.mark.parametrize("name", RENDERED)
def test_a_page_holds_what_was_measured(name: str, script: Any) -> None:
    written, rendered = (
        rows_of(page(f"docs/verification/{name}.md")),
        rows_of(RENDERED[name](script(name), numbers(name))),
    )
    assert len(rendered) > 2
    assert written == rendered


def test_which_sampler_holds_what_was_measured(script: Any) -> None:
    m = script("budgets")
    within = page("docs/which_sampler.md").partition(m.BEGIN)[2].partition(m.END)[0]
    assert within.strip() == m.decision(numbers("budgets")).strip()
