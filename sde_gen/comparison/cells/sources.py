"""Which code computed a result: a digest of the sources that it depends on.

Comments, docstrings and layout do not count, so a better sentence throws no trained network away; any change of what is
computed does. Results of another version are not used.
"""

import ast
import hashlib
import sys
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import sde_gen

#: Sources that decide what a network learns, and what anything else is. Left out on purpose: how the work is spread
#: over processes, and the words of errors.
TRAINING = (
    "perturbations", "networks", "data", "model.py", "parameterizations.py", "objectives.py", "bound_terms.py",
    "training", "shapes.py",
    "rng.py", "samplers/noise.py", "files.py", "comparison/cells/network.py",
)  # fmt: skip
ALL = (
    *TRAINING, "oracles.py", "samplers", "likelihood", "metrics",
    "tuning", "comparison/cells/compute.py", "comparison/cells/exact.py", "comparison/cells/quality.py",
    "comparison/budgets.py", "comparison/description.py",
)  # fmt: skip


def code_version(kind: str, modules: tuple[str, ...] = ()) -> str:
    """Version of the package, digest of the sources that a cell depends on, and version of torch.

    Args:
        kind: of the cell; a "model" does not depend on samplers, oracles or metrics.
        modules: outside of sde_gen, whose classes the cell names. Their own sources count, not what they import.
    """
    return _digest(TRAINING if kind == "model" else ALL, modules)


@lru_cache(maxsize=64)
def _digest(names: tuple[str, ...], modules: tuple[str, ...]) -> str:
    import torch

    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for path in files(root, names):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(_meaning(path).encode())
    for name in modules:
        own = _source_of(name)
        digest.update(f"{name} {'' if own is None else _meaning(own)}".encode())
    return f"{sde_gen.__version__}+{digest.hexdigest()[:12]} torch {torch.__version__}"


def forget() -> None:
    """Read the sources anew at the next call."""
    _digest.cache_clear()


def files(root: Path, names: Iterable[str]) -> list[Path]:
    """The source files below `root` that these names stand for: files, and all in a folder."""
    found = []
    for name in names:
        place = root / name
        found += sorted(place.rglob("*.py")) if place.is_dir() else [place] if place.is_file() else []
    return list(dict.fromkeys(found))


def _source_of(module: str) -> Path | None:
    """The source file of a module; None where it has none that can be read, such as what is typed into a notebook."""
    known = sys.modules.get(module)
    try:
        spec = find_spec(module) if known is None else None
    except (ImportError, ValueError):  # building its classes will say so
        return None
    place = getattr(known, "__file__", None) or getattr(spec, "origin", None)
    return Path(place) if isinstance(place, str) and place.endswith(".py") and Path(place).is_file() else None


def _meaning(path: Path) -> str:
    tree: Any = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return ast.dump(tree)
