"""Which code computed a result: a digest of the sources that decide it, found by following imports.

Followed are the imports of a cell's own module and of the modules of its objects: into this package, and from a module
of the user's to what lies beside it. A name that a package only passes on leads to the file that defines it, so one
more sampler throws no result away. Comments, docstrings, layout and the words of errors do not count.
"""

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import torch

import sde_gen

#: (module, name in it, or "" for all of it)
Name = tuple[str, str]
_OWN = "sde_gen"
_OTHERS = {*sys.stdlib_module_names, "torch", "numpy"}
#: Decide no number: names, words of errors, pictures, and how the work is spread and kept.
APART = (
    "errors", "distributed", "pictures", "comparison.cells.closure", "comparison.cells.parallel",
    "comparison.cells.store",
)  # fmt: skip


def code_version(names: Iterable[Name]) -> str:
    """Version of the package, digest of the sources that these names lead to, and version of torch."""
    return _version(tuple(sorted(set(names))))


@lru_cache(maxsize=256)
def _version(names: tuple[Name, ...]) -> str:
    digest = hashlib.sha256()
    for module, path in sorted(closure(names).items()):
        digest.update(f"{module} {_meaning(path)}".encode())
    return f"{sde_gen.__version__}+{digest.hexdigest()[:12]} torch {torch.__version__}"


def forget() -> None:
    """Read the sources anew at the next call."""
    for cached in (_version, _meaning, _names, _tree):
        cached.cache_clear()


def names_in(value: Any) -> Iterator[Name]:
    """The classes of all objects in `value`, those they inherit from, and those that a `_target_` names."""
    if is_dataclass(value) and not isinstance(value, type):
        yield from ((cls.__module__, cls.__qualname__) for cls in type(value).__mro__)
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        target = value.get("_target_")
        if isinstance(target, str):
            module, _, name = target.rpartition(".")
            yield module, name
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from names_in(item)


def closure(names: Iterable[Name]) -> dict[str, Path]:
    """Module to source file, of all that these names lead to."""
    found: dict[str, Path] = {}
    todo = list(names)
    while todo:
        module, name = todo.pop()
        path = source_of(module)
        if path is None or module in found or _is_apart(module) or module.partition(".")[0] in _OTHERS:
            continue
        if name and path.name == "__init__.py":
            inner = f"{module}.{name}"
            if source_of(inner) is not None:
                todo.append((inner, ""))
                continue
            passed_on = _passed_on(module, name, path)
            if passed_on is not None:
                todo.append(passed_on)
                continue
        if module != _OWN:
            found[module] = path
            todo += [other for other in _names(module, path) if _belongs(other[0], module, path)]
    return found


def source_of(module: str) -> Path | None:
    """The source file of a module, which is not imported for it; None where it has none that can be read."""
    place = getattr(sys.modules.get(module), "__file__", None)
    if place is None and module.isidentifier() | ("." in module):
        spec = _spec(module)
        place = spec.origin if spec is not None else None
    return Path(place) if place and place.endswith(".py") and Path(place).is_file() else None


def _spec(module: str) -> Any:
    parent = module.rpartition(".")[0]
    within = _spec(parent) if parent else None
    if parent and (within is None or within.submodule_search_locations is None):
        return None
    return PathFinder.find_spec(module, within.submodule_search_locations if within else [*sys.path, ""])


def _is_apart(module: str) -> bool:
    return any(f"{module}.".startswith(f"{_OWN}.{name}.") for name in APART)


def _belongs(other: str, module: str, path: Path) -> bool:
    """Whether what `module` imports is followed: this package, its own package, and what lies beside it."""
    top = other.partition(".")[0]
    if top in (_OWN, module.partition(".")[0]):
        return True
    home = path.parents[module.count(".") + (path.name == "__init__.py")]
    own = module.partition(".")[0] != _OWN and home.name not in ("site-packages", "dist-packages")
    return own and source_of(top) in (home / top / "__init__.py", home / f"{top}.py")


def _passed_on(module: str, name: str, path: Path) -> Name | None:
    """Where a package has a name from that it does not define itself."""
    for node in _tree(path).body:
        if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
            real = next(a.name for a in node.names if (a.asname or a.name) == name)
            return _absolute(node, module, path), real
    if module.partition(".")[0] == _OWN:  # a package that imports what it is asked for
        made = getattr(import_module(module), name, None)
        home = getattr(made, "__module__", module)
        return None if home == module else (home, name)
    return None


@lru_cache(maxsize=1024)
def _names(module: str, path: Path) -> tuple[Name, ...]:
    """What a file imports, but for type checkers."""
    tree = _tree(path)
    idle = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    found: list[Name] = []
    whole: set[str] = set()  # what `import sde_gen as sg` calls this package
    for node in ast.walk(tree):
        if id(node) in idle:
            continue
        if isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, path)
            found += [(base, "" if alias.name == "*" else alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
            whole |= {alias.asname or alias.name for alias in node.names if alias.name == _OWN}
    for node in ast.walk(tree) if whole else ():
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in whole:
            found.append((_OWN, node.attr))
    return tuple(found)


def _absolute(node: ast.ImportFrom, module: str, path: Path) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    up = node.level - (path.name == "__init__.py")
    return ".".join([*parts[: len(parts) - up], *([node.module] if node.module else [])])


@lru_cache(maxsize=1024)
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=1024)
def _meaning(path: Path) -> str:
    tree: Any = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
        elif isinstance(node, ast.Raise):
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    part.value = ""
    return ast.dump(tree)
