"""A small autoencoder of digits, which is trained in a moment."""

from functools import cache

import torch
from torch import Tensor, nn

import sde_gen as sg


class Small(nn.Module):
    """Digits (B, 1, 8, 8) to latents (B, channels, 2, 2) and back."""

    scaling_factor, shift_factor = 0.5, 0.25

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.arguments = {"channels": channels}
        self.down = nn.Conv2d(1, channels, 4, 4)
        self.up = nn.Sequential(
            nn.Conv2d(channels, 48, 1), nn.SiLU(), nn.Conv2d(48, 48, 1), nn.SiLU(), nn.ConvTranspose2d(48, 1, 4, 4)
        )

    def encode(self, x: Tensor) -> Tensor:
        return self.down(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.up(z)


@cache
def trained(steps: int = 250) -> Small:
    """One whose reconstruction is far better than the mean."""
    data = sg.data.digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Small()
        optimizer = torch.optim.Adam(module.parameters(), 5e-3)
        for _ in range(steps):
            x = data.train[torch.randint(len(data.train), (64,))]
            loss = (module.decode(module.encode(x)) - x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return module
