"""Checks of constructor arguments: each refuses with one sentence that names the value and what is allowed."""

import math
from collections.abc import Sequence

from sde_gen.errors import ConfigError


def number(
    where: str,
    name: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """Return `value` as a float in [low, high] (open ends where asked), or raise `ConfigError`."""
    left = "(" if open_low or math.isinf(low) else "["
    right = ")" if open_high or math.isinf(high) else "]"
    allowed = f"{left}{low:g}, {high:g}{right}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where}: {name} must be a number in {allowed}, got {value!r}")
    x = float(value)
    below = x <= low if open_low else x < low
    above = x >= high if open_high else x > high
    if not math.isfinite(x) or below or above:
        raise ConfigError(f"{where}: {name} must be a finite number in {allowed}, got {value!r}")
    return x


def integer(where: str, name: str, value: object, *, low: int = 1, high: int | None = None) -> int:
    """Return `value` as an int in [low, high], or raise `ConfigError`."""
    allowed = f"at least {low}" if high is None else f"between {low} and {high}"
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise ConfigError(f"{where}: {name} must be a whole number, {allowed}, got {value!r}")
    return value


def choice(where: str, name: str, value: object, allowed: Sequence[str]) -> str:
    """Return `value` if it is one of `allowed`, or raise `ConfigError` that lists them and the nearest match."""
    if isinstance(value, str) and value in allowed:
        return value
    import difflib

    near = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{where}: {name} must be one of {', '.join(map(repr, allowed))}, got {value!r}{hint}")
