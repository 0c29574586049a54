"""Files of weights as tensors in mappings; nothing in them is executed.

The only place where a file of torch's own format is read, and only tensors are taken from it: unpickling anything else
is refused (`weights_only=True`).
"""

import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sde_gen.errors import CheckpointError, MissingInputError


def read_file(path: Path) -> Any:
    """What a file of weights holds: tensors in mappings and lists.

    Raises:
        MissingInputError: no such file.  CheckpointError: it is damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise MissingInputError(f"no file {path}; give weights=PATH of a .safetensors or .pt file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the dialect of pickle, on the way to refusing it
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, and reading the rest would run code that came with it; "
            "save its state_dict alone, best as .safetensors"
        ) from error
    except (
        SafetensorError,
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        KeyError,
        AttributeError,
        IndexError,
    ) as error:
        reason = (str(error).splitlines() or ["it is empty or cut off"])[0][:200]
        raise CheckpointError(f"{path} cannot be read: {reason}") from error


def at(content: Any, key: str | None, source: Path) -> Any:
    """What lies at `key`; dots lead inwards, numbers into lists.

    Raises:
        CheckpointError: nothing; the message lists the keys that there are.
    """
    for part in key.split(".") if key else ():
        if isinstance(content, list | tuple) and part.isdigit() and int(part) < len(content):
            content = content[int(part)]
        elif isinstance(content, Mapping) and part in content:
            content = content[part]
        else:
            raise CheckpointError(f"{source} has nothing at key={key}; there are {_keys(content)}")
    return content


def find_weights(content: Any, key: str | None, strip: str, source: Path, add: str = "") -> dict[str, Tensor]:
    """The mapping of names to tensors at `key`, with `strip` taken off the names, and `add` put before them.

    Raises:
        CheckpointError: there is none; the message lists the keys that there are.
    """
    content = at(content, key, source)
    named = dict(content) if isinstance(content, Mapping) else {}
    if not named or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in named.items()):
        place = f"at key={key}" if key else "at the top"
        raise CheckpointError(f"{source} has no weights {place}: there are {_keys(content)}; say where with key=NAME")
    for name, tensor in named.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{source}: {name} holds values that are not finite; such weights are not imported")
    return {add + name.removeprefix(strip): tensor for name, tensor in named.items()}


def by_position(values: Sequence[Any], network: nn.Module, named: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    """Weights averaged over training that are kept as a list: those of the parameters that need gradients, in order.

    Buffers, and parameters that need none, are those of `named`.

    Raises:
        CheckpointError: another number of them, or another shape of one.
    """
    trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    if len(values) != len(trained):
        raise CheckpointError(f"{source}: the averaged weights are a list of {len(values)}, and the network has "
                              f"{len(trained)} parameters; they do not belong together")  # fmt: skip
    found = dict(named)
    for (name, parameter), value in zip(trained, values, strict=True):
        if not isinstance(value, Tensor) or value.shape != parameter.shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise CheckpointError(f"{source}: the averaged weights hold {got} where {name} has {tuple(parameter.shape)}")
        found[name] = value
    return found


def _keys(content: Any) -> str:
    if isinstance(content, list | tuple):
        return f"a list of {len(content)}"
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    names = [str(name)[:60] for name in list(content)[:12]]
    return ", ".join(names) + (", ..." if len(content) > 12 else "")
