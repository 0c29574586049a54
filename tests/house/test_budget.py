"""The budget of the house: what it may cost to find one's way through `sde_gen/`.

A file or an import on a list here has its reason beside it. A bar is never raised to let something pass.
"""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sde_gen"

#: Imports of the package inside functions, with the reason for each: (file, what is imported).
INNER_IMPORTS = {
    ("__init__.py", "by name"): "PEP 562: `import sde_gen` and --help do not wait for torch (two calls: names, rooms)",
    ("config/__init__.py", "by name"): "--help does not wait for torch",
    ("__main__.py", "by name"): "the command that is named, or the list of them",
    (
        "config/launch.py",
        "by name",
    ): "the job of a command, and the text of --help (two calls)",
    ("config/objects.py", "by name"): "the class that a configuration names, perhaps in a module of the user's own",
    ("comparison/cells/closure.py", "by name"): "the module of a class that decides a result, perhaps the user's own",
    ("interop/diffusers/export.py", "by name"): "a class of diffusers' own kind, which needs diffusers to be defined",
}
MOST_INNER_IMPORTS = 10

#: Files of one name in two rooms, with the reason.
SHARED_NAMES: dict[str, str] = {}

MOST_LINES, MOST_YAML = 350, 300
#: Longer files, with the reason.
LONG_FILES = {
    "model.py": "the one door, Levels, beside the model that opens it: what a step reads is on one page",
}

#: Journeys of benchmarks/hops.py: at most so many functions, files, changes of file (None: not bounded).
HOPS = {
    "x0 through one loss": (20, 6, 12),
    "x_T given, DDIM, 4 steps": (35, 9, 40),
    "x_T drawn, DDIM, 4 steps": (35, 9, 40),
    "one optimiser step of the trainer": (40, 15, 25),
    "two cells of a comparison": (None, None, 281),
}


class Import(NamedTuple):
    """`from module import name`, or `import module` with an empty name."""

    module: str
    name: str
    line: int
    inner: bool
    """Whether it stands in a function."""


@cache
def modules() -> Mapping[str, Path]:
    """Dotted name to file of every module of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def where(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@cache
def imports(path: Path) -> tuple[Import, ...]:
    """What a file imports of the package at run time; `import_module` is an import "by name"."""
    return tuple(_imports(ast.parse(path.read_text("utf-8")), inner=False))


def _imports(node: ast.AST, inner: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            found = [(alias.name, "") for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            found = [("." * child.level + (child.module or ""), alias.name) for alias in child.names]
        elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith(("import_module", "__import__")):
            # Of somebody else's library, by its literal name, it is none of ours.
            literal = child.args[0].value if child.args and isinstance(child.args[0], ast.Constant) else "sde_gen"
            found = [("by name", "")] if str(literal).startswith("sde_gen") else []
        else:
            found = []
        for module, name in found:
            if module.startswith(("sde_gen", ".", "by name")):
                yield Import(module, name, getattr(child, "lineno", 0), inner)
        yield from _imports(child, inner or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def target(found: Import) -> str:
    """The module that an import needs."""
    inside = f"{found.module}.{found.name}"
    return inside if inside in modules() else found.module


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Strongly connected parts of more than one module, by Tarjan's algorithm; a module that needs itself is one."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(at: str) -> None:
        number[at] = low[at] = len(number)
        stack.append(at)
        for to in sorted(graph.get(at, ())):
            if to not in number:
                visit(to)
                low[at] = min(low[at], low[to])
            elif to in stack:
                low[at] = min(low[at], number[to])
        if low[at] == number[at]:
            part = stack[stack.index(at) :]
            del stack[stack.index(at) :]
            if len(part) > 1 or at in graph.get(at, ()):
                found.append(sorted(part))

    for start in sorted(graph):
        if start not in number:
            visit(start)
    return found


def graph() -> dict[str, set[str]]:
    return {
        name: {target(i) for i in imports(path) if i.module != "by name"} for name, path in modules().items()
    }  # fmt: skip


def test_the_walk_sees_what_there_is() -> None:
    # A reader that found nothing would pass everything below.
    assert len(modules()) > 100
    assert sum(len(imports(path)) for path in modules().values()) > 400
    source = "def f():\n    from sde_gen.model import _x\nimport sde_gen.rng\nfrom sde_gen import checks\n"
    source += "from importlib import import_module\nm = import_module('numpy'), import_module(n)\n"
    found = list(_imports(ast.parse(source), False))
    assert [(i.module, i.name, i.inner) for i in found] == [
        ("sde_gen.model", "_x", True), ("sde_gen.rng", "", False), ("sde_gen", "checks", False), ("by name", "", False),
    ]  # fmt: skip
    assert target(found[2]) == "sde_gen.checks"
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"a"}}) == [["a"]]


def test_no_circle_of_modules() -> None:
    assert circles(graph()) == []


def test_no_circle_of_rooms() -> None:
    rooms: dict[str, set[str]] = defaultdict(set)
    for name, needed in graph().items():
        room = ".".join(name.split(".")[:2])
        rooms[room] |= {".".join(to.split(".")[:2]) for to in needed} - {room}
    assert circles(rooms) == []


def test_imports_name_the_module_in_full() -> None:
    relative = [f"{where(p)}:{i.line}" for p in modules().values() for i in imports(p) if i.module.startswith(".")]
    assert relative == []


def test_no_private_name_is_imported_from_another_file() -> None:
    # Private to a file is stricter than to a room, and as easy to keep.
    private = [
        f"{where(path)}:{i.line} {i.module} {i.name}"
        for path in modules().values()
        for i in imports(path)
        if any(part.startswith("_") and not part.startswith("__") for part in [*i.module.split("."), i.name])
    ]
    assert private == []


def test_no_private_attribute_of_another_room_is_read() -> None:
    # `from sde_gen import rng; rng._x` is an import of a private name in two lines.
    found = []
    for path in modules().values():
        tree = ast.parse(path.read_text("utf-8"))
        aliases = [
            (node.module, alias) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
        ]
        given = {alias.asname or alias.name for module, alias in aliases if f"{module}.{alias.name}" in modules()}
        found += [
            f"{where(path)}:{node.lineno} {ast.unparse(node)}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
            if isinstance(node.value, ast.Name) and node.value.id in given
        ]
    assert found == []


def test_imports_inside_functions_are_few_and_have_a_reason() -> None:
    inner = [(where(path), i.module) for path in modules().values() for i in imports(path) if i.inner]
    without = sorted(set(inner) - INNER_IMPORTS.keys())
    assert not without, f"move to the top of the file, or give a reason in INNER_IMPORTS: {without}"
    assert not INNER_IMPORTS.keys() - set(inner), "a reason without an import: take it off the list"
    assert len(inner) <= MOST_INNER_IMPORTS
    assert all(INNER_IMPORTS.values())


def test_files_of_two_rooms_have_two_names() -> None:
    names = defaultdict(list)
    for path in modules().values():
        if path.name != "__init__.py":
            names[path.name].append(where(path))
    twice = {name: found for name, found in names.items() if len(found) > 1}
    assert not twice.keys() - SHARED_NAMES.keys(), f"rename one of each: {twice}"
    assert not SHARED_NAMES.keys() - twice.keys(), "a reason without two files: take it off the list"
    assert all(len(found) == 2 for found in twice.values())


def test_no_file_is_long_without_a_reason() -> None:
    lines = {where(path): len(path.read_text("utf-8").splitlines()) for path in modules().values()}
    long = {name: count for name, count in lines.items() if count > MOST_LINES}
    assert not long.keys() - LONG_FILES.keys(), f"divide by what they are about: {long}"
    assert not LONG_FILES.keys() - long.keys(), "a reason without a long file: take it off the list"


def test_configuration_files_say_only_what_differs() -> None:
    files = [p for p in (ROOT / "conf").rglob("*.yaml") if p.parent.name != "experiment"]  # which are settings alone
    assert sum(len(p.read_text("utf-8").splitlines()) for p in files) <= MOST_YAML


def test_the_library_has_no_assert_and_no_print() -> None:
    found = [
        f"{where(path)}:{node.lineno}"
        for path in modules().values()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Assert)
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print")
    ]
    assert found == []


def layers() -> list[tuple[set[str], bool]]:
    """The layers of pyproject.toml, top first: rooms, and whether those of one layer may know each other."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    (lines,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [(set(re.findall(r"\w+", line)), ":" in line) for line in lines]


def test_every_room_has_a_layer_and_needs_lower_ones_only() -> None:
    # As import-linter has it, for whom has not installed it.
    height = {room: (-i, neighbours) for i, (layer, neighbours) in enumerate(layers()) for room in layer}
    assert len(height) == sum(len(layer) for layer, _ in layers()), "a room in two layers"
    assert {name.split(".")[1] for name in modules() if name != "sde_gen"} <= set(height)
    upwards = []
    for name, path in modules().items():
        for i in imports(path) if name != "sde_gen" else ():
            room, to = name.split(".")[1], target(i).split(".")[1:2]
            if to and to[0] != room:
                (mine, neighbours), (its, _) = height[room], height[to[0]]
                if its > mine or (its == mine and not neighbours):
                    upwards.append(f"{where(path)}:{i.line} imports {target(i)}")
    assert upwards == []


def test_import_linter_agrees() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    if not command.is_file():
        pytest.skip("import-linter is not installed")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.fixture(scope="module")
def hops():
    spec = importlib.util.spec_from_file_location("hops", ROOT / "benchmarks" / "hops.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_journey_has_a_bar(hops) -> None:
    assert set(hops.journeys()) == set(HOPS)


@pytest.mark.parametrize("journey", HOPS)
def test_ways_through_the_code_are_short(hops, journey: str) -> None:
    walked = hops.walked(hops.journeys()[journey])
    over = [f"{n} {what}, at most {bar}"
            for n, bar, what in zip(walked, HOPS[journey], ("functions", "files", "changes of file"), strict=True)
            if bar is not None and n > bar]  # fmt: skip
    assert not over, f"{journey}: {'; '.join(over)}; `HOPS_SHOW=1 python benchmarks/hops.py` shows the way"
