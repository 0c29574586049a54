"""Embeddings of what the network is told besides its input: the noise level, and a class label."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_gen.networks import _checks

C_NOISE_LIMIT = 20.0  # half log-SNRs in use lie in about -10..15; beyond the limit a state is pure noise or pure data
LOWEST_FREQUENCY = 0.05  # radians per unit: a third of a turn over the whole clamped range, so monotone across it
HIGHEST_FREQUENCY = 10.0  # resolves steps of about 0.1, also in the compressed scale -lambda/4 of EDM


def fourier_features(c_noise: Tensor, size: int) -> Tensor:
    """Sine and cosine features of the noise level, always in float32.

    feature_k = sin(w_k c), cos(w_k c) with w_k geometric from 0.05 to 10 radians per unit, fixed (nothing random, no
    buffer that a `.bfloat16()` would round). `c_noise` is clamped to [-20, 20], so that infinite values, which are the
    half log-SNR of pure data and pure noise, give finite features; NaN stays NaN.

    Args:
        c_noise: (B,), any real dtype; usually the half log-SNR, or -1/4 of it.
        size: number of features, even and at least 4.

    Returns:
        (B, size) float32.
    """
    half = size // 2
    ramp = torch.arange(half, dtype=torch.float32, device=c_noise.device) / (half - 1)
    frequencies = LOWEST_FREQUENCY * torch.exp(ramp * math.log(HIGHEST_FREQUENCY / LOWEST_FREQUENCY))
    angles = c_noise.to(torch.float32).clamp(-C_NOISE_LIMIT, C_NOISE_LIMIT)[:, None] * frequencies
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


class ConditionEmbedding(nn.Module):
    """Noise level and optional class label to one vector: MLP(fourier(c_noise)) + table[label], then SiLU.

    Args:
        size: width of the vector, even and at least 4.
        num_classes: number of classes; 0: none. Row `num_classes` of the table means "no label".
        owner: name used in error messages.
    """

    def __init__(self, size: int, num_classes: int, owner: str) -> None:
        super().__init__()
        self.size, self.num_classes, self.owner = size, num_classes, owner
        self.first = nn.Linear(size, size)
        self.second = nn.Linear(size, size)
        self.table = nn.Embedding(num_classes + 1, size) if num_classes else None

    def forward(self, c_noise: Tensor, label: Tensor | None, batch: int) -> Tensor:
        """(B, size) in the dtype of the weights; see the networks for the shapes of `c_noise` and `label`."""
        levels = _checks.noise_levels(self.owner, c_noise, batch)
        label = _checks.labels(self.owner, label, self.num_classes, batch, c_noise.device)
        features = fourier_features(levels, self.size).to(self.first.weight.dtype)
        vector = self.second(F.silu(self.first(features)))
        if self.table is not None and label is not None:
            vector = vector + self.table(label)
        return F.silu(vector)
