"""Plain data: what a cell of a comparison is hashed and stored by, and how a person would write it."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any


def modules_of(node: Any) -> set[str]:
    """The modules outside sde_gen that the targets in plain data lie in."""
    inner = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    found = set().union(*map(modules_of, inner))
    name = node.get("_target_") if isinstance(node, Mapping) else None
    if isinstance(name, str) and "." in name and not name.startswith("sde_gen."):
        found.add(name.rpartition(".")[0])
    return found


def canonical(value: Any) -> str:
    """JSON of plain data, equal for equal data: 1 and 1.0 are one number, the order of keys does not matter."""
    return json.dumps(_normal(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of plain data."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def short(value: Any) -> str:
    """An object (or a description of one) as a person would write it, without what is so anyway: VE(sigma_max=12)."""
    if is_dataclass(value) and not isinstance(value, type):
        usual = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(value)}
        given = {name: getattr(value, name) for name in usual if getattr(value, name) != usual[name]}
        return f"{type(value).__name__}({', '.join(f'{name}={short(v)}' for name, v in given.items())})"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key}={short(v)}" for key, v in value.items() if key != "_target_")
        return f"{str(value['_target_']).rpartition('.')[2]}({inner})" if "_target_" in value else f"{{{inner}}}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(short, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _normal(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _normal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_normal(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # "inf", which JSON has no number for
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value
