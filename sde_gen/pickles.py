"""Numbers and arrays of numpy in pickles, read without the functions that a pickle names: none of them is run."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Number:
    """A numpy dtype of plain numbers."""

    def __init__(self, name: Any = None, *_: Any) -> None:
        if not isinstance(name, str) or name.lstrip("<>=|")[:1] not in ("f", "i", "u", "b"):
            raise pickle.UnpicklingError(f"numpy dtype {name!r}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class Settings(dict):  # type: ignore[type-arg]
    """A dictionary whose entries are attributes, in NVlabs' codes."""

    def __setstate__(self, state: Any) -> None:
        self.update(state)


class _Array:
    """An array, which is known when its state is."""

    array: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        self.array = _buffer(data, kind, shape, "F" if fortran else "C").array


def number(kind: Any, data: Any) -> Any:
    """A number of numpy as Python's."""
    if not isinstance(kind, Number) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("a numpy number")
    return np.frombuffer(data, dtype=kind.dtype, count=1)[0].item()


def _buffer(data: Any, kind: Any, shape: Any, order: Any) -> _Array:
    if not isinstance(kind, Number) or not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("an array of numpy that is not of plain numbers")
    found = _Array()
    found.array = np.frombuffer(bytearray(data), kind.dtype).reshape(shape, order="F" if order == "F" else "C")
    return found


def _encoded(text: Any, coding: Any) -> bytes:
    """Bytes, as old protocols write them."""
    if not isinstance(text, str) or coding != "latin1":
        raise pickle.UnpicklingError("bytes that are none")
    return text.encode("latin1")


def _known() -> dict[tuple[str, str], Callable[..., Any]]:
    names: dict[tuple[str, str], Callable[..., Any]] = {
        ("collections", "OrderedDict"): dict,
        ("dnnlib.util", "EasyDict"): Settings,
        ("_codecs", "encode"): _encoded,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): Number,
    }
    for core in ("numpy.core", "numpy._core"):  # before numpy 2, and since
        names[f"{core}.multiarray", "_reconstruct"] = lambda *_: _Array()
        names[f"{core}.multiarray", "scalar"] = number
        names[f"{core}.numeric", "_frombuffer"] = _buffer
    return names


class _Reader(pickle.Unpickler):
    known = _known()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.known:
            return self.known[module, name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no file of numbers needs; nothing of it was run")


def read_numbers(path: Path) -> Any:
    """What a pickle of dictionaries, lists, plain values and arrays of numbers holds.

    Raises:
        OSError, pickle.UnpicklingError: it cannot be read, is damaged, or names anything else.
    """
    try:
        with path.open("rb") as file:
            return _plain(_Reader(file).load())
    except (OSError, pickle.UnpicklingError):
        raise
    except Exception as error:
        raise pickle.UnpicklingError(f"it is damaged ({type(error).__name__})") from error


def _plain(found: Any) -> Any:
    if isinstance(found, _Array):
        return found.array
    if isinstance(found, dict):
        return {key: _plain(value) for key, value in found.items()}
    return [_plain(value) for value in found] if isinstance(found, list | tuple) else found
