"""The one place where a configuration becomes objects.

A `_target_` must be on the closed list of exact names that the package exports (`sde_gen.config.signatures.targets`).
Anything else is refused, unless the user names its module on the command line with trust=[module]: a configuration that
came with a checkpoint is data, not a program.
"""

import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any

from sde_gen.config.signatures import group_of, target_named, targets
from sde_gen.config.typed import arguments, did_you_mean
from sde_gen.errors import CheckpointError, ConfigError

#: Parameters that the command alone may give.
_FROM_COMMAND = {"sde_gen.codecs.latents": ("trust",)}
#: Where a composed configuration keeps the arguments that it was composed with.
ARGUMENTS = "_arguments_"


def build(node: Any, *, trust: Sequence[str] = (), where: str = "config", stored: bool = False, **given: Any) -> Any:
    """The object that `node` describes: a mapping with a `_target_` and its arguments, inner ones built first.

    Args:
        node: a mapping, plain or of OmegaConf; None gives None.
        trust: modules of the user's own whose classes may be built as well.
        where: how messages name the node, such as "sde".
        stored: whether the node came with a checkpoint; a target that is refused is then a `CheckpointError`.
        given: arguments that the configuration leaves to the program; those in `node` win.

    Raises:
        ConfigError: a target that is not on the list, an unknown argument, a value of another type or out of range.
    """
    node = plain(node)
    if node is None:
        return None
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise ConfigError(f"{where} must be a group with a _target_, got {node!r}")
    name = node["_target_"]
    for key in node:
        if key.startswith("_") and key != "_target_":
            raise ConfigError(f"{where}.{key} is not allowed; only _target_ and its arguments are")
    target = find_target(name, trust, where, stored)
    title = name.rpartition(".")[2]
    values = {key: _inner(value, trust, f"{where}.{key}", stored) for key, value in node.items() if key != "_target_"}
    if "trust" in _FROM_COMMAND.get(name, ()):  # whatever the configuration says
        values["trust"] = list(trust)
    made = target(**arguments(target, title, {**given, **values}, where))
    if hasattr(made, "state_dict"):  # a network does not say what it was made from
        made.described = {**given, **node}
    return made


def describe(value: Any, where: str) -> Any:
    """What `build` makes `value` of: plain data, in which an object is its `_target_` and arguments.

    Args:
        value: a number, text, a list or mapping of such, a frozen dataclass such as `VP()` or `DDIM(steps=20)`, or a
            network that was built from a configuration, or keeps in an attribute `arguments` what it was made with.
        where: how messages name it.

    Raises:
        ConfigError: for an object that is not made of plain values.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): describe(item, f"{where}.{key}") for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        given = {f.name: describe(getattr(value, f.name), f"{where}.{f.name}") for f in fields(value) if f.init}
        return {"_target_": target_of(type(value)), **given}
    if isinstance(value, Sequence):
        return [describe(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(node := getattr(value, "described", None), Mapping):
        return describe(node, where)
    given = getattr(value, "arguments", None)
    if isinstance(given, Mapping) and set(given) == set(inspect.signature(type(value)).parameters):
        return {"_target_": target_of(type(value)), **describe(given, where)}
    what = "a function" if callable(getattr(value, "given", None)) else type(value).__name__  # as in a LinearSDE
    raise ConfigError(
        f"{where}: {what} cannot be written down as plain data; give a frozen dataclass or a mapping "
        "with a _target_, or let a network keep in an attribute `arguments` all that it was constructed with, by name"
    )


def target_of(cls: type) -> str:
    """The name under which a configuration builds `cls`."""
    ours = target_named(cls.__qualname__)
    return (
        ours if ours is not None and cls.__module__.startswith("sde_gen.") else f"{cls.__module__}.{cls.__qualname__}"
    )


def plain(node: Any) -> Any:
    """`node` as plain Python data, interpolations of an OmegaConf node resolved."""
    omegaconf = sys.modules.get("omegaconf")
    if omegaconf is not None and omegaconf.OmegaConf.is_config(node):
        return omegaconf.OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    return node


def settings(config: Any) -> tuple[dict[str, Any], list[str]]:
    """The settings of a command as plain data, and the arguments that they were composed with ([] if not known).

    Raises:
        ConfigError: `config` holds no named values.
    """
    values = plain(config)
    if not isinstance(values, Mapping):
        raise ConfigError(f"a command's configuration must hold named values, got {values!r}")
    values = dict(values)
    return values, list(values.pop(ARGUMENTS, ()))


def _inner(value: Any, trust: Sequence[str], where: str, stored: bool) -> Any:
    if isinstance(value, Mapping) and "_target_" in value:
        return build(value, trust=trust, where=where, stored=stored)
    if isinstance(value, list):
        return [_inner(item, trust, f"{where}[{i}]", stored) for i, item in enumerate(value)]
    return value


def find_target(name: str, trust: Sequence[str], where: str, stored: bool) -> Any:
    """The class or function that a `_target_` names, if the package exports it or its module is trusted.

    Raises:
        ConfigError: it is neither (a `CheckpointError` if it came with a checkpoint), or is not there.
    """
    module, _, attribute = name.rpartition(".")
    ours = group_of(name) is not None
    if not ours and module not in trust:
        advice = f"; add trust=[{module}] if it is your own module" if module else ""
        error = CheckpointError if stored else ConfigError
        hint = did_you_mean(name, targets())
        raise error(f"{where}._target_={name} is not one of sde_gen's own classes{hint}{advice}")
    if not ours and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a trusted module usually lies where the command is run
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{where}._target_={name} cannot be imported: {error}") from error
