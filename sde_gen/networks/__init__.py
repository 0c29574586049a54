"""Networks F(x, c_noise, label): plain torch modules that know nothing of diffusion."""

from sde_gen.networks.dit import DiT
from sde_gen.networks.mlp import MLP
from sde_gen.networks.ncsnpp import DDPMpp, NCSNpp
from sde_gen.networks.unet import UNet

__all__ = ["MLP", "DDPMpp", "DiT", "NCSNpp", "UNet"]
