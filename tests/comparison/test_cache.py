"""What is computed once and kept, and what is computed again: the keys of the cells, and the code they depend on."""

import ast
import importlib
import json
from pathlib import Path

import pytest

import sde_gen as sg
from sde_gen.comparison.cells import sources as version
from sde_gen.comparison.description import digest
from tests.comparison.helpers import DATA, Told, small


def test_nothing_is_computed_twice(tmp_path: Path) -> None:
    first, second = Told(), Told()
    a, b = small().run(tmp_path, tell=first), small().run(tmp_path, tell=second)
    assert (len(first.computed), len(first.known)) == (18, 0)
    assert (len(second.computed), len(second.known)) == (0, 18)
    assert a.tidy() == b.tidy()


def test_only_what_another_setting_changes_is_computed(tmp_path: Path) -> None:
    small().run(tmp_path)
    told = Told()
    small(formulations={"VP": sg.VP(), "VE": sg.VE(sigma_max=7.0)}).run(tmp_path, tell=told)
    assert (told.computed, len(told.known)) == (["samples"] * 8, 10)
    told = Told()
    small(data={**DATA, "seed": 1}).run(tmp_path, tell=told)
    assert not told.known


def test_results_of_another_version_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small().run(tmp_path)
    from sde_gen.comparison.cells import store

    monkeypatch.setattr(store, "code_version", lambda kind, modules: "another")
    told = Told()
    small().run(tmp_path, tell=told)
    assert not told.known


def test_the_version_follows_the_code_and_not_its_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "sde_gen"
    (package / "comparison").mkdir(parents=True)
    monkeypatch.setattr(version, "__file__", str(package / "comparison" / "version.py"))

    def of(text: str, kind: str = "samples", name: str = "model.py") -> str:
        (package / name).write_text(text)
        version.forget()
        return version.code_version(kind)

    try:
        first = of("def f(x):\n    return x + 1\n")
        assert of('def f(x):\n    """A sentence."""\n    return (x + 1)  # why\n') == first
        assert of("def f(x):\n    return x + 2\n") != first
        # A trained network does not depend on the samplers.
        network, drawn = version.code_version("model"), version.code_version("samples")
        assert of("x = 1\n", "model", "oracles.py") == network
        assert version.code_version("samples") != drawn
    finally:
        version.forget()


def imported(root: Path, path: Path) -> set[Path]:
    """The files of the package that a file imports, but those for type checkers only and the package itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    idle: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            idle |= {id(inner) for inner in ast.walk(node)}
    found: set[Path] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sde_gen") and id(node) not in idle:
            base = root.joinpath(*str(node.module).split(".")[1:])
            for place in (base, *(base / alias.name for alias in node.names)):
                found |= {p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file()}
    return found - {root / "__init__.py"}


@pytest.mark.parametrize("names", [version.TRAINING, version.ALL], ids=["training", "all"])
def test_the_version_follows_everything_that_results_depend_on(names: tuple[str, ...]) -> None:
    root = Path(sg.__file__).parent
    assert all((root / name).exists() for name in names)
    counted = set(version.files(root, names))
    missing = set().union(*(imported(root, path) for path in counted)) - counted
    # Words of errors, how objects are built from plain data that is hashed itself, and how work is spread.
    apart = ("errors.py", "_checks.py", "distributed.py", "config/", "comparison/store.py")
    assert [name for p in sorted(missing) if not (name := p.relative_to(root).as_posix()).startswith(apart)] == []


def test_the_users_own_classes_are_part_of_the_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, name = tmp_path / "own_sampler_xyz.py", "own_sampler_xyz"
    text = "import sde_gen as sg\n\n\nclass Own(sg.DDIM):\n    x = 1\n"
    path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    own = importlib.import_module(name).Own

    def keys() -> dict[str, str]:
        version.forget()
        cells = small(samplers={"Own": own(), "DDIM": sg.DDIM()}, budgets=(4,), seeds=(0,)).cells()
        return {cell.labels["sampler"]: cell.key for cell in cells if cell.kind == "samples"}

    first = keys()
    path.write_text(text + "# a comment\n")
    assert keys() == first
    path.write_text(text.replace("x = 1", "x = 2"))
    second = keys()
    assert second["Own"] != first["Own"]
    assert second["DDIM"] == first["DDIM"]


def test_infinite_settings_can_be_hashed(tmp_path: Path) -> None:
    results = small(samplers={"churn": sg.EDMChurn(s_tmax=float("inf"))}, seeds=(0,), budgets=(9,)).run(tmp_path)
    assert {row["status"] for row in results.rows} == {"ok"}
    assert digest({"a": float("inf")}) != digest({"a": 1e308})


@pytest.mark.parametrize("damage", ["{", "config"])
def test_a_damaged_entry_is_computed_again(tmp_path: Path, damage: str) -> None:
    results = small().run(tmp_path)
    path = next((tmp_path / "cells").glob("samples-*.json"))
    if damage == "config":
        entry = json.loads(path.read_text())
        entry["config"]["num_samples"] = 65
        damage = json.dumps(entry)
    path.write_text(damage)
    told = Told()
    again = small().run(tmp_path, tell=told)
    assert told.computed == ["samples"]
    for before, after in zip(results.rows, again.rows, strict=True):
        assert before["energy_distance"] == after["energy_distance"]
