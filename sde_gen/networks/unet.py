"""A U-Net for series, images and volumes of any size and channel count."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_gen import checks
from sde_gen.errors import ConfigError
from sde_gen.networks.attention import Heard, TokenAttention, attended, heads_of, heard
from sde_gen.networks.mlp import ConditionEmbedding
from sde_gen.networks.sizes import Sizes, fitting_unet, measured, sized

_CONVOLUTION: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}
_SIDES = {1: "length", 2: "height, width", 3: "depth, height, width"}


def _norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with up to 32 groups, of at least 4 channels each where that divides."""
    return nn.GroupNorm(math.gcd(channels, max(1, min(32, channels // 4))), channels)


def _zeroed(module: nn.Module) -> nn.Module:
    """The convolution with weights and bias set to zero, so that its branch starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class _ResidualBlock(nn.Module):
    """(skip(x) + conv(SiLU(scale * norm(conv(SiLU(norm(x)))) + shift))) / sqrt(2), scale and shift from the embedding.

    The factor keeps the variance of the sum at that of its terms, as in DDPM++ (Song et al. 2021).
    """

    def __init__(self, channels_in: int, channels_out: int, embedding: int, dropout: float, dimensions: int) -> None:
        super().__init__()
        convolution = _CONVOLUTION[dimensions]
        self.norm_in = _norm(channels_in)
        self.conv_in = convolution(channels_in, channels_out, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * channels_out)
        self.norm_out = _norm(channels_out)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = _zeroed(convolution(channels_out, channels_out, 3, padding=1))
        self.skip = nn.Identity() if channels_in == channels_out else convolution(channels_in, channels_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.modulation(embedding)[(..., *(None,) * (x.dim() - 2))].chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm_out(h), 1 + scale))
        return (self.skip(x) + self.conv_out(self.dropout(h))) * math.sqrt(0.5)


class _Attention(nn.Module):
    """Self-attention over all places, with a residual connection; heads of up to 64 channels."""

    def __init__(self, channels: int, dimensions: int) -> None:
        super().__init__()
        self.heads = heads_of(channels, 64)
        self.norm = _norm(channels)
        self.qkv = _CONVOLUTION[dimensions](channels, 3 * channels, 1)
        self.out = _zeroed(_CONVOLUTION[dimensions](channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.out(attended(self.qkv(self.norm(x)), self.heads))
        return (x + h) * math.sqrt(0.5)


class _Stage(nn.Module):
    """A residual block, followed by attention, and attention to tokens, where asked."""

    def __init__(
        self, channels_in: int, channels_out: int, embedding: int, dropout: float, attention: bool, dimensions: int,
        token_size: int,
    ) -> None:  # fmt: skip
        super().__init__()
        wide = channels_out
        self.block = _ResidualBlock(channels_in, wide, embedding, dropout, dimensions)
        self.attention = _Attention(wide, dimensions) if attention else nn.Identity()
        to_tokens = attention and token_size
        self.tokens = TokenAttention(wide, token_size, _norm(wide), heads_of(wide, 64)) if to_tokens else None

    def forward(self, x: Tensor, embedding: Tensor, tokens: Heard | None = None) -> Tensor:
        x = self.attention(self.block(x, embedding))
        return x if self.tokens is None else self.tokens(x, tokens)


class UNet(nn.Module):
    """A U-Net for images, series or volumes of any size, in the line of DDPM++ (Song 2021) and ADM (Dhariwal 2021).

    Residual blocks of GroupNorm, SiLU and convolutions of width 3, modulated by the embedded noise level (and label)
    through a scale and a shift; one skip connection from every block on the way down to one on the way up; a stride-2
    convolution between levels, and nearest-neighbour upsampling *to the size of the skip* on the way back, so that odd
    sizes need no padding. The output convolution starts at zero: a new network returns zeros.

    ==========  =======================================================================================  ==========
    size        what it says                                                                             parameters
    ==========  =======================================================================================  ==========
    digits      for 8x8; the default                                                                     0.8 M
    cifar10     that of DDPM for CIFAR-10 (Ho et al. 2020, arXiv:2006.11239), which itself has 35.7 M    29.7 M
    imagenet64  that of ADM for ImageNet 64x64 (Dhariwal & Nichol 2021, arXiv:2105.05233), of 295.9 M    228.1 M
    ==========  =======================================================================================  ==========

    Both of the papers' have a third skip connection a level, and with it one block more on the way up.

    Args:
        channels: channels of the samples, in and out.
        size: one of the above, which says what of the next five is None.
        width: channels at the first level (full resolution).
        multipliers: channels of each level as multiples of `width`; each level halves the resolution, rounding up.
        blocks: residual blocks a level, on the way down and on the way up.
        attention: levels (0 is full resolution, -1 the last) that get self-attention.
        dropout: probability of dropping a feature inside the residual blocks, in [0, 1).
        num_classes: number of class labels; 0: no labels.
        learned_variance: whether the output has twice the channels, the second half of which says how the variance of
            a reverse step lies between its two bounds (Nichol & Dhariwal 2021, arXiv:2102.09672).
        vector_size: length of a vector to be told, added to the embedding; 0: none.
        token_size: length of tokens to be told, to which places attend wherever they attend to each other; 0: none.
        dimensions: 1 for series (B, channels, L), 2 for images (.., H, W), 3 for volumes (.., D, H, W).

    Raises:
        ConfigError: an argument outside its range; in `forward`, a shape that does not fit.

    Shapes:
        x (B, channels, *sides), any sides >= 1 and any float dtype; c_noise () or (B,), usually the half log-SNR, +-inf
        allowed; label () or (B,) int64 in 0..num_classes, where `num_classes`, or no label at all, means "no label";
        vector (B, vector_size), tokens (B, T, token_size), where zeros are none. Returns the shape and dtype of x,
        (B, 2 channels, *sides) with learned_variance.
    """

    noise_dtype = torch.float32  # as for the MLP
    sizes: ClassVar[Sizes] = {
        "digits": {"width": 32, "multipliers": (1, 2, 2), "blocks": 1, "attention": (-1,), "dropout": 0.0},
        "cifar10": {"width": 128, "multipliers": (1, 2, 2, 2), "blocks": 2, "attention": (1,), "dropout": 0.1},
        "imagenet64": {"width": 192, "multipliers": (1, 2, 3, 4), "blocks": 3, "attention": (1, 2, 3), "dropout": 0.1},
    }
    fitting = staticmethod(fitting_unet)

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
        num_classes: int = 0,
        learned_variance: bool = False,
        vector_size: int = 0,
        token_size: int = 0,
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        scale = sized("UNet", self.sizes, size, {
            "width": width, "multipliers": multipliers, "blocks": blocks, "attention": attention, "dropout": dropout,
        })  # fmt: skip
        self.arguments = {  # what `sde_gen.save` writes down
            "channels": channels, "size": size, **scale, "num_classes": num_classes,
            "learned_variance": learned_variance, "vector_size": vector_size, "token_size": token_size,
            "dimensions": dimensions,
        }  # fmt: skip
        self.channels = checks.integer("UNet", "channels", channels, low=1)
        width, widths, self.blocks, attends, dropout = measured("UNet", scale)
        self.num_classes = checks.integer("UNet", "num_classes", num_classes, low=0)
        self.learned_variance = checks.boolean("UNet", "learned_variance", learned_variance)
        self.vector_size = checks.integer("UNet", "vector_size", vector_size, low=0)
        self.token_size = checks.integer("UNet", "token_size", token_size, low=0)
        if token_size and not attends:
            raise ConfigError("UNet: token_size needs a level with attention, got attention=(); try (-1,)")
        self.dimensions = dimensions = checks.integer("UNet", "dimensions", dimensions, low=1, high=3)
        convolution = _CONVOLUTION[dimensions]

        told, common = 4 * width, (dimensions, token_size)
        self.embedding = ConditionEmbedding(told, self.num_classes, "UNet", vector_size)
        self.stem = convolution(channels, widths[0], 3, padding=1)

        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        for level, wide in enumerate(widths):
            if level:
                self.shrink.append(convolution(widths[level - 1], wide, 3, stride=2, padding=1))
            for _ in range(self.blocks):
                self.down.append(_Stage(wide, wide, told, dropout, level in attends, *common))

        self.middle = _Stage(widths[-1], widths[-1], told, dropout, len(widths) - 1 in attends, *common)

        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, wide in reversed(list(enumerate(widths))):
            for _ in range(self.blocks):
                self.up.append(_Stage(2 * wide, wide, told, dropout, level in attends, *common))
            if level:
                self.grow.append(convolution(wide, widths[level - 1], 3, padding=1))

        self.head_norm = _norm(widths[0])
        self.head = _zeroed(convolution(widths[0], channels * (2 if learned_variance else 1), 3, padding=1))

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        label: Tensor | int | None = None,
        vector: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> Tensor:
        if x.dim() != 2 + self.dimensions or x.shape[1] != self.channels:
            raise ConfigError(
                f"UNet: x must have shape (batch, {self.channels}, {_SIDES[self.dimensions]}), got {tuple(x.shape)}; "
                "build the network with the channels (and dimensions: 1 for series, 3 for volumes) of the data"
            )
        embedding = self.embedding(c_noise, label, x.shape[0], vector)
        h = self.stem(x.to(self.stem.weight.dtype))
        words = None if tokens is None else heard("UNet", tokens, len(x), self.token_size, h)
        skips: list[Tensor] = []
        for index, stage in enumerate(self.down):
            if index and index % self.blocks == 0:
                h = self.shrink[index // self.blocks - 1](h)
            h = stage(h, embedding, words)
            skips.append(h)
        h = self.middle(h, embedding, words)
        for index, stage in enumerate(self.up):
            if index and index % self.blocks == 0:
                h = self.grow[index // self.blocks - 1](h)
                h = F.interpolate(h, size=skips[-1].shape[2:], mode="nearest")
            h = stage(torch.cat([h, skips.pop()], dim=1), embedding, words)
        return self.head(F.silu(self.head_norm(h))).to(x.dtype)
