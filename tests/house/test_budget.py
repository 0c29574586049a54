"""The measures of the house: where imports point, how long the configuration is, and how far a value walks."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import sde_gen
from benchmarks import hops

ROOT = Path(sde_gen.__file__).parent
MODULES = {
    ".".join(("sde_gen", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
#: What the first edition needed was 38/9/24, 62/14/76 and 842: a value that walks further again has lost its way.
JOURNEYS = {
    "x0 through one loss": (20, 6, 12),
    "x_T drawn, DDIM, 4 steps": (35, 9, 40),
    "x_T given, DDIM, 4 steps": (35, 9, 40),
}
COMPARISON_CHANGES = 281


def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text("utf-8"))


def imports(nodes: list[ast.stmt]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(module, names) of each import of the package's own that runs when `nodes` run; not those of TYPE_CHECKING."""
    for node in nodes:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sde_gen":
            yield str(node.module), tuple(alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names if alias.name.split(".")[0] == "sde_gen")
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from imports([child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)])


def loaded(module: str) -> set[str]:
    """The modules that importing `module` imports of its own accord."""
    found = set()
    for name, attributes in imports(tree(module).body):
        inner = {f"{name}.{attribute}" for attribute in attributes} & set(MODULES)
        found |= inner or {name}
    return (found & set(MODULES)) - {module}


def test_no_module_imports_itself_by_a_detour() -> None:
    above: dict[str, set[str]] = {name: loaded(name) for name in MODULES}
    while leaves := [name for name, below in above.items() if not below]:
        for leaf in leaves:
            del above[leaf]
        above = {name: below - set(leaves) for name, below in above.items()}
    assert not above, f"these import each other in a circle, or what does: {sorted(above)}"


def test_the_check_for_circles_sees_imports() -> None:
    assert "sde_gen.model" in loaded("sde_gen.samplers.sampler") | loaded("sde_gen.oracles")
    assert "sde_gen.checks" in loaded("sde_gen.perturbations.base")


def test_no_room_takes_a_private_name_of_another() -> None:
    def room(module: str) -> str:
        return ".".join(module.split(".")[:2])

    taken = [
        f"{module} takes {name}.{attribute}"
        for module in MODULES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.ImportFrom) and (name := node.module or "").startswith("sde_gen")
        for attribute in (alias.name for alias in node.names)
        if room(module) != room(name) and attribute.startswith("_") and not attribute.startswith("__")
    ]
    assert not taken


def test_few_imports_hide_in_functions() -> None:
    """What a module needs of the package stands at its top; the layers make that possible."""
    hidden = [
        f"{module}:{function.name} imports {name}"
        for module in MODULES
        if module != "sde_gen"  # whose rooms are imported when they are first named
        for function in ast.walk(tree(module))
        if isinstance(function, ast.FunctionDef)
        for name, _ in imports(function.body)
    ]
    assert len(hidden) <= 10, hidden


def test_the_configuration_says_only_what_differs() -> None:
    files = (ROOT.parent / "conf").rglob("*.yaml")
    lines = sum(len(file.read_text("utf-8").splitlines()) for file in files)
    assert 0 < lines <= 450, f"{lines} lines: a default belongs in the signature"


@pytest.mark.parametrize("name", JOURNEYS)
def test_a_value_does_not_walk_far(name: str) -> None:
    functions, files, changes = hops.walked(hops.journeys()[name])
    most = JOURNEYS[name]
    assert functions, "nothing was walked"
    assert all(found <= bar for found, bar in zip((functions, files, changes), most, strict=True)), (
        f"{functions} functions, {files} files, {changes} changes of file; at most {most}"
    )


def test_a_comparison_does_not_walk_far() -> None:
    _, _, changes = hops.walked(hops.journeys()["two cells of a comparison"])
    assert 0 < changes <= COMPARISON_CHANGES
