"""Names and types of configuration values, checked against the annotations of what will be constructed.

The constructors themselves are the schema, so the two can never disagree; ranges are checked by the constructors.
"""

import inspect
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sde_gen.checks import nearest
from sde_gen.errors import ConfigError

T = TypeVar("T")


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A hint such as " (did you mean vp?)" with the choice most like `word`, empty if none is alike."""
    found = nearest(word, choices)
    return "" if found is None else f" (did you mean {found}?)"


def typed(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """An instance of the dataclass `cls` from `values`, after checking names and types.

    Raises:
        ConfigError: a name that `cls` does not have, a missing one, or a value of another type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} must hold named values, got {values!r}")
    prefix = f"{where}." if where else ""
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    for name in values:
        if name not in names:
            raise ConfigError(
                f"{prefix}{name} is not a setting{did_you_mean(name, names)}; there are {', '.join(names)}"
            )
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{prefix}{field.name} is missing; give {prefix}{field.name}=VALUE")
    return cls(**{name: checked(f"{prefix}{name}", hints[name], value) for name, value in values.items()})


def arguments(target: Any, title: str, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`values` checked as keyword arguments of the class or function `target`, called `title` in messages.

    Raises:
        ConfigError: an argument that is unknown or missing, or a value of another type.
    """
    parameters = inspect.signature(target).parameters
    names = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = _hints(target)
    result = {}
    for name, value in values.items():
        if name not in names and not takes_any:
            known = f"it takes {', '.join(names)}" if names else "it takes none"
            raise ConfigError(f"{where}.{name} is not a parameter of {title}{did_you_mean(name, names)}; {known}")
        result[name] = checked(f"{where}.{name}", hints.get(name, Any), value)
    for name in names:
        if name not in values and parameters[name].default is inspect.Parameter.empty:
            raise ConfigError(f"{where}.{name} is missing: {title} needs it; give {where}.{name}=VALUE")
    return result


def checked(name: str, annotation: Any, value: Any) -> Any:
    """`value`, converted as little as possible to `annotation` (int to float, list to tuple), or a ConfigError."""
    ok, converted = _match(annotation, value)
    if not ok:
        raise ConfigError(f"{name}={_show(value)} must be {_describe(annotation)}")
    return converted


def _match(annotation: Any, value: Any) -> tuple[bool, Any]:
    origin = get_origin(annotation)
    if annotation is Any or isinstance(annotation, TypeVar):
        return True, value
    if annotation is None or annotation is type(None):
        return value is None, value
    if origin in (Union, types.UnionType):
        # Exact types first, so that 1 stays an int where both int and float are allowed.
        matches = [_match(member, value) for member in get_args(annotation)]
        hits = [converted for ok, converted in matches if ok]
        same = [converted for converted in hits if type(converted) is type(value)]
        return bool(hits), (same or hits or [value])[0]
    if origin is Literal:
        return value in get_args(annotation) and not isinstance(value, bool), value
    if annotation is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number, float(value) if number else value
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if annotation in (bool, str):
        return isinstance(value, annotation), value
    container = origin or annotation
    if isinstance(container, type) and issubclass(container, Sequence) and not issubclass(container, str):
        return _match_sequence(annotation, container, value)
    if isinstance(container, type) and issubclass(container, Mapping):
        return isinstance(value, Mapping), value
    if isinstance(annotation, type) and isinstance(value, bool | int | float | str) and annotation.__module__ != "os":
        # A plain value where an object is due can never be right; a path may be given as a string.
        return isinstance(value, annotation) or (isinstance(value, str) and annotation.__name__.endswith("Path")), value
    return True, value  # objects built from a `_target_`, and annotations with no plain meaning: the constructor's job


def _match_sequence(annotation: Any, container: type, value: Any) -> tuple[bool, Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return False, value
    members = [m for m in get_args(annotation) if m is not Ellipsis] or [Any]
    if len(members) == 1:
        members *= len(value)
    if len(members) != len(value):
        return False, value
    pairs = [_match(member, item) for member, item in zip(members, value, strict=True)]
    items = [item for _, item in pairs]
    return all(ok for ok, _ in pairs), tuple(items) if container is tuple else items


def _describe(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_describe(member) for member in get_args(annotation)))
    if origin is Literal:
        return "one of " + ", ".join(map(str, get_args(annotation)))
    plain = {float: "a number", int: "a whole number", bool: "true or false", str: "text", type(None): "null"}
    if annotation in plain:
        return plain[annotation]
    container = origin or annotation
    if isinstance(container, type) and issubclass(container, Sequence):
        members = [member for member in get_args(annotation) if member is not Any]
        return f"a list, each entry {_describe(members[0])}" if members else "a list"
    if isinstance(container, type) and issubclass(container, Mapping):
        return "a group of named values"
    return f"a {getattr(annotation, '__name__', annotation)} (a group with a _target_)"


def _show(value: Any) -> str:
    return repr(value) if isinstance(value, str) else "null" if value is None else str(value)


def _hints(target: Any) -> dict[str, Any]:
    try:
        return get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError, AttributeError):  # an annotation that exists for type checkers only
        return {}
