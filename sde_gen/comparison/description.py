"""Objects as plain data and back: what a cell of a comparison is hashed, stored and rebuilt from."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import sde_gen
from sde_gen.errors import ConfigError


def describe(value: Any, where: str) -> Any:
    """`value` as plain data: an object becomes its `_target_` and arguments, as in a configuration.

    Args:
        value: a number, text, a list or mapping of such, or a frozen dataclass such as `VP()` or `DDIM(steps=20)`.
        where: how messages name it.

    Raises:
        ConfigError: for an object that is not made of plain values.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): describe(item, f"{where}.{key}") for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        arguments = {f.name: describe(getattr(value, f.name), f"{where}.{f.name}") for f in fields(value) if f.init}
        return {"_target_": target_of(type(value)), **arguments}
    if isinstance(value, Sequence):
        return [describe(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise ConfigError(
        f"{where}={value!r} cannot be written down as plain data; give a frozen dataclass, or a mapping with a _target_"
    )


def target_of(cls: type) -> str:
    """The name under which a configuration builds `cls`."""
    if cls.__module__.startswith("sde_gen.") and getattr(sde_gen, cls.__qualname__, None) is cls:
        return f"sde_gen.{cls.__qualname__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def modules_of(node: Any) -> set[str]:
    """The modules outside sde_gen that the targets in `node` lie in."""
    if isinstance(node, Mapping):
        found = set().union(*(modules_of(value) for value in node.values()))
        name = node.get("_target_")
        if isinstance(name, str) and "." in name and not name.startswith("sde_gen."):
            found.add(name.rpartition(".")[0])
        return found
    if isinstance(node, list | tuple):
        return set().union(*(modules_of(value) for value in node))
    return set()


def canonical(value: Any) -> str:
    """JSON of plain data, equal for equal data: 1 and 1.0 are one number, the order of keys does not matter."""
    return json.dumps(_normal(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of plain data."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def short(node: Any) -> str:
    """A node as a person would write it: VE(sigma_max=12)."""
    if isinstance(node, Mapping) and "_target_" in node:
        name = str(node["_target_"]).rpartition(".")[2]
        inner = ", ".join(f"{key}={short(value)}" for key, value in node.items() if key != "_target_")
        return f"{name}({inner})"
    if isinstance(node, Mapping):
        return "{" + ", ".join(f"{key}: {short(value)}" for key, value in node.items()) + "}"
    if isinstance(node, list):
        return "[" + ", ".join(map(short, node)) + "]"
    return f"{node:g}" if isinstance(node, float) else str(node)


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
