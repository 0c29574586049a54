"""NCSN++ and DDPM++, the U-Nets of Song et al. (2021)."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_gen import checks
from sde_gen.errors import ConfigError
from sde_gen.networks.attention import Heard, TokenAttention, attended, heads_of, heard
from sde_gen.networks.embedding import VectorEmbedding
from sde_gen.networks.sizes import Sizes, fitting_even, measured, sized

_SIZES: Sizes = {
    "digits": {"width": 32, "multipliers": (1, 2, 2), "blocks": 1, "attention": (-1,), "dropout": 0.0},
    "cifar10": {"width": 128, "multipliers": (1, 2, 2, 2), "blocks": 4, "attention": (1,), "dropout": 0.1},
    "cifar10_deep": {"width": 128, "multipliers": (1, 2, 2, 2), "blocks": 8, "attention": (1,), "dropout": 0.1},
    "cifar10_edm": {"width": 128, "multipliers": (2, 2, 2), "blocks": 4, "attention": (1,), "dropout": 0.13},
}


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, max(1, min(32, channels // 4))), channels, eps=1e-6)


class Resampling(nn.Module):
    """Half or twice the size, through a separable filter (FIR): an average for (1, 1), smoother for (1, 3, 3, 1).

    (Zhang 2019, arXiv:1904.11486; Karras et al. 2020, arXiv:1912.04958.)
    """

    taps: Tensor

    def __init__(self, fir: Sequence[int]) -> None:
        super().__init__()
        taps = torch.tensor(fir, dtype=torch.float32)
        self.register_buffer("taps", torch.outer(taps, taps)[None, None] / taps.sum() ** 2, persistent=False)
        self.padding = len(fir) // 2 - 1

    def forward(self, x: Tensor, way: str, padded: bool = False) -> Tensor:
        """`x` the "up" or "down" way, `padded`: with a border, down that which the filter reaches over, up one of 1."""
        taps, channels = self.taps.to(x.dtype), x.shape[1]
        if way == "up":
            taps, cut = (4 * taps).expand(channels, -1, -1, -1), max(0, self.padding - padded)
            out = F.conv_transpose2d(x, taps, stride=2, padding=cut, groups=channels)
            return F.pad(out, (1, 1, 1, 1)) if padded and not self.padding else out
        padding = 0 if padded else self.padding
        return F.conv2d(x, taps.expand(channels, -1, -1, -1), stride=2, padding=padding, groups=channels)


class _Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(attended(self.qkv(self.norm(x)), 1))


class _Block(nn.Module):
    """(skip(x) + conv(SiLU(norm(conv(SiLU(norm(x))) + W embedding)))) / sqrt(2), x resampled on both ways.

    (Brock et al. 2019, arXiv:1809.11096), then (x + attention(x)) / sqrt(2), and attention to tokens, where asked.
    """

    def __init__(
        self, channels_in: int, channels_out: int, told: int, dropout: float, resampling: Resampling, rescale: bool,
        token_size: int, attention: bool = False, way: str = "",
    ) -> None:  # fmt: skip
        super().__init__()
        self.way, self.factor = way, math.sqrt(0.5) if rescale else 1.0
        self.resampling = resampling if way else nn.Identity()
        self.norm_in = _norm(channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.modulation = nn.Linear(told, channels_out)
        self.norm_out = _norm(channels_out)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out and not way
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)
        self.attention = _Attention(channels_out) if attention else None
        to_tokens = (channels_out, token_size, _norm(channels_out), heads_of(channels_out, 64))
        self.tokens = TokenAttention(*to_tokens) if attention and token_size else None

    def forward(self, x: Tensor, embedding: Tensor, tokens: Heard | None = None) -> Tensor:
        h = F.silu(self.norm_in(x))
        if self.way:
            h, x = self.resampling(h, self.way), self.resampling(x, self.way)
        h = self.conv_in(h) + self.modulation(embedding)[:, :, None, None]
        h = self.conv_out(self.dropout(F.silu(self.norm_out(h))))
        x = (self.skip(x) + h) * self.factor
        x = x if self.attention is None else (x + self.attention(x)) * self.factor
        return x if self.tokens is None else self.tokens(x, tokens)


class NCSNpp(nn.Module):
    """NCSN++ (Song et al. 2021, arXiv:2011.13456): BigGAN blocks, filtered resampling, the input at every level.

    Built as published, but that output convolutions start at zero: a new network returns zeros, and labels are added
    to the embedding.

    ============  =================================================================  ==========
    size          what it says                                                       parameters
    ============  =================================================================  ==========
    digits        for 8x8; the default                                               1.3 M
    cifar10       NCSN++ for CIFAR-10                                                62.8 M
    cifar10_deep  the same with twice the blocks                                     107.6 M
    cifar10_edm   that of EDM (Karras et al. 2022, arXiv:2206.00364), dropout 0.13   56.4 M
    ============  =================================================================  ==========

    Args:
        channels: channels of the images, in and out.
        size: one of the above, which says what of the next five is None.
        width: channels at the first level, before its multiplier.
        multipliers: channels of each level as multiples of `width`; each level has half the resolution.
        blocks: residual blocks a level on the way down; one more on the way up.
        attention: levels (0 is full resolution, -1 the last) that get self-attention; the middle has it always.
        dropout: probability of dropping a feature inside the residual blocks, in [0, 1).
        fir: taps of the filter of up- and downsampling, an even number of them; (1, 1) is a plain average.
        progressive_input: how smaller images of the input enter each level: "none", "skip" (added through a 1x1
            convolution) or "residual" (downsampled by a convolution, and carried on).
        progressive_output: how levels enter the output: "none", "skip" (it is the sum of one image of each level) or
            "residual" (features of the lowest, upsampled by convolutions and added to those of each).
        skip_rescale: whether sums are divided by sqrt(2).
        sigma_scaling: whether c_noise is sigma itself, whose logarithm is embedded and by which the output is divided,
            as networks that give a score have it. The library's parameterizations do that outside of a network.
        num_classes: number of class labels; 0: no labels.
        learned_variance: whether the output has twice the channels, the second half of which says how the variance of
            a reverse step lies between its two bounds (Nichol & Dhariwal 2021, arXiv:2102.09672).
        embedding: features of c_noise: "half_log_snr", for what the library tells networks; "fourier" for log sigma, as
            the paper has it for NCSN++; "ddpm" for 999 t or an index, as it has it for DDPM++; see `VectorEmbedding`.
        vector_size: length of a vector to be told, added to the embedding; 0: none.
        token_size: length of tokens to be told, to which places attend wherever they attend to each other; 0: none.

    Raises:
        ConfigError: an argument outside its range; in `forward`, a shape that does not fit.

    Shapes:
        x (B, channels, H, W), sides that are multiples of 2^(levels - 1), any float dtype; c_noise () or (B,), usually
        the half log-SNR, +-inf allowed; label () or (B,) int64 in 0..num_classes, where `num_classes`, or no label at
        all, means "no label"; vector (B, vector_size), tokens (B, T, token_size), where zeros are none. Returns the
        shape and dtype of x, (B, 2 channels, H, W) with learned_variance.
    """

    noise_dtype = torch.float32  # as for the MLP
    sizes: ClassVar[Sizes] = _SIZES
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
        fir: Sequence[int] = (1, 3, 3, 1),
        progressive_input: str = "residual",
        progressive_output: str = "none",
        skip_rescale: bool = True,
        sigma_scaling: bool = False,
        num_classes: int = 0,
        learned_variance: bool = False,
        embedding: str = "half_log_snr",
        vector_size: int = 0,
        token_size: int = 0,
    ) -> None:
        super().__init__()
        me = type(self).__name__
        scale = sized(me, self.sizes, size, {
            "width": width, "multipliers": multipliers, "blocks": blocks, "attention": attention, "dropout": dropout,
        })  # fmt: skip
        self.arguments: dict[str, Any] = {  # what `sde_gen.save` writes down
            "channels": channels, "size": size, **scale, "fir": fir, "progressive_input": progressive_input,
            "progressive_output": progressive_output, "skip_rescale": skip_rescale, "sigma_scaling": sigma_scaling,
            "num_classes": num_classes, "learned_variance": learned_variance, "embedding": embedding,
            "vector_size": vector_size, "token_size": token_size,
        }  # fmt: skip
        self.channels = checks.integer(me, "channels", channels, low=1)
        width, widths, blocks, attends, dropout = measured(me, scale)
        fir = checks.integers(me, "fir", fir, low=0)
        self.into_kind = checks.choice(me, "progressive_input", progressive_input, ("none", "skip", "residual"))
        out_kind = checks.choice(me, "progressive_output", progressive_output, ("none", "skip", "residual"))
        self.out_of_each, residual = out_kind == "skip", out_kind == "residual" and len(widths) > 1
        rescale = checks.boolean(me, "skip_rescale", skip_rescale)
        self.sigma_scaling = checks.boolean(me, "sigma_scaling", sigma_scaling)
        self.num_classes = checks.integer(me, "num_classes", num_classes, low=0)
        self.learned_variance = checks.boolean(me, "learned_variance", learned_variance)
        self.vector_size = checks.integer(me, "vector_size", vector_size, low=0)
        self.token_size = checks.integer(me, "token_size", token_size, low=0)
        if len(fir) < 2 or len(fir) % 2 or not sum(fir):
            raise ConfigError(f"{me}: fir must be an even number of taps, such as (1, 1) or (1, 3, 3, 1), got {fir}")

        self.levels, self.blocks, self.factor = len(widths), blocks, math.sqrt(0.5) if rescale else 1.0
        features = width * (2 if embedding == "fourier" else 1)
        told = 4 * width
        self.embedding = VectorEmbedding(
            told, self.num_classes, me, kind=embedding, features=features + features % 2, vector_size=vector_size
        )
        self.resampling = Resampling(fir)
        common = (told, dropout, self.resampling, rescale, token_size)
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.down, self.shrink, self.into = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        skips, now, image = [width], width, channels
        for level, wide in enumerate(widths):
            if level:
                self.shrink.append(_Block(now, now, *common, way="down"))
                if self.into_kind == "skip":
                    self.into.append(nn.Conv2d(image, now, 1))
                elif self.into_kind == "residual":
                    self.into.append(nn.Conv2d(image, now, 3, padding=1 + self.resampling.padding))
                    image = now
                skips.append(now)
            for _ in range(blocks):
                self.down.append(_Block(now, wide, *common, attention=level in attends))
                now = wide
                skips.append(now)
        self.middle = nn.ModuleList([_Block(now, now, *common, attention=True), _Block(now, now, *common)])

        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        self.norms, self.heads, self.out_of = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, wide in reversed(list(enumerate(widths))):
            if level < len(widths) - 1:
                self.grow.append(_Block(now, now, *common, way="up"))
            for k in range(blocks + 1):
                last = level in attends and k == blocks
                self.up.append(_Block(now + skips.pop(), wide, *common, attention=last))
                now = wide
            if residual and level == len(widths) - 1:
                self.out_of.append(nn.Sequential(_norm(now), nn.SiLU(), nn.Conv2d(now, now, 3, padding=1)))
            elif residual:
                self.out_of.append(nn.Conv2d(widths[level + 1], now, 3))
            if self.out_of_each or level == 0:
                self.norms.append(_norm(now))
                self.heads.append(nn.Conv2d(now, channels * (2 if learned_variance else 1), 3, padding=1))
        self._initialise()

    def _initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                ends = name.endswith(("conv_out", "attention.out", "tokens.out")) or name.startswith("heads.")
                nn.init.zeros_(module.weight) if ends else nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        label: Tensor | int | None = None,
        vector: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> Tensor:
        me, side = type(self).__name__, 2 ** (self.levels - 1)
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ConfigError(f"{me}: x must have shape (batch, {self.channels}, height, width), got {tuple(x.shape)}; "
                              "build the network with the channels of the data")  # fmt: skip
        if x.shape[2] % side or x.shape[3] % side:
            raise ConfigError(f"{me}: the sides of x must be multiples of {side} for {self.levels} levels, got "
                              f"{tuple(x.shape)}; build the network with fewer multipliers")  # fmt: skip
        level = c_noise.clamp_min(1e-20).log() if self.sigma_scaling else c_noise
        embedding = self.embedding(level, label, x.shape[0], vector)
        image = x.to(self.stem.weight.dtype)
        h = self.stem(image)
        words = None if tokens is None else heard(me, tokens, len(x), self.token_size, h)
        skips = [h]
        for index, block in enumerate(self.down):
            if index and index % self.blocks == 0:
                place = index // self.blocks - 1
                h = self.shrink[place](h, embedding)
                if self.into_kind == "skip":
                    image = self.resampling(image, "down")
                    h = h + self.into[place](image)
                elif self.into_kind == "residual":
                    h = image = (h + self.resampling(self.into[place](image), "down", padded=True)) * self.factor
                skips.append(h)
            h = block(h, embedding, words)
            skips.append(h)
        for block in self.middle:
            h = block(h, embedding, words)
        out, carried = None, h
        for index, block in enumerate(self.up):
            place, first = divmod(index, self.blocks + 1)
            if place and not first:
                h = self.grow[place - 1](h, embedding)
            h = block(torch.cat([h, skips.pop()], dim=1), embedding, words)
            if first == self.blocks and self.out_of:
                if place == 0:
                    carried = self.out_of[0](h)
                else:
                    more = self.out_of[place](self.resampling(carried, "up", padded=True))
                    h = carried = (more + h) * self.factor
            if first == self.blocks and (self.out_of_each or place == self.levels - 1):
                k = place if self.out_of_each else 0
                said = self.heads[k](F.silu(self.norms[k](h)))
                out = said if out is None else said + self.resampling(out, "up")
        if out is None:
            raise ConfigError(f"{me}: no level gives an output")
        if self.sigma_scaling:
            out = out / c_noise.to(out.dtype).reshape(-1, 1, 1, 1)
        return out.to(x.dtype)


class DDPMpp(NCSNpp):
    """DDPM++ (Song et al. 2021, arXiv:2011.13456): `NCSNpp` with plain averages, and the input at the first level only.

    Its sizes have 1.3 M (digits), 61.8 M (cifar10), 106.6 M (cifar10_deep) and 55.7 M parameters (cifar10_edm).

    Args, Raises and Shapes are those of `NCSNpp`.
    """

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
        fir: Sequence[int] = (1, 1),
        progressive_input: str = "none",
        progressive_output: str = "none",
        skip_rescale: bool = True,
        sigma_scaling: bool = False,
        num_classes: int = 0,
        learned_variance: bool = False,
        embedding: str = "half_log_snr",
        vector_size: int = 0,
        token_size: int = 0,
    ) -> None:
        super().__init__(
            channels, size=size, width=width, multipliers=multipliers, blocks=blocks, attention=attention,
            dropout=dropout, fir=fir, progressive_input=progressive_input, progressive_output=progressive_output,
            skip_rescale=skip_rescale, sigma_scaling=sigma_scaling, num_classes=num_classes,
            learned_variance=learned_variance, embedding=embedding, vector_size=vector_size,
            token_size=token_size,
        )  # fmt: skip
