"""Published networks in small: configurations, and weights and inputs that a formula gives.

`benchmarks/network_references.py` runs the published code on them; what it said is in `references/`.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "references"
_DIT = {"input_size": 8, "patch_size": 2, "in_channels": 3, "hidden_size": 32, "depth": 2, "num_heads": 4}

#: Name: family, arguments of the published class, arguments of ours.
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "dit_labels": (
        "dit",
        _DIT | {"num_classes": 5},
        {"channels": 3, "width": 32, "depth": 2, "heads": 4, "num_classes": 5, "learned_variance": True},
    ),
    "dit_patch4": (
        "dit",
        _DIT | {"patch_size": 4, "num_heads": 2, "num_classes": 2, "learn_sigma": False},
        {"channels": 3, "width": 32, "depth": 2, "heads": 2, "patch": 4, "num_classes": 2},
    ),
}


def _drawn(name: str, shape: list[int]) -> Tensor:
    """Of a size that leaves activations of order one; numpy promises that this stream never changes."""
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) > 1:
        return torch.from_numpy(draw / np.prod(shape[1:]) ** 0.5).float()
    centre = 1.0 if name.endswith("weight") or not shape else 0.0
    return torch.from_numpy(np.asarray(centre + 0.2 * draw)).float()


def weights(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {name: _drawn(name, shape) for name, shape in shapes.items()}


def inputs(name: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """x, c_noise and labels."""
    family, given, _ = CONFIGURATIONS[name]
    random = np.random.RandomState(zlib.crc32(name.encode()))
    side = given.get("input_size", given.get("img_resolution"))
    x = torch.from_numpy(random.standard_normal((2, 3, side, side))).float()
    if family == "dit":
        return x, torch.tensor([3.0, 711.0]), torch.tensor([0, given["num_classes"]])
    return x, torch.tensor([-1.3, 0.4]), None


def reference(name: str) -> tuple[dict[str, Tensor], Tensor]:
    """Weights of the published network, and what it said."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return weights(json.loads(str(file["shapes"]))), torch.from_numpy(file["out"])
