"""The magnitude-preserving U-Net of EDM2."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_gen import checks
from sde_gen.errors import ConfigError
from sde_gen.networks.attention import Heard, attended, heads_of, heard, told
from sde_gen.networks.embedding import Unrounded
from sde_gen.networks.mlp import C_NOISE_LIMIT, looked_up
from sde_gen.networks.sizes import Sizes, fitting_even, measured, sized

_EPS = 1e-4
_LARGEST = 256.0  # activations are cut there


def unit(x: Tensor, dim: int | tuple[int, ...], eps: float = _EPS) -> Tensor:
    """x over its root mean square along `dim`, which eps is added to."""
    kept = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=kept)
    return x / (norm * math.sqrt(norm.numel() / x.numel()) + eps).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """SiLU over 0.596, the root mean square of what it makes of standard normals."""
    return F.silu(x) / 0.596


def blend(a: Tensor, b: Tensor, share: float) -> Tensor:
    """(1 - share) a + share b, of the size of its terms if those are independent and of one size."""
    size = math.hypot(1 - share, share)
    return torch.add(a * ((1 - share) / size), b, alpha=share / size)


def joined(a: Tensor, b: Tensor) -> Tensor:
    """Channels of a and of b, each with half of the sum of squares, which stays what it was on average."""
    one, two = a.shape[1], b.shape[1]
    size = math.sqrt((one + two) / 2)
    return torch.cat([a * (size / math.sqrt(one)), b * (size / math.sqrt(two))], dim=1)


class _Linear(nn.Module):
    """A convolution or matrix whose filters have unit norm: y has the size of x (arXiv:2312.02696, eq. 47 and 66).

    In training the stored filters are held at that size too, so that the learning rate means the same for all.
    """

    def __init__(self, channels_in: int, channels_out: int, *kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, *kernel))

    def matrix(self, gain: Tensor | float = 1.0) -> Tensor:
        """The filters as they act."""
        weight, across = self.weight, tuple(range(1, self.weight.dim()))
        if self.training:
            held = unit(weight.detach(), across, eps=1e-12)
            # What is stored from now on, with the gradient of the parameter: it is not read again after it is written,
            # which a compiler would take for something else.
            weight = held + (weight - weight.detach())
            with torch.no_grad():
                self.weight.copy_(held)
        full = weight.to(torch.promote_types(weight.dtype, torch.float32))
        return (unit(full, across) * (gain / math.sqrt(full[0].numel()))).to(weight.dtype)

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        matrix = self.matrix(gain)
        return F.linear(x, matrix) if matrix.dim() == 2 else F.conv2d(x, matrix, padding=matrix.shape[-1] // 2)


class _Embedding(Unrounded):
    """sqrt(2) cos(w c + phase) with w from N(0, (2 pi)^2), through a matrix, blended with those of label and vector."""

    frequencies: Tensor
    phases: Tensor

    def __init__(self, features: int, size: int, num_classes: int, vector_size: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(features))
        self.register_buffer("phases", 2 * math.pi * torch.rand(features))
        self.noise = _Linear(features, size)
        self.label = _Linear(num_classes, size) if num_classes else None
        self.vector = _Linear(vector_size, size) if vector_size else None
        self.vector_size = vector_size

    def forward(self, c_noise: Tensor, label: Tensor | int | None, batch: int, more: Tensor | None = None) -> Tensor:
        if c_noise.dim() > 1 or (c_noise.dim() == 1 and len(c_noise) != batch):
            raise ConfigError(f"EDM2: c_noise must have shape () or ({batch},), one number a sample, got "
                              f"{tuple(c_noise.shape)}")  # fmt: skip
        level = c_noise.expand(batch).to(torch.float32).clamp(-C_NOISE_LIMIT, C_NOISE_LIMIT)
        waves = math.sqrt(2) * torch.cos(level[:, None] * self.frequencies + self.phases)
        vector = self.noise(waves.to(self.noise.weight.dtype))
        if self.label is not None:
            rows = F.pad(self.label.matrix(math.sqrt(self.num_classes)), (0, 1)).T  # no label is nothing
            vector = blend(vector, looked_up("EDM2", rows, label, vector), 0.5)
        elif label is not None:
            raise ConfigError("EDM2: got a label, but was built with num_classes=0; build it with num_classes >= 1")
        if more is not None and (self.vector is None or more.shape != (batch, self.vector_size)):
            raise ConfigError(f"EDM2: vector must have shape ({batch}, {self.vector_size}), as vector_size says, got "
                              f"{tuple(more.shape)}")  # fmt: skip
        if self.vector is not None:  # no vector is that of zeros
            more = vector.new_zeros(batch, self.vector_size) if more is None else more.to(vector.dtype)
            vector = blend(vector, self.vector(more), 0.5)
        return silu(vector)


class _Tokens(nn.Module):
    """Attention to tokens, with queries, keys and values of unit size, and a gain that starts at zero."""

    def __init__(self, channels: int, token_size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = _Linear(channels, channels, 1, 1)
        self.key_value = _Linear(token_size, 2 * channels)
        self.out = _Linear(channels, channels, 1, 1)
        self.gain = nn.Parameter(torch.zeros([]))

    def forward(self, x: Tensor, tokens: Heard) -> Tensor:
        query = unit(self.query(x).unflatten(1, (self.heads, -1)), 2).flatten(1, 2)
        key_value = unit(self.key_value(tokens.tokens).unflatten(2, (2 * self.heads, -1)), 3).flatten(2)
        return self.out(told(query, key_value, tokens.mask, self.heads), self.gain)


class _Block(nn.Module):
    """A residual block of the way down, which normalises its input, or of the way up; attention where asked."""

    def __init__(
        self, channels_in: int, channels_out: int, embedded: int, dropout: float, head: int, token_size: int,
        down: bool, attention: bool = False, way: str = "",
    ) -> None:  # fmt: skip
        super().__init__()
        self.down, self.way = down, way
        self.gain = nn.Parameter(torch.zeros([]))
        self.conv_in = _Linear(channels_out if down else channels_in, channels_out, 3, 3)
        self.modulation = _Linear(embedded, channels_out)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = _Linear(channels_out, channels_out, 3, 3)
        self.skip = _Linear(channels_in, channels_out, 1, 1) if channels_in != channels_out else nn.Identity()
        self.heads = heads_of(channels_out, head) if attention else 0
        self.qkv = _Linear(channels_out, 3 * channels_out, 1, 1) if attention else nn.Identity()
        self.out = _Linear(channels_out, channels_out, 1, 1) if attention else nn.Identity()
        self.tokens = _Tokens(channels_out, token_size, self.heads) if attention and token_size else None

    def forward(self, x: Tensor, embedding: Tensor, tokens: Heard | None = None) -> Tensor:
        if self.way == "down":
            x = F.avg_pool2d(x, 2)
        elif self.way == "up":
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        if self.down:
            x = unit(self.skip(x), 1)
        scale = 1 + self.modulation(embedding, self.gain)
        h = self.conv_out(self.dropout(silu(self.conv_in(silu(x)) * scale[:, :, None, None])))
        x = blend(x if self.down else self.skip(x), h, 0.3)
        if self.heads:
            qkv = unit(self.qkv(x).unflatten(1, (3 * self.heads, -1)), 2).flatten(1, 2)
            x = blend(x, self.out(attended(qkv, self.heads)), 0.3)
        if self.tokens is not None and tokens is not None:
            x = x + self.tokens(x, tokens)
        return x.clamp(-_LARGEST, _LARGEST)


class EDM2(nn.Module):
    """The U-Net of EDM2 (Karras et al. 2024, arXiv:2312.02696): no norms with weights, no biases, all sizes kept.

    Filters have unit norm, sums and concatenations keep the size of what they join, and activations stay of order one
    all the way. The output's gain starts at zero: a new network returns zeros. Training holds the weights at unit size
    in `forward`, so they want no weight decay, and a learning rate that decays (0.01, as 1/sqrt of the step).

    ======  =====  ================================
    size    width  parameters of the paper, latents
    ======  =====  ================================
    digits  32     the default, 1.2 M
    XS      128    125 M
    S       192    280 M
    M       256    498 M
    L       320    777 M
    XL      384    1.12 G
    XXL     448    1.52 G
    ======  =====  ================================

    Args:
        channels: channels of the images, in and out.
        size: one of the above, which says what of the next five is None.
        width: channels at the first level, before its multiplier.
        multipliers: channels of each level as multiples of `width`; each level has half the resolution.
        blocks: residual blocks a level on the way down; one more on the way up.
        attention: levels (0 is full resolution, -1 the last) that get self-attention; the middle has it always.
        dropout: probability of dropping a feature inside the residual blocks, in [0, 1).
        head: most channels of a head of attention.
        num_classes: number of class labels; 0: no labels.
        learned_variance: whether the output has twice the channels, the second half of which says how the variance of
            a reverse step lies between its two bounds (Nichol & Dhariwal 2021, arXiv:2102.09672).
        vector_size: length of a vector to be told, blended with the embedding; of order one, as all is here; 0: none.
        token_size: length of tokens to be told, to which places attend wherever they attend to each other; 0: none.

    Raises:
        ConfigError: an argument outside its range; in `forward`, a shape that does not fit.

    Shapes:
        x (B, channels, H, W), sides that are multiples of 2^(levels - 1), any float dtype; c_noise () or (B,), the half
        log-SNR or, as the paper has it, log(sigma)/4, +-inf allowed; label () or (B,) int64 in 0..num_classes, where
        `num_classes`, or no label at all, means "no label"; vector (B, vector_size), tokens (B, T, token_size), where
        zeros are none. Returns the shape and dtype of x, (B, 2 channels, H, W) with learned_variance.
    """

    noise_dtype = torch.float32  # as for the MLP
    sizes: ClassVar[Sizes] = {
        "digits": {"width": 32, "multipliers": (1, 2, 2), "blocks": 1, "attention": (-1,), "dropout": 0.0},
        **{
            name: {"width": width, "multipliers": (1, 2, 3, 4), "blocks": 3, "attention": (2, 3), "dropout": 0.0}
            for name, width in (("XS", 128), ("S", 192), ("M", 256), ("L", 320), ("XL", 384), ("XXL", 448))
        },
    }
    fitting = staticmethod(fitting_even)

    def __init__(
        self,
        channels: int = 1,
        *,
        size: str | None = None,
        width: int | None = None,
        multipliers: Sequence[int] | None = None,
        blocks: int | None = None,
        attention: Sequence[int] | None = None,
        dropout: float | None = None,
        head: int = 64,
        num_classes: int = 0,
        learned_variance: bool = False,
        vector_size: int = 0,
        token_size: int = 0,
    ) -> None:
        super().__init__()
        scale = sized("EDM2", self.sizes, size, {
            "width": width, "multipliers": multipliers, "blocks": blocks, "attention": attention, "dropout": dropout,
        })  # fmt: skip
        self.arguments = {  # what `sde_gen.save` writes down
            "channels": channels, "size": size, **scale, "head": head, "num_classes": num_classes,
            "learned_variance": learned_variance, "vector_size": vector_size, "token_size": token_size,
        }  # fmt: skip
        self.channels = checks.integer("EDM2", "channels", channels, low=1)
        _, widths, self.blocks, attends, dropout = measured("EDM2", scale)
        head = checks.integer("EDM2", "head", head, low=1)
        self.num_classes = checks.integer("EDM2", "num_classes", num_classes, low=0)
        self.learned_variance = checks.boolean("EDM2", "learned_variance", learned_variance)

        self.vector_size = checks.integer("EDM2", "vector_size", vector_size, low=0)
        self.token_size = checks.integer("EDM2", "token_size", token_size, low=0)

        embedded, self.levels = max(widths), len(widths)
        common = (embedded, dropout, head, token_size)
        self.embedding = _Embedding(widths[0], embedded, self.num_classes, vector_size)
        self.stem = _Linear(channels + 1, widths[0], 3, 3)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        now = widths[0]
        skips = [now]
        for level, wide in enumerate(widths):
            if level:
                self.shrink.append(_Block(now, now, *common, down=True, way="down"))
                skips.append(now)
            for _ in range(self.blocks):
                self.down.append(_Block(now, wide, *common, down=True, attention=level in attends))
                now = wide
                skips.append(now)
        middle = (_Block(now, now, *common, down=False, attention=first) for first in (True, False))
        self.middle = nn.ModuleList(middle)
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, wide in reversed(list(enumerate(widths))):
            if level < len(widths) - 1:
                self.grow.append(_Block(now, now, *common, down=False, way="up"))
            for _ in range(self.blocks + 1):
                self.up.append(_Block(now + skips.pop(), wide, *common, down=False, attention=level in attends))
                now = wide
        self.head = _Linear(now, channels * (2 if learned_variance else 1), 3, 3)
        self.gain = nn.Parameter(torch.zeros([]))

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        label: Tensor | int | None = None,
        vector: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> Tensor:
        side = 2 ** (self.levels - 1)
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ConfigError(f"EDM2: x must have shape (batch, {self.channels}, height, width), got {tuple(x.shape)}; "
                              "build the network with the channels of the data")  # fmt: skip
        if x.shape[2] % side or x.shape[3] % side:
            raise ConfigError(f"EDM2: the sides of x must be multiples of {side} for {self.levels} levels, got "
                              f"{tuple(x.shape)}; build the network with fewer multipliers")  # fmt: skip
        embedding = self.embedding(c_noise, label, x.shape[0], vector)
        h = x.to(self.stem.weight.dtype)
        h = self.stem(torch.cat([h, torch.ones_like(h[:, :1])], dim=1))
        words = None if tokens is None else heard("EDM2", tokens, len(x), self.token_size, h)
        skips = [h]
        for index, block in enumerate(self.down):
            if index and index % self.blocks == 0:
                h = self.shrink[index // self.blocks - 1](h, embedding)
                skips.append(h)
            h = block(h, embedding, words)
            skips.append(h)
        for block in self.middle:
            h = block(h, embedding, words)
        for index, block in enumerate(self.up):
            place, first = divmod(index, self.blocks + 1)
            if place and not first:
                h = self.grow[place - 1](h, embedding)
            h = block(joined(h, skips.pop()), embedding, words)
        return self.head(h, self.gain).to(x.dtype)
