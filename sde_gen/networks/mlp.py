"""A residual MLP for vectors, and the embedding of what every network is told besides its input."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_gen import checks
from sde_gen.conditions import check_range
from sde_gen.errors import ConfigError
from sde_gen.networks.attention import Heard, TokenAttention, heads_of, heard

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


def looked_up(owner: str, table: Tensor, label: Tensor | int | None, like: Tensor) -> Tensor:
    """Rows of a table (classes + 1, size), the last of which is for no label, one for each row of `like`.

    Raises:
        ConfigError: labels of another kind, number or range.
    """
    most, batch = len(table) - 1, len(like)
    label = torch.as_tensor(most if label is None else label)
    if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise ConfigError(f"{owner}: label must hold whole numbers (int64), got {label.dtype}")
    if label.dim() > 1 or (label.dim() == 1 and len(label) != batch):
        raise ConfigError(f"{owner}: label must have shape () or ({batch},), got {tuple(label.shape)}")
    if label.device.type == "cpu" != like.device.type and not torch.compiler.is_compiling():
        check_range(owner, label, most)  # a GPU would not say which label it was, but end the process
    try:
        return F.embedding(label.to(like.device, torch.int64).expand(batch), table)
    except IndexError:
        check_range(owner, label, most)
        raise


class ConditionEmbedding(nn.Module):
    """Noise level, label and vector as one: MLP(fourier(c_noise)) + W vector + table[label], then SiLU.

    Args:
        size: width of what it gives, even and at least 4.
        num_classes: number of classes; 0: none. Row `num_classes` of the table means "no label".
        owner: name used in error messages.
        vector_size: length of a vector that a network may be told; 0: none. No vector is the vector of zeros.

    Raises:
        ConfigError: an argument outside its range; in `forward`, a shape that does not fit.
    """

    #: Of the noise level, (B,) -> (B, count).
    features = staticmethod(fourier_features)

    def __init__(self, size: int, num_classes: int, owner: str, vector_size: int = 0) -> None:
        super().__init__()
        self.size, self.num_classes, self.owner = size, num_classes, owner
        self.vector_size = vector_size
        self.first = nn.Linear(size, size)
        self.second = nn.Linear(size, size)
        self.table = nn.Embedding(num_classes + 1, size) if num_classes else None
        self.vector = nn.Linear(vector_size, size, bias=False) if vector_size else None

    def forward(self, c_noise: Tensor, label: Tensor | int | None, batch: int, vector: Tensor | None = None) -> Tensor:
        """(B, size) in the dtype of the weights; see the networks for the shapes of `c_noise`, `label` and `vector`.

        A missing label becomes `num_classes`, which means "no label". The values are not checked here, since that would
        wait for the device on every call; the table's own bounds check speaks up.
        """
        if c_noise.dim() > 1 or (c_noise.dim() == 1 and len(c_noise) != batch):
            raise ConfigError(f"{self.owner}: c_noise must have shape () or ({batch},), one number a sample, got "
                              f"{tuple(c_noise.shape)}")  # fmt: skip
        features = self.features(c_noise.expand(batch), self.first.in_features).to(self.first.weight.dtype)
        out = self.second(F.silu(self.first(features)))
        if vector is not None:
            if self.vector is None or vector.shape != (batch, self.vector_size):
                raise ConfigError(f"{self.owner}: vector must have shape ({batch}, {self.vector_size}), as vector_size "
                                  f"says, got {tuple(vector.shape)}")  # fmt: skip
            out = out + self.vector(vector.to(out.dtype))
        if self.table is None:
            if label is not None:
                raise ConfigError(
                    f"{self.owner}: got a label, but was built with num_classes=0; build it with num_classes >= 1"
                )
            return F.silu(out)
        return F.silu(out + looked_up(self.owner, self.table.weight, label, out))


class _ResidualBlock(nn.Module):
    """x + out(SiLU(scale * in(LayerNorm(x)) + shift)), scale and shift from the embedding; starts as the identity.

    Attention to tokens follows where asked.
    """

    def __init__(self, hidden: int, embedding: int, dropout: float, token_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.linear_in = nn.Linear(hidden, hidden)
        self.modulation = nn.Linear(embedding, 2 * hidden)
        self.dropout = nn.Dropout(dropout)
        self.linear_out = nn.Linear(hidden, hidden)
        nn.init.zeros_(self.linear_out.weight)
        nn.init.zeros_(self.linear_out.bias)
        to_tokens = (hidden, token_size, nn.GroupNorm(1, hidden), heads_of(hidden, 64))
        self.tokens = TokenAttention(*to_tokens) if token_size else None

    def forward(self, x: Tensor, embedding: Tensor, tokens: Heard | None = None) -> Tensor:
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.linear_in(self.norm(x)), 1 + scale))
        x = x + self.linear_out(self.dropout(h))
        return x if self.tokens is None else self.tokens(x[:, :, None], tokens)[:, :, 0]


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
        vector_size: length of a vector to be told, added to the embedding; 0: none.
        token_size: length of tokens to be told, which the features attend to after each block; 0: none.

    Raises:
        ConfigError: an argument outside its range; in `forward`, a shape that does not fit.

    Shapes:
        x (B, D), any float dtype; c_noise () or (B,), usually the half log-SNR, +-inf allowed; label () or (B,) int64
        in 0..num_classes, where `num_classes`, or no label at all, means "no label"; vector (B, vector_size), tokens
        (B, T, token_size), where zeros are none. Returns the shape and dtype of x, (B, 2 D) with learned_variance.
    """

    #: The embedding works in float32, whatever the weights are in: a noise level in half precision is a coarse one.
    noise_dtype = torch.float32

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
        vector_size: int = 0,
        token_size: int = 0,
    ) -> None:
        super().__init__()
        self.arguments = {  # what `sde_gen.save` writes down
            "features": features, "hidden": hidden, "layers": layers, "frequencies": frequencies, "dropout": dropout,
            "num_classes": num_classes, "learned_variance": learned_variance, "vector_size": vector_size,
            "token_size": token_size,
        }  # fmt: skip
        self.features = checks.integer("MLP", "features", features, low=1)
        hidden = checks.integer("MLP", "hidden", hidden, low=4)
        layers = checks.integer("MLP", "layers", layers, low=1)
        self.frequencies = checks.integer("MLP", "frequencies", frequencies, low=0)
        dropout = checks.number("MLP", "dropout", dropout, low=0.0, high=1.0, open_high=True)
        self.num_classes = checks.integer("MLP", "num_classes", num_classes, low=0)
        self.learned_variance = checks.boolean("MLP", "learned_variance", learned_variance)
        if hidden % 2:
            raise ConfigError(f"MLP: hidden must be even, got {hidden}; try {hidden + 1}")
        self.vector_size = checks.integer("MLP", "vector_size", vector_size, low=0)
        self.token_size = checks.integer("MLP", "token_size", token_size, low=0)
        self.embedding = ConditionEmbedding(hidden, self.num_classes, "MLP", vector_size)
        self.stem = nn.Linear(self.features * (1 + 2 * self.frequencies), hidden)
        self.blocks = nn.ModuleList(_ResidualBlock(hidden, hidden, dropout, token_size) for _ in range(layers))
        self.head_norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, self.features * (2 if learned_variance else 1))
        self.gain = nn.Linear(hidden, self.features)
        for layer in (self.head, self.gain):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        label: Tensor | int | None = None,
        vector: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> Tensor:
        if x.dim() != 2 or x.shape[1] != self.features:
            raise ConfigError(
                f"MLP: x must have shape (batch, {self.features}), got {tuple(x.shape)}; "
                "build the network with the feature count of the data"
            )
        embedding = self.embedding(c_noise, label, x.shape[0], vector)
        waves = [x.to(torch.float32) * 2.0**k for k in range(self.frequencies)]
        inputs = torch.cat([x, *(f(w) for w in waves for f in (torch.sin, torch.cos))], dim=1)
        h = self.stem(inputs.to(self.stem.weight.dtype))
        words = None if tokens is None else heard("MLP", tokens, len(x), self.token_size, h)
        for block in self.blocks:
            h = block(h, embedding, words)
        out, tail = self.head(F.silu(self.head_norm(h))), self.gain(embedding) * x.to(h.dtype)
        if self.learned_variance:  # the gain is for what is predicted, not for its variance
            tail = F.pad(tail, (0, self.features))
        return (out + tail).to(x.dtype)
