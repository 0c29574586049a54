"""Checks of arguments: each refuses with one sentence that names the value and what is allowed.

A field of a dataclass carries its range, and `fields` holds the whole object to what its fields say:

    @dataclass(frozen=True)
    class DDIM:
        eta: float = checked(0.0, low=0.0, high=1.0)

        def __post_init__(self) -> None:
            checks.fields(self)

Numbers of numpy, and tensors of one number, are numbers; True and False are not.
"""

import dataclasses
import difflib
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sde_gen.errors import ConfigError

__all__ = ["boolean", "checked", "choice", "fields", "integer", "integers", "listed", "nearest", "number"]


def _plain(value: object) -> object:
    """A zero-dimensional array or tensor as the Python number in it; anything else as it is."""
    item = getattr(value, "item", None)
    if item is not None and getattr(value, "ndim", None) == 0 and not getattr(value, "is_meta", False):
        return item()
    return value


def number(
    where: str,
    name: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
    infinite: bool = False,
) -> float:
    """`value` as a float in [low, high] (open ends where asked; +-inf only if `infinite`), or a `ConfigError`."""
    left = "(" if open_low or (math.isinf(low) and not infinite) else "["
    right = ")" if open_high or (math.isinf(high) and not infinite) else "]"
    allowed = f"{left}{low:g}, {high:g}{right}"
    plain = _plain(value)
    if isinstance(plain, bool) or not isinstance(plain, numbers.Real):
        raise ConfigError(f"{where}: {name} must be a number in {allowed}, got {value!r}")
    x = float(plain)
    below = x <= low if open_low else x < low
    above = x >= high if open_high else x > high
    if math.isnan(x) or (math.isinf(x) and not infinite) or below or above:
        kind = "a number" if infinite else "a finite number"
        raise ConfigError(f"{where}: {name} must be {kind} in {allowed}, got {value!r}")
    return x


def integer(where: str, name: str, value: object, *, low: int = 1, high: int | None = None) -> int:
    """`value` as an int in [low, high], or a `ConfigError`."""
    plain = _plain(value)
    good = isinstance(plain, numbers.Integral) and not isinstance(plain, bool)
    if not good or int(plain) < low or (high is not None and int(plain) > high):  # type: ignore[call-overload]
        allowed = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ConfigError(f"{where}: {name} must be a whole number, {allowed}, got {value!r}")
    return int(plain)  # type: ignore[call-overload]


def integers(where: str, name: str, values: object, *, low: int = 1, high: int | None = None) -> tuple[int, ...]:
    """`values` as a tuple of ints in [low, high], or a `ConfigError`."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ConfigError(f"{where}: {name} must be a list of whole numbers, at least {low}, got {values!r}")
    return tuple(integer(where, f"{name}[{i}]", value, low=low, high=high) for i, value in enumerate(values))


def listed(where: str, name: str, values: object, *, infinite: bool = False) -> tuple[float, ...]:
    """`values`, a list or a tensor of one dimension, as a tuple of at least one float, or a `ConfigError`."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) != 1:
        raise ConfigError(f"{where}: {name} must be a list of numbers, got {values!r}")
    found = tuple(number(where, f"{name}[{i}]", value, infinite=infinite) for i, value in enumerate(values))
    if not found:
        raise ConfigError(f"{where}: {name} must be a list of at least one number, got {values!r}")
    return found


def boolean(where: str, name: str, value: object) -> bool:
    """`value` if it is True or False (numpy's too), or a `ConfigError`."""
    plain = _plain(value)
    if not isinstance(plain, bool):
        raise ConfigError(f"{where}: {name} must be True or False, got {value!r}")
    return plain


def nearest(word: str, choices: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The choice most like `word`; None if none is alike."""
    found = difflib.get_close_matches(str(word), list(choices), n=1, cutoff=cutoff)
    return found[0] if found else None


def choice(where: str, name: str, value: object, allowed: Sequence[str]) -> str:
    """`value` if it is one of `allowed`, or a `ConfigError` that lists them and the nearest match."""
    if isinstance(value, str) and value in allowed:
        return value
    near = nearest(str(value), allowed, 0.6)
    hint = f"; did you mean {near!r}?" if near else ""
    raise ConfigError(f"{where}: {name} must be one of {', '.join(map(repr, allowed))}, got {value!r}{hint}")


def checked(
    default: Any = dataclasses.MISSING,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
    infinite: bool = False,
) -> Any:
    """A field of a dataclass with the range of its values: numbers in [low, high], (above, below), or one of `choices`.

    What kind of value it is, whole number, number, truth value or text, follows from its annotation; None is allowed
    where the annotation says so.
    """
    rule = {"low": low, "high": high, "above": above, "below": below, "choices": choices, "infinite": infinite}
    return dataclasses.field(default=default, metadata={"checked": rule})


def fields(thing: Any, where: str | None = None) -> None:
    """Hold a dataclass to the ranges of its `checked` fields; numbers of numpy become Python's.

    Raises:
        ConfigError: for the first value that is outside.
    """
    where = where or type(thing).__name__
    for field in dataclasses.fields(thing):
        rule = field.metadata.get("checked")
        if rule is None:
            continue
        given = getattr(thing, field.name)
        value = _checked(where, field.name, given, str(getattr(field.type, "__name__", field.type)), rule)
        if value is not given:
            object.__setattr__(thing, field.name, value)


def _checked(where: str, name: str, value: Any, kind: str, rule: dict[str, Any]) -> Any:
    kinds = [part.strip() for part in kind.split("|")]
    if value is None and "None" in kinds:
        return None
    if rule["choices"] is not None:
        return choice(where, name, value, rule["choices"])
    if "bool" in kinds:
        return boolean(where, name, value)
    if "int" in kinds:
        return integer(where, name, value, low=1 if rule["low"] is None else int(rule["low"]), high=rule["high"])
    low = rule["above"] if rule["above"] is not None else rule["low"]
    high = rule["below"] if rule["below"] is not None else rule["high"]
    return number(
        where, name, value, low=-math.inf if low is None else low, high=math.inf if high is None else high,
        open_low=rule["above"] is not None, open_high=rule["below"] is not None, infinite=rule["infinite"],
    )  # fmt: skip
