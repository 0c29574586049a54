"""Sampling loops of published codes, in small: which network, which steps, and the numbers that they draw.

`benchmarks/loop_references.py` runs the published loops on them; where they ended is in `loops/`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sde_gen.interop import published_weights
from sde_gen.networks import DDPMpp, DiT, NCSNpp
from tests.networks.references import CONFIGURATIONS, reference

FOLDER = Path(__file__).parent / "loops"
#: Of Karras et al. 2022, table 5, for ImageNet.
CHURN = {"S_churn": 40.0, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.003}
STEPS, SNR = 50, 0.16
TOLERANCE = 1e-4

#: NVlabs/edm: class of the preconditioning, network, what `edm_sampler` is told besides.
EDM: dict[str, tuple[str, str, dict[str, float]]] = {
    "edm": ("EDMPrecond", "ddpmpp", {}),
    "edm_churn": ("EDMPrecond", "ddpmpp", CHURN),
    "vp": ("VPPrecond", "ddpmpp", {}),
    "vp_churn": ("VPPrecond", "ddpmpp", CHURN),
    "ve": ("VEPrecond", "ncsnpp_residual", {}),
    "iddpm": ("iDDPMPrecond", "ddpmpp", {}),
}
#: score_sde_pytorch: class of the process, network, whether it was trained on all times.
SCORE_SDE: dict[str, tuple[str, str, bool]] = {
    "vp": ("VPSDE", "song_ddpmpp", True),
    "vp_chain": ("VPSDE", "song_ddpmpp", False),
    "ve": ("VESDE", "song_ncsnpp", True),
}
#: guided-diffusion: nodes, betas, how many of them are visited, whether times go to 1000, whether x0 is clipped.
ADM: dict[str, dict[str, Any]] = {
    "linear": {"nodes": 1000, "betas": "linear", "visited": 20, "rescaled": False, "clip": False},
    "cosine": {"nodes": 1000, "betas": "cosine", "visited": 20, "rescaled": False, "clip": True},
    "whole": {"nodes": 40, "betas": "linear", "visited": 40, "rescaled": True, "clip": False},
    "whole_cosine": {"nodes": 40, "betas": "cosine", "visited": 40, "rescaled": True, "clip": True},
}


def draw(like: Tensor, step: int, number: int) -> Tensor:
    """Standard normal numbers by their place, in a stream that numpy promises never to change; a noise source."""
    random = np.random.RandomState(10 * (step + 1) + number)
    return torch.from_numpy(random.standard_normal(tuple(like.shape))).to(like.dtype)


def start(side: int) -> Tensor:
    """Where the loops begin, of unit size."""
    return draw(torch.empty(2, 3, side, side), -1, 0)


class Slow(nn.Module):
    """A network that says a fifth, and hears a 50th of the number.

    With weights that are drawn it changes 160 times in 999 t, which an adaptive solver would have to follow.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        return 0.2 * self.network(x, number / 50)


class Twice(nn.Module):
    """A network that says as much again, of no use, as one with a learned variance does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, number: Tensor, class_labels: Tensor | None = None) -> Tensor:
        said = self.network(x, number, class_labels)
        return torch.cat([said, -said], 1)


def network_of(name: str) -> nn.Module:
    """Ours, with the weights of the published one."""
    family, _, options = CONFIGURATIONS[name]
    given, _ = reference(name)
    if family == "dit":
        network = DiT(**options, embedding="adm")
        network.load_state_dict(published_weights.dit(given))
        return network.eval()
    network = (DDPMpp if "ddpmpp" in name else NCSNpp)(**options).eval()
    network.load_state_dict(getattr(published_weights, family)(given, network))
    return network


def ended(family: str) -> dict[str, Tensor]:
    """Where the published loops of a family ended, and what else they say."""
    with np.load(FOLDER / f"{family}.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}
