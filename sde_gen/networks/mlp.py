"""A residual MLP for vectors."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_gen.errors import ConfigError
from sde_gen.networks import _checks
from sde_gen.networks.embedding import ConditionEmbedding


class _ResidualBlock(nn.Module):
    """x + out(SiLU(scale * in(LayerNorm(x)) + shift)), scale and shift from the embedding; starts as the identity."""

    def __init__(self, hidden: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.linear_in = nn.Linear(hidden, hidden)
        self.modulation = nn.Linear(embedding, 2 * hidden)
        self.dropout = nn.Dropout(dropout)
        self.linear_out = nn.Linear(hidden, hidden)
        nn.init.zeros_(self.linear_out.weight)
        nn.init.zeros_(self.linear_out.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.linear_in(self.norm(x)), 1 + scale))
        return x + self.linear_out(self.dropout(h))


class MLP(nn.Module):
    """A residual MLP for vectors; every block is modulated by the embedded noise level (and label).

    The first layer is given x, and sin(2^k x) and cos(2^k x) for k < `frequencies`, without which a network is slow to
    learn narrow modes (Tancik et al. 2020, arXiv:2006.10739). Normalised layers saturate in the tails, where the noise
    to be predicted grows like x; for them a gain of the noise level times x is added to the output. Output layers start
    at zero: a new network returns zeros. The default has about 0.7 million parameters.

    Args:
        features: length D of the vectors, in and out.
        hidden: width of the layers, at least 4 and even.
        layers: number of residual blocks.
        frequencies: number of octaves of sines and cosines of the features; 0: none.
        dropout: probability of dropping a feature inside the blocks, in [0, 1).
        num_classes: number of class labels; 0: no labels.
        learned_variance: whether the output has twice the features, the second half of which says how the variance of
            a reverse step lies between its two bounds (Nichol & Dhariwal 2021, arXiv:2102.09672).

    Raises:
        ConfigError: an argument outside its range; in `forward`, a shape that does not fit.

    Shapes:
        x (B, D), any float dtype; c_noise () or (B,), usually the half log-SNR, +-inf allowed; label () or (B,) int64
        in 0..num_classes, where `num_classes`, or no label at all, means "no label". Returns the shape and dtype of x,
        (B, 2 D) with learned_variance.
    """

    def __init__(
        self,
        features: int = 2,
        *,
        hidden: int = 192,
        layers: int = 4,
        frequencies: int = 4,
        dropout: float = 0.0,
        num_classes: int = 0,
        learned_variance: bool = False,
    ) -> None:
        super().__init__()
        self.arguments = {  # what `sde_gen.save` writes down
            "features": features, "hidden": hidden, "layers": layers, "frequencies": frequencies, "dropout": dropout,
            "num_classes": num_classes, "learned_variance": learned_variance,
        }  # fmt: skip
        self.features = _checks.whole("MLP", "features", features, 1)
        hidden = _checks.whole("MLP", "hidden", hidden, 4)
        layers = _checks.whole("MLP", "layers", layers, 1)
        self.frequencies = _checks.whole("MLP", "frequencies", frequencies, 0)
        dropout = _checks.probability("MLP", "dropout", dropout)
        self.num_classes = _checks.whole("MLP", "num_classes", num_classes, 0)
        self.learned_variance = _checks.switch("MLP", "learned_variance", learned_variance)
        if hidden % 2:
            raise ConfigError(f"MLP: hidden must be even, got {hidden}; try {hidden + 1}")
        self.embedding = ConditionEmbedding(hidden, self.num_classes, "MLP")
        self.stem = nn.Linear(self.features * (1 + 2 * self.frequencies), hidden)
        self.blocks = nn.ModuleList(_ResidualBlock(hidden, hidden, dropout) for _ in range(layers))
        self.head_norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, self.features * (2 if learned_variance else 1))
        self.gain = nn.Linear(hidden, self.features)
        for layer in (self.head, self.gain):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        if x.dim() != 2 or x.shape[1] != self.features:
            raise ConfigError(
                f"MLP: x must have shape (batch, {self.features}), got {tuple(x.shape)}; "
                "build the network with the feature count of the data"
            )
        embedding = self.embedding(c_noise, label, x.shape[0])
        waves = [x.to(torch.float32) * 2.0**k for k in range(self.frequencies)]
        inputs = torch.cat([x, *(f(w) for w in waves for f in (torch.sin, torch.cos))], dim=1)
        h = self.stem(inputs.to(self.stem.weight.dtype))
        for block in self.blocks:
            h = block(h, embedding)
        out, tail = self.head(F.silu(self.head_norm(h))), self.gain(embedding) * x.to(h.dtype)
        if self.learned_variance:  # the gain is for what is predicted, not for its variance
            tail = F.pad(tail, (0, self.features))
        return (out + tail).to(x.dtype)
