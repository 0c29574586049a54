"""What published networks say, on weights and inputs that a formula gives: references that the tests compare with.

    python benchmarks/network_references.py dit CLONE    facebookresearch/DiT (with timm)
    python benchmarks/network_references.py edm CLONE    NVlabs/edm
    python benchmarks/network_references.py edm2 CLONE   NVlabs/edm2
    python benchmarks/network_references.py score_sde CLONE   yang-song/score_sde_pytorch

CLONE is a folder with the published code, which is run, and not copied. Each network is made small; its weights are
drawn by name (`tests/networks/references.py`), and its names, shapes and output are written to
tests/networks/references/NAME.npz. `--counts` prints the parameters of the published sizes instead.
"""

import argparse
import importlib.abc
import importlib.machinery
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
import torch.utils.cpp_extension
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.networks.references import CONFIGURATIONS, FOLDER, inputs, weights  # noqa: E402


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for torchvision, which timm imports for what is not asked here."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> ModuleType:
        class Stand(ModuleType):
            def __getattr__(self, attribute: str) -> Any:
                if attribute.startswith("__"):
                    raise AttributeError(attribute)
                return MagicMock()

        return Stand(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def made(family: str) -> tuple[Callable[..., nn.Module], dict[str, dict[str, Any]]]:
    """The published class, and its published sizes."""
    if family == "dit":
        sys.meta_path.append(_Absent())
        from models import DiT  # pyright: ignore[reportMissingImports]

        shapes = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
        return DiT, {name: {"depth": d, "hidden_size": w, "num_heads": h} for name, (d, w, h) in shapes.items()}
    if family == "edm":
        from training.networks import SongUNet  # pyright: ignore[reportMissingImports]

        given = {"img_resolution": 32, "in_channels": 3, "out_channels": 3}
        plus = {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2,
                "resample_filter": [1, 3, 3, 1]}  # fmt: skip
        edm = {"channel_mult": [2, 2, 2]}
        return SongUNet, {"ddpmpp": given, "ncsnpp": given | plus, "ddpmpp edm": given | edm,
                          "ncsnpp edm": given | plus | edm}  # fmt: skip
    if family == "score_sde":
        return _song, {}
    from training.networks_edm2 import UNet  # pyright: ignore[reportMissingImports]

    given = {"img_resolution": 64, "img_channels": 4, "label_dim": 1000}
    widths = {"XS": 128, "S": 192, "M": 256, "L": 320, "XL": 384, "XXL": 448}
    return UNet, {name: given | {"model_channels": width} for name, width in widths.items()}


def _song(**given: Any) -> nn.Module:
    """NCSNpp of score_sde: its extension in CUDA is not built, and its own code for the CPU runs."""
    torch.utils.cpp_extension.load = MagicMock()
    from models.ncsnpp import NCSNpp  # pyright: ignore[reportMissingImports]

    model = {key: value for key, value in given.items() if key != "image_size"}
    model |= {"dropout": 0.1, "resamp_with_conv": True, "conditional": True, "fir_kernel": [1, 3, 3, 1],
              "skip_rescale": True, "resblock_type": "biggan", "progressive_combine": "sum", "nonlinearity": "swish",
              "init_scale": 0.0, "fourier_scale": 16, "sigma_min": 0.01, "sigma_max": 50.0,
              "num_scales": 1000}  # fmt: skip
    data = {"image_size": given["image_size"], "num_channels": 3, "centered": True}
    return NCSNpp(SimpleNamespace(model=SimpleNamespace(**model), data=SimpleNamespace(**data),
                                  training=SimpleNamespace(continuous=True)))  # fmt: skip


def main() -> None:
    """Write the references of a family, or print its counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=["dit", "edm", "edm2", "score_sde"])
    parser.add_argument("clone", type=Path)
    parser.add_argument("--counts", action="store_true")
    asked = parser.parse_args()
    sys.path.insert(0, str(asked.clone))
    make, published = made(asked.family)
    if asked.counts:
        for name, options in published.items():
            with torch.device("meta"):
                network = make(**options)
            print(f"{asked.family} {name}: {sum(p.numel() for p in network.parameters()):,} parameters")
        return
    FOLDER.mkdir(exist_ok=True)
    for name, (family, given, _) in CONFIGURATIONS.items():
        if family != asked.family:
            continue
        network = make(**given).eval()
        shapes = {key: list(t.shape) for key, t in network.state_dict().items()
                  if key not in ("pos_embed", "sigmas") and "resample_filter" not in key}  # fmt: skip
        network.load_state_dict(weights(shapes), strict=False)
        with torch.no_grad():
            x, number, label = inputs(name)
            if family == "edm2" and label is not None:  # rows of zeros and a one; no label is a row of zeros
                label = torch.nn.functional.one_hot(label, given["label_dim"] + 1)[:, :-1].float()
            out = network(x, number) if family == "score_sde" else network(x, number, label)
        path = FOLDER / f"{name}.npz"
        np.savez_compressed(path, shapes=json.dumps(shapes), out=out.numpy())
        print(f"{path.relative_to(ROOT)}: {tuple(out.shape)}, rms {out.square().mean().sqrt():.3f}")


if __name__ == "__main__":
    main()
