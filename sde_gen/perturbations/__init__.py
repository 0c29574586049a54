"""Gaussian perturbation kernels: continuous processes and chains."""

from sde_gen.perturbations.base import Perturbation
from sde_gen.perturbations.chain_table import Table
from sde_gen.perturbations.continuous import EDM, VE, VP, Cosine, FlowMatching, SubVP
from sde_gen.perturbations.discrete import DDPM, NCSN, Chain
from sde_gen.perturbations.linear_sde import LinearSDE

__all__ = [
    "DDPM",
    "EDM",
    "NCSN",
    "VE",
    "VP",
    "Chain",
    "Cosine",
    "FlowMatching",
    "LinearSDE",
    "Perturbation",
    "SubVP",
    "Table",
]
