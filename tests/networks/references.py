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
_SONG = {"img_resolution": 16, "in_channels": 3, "out_channels": 3, "model_channels": 16, "attn_resolutions": [8]}
_EDM2 = {"img_resolution": 16, "img_channels": 3, "model_channels": 16, "channels_per_head": 16}
_SCORE = {
    "image_size": 16, "nf": 16, "ch_mult": [1, 2, 2], "num_res_blocks": 1, "attn_resolutions": [8], "fir": False,
    "embedding_type": "positional", "progressive": "none", "progressive_input": "none", "scale_by_sigma": False,
}  # fmt: skip

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
    "ncsnpp_residual": (
        "edm",
        _SONG
        | {
            "channel_mult": [1, 2, 2],
            "num_blocks": 1,
            "embedding_type": "fourier",
            "channel_mult_noise": 2,
            "encoder_type": "residual",
            "resample_filter": [1, 3, 3, 1],
        },
        {"channels": 3, "width": 16, "multipliers": (1, 2, 2), "blocks": 1, "attention": (1,), "embedding": "fourier"},
    ),
    "ncsnpp_skip": (
        "edm",
        _SONG
        | {
            "channel_mult": [2, 1, 2],
            "num_blocks": 2,
            "embedding_type": "fourier",
            "channel_mult_noise": 2,
            "encoder_type": "skip",
            "decoder_type": "skip",
            "resample_filter": [1, 3, 3, 1],
        },
        {
            "channels": 3,
            "width": 16,
            "multipliers": (2, 1, 2),
            "blocks": 2,
            "attention": (1,),
            "embedding": "fourier",
            "progressive_input": "skip",
            "progressive_output": "skip",
        },
    ),
    "ddpmpp": (
        "edm",
        _SONG | {"channel_mult": [1, 2], "num_blocks": 1},
        {"channels": 3, "width": 16, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "embedding": "ddpm"},
    ),
    "ddpmpp_deep": (
        "edm",
        _SONG | {"channel_mult": [2, 2, 3], "num_blocks": 3, "attn_resolutions": [16, 8]},
        {"channels": 3, "width": 16, "multipliers": (2, 2, 3), "blocks": 3, "attention": (0, 1), "embedding": "ddpm"},
    ),
    "edm2_labels": (
        "edm2",
        _EDM2 | {"label_dim": 4, "channel_mult": [1, 2, 3], "num_blocks": 1, "attn_resolutions": [8]},
        {
            "channels": 3,
            "width": 16,
            "multipliers": (1, 2, 3),
            "blocks": 1,
            "attention": (1,),
            "head": 16,
            "num_classes": 4,
        },
    ),
    "edm2_plain": (
        "edm2",
        _EDM2 | {"label_dim": 0, "channel_mult": [2, 2], "num_blocks": 2, "attn_resolutions": [16, 8]},
        {"channels": 3, "width": 16, "multipliers": (2, 2), "blocks": 2, "attention": (0, 1), "head": 16},
    ),
    "song_ncsnpp": (
        "score_sde",
        _SCORE | {"embedding_type": "fourier", "fir": True, "progressive_input": "residual", "scale_by_sigma": True},
        {
            "channels": 3,
            "width": 16,
            "multipliers": (1, 2, 2),
            "blocks": 1,
            "attention": (1,),
            "embedding": "fourier",
            "sigma_scaling": True,
        },
    ),
    "song_pyramids": (
        "score_sde",
        _SCORE
        | {
            "embedding_type": "fourier",
            "fir": True,
            "progressive_input": "input_skip",
            "progressive": "output_skip",
            "num_res_blocks": 2,
            "scale_by_sigma": True,
        },
        {
            "channels": 3,
            "width": 16,
            "multipliers": (1, 2, 2),
            "blocks": 2,
            "attention": (1,),
            "embedding": "fourier",
            "sigma_scaling": True,
            "progressive_input": "skip",
            "progressive_output": "skip",
        },
    ),
    "song_ddpmpp": (
        "score_sde",
        _SCORE | {"num_res_blocks": 2},
        {"channels": 3, "width": 16, "multipliers": (1, 2, 2), "blocks": 2, "attention": (1,), "embedding": "ddpm"},
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
    side = next(given[key] for key in ("input_size", "img_resolution", "image_size") if key in given)
    x = torch.from_numpy(random.standard_normal((2, 3, side, side))).float()
    if family == "dit":
        return x, torch.tensor([3.0, 711.0]), torch.tensor([0, given["num_classes"]])
    if family == "edm2":
        return x, torch.tensor([-1.3, 0.4]), torch.tensor([2, given["label_dim"]]) if given["label_dim"] else None
    if family == "score_sde":
        return x, torch.tensor([0.3, 2.7]) if given["scale_by_sigma"] else torch.tensor([3.0, 711.0]), None
    return x, torch.tensor([-1.3, 0.4]), None


def reference(name: str) -> tuple[dict[str, Tensor], Tensor]:
    """Weights of the published network, and what it said."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return weights(json.loads(str(file["shapes"]))), torch.from_numpy(file["out"])
