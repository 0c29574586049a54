"""Noise levels as published networks are told them, and vectors."""

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from sde_gen import checks
from sde_gen.networks.mlp import C_NOISE_LIMIT, ConditionEmbedding, fourier_features

KINDS = ("half_log_snr", "ddpm", "adm", "fourier")
_LARGEST = 20_000.0  # number for a noise level of positional features, of which infinities are finite too


def positional_features(c_noise: Tensor, size: int, ends: bool) -> Tensor:
    """Sine and cosine of w_k c with w_k geometric from 1 to 1e-4 (`ends`), or to just above it; in float32.

    As networks have them that are told the index of a step, 0..1000 (Vaswani et al. 2017, arXiv:1706.03762).
    """
    half = size // 2
    ramp = torch.arange(half, dtype=torch.float32, device=c_noise.device) / (half - ends)
    angles = c_noise.to(torch.float32).clamp(-_LARGEST, _LARGEST)[:, None] * torch.exp(-math.log(10_000) * ramp)
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


class Unrounded(nn.Module):
    """A module whose own buffers keep their dtype: frequencies would be others in half precision."""

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            now = self._buffers[name]
            if tensor is not None and now is not None and now.dtype != tensor.dtype:
                self._buffers[name] = tensor.to(now.device)
        return self


class VectorEmbedding(Unrounded, ConditionEmbedding):
    """A `ConditionEmbedding` of other features of the noise level.

    Args:
        size: width of what it gives, even and at least 4.
        num_classes: number of classes; 0: none. Row `num_classes` of the table means "no label".
        owner: name used in error messages.
        kind: of the features of c_noise: "half_log_snr", `fourier_features`, for what the library tells networks;
            "ddpm" and "adm", `positional_features` with and without ends, for the index of a step (Ho et al. 2020,
            arXiv:2006.11239; Dhariwal & Nichol 2021, arXiv:2105.05233); "fourier", sine and cosine of 2 pi w c with
            w from N(0, 16^2), for log sigma (Song et al. 2021, arXiv:2011.13456).
        features: number of features of c_noise, even.
        vector_size: as for `ConditionEmbedding`.

    Raises:
        ConfigError: an argument outside its range; in `forward`, a shape that does not fit.
    """

    frequencies: Tensor

    def __init__(
        self, size: int, num_classes: int, owner: str, *, kind: str, features: int, vector_size: int = 0
    ) -> None:
        super().__init__(size, num_classes, owner, vector_size)
        self.kind = checks.choice(owner, "embedding", kind, KINDS)
        if kind == "fourier":
            self.register_buffer("frequencies", 16 * torch.randn(features // 2))
        self.first = nn.Linear(features, size)

    def features(self, c_noise: Tensor, size: int) -> Tensor:
        """(B, size) float32."""
        if self.kind == "half_log_snr":
            return fourier_features(c_noise, size)
        if self.kind != "fourier":
            return positional_features(c_noise, size, ends=self.kind == "ddpm")
        level = c_noise.to(torch.float32).clamp(-C_NOISE_LIMIT, C_NOISE_LIMIT)
        angles = level[:, None] * (2 * math.pi * self.frequencies)
        return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
