"""What a pickle of NVlabs' codes (edm, edm2) says, with nothing in it executed.

Such a file holds the source of its classes, which pickle.load would run. Here every object is a `Shell`: the name of
its class, what it was made with, its state. Tensors, containers and numbers alone are made real, each by a
name on a list.
"""

import collections
import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_gen.errors import CheckpointError, MissingInputError
from sde_gen.pickles import Number, Settings, number

_DEEPEST = 200


class Shell:
    """An object whose class is not imported.

    Attributes:
        class_name: name of the class, "" where it is not said.
        state: its attributes.
    """

    class_name: str = ""

    def __init__(self, *_: Any) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = dict(state) if isinstance(state, Mapping) else {}

    @property
    def arguments(self) -> dict[str, Any]:
        """What it was constructed with, by name."""
        given = self.state.get("_init_kwargs")
        return dict(given) if isinstance(given, Mapping) else {}

    def child(self, name: str) -> "Shell | None":
        """A submodule."""
        inside = self.state.get("_modules")
        found = inside.get(name) if isinstance(inside, Mapping) else None
        return found if isinstance(found, Shell) else None

    def state_dict(self, prefix: str = "", level: int = 0) -> dict[str, Tensor]:
        """Its weights, under the names that torch gives them."""
        if level > _DEEPEST:
            raise CheckpointError("its modules are nested without an end")
        parameters, buffers, modules = (self.state.get(k) or {} for k in ("_parameters", "_buffers", "_modules"))
        passing = self.state.get("_non_persistent_buffers_set") or ()
        found = {**parameters, **{name: value for name, value in buffers.items() if name not in passing}}
        named = {prefix + name: value for name, value in found.items() if isinstance(value, Tensor)}
        for name, module in modules.items():
            if isinstance(module, Shell):
                named |= module.state_dict(f"{prefix}{name}.", level + 1)
        return named


def _persistent(told: Any) -> Shell:
    shell = Shell()
    if isinstance(told, Mapping):
        shell.class_name = str(told.get("class_name", ""))
        shell.__setstate__(told.get("state"))
    return shell


def _storage(data: Any) -> Any:
    """One storage, as torch saved it inside the pickle."""
    return torch.load(io.BytesIO(data), weights_only=True)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    flat = torch.empty(0, dtype=storage.dtype)
    return flat.set_(storage._untyped_storage, offset, tuple(size), tuple(stride))  # refuses what lies outside


_REAL: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "set"): set,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch", "device"): lambda *names: names,
    ("numpy", "dtype"): Number,
    ("numpy.core.multiarray", "scalar"): number,
    ("numpy._core.multiarray", "scalar"): number,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("dnnlib.util", "EasyDict"): Settings,
}
_CONTAINERS = ("ModuleDict", "ModuleList", "Sequential")


class _Refused(pickle.UnpicklingError):
    """A name that no file of weights needs."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _REAL:
            return _REAL[module, name]
        if module == "torch.nn.modules.container" and name in _CONTAINERS:
            return Shell
        raise _Refused(f"{module}.{name}")


def read_pickle(path: Path, key: str = "ema") -> Shell:
    """The network at `key` of a file, as a shell.

    Raises:
        MissingInputError: no such file.  CheckpointError: it is damaged, or names what no file of weights needs.
    """
    if not path.is_file():
        raise MissingInputError(f"no file {path}; give the .pkl of a network")
    try:
        with path.open("rb") as file:
            found = _Reader(file).load()
        found = found[key] if isinstance(found, Mapping) else found
    except _Refused as error:
        raise CheckpointError(f"{path} names {error}, which no file of weights needs; nothing of it was run") from error
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(f"{path} cannot be read: {reason}") from error
    if not isinstance(found, Shell) or not found.class_name:
        raise CheckpointError(f"{path} holds no network at {key!r}, but a {type(found).__name__}")
    return found
