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
    "noise": lambda m, d: m.markdown(d),
    "picard": lambda m, d: m.markdown(d),
    "guided_chain": lambda m, d: m.markdown(d),
    "streaming": lambda m, d: m.markdown(d),
    "streamed_data": lambda m, d: m.markdown(d),
    "fashion_mnist": lambda m, d: m.markdown(d),
    "posteriors": lambda m, d: m.markdown(d),
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


def test_the_comparison_page_holds_what_was_measured() -> None:
    measured = numbers("oracle_2d")
    table = [[word.strip() for word in line.strip("|").split("|")] for line in rows_of(page("docs/compare.md"))]
    names = re.search(r"^\| sampler \| (.*) \|$", page("docs/compare.md"), re.MULTILINE)
    assert names
    shown = {(row[0], f): row[k + 1] for row in table for k, f in enumerate(names[1].split(" | ")) if len(row) == 5}

    def needed(sampler: str, formulation: str) -> str:
        mine = [c for c in measured["cells"] if (c["sampler"], c["formulation"]) == (sampler, formulation)]
        enough = [c["calls"] for c in mine if c["mean"] <= measured["real"]]
        return str(min(enough)) if enough else f"over {max(c['calls'] for c in mine)}"

    samplers = {c["sampler"] for c in measured["cells"]} - {"ODE"}
    assert set(shown) == {(s, f) for s in samplers for f in ("VP", "subVP", "VE", "DDPM")}
    assert shown == {key: needed(*key) for key in shown}


def test_the_comparison_page_tells_the_orders_that_were_fitted() -> None:
    fitted: dict[float, list[float]] = {}
    for row in numbers("oracle_2d")["orders"]:
        fitted.setdefault(row["claimed"], []).append(row["fitted"])
    number = r"(\d\.\d\d)"
    words = rf"comes out at {number} to {number}, and second-order rules\s+at {number} to {number}"
    told = re.search(words, page("docs/compare.md"))
    assert told
    found = [f"{end(fitted[order]):.2f}" for order in (3, 2) for end in (min, max)]
    assert list(told.groups()) == found


def test_the_readme_quotes_what_was_measured() -> None:
    text = " ".join(page("README.md").split())
    orders = [row for row in numbers("convergence")["orders"] if row["kind"] == "strong" and row["claimed"]]
    low, high = (
        max(abs(row["fitted"] - row["claimed"]) for row in orders if (row["claimed"] > 3) is above)
        for above in (False, True)
    )
    assert f"within {low:.2f} of the order that they claim up to order 3, and within {high:.2f} at order 4" in text
    budgets = [row for row in numbers("budgets") if row["problem"].startswith(("2-D, 16", "64-D, 8"))]
    ratios = []
    for problem, budget in {(row["problem"], row["budget"]) for row in budgets}:
        here = [row for row in budgets if (row["problem"], row["budget"]) == (problem, budget)]
        best = min(row["rmse"] for row in here if row["peer"])
        ratios.append(next(row["rmse"] for row in here if row["sampler"] == "default") / best)
    assert f"{min(ratios):.2f} to {max(ratios):.2f} of the error of the best" in text
    digits = {row["model"]: row for row in numbers("digits_likelihood")}
    best = digits["VP, likelihood weighting"]
    assert f"{best['bits/dim']:.2f} ± {best['standard error']:.2f} bits" in text


def test_the_page_on_scale_quotes_what_was_measured() -> None:
    text, saving, record = " ".join(page("docs/scale.md").split()), numbers("saving"), numbers("record")
    assert f"spends {saving['copy_cpu_s']:.2f} s of CPU time on it, against {saving['at_once_cpu_s']:.2f} s" in text
    clocks = f"{saving['wait_ratio_cpu']:.2f} of it; {saving['copy_s']:.1f} s against {saving['at_once_s']:.1f} s"
    assert clocks in text
    assert f"a step takes {saving['step_ratio_cpu']:.2f} times its CPU time while" in text
    assert f"steps took {saving['step_ratio']:.1f} times as long" in text
    assert f"takes at most {record['percent']:.2f} % of the CPU time" in text
    assert f"{record['percent_of_step']:.2f} % for what is kept, read and written" in text
    assert f"at most {record['page_percent']:.2f} % for the page" in text
    assert record["percent"] <= 1
    for row in numbers("processes")["rows"]:
        times = " | ".join(f"{row[f'{name}_ms']:.1f}" for name in ("compute", "all_reduce", "job"))
        assert f"| {row['processes']} | {row['batch_each']} | {times} | {row['ratio']:.2f} |" in text
