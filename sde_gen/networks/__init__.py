"""Networks F(x, c_noise, label): plain torch modules that know nothing of diffusion."""

from sde_gen.networks.dit import DiT
from sde_gen.networks.edm2 import EDM2
from sde_gen.networks.mlp import MLP
from sde_gen.networks.ncsnpp import DDPMpp, NCSNpp
from sde_gen.networks.unet import UNet

__all__ = ["EDM2", "MLP", "DDPMpp", "DiT", "NCSNpp", "UNet"]
