"""Pickles as NVlabs/edm writes them: each object a name, its source and its state."""

import collections
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class _Reduced:
    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        made = {"type": "class", "module_src": "raise SystemExit('ran')", "class_name": class_name, "state": state}
        self.arguments = (made,)


class _Writer(pickle._Pickler):
    """A pickler in Python, that writes names of modules which need not be there."""

    def save(self, value: Any, *rest: Any, **more: Any) -> None:
        if isinstance(value, _Reduced):
            self.write(b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n")
            super().save(value.arguments)
            self.write(b"R")
            return
        super().save(value, *rest, **more)


def persistent(class_name: str, state: dict[str, Any], **modules: _Reduced) -> _Reduced:
    whole = {"_parameters": {}, "_buffers": {}, "_modules": collections.OrderedDict(modules), **state}
    return _Reduced(class_name, whole)


def write_edm(path: Path, name: str = "EDMPrecond", buffers: dict[str, Tensor] | None = None, **given: Any) -> Tensor:
    """A file with a network of one weight, which is returned, under the preconditioning of this name."""
    weight = torch.arange(6.0).reshape(2, 3)
    inner = persistent("SongUNet", {"_parameters": {"weight": weight}, "_init_kwargs": {"img_resolution": 8}})
    state = {"_init_kwargs": given, "_buffers": buffers or {}, **given}
    file = io.BytesIO()
    _Writer(file, 3).dump({"ema": persistent(name, state, model=inner)})
    path.write_bytes(file.getvalue())
    return weight
