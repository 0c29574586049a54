"""Objects as plain data: what a cell of a comparison is hashed and stored by, and a comparison written down as."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
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
