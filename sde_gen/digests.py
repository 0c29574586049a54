"""Digests by content: equal for what is equal, in every process; another for what may behave otherwise.

Numbers count by value (1 is 1.0, -0.0 is 0, one NaN), lists and tuples alike, mappings whatever their order; tensors
and arrays by dtype, shape and bytes, wherever they lie. An object counts by its class and what pickling would keep of
it; a person's own function or class by its code and all that this names: defaults, closures, globals. Of an installed
package its version counts, and of this one's objects what is public: the rest follows from that.
"""

import hashlib
import sys
from abc import ABC
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from functools import cached_property, lru_cache
from pickle import PickleError
from types import CodeType, FunctionType, GetSetDescriptorType, MappingProxyType, MemberDescriptorType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sde_gen.errors import ConfigError

__all__ = ["digest", "digest_here", "parts"]

_OWN = __name__.partition(".")[0]
#: What every module has; the mode among them, which whoever calls a network sees to.
_COMMON = vars(nn.Module()).keys() - {"_forward_hooks", "_forward_pre_hooks"}
_CODE = ("code", "consts", "names", "varnames", "freevars", "cellvars", "exceptiontable", "posonlyargcount",
         "argcount", "kwonlyargcount", "flags")  # fmt: skip
_WRAPPERS = (property, staticmethod, classmethod, cached_property, type(lru_cache(len)))
_MADE = (GetSetDescriptorType, MemberDescriptorType, type(vars(ABC)["_abc_impl"]))


def digest(*values: Any) -> str:
    """64 hexadecimal digits (SHA-256) for these values.

    Raises:
        ConfigError: for what has no content that can be read, such as a lock, a file or a compiled function.
    """
    try:
        return _of(values, {})
    except RecursionError as error:
        raise ConfigError("digest: an object that contains itself has no content that can be read") from error


def digest_here(value: Any) -> str:
    """The same while nothing changes, in this process: cheap, as it does not look at the numbers of a tensor.

    A tensor counts by its place and version, which changes when it is written to; what has no content that can be
    read counts as itself; all else by `digest`.
    """
    try:
        if isinstance(value, Tensor) and not value.is_inference():
            where = f"{id(value)} {value._version} {value.data_ptr()}"
            return f"{where} {tuple(value.shape)} {value.stride()} {value.dtype}"
        return digest(value)
    except (ConfigError, RuntimeError):  # a tensor without storage, such as a sparse one
        return f"{type(value).__name__} {id(value)}"


def parts(module: nn.Module, told: Callable[[Any], str] = digest) -> dict[str, str]:
    """Name to digest for all that decides what a module answers, its submodules in order.

    Of each its class, the names of its own submodules, parameters, buffers, attributes and hooks.
    """
    found: dict[str, str] = {}
    kinds = {kind: told(kind) for kind in {type(each) for each in module.modules()}}  # code is long to read
    for path, each in module.named_modules(remove_duplicate=False):
        each = getattr(each, "_orig_mod", each)  # torch.compile's wrapper has no content of its own
        found[path] = told((kinds.get(type(each)) or told(type(each)), list(each._modules)))
        own = {name: value for name, value in vars(each).items() if name not in _COMMON}
        for name, value in {**_public(each, own), **each._parameters, **each._buffers}.items():
            found[f"{path}.{name}"] = told(value)
    return found


def _hash(kind: str, *content: str | bytes) -> str:
    found = hashlib.sha256(f"{kind} {len(content)} ".encode())
    for part in content:
        found.update(part.encode() if isinstance(part, str) else part)
    return found.hexdigest()


def _of(value: Any, known: dict[int, str]) -> str:
    """`known` holds the functions and classes met: they name each other, and themselves."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | str | bytes):
        return _hash(type(value).__name__, value if isinstance(value, str | bytes) else repr(value))
    if isinstance(value, int | float):
        return _hash("number", repr(int(value) if isinstance(value, int) or value.is_integer() else float(value)))
    if type(value) in (list, tuple, torch.Size):
        return _hash("sequence", *(_of(each, known) for each in value))
    if type(value) in (dict, OrderedDict, MappingProxyType):
        return _hash("mapping", *sorted(_of(key, known) + _of(each, known) for key, each in value.items()))
    if isinstance(value, set | frozenset):
        return _hash("set", *sorted(_of(each, known) for each in value))
    if id(value) in known and isinstance(value, FunctionType | type):
        return known[id(value)]
    try:
        if isinstance(value, Tensor | np.ndarray):
            given = torch.as_tensor(value.copy() if isinstance(value, np.ndarray) else value).detach()
            plain = given.cpu().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8)
            return _hash("tensor", f"{given.dtype} {tuple(given.shape)} ", plain.numpy().tobytes())
        described = _described(value)
    except ConfigError:  # of a part
        raise
    except (TypeError, AttributeError, ValueError, RuntimeError, PickleError) as error:
        raise ConfigError(f"digest: a {type(value).__name__} here has no content that can be read; give numbers, text, "
                          "dense tensors, functions, or objects of these") from error  # fmt: skip
    if not isinstance(value, FunctionType | type):
        return _hash("object", _of(described, known))
    known[id(value)] = f"the one met after {len(known)} others"
    known[id(value)] = _hash("code", _of(described, known))
    return known[id(value)]


def _described(value: Any) -> Any:
    """An object in terms of simpler ones."""
    if isinstance(value, FunctionType | type | ModuleType):
        module = value.__name__ if isinstance(value, ModuleType) else value.__module__
        if package := _package(module):
            return [package, module, getattr(value, "__qualname__", "")]
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return [value.__code__, value.__defaults__, value.__kwdefaults__, cells, _globals(value), vars(value)]
    if isinstance(value, type):
        kept = {n: v for n, v in vars(value).items() if isinstance(v, FunctionType) or not n.startswith("__")}
        return [value.__qualname__, value.__bases__, {n: v for n, v in kept.items() if not isinstance(v, _MADE)}]
    if isinstance(value, CodeType):
        return [sys.version_info[:2], [getattr(value, f"co_{name}") for name in _CODE]]
    if isinstance(value, _WRAPPERS):
        inside = [getattr(value, name, None) for name in ("fget", "fset", "func", "__wrapped__", "__func__")]
        return [type(value), [each if isinstance(each, FunctionType) else None for each in inside]]
    if isinstance(value, nn.Module):
        return list(parts(value).items())
    if is_dataclass(value):
        return [type(value), {field.name: getattr(value, field.name) for field in fields(value)}]
    state = value.__reduce_ex__(4)
    if isinstance(state, str):
        return [type(value), state]
    return [type(value), *(list(each) if hasattr(each, "__next__") else _public(value, each) for each in state)]


def _public(owner: Any, state: Any) -> Any:
    if not isinstance(state, dict) or type(owner).__module__.partition(".")[0] != _OWN:
        return state
    return {name: value for name, value in state.items() if not name.startswith("_")}


def _package(module: str) -> str | None:
    """Name and version of an installed package; None for a person's own code."""
    top = module.partition(".")[0]
    found = sys.modules.get(top)
    installed = any(folder in str(getattr(found, "__file__", "")) for folder in ("site-packages", "dist-packages"))
    own = top not in sys.stdlib_module_names and top != _OWN and not installed
    return None if own else f"{top} {getattr(found, '__version__', '')}"


def _globals(function: FunctionType) -> dict[str, Any]:
    """What the names in a function's code stand for; of a module of one's own, what of it is named."""
    names, found = sorted(set(_names(function.__code__))), {}
    for name in names:
        value = function.__globals__.get(name, sys.modules.get(name))
        if isinstance(value, ModuleType) and not _package(value.__name__):
            value = {inner: vars(value)[inner] for inner in names if inner in vars(value)}
        found[name] = value
    return found


def _names(code: CodeType) -> Iterable[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)
