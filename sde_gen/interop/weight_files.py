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


def find_weights(
    content: Any, key: str | None, strip: str, source: Path, network: nn.Module | None = None, add: str = ""
) -> dict[str, Tensor]:
    """The mapping of names to tensors at `key` (dots lead inwards, numbers into lists), without `strip`, with `add`.

    Where names begin with `strip`, those that do not are others' (the counter of `torch.optim.swa_utils`, the online
    model of ema-pytorch) and left out. A list of tensors, as score_sde and diffusers keep averages, is that of the
    parameters of `network` that need gradients, in their order; its buffers are as they are.

    Raises:
        CheckpointError: there is none; the message lists the keys that there are.
    """
    content = at(content, key, source)
    if isinstance(content, list | tuple) and network is not None and all(isinstance(t, Tensor) for t in content):
        content = by_position(content, network, f"{source} at key={key}")
    named = dict(content) if isinstance(content, Mapping) else {}
    if strip and any(str(name).startswith(strip) for name in named):
        named = {name: tensor for name, tensor in named.items() if str(name).startswith(strip)}
    if not named or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in named.items()):
        place = f"at key={key}" if key else "at the top"
        raise CheckpointError(f"{source} has no weights {place}: there are {_keys(content)}; say where with key=NAME")
    for name, tensor in named.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{source}: {name} holds values that are not finite; such weights are not imported")
    return {add + name.removeprefix(strip): tensor for name, tensor in named.items()}


def by_position(averages: Sequence[Tensor], network: nn.Module, where: str) -> dict[str, Tensor]:
    """The state of a network with these in place of its parameters that need gradients, in order.

    Raises:
        CheckpointError: another number of them, or another shape of one.
    """
    trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    if len(averages) != len(trained):
        raise CheckpointError(f"{where}: {len(averages)} tensors in a row, but the network trains {len(trained)}")
    for (name, p), tensor in zip(trained, averages, strict=True):
        if p.shape != tensor.shape:
            raise CheckpointError(f"{where}: the tensor for {name} is {tuple(tensor.shape)}, not {tuple(p.shape)}")
    return {**network.state_dict(), **{name: tensor for (name, _), tensor in zip(trained, averages, strict=True)}}


def _keys(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}" + (f" of {len(content)}" if isinstance(content, list | tuple) else "")
    names = [str(name)[:60] for name in list(content)[:12]]
    return ", ".join(names) + (", ..." if len(content) > 12 else "")
