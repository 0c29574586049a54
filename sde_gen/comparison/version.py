"""Which code computed a result: a digest of the sources that it depends on.

Comments, docstrings and layout do not count, so a better sentence throws no trained network away; any change of what is
computed does. Results of another version are not used.
"""

import ast
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import sde_gen

_TRAINING = (
    "perturbations", "networks", "data", "model.py", "parameterizations.py", "objectives.py", "training", "rng.py",
)  # fmt: skip
_ALL = (
    *_TRAINING, "oracles.py", "samplers", "guidance", "likelihood", "likelihood.py", "metrics",
    "comparison/compute.py", "comparison/exact.py", "comparison/quality.py", "comparison/budgets.py",
)  # fmt: skip


@lru_cache(maxsize=8)
def code_version(kind: str) -> str:
    """Version of the package, digest of the sources that a cell of this kind depends on, and version of torch."""
    import torch

    root = Path(__file__).resolve().parents[1]
    names = (*_TRAINING, "comparison/train.py") if kind == "model" else _ALL
    digest = hashlib.sha256()
    for name in names:
        place = root / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place] if place.is_file() else []:
            digest.update(path.relative_to(root).as_posix().encode())
            digest.update(_meaning(path).encode())
    return f"{sde_gen.__version__}+{digest.hexdigest()[:12]} torch {torch.__version__}"


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
