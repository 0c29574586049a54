"""A diffusion transformer: patches as tokens, told the noise level by adaptive layer norms."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sde_gen import checks
from sde_gen.errors import ConfigError
from sde_gen.networks.attention import heard
from sde_gen.networks.embedding import VectorEmbedding
from sde_gen.networks.sizes import Sizes, sized

_SIDES = {1: "length", 2: "height, width", 3: "depth, height, width"}
_LONGEST = 10_000.0  # of the wavelengths of positions, over 2 pi


def places(grid: Sequence[int], device: torch.device) -> Tensor:
    """(N, D) coordinates of the places of a grid of D sides, the last side first."""
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in grid]
    return torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")][::-1], dim=1)


def waves(where: Tensor, count: int) -> Tensor:
    """(N, D, count) angles where_d 10000^(-k/count)."""
    ramp = torch.arange(count, dtype=torch.float32, device=where.device) / count
    return where[:, :, None] * torch.exp(-math.log(_LONGEST) * ramp)


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """x (.., N, C) with features k and k + C/2 turned by angles (N, C/2): products depend on differences of places.

    (Su et al. 2021, arXiv:2104.09864.)
    """
    a, b = x.float().chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


class _Attention(nn.Module):
    """Self-attention of all tokens; queries and keys RMS-normalised and rotated where asked."""

    def __init__(self, width: int, heads: int, rms_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.scales = nn.Parameter(torch.ones(2, width // heads)) if rms_norm else None

    def forward(self, x: Tensor, angles: Tensor | None, mask: Tensor | None) -> Tensor:
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.scales is not None:
            query, key = (F.rms_norm(h, h.shape[-1:], eps=1e-6) * self.scales[k] for k, h in enumerate((query, key)))
        if angles is not None:
            query, key = rotated(query, angles), rotated(key, angles)
        h = F.scaled_dot_product_attention(query.to(value.dtype), key.to(value.dtype), value, attn_mask=mask)
        return self.out(h.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """x + g1 attention(s1 LN(x) + b1), then x + g2 MLP(s2 LN(x) + b2); all six from the embedding (adaLN-zero)."""

    def __init__(self, width: int, heads: int, dropout: float, rms_norm: bool) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.norm_attention = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention = _Attention(width, heads, rms_norm)
        self.norm_mlp = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.dropout = nn.Dropout(dropout)
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, embedding: Tensor, angles: Tensor | None, mask: Tensor | None = None) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(embedding)[:, None].chunk(6, dim=2)
        h = torch.addcmul(shift, self.norm_attention(x), 1 + scale)
        x = torch.addcmul(x, gate, self.attention(h, angles, mask))
        h = torch.addcmul(mlp_shift, self.norm_mlp(x), 1 + mlp_scale)
        h = self.mlp_out(self.dropout(F.gelu(self.mlp_in(h), approximate="tanh")))
        return torch.addcmul(x, mlp_gate, h)


def fitting_dit(shape: Sequence[int], samples: int) -> dict[str, Any]:
    """Width, depth and heads for samples of a shape: "tiny" up to 1,024 numbers, else "S", and "B" from 20,000 on."""
    return dict(DiT.sizes["tiny" if math.prod(shape) <= 1024 else "S" if samples < 20_000 else "B"])


class DiT(nn.Module):
    """A diffusion transformer for images, series or volumes (Peebles & Xie 2023, arXiv:2212.09748).

    Patches are tokens with fixed sine-cosine positions; blocks of attention and an MLP are scaled, shifted and gated by
    the embedded noise level (adaLN-zero). Blocks start as the identity, and a new network returns zeros.

    =====  =====  =====  =====  ===============================
    size   width  depth  heads  parameters of the paper, patch 2
    =====  =====  =====  =====  ===============================
    tiny   128    6      4      the default, 1.9 M
    S      384    12     6      33 M
    B      768    12     12     130 M
    L      1024   24     16     458 M
    XL     1152   28     16     675 M
    =====  =====  =====  =====  ===============================

    Args:
        channels: channels of the samples, in and out.
        size: one of the above, which says what of the next three is None.
        width: features of a token.
        depth: number of blocks.
        heads: of each attention.
        patch: side of a patch; the sides of the samples are multiples of it.
        positions: "sincos" of the paper, added once, or "rotary", turning queries and keys (Su et al. 2021,
            arXiv:2104.09864), which goes on at sizes that were not trained.
        rms_norm: whether queries and keys are divided by their root mean square, which keeps attention stable in half
            precision (Henry et al. 2020, arXiv:2010.04245).
        dropout: probability of dropping a feature inside the MLPs, in [0, 1).
        num_classes: number of class labels; 0: no labels.
        learned_variance: whether the output has twice the channels, the second half of which says how the variance of
            a reverse step lies between its two bounds (Nichol & Dhariwal 2021, arXiv:2102.09672).
        embedding: features of c_noise: "half_log_snr", for what the library tells networks; "adm" for the index of a
            step, as the paper has it; "ddpm", "fourier": see `VectorEmbedding`.
        vector_size: length of a vector to be told, added to the embedding; 0: none.
        token_size: length of tokens to be told, which take part in every attention; 0: none.
        dimensions: 1 for series (B, channels, L), 2 for images (.., H, W), 3 for volumes (.., D, H, W).

    Raises:
        ConfigError: an argument outside its range; in `forward`, a shape that does not fit.

    Shapes:
        x (B, channels, *sides), any float dtype; c_noise () or (B,), usually the half log-SNR, +-inf allowed; label ()
        or (B,) int64 in 0..num_classes, where `num_classes`, or no label at all, means "no label"; vector
        (B, vector_size), tokens (B, T, token_size), where zeros are none. Returns the shape and dtype of x,
        (B, 2 channels, *sides) with learned_variance.
    """

    noise_dtype = torch.float32  # as for the MLP
    sizes: ClassVar[Sizes] = {
        name: {"width": width, "depth": depth, "heads": heads}
        for name, width, depth, heads in (
            ("tiny", 128, 6, 4),
            ("S", 384, 12, 6),
            ("B", 768, 12, 12),
            ("L", 1024, 24, 16),
            ("XL", 1152, 28, 16),
        )
    }
    fitting = staticmethod(fitting_dit)

    def __init__(
        self,
        channels: int = 1,
        *,
        size: str | None = None,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        patch: int = 2,
        positions: str = "sincos",
        rms_norm: bool = False,
        dropout: float = 0.0,
        num_classes: int = 0,
        learned_variance: bool = False,
        embedding: str = "half_log_snr",
        vector_size: int = 0,
        token_size: int = 0,
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        scale = sized("DiT", self.sizes, size, {"width": width, "depth": depth, "heads": heads})
        self.arguments = {  # what `sde_gen.save` writes down
            "channels": channels, "size": size, **scale, "patch": patch, "positions": positions, "rms_norm": rms_norm,
            "dropout": dropout, "num_classes": num_classes, "learned_variance": learned_variance,
            "embedding": embedding, "vector_size": vector_size, "token_size": token_size, "dimensions": dimensions,
        }  # fmt: skip
        self.channels = checks.integer("DiT", "channels", channels, low=1)
        self.width = wide = checks.integer("DiT", "width", scale["width"], low=4)
        self.heads = checks.integer("DiT", "heads", scale["heads"], low=1)
        self.patch = checks.integer("DiT", "patch", patch, low=1)
        self.positions = checks.choice("DiT", "positions", positions, ("sincos", "rotary"))
        rms_norm = checks.boolean("DiT", "rms_norm", rms_norm)
        dropout = checks.number("DiT", "dropout", dropout, low=0.0, high=1.0, open_high=True)
        self.num_classes = checks.integer("DiT", "num_classes", num_classes, low=0)
        self.learned_variance = checks.boolean("DiT", "learned_variance", learned_variance)
        self.vector_size = checks.integer("DiT", "vector_size", vector_size, low=0)
        self.token_size = checks.integer("DiT", "token_size", token_size, low=0)
        self.dimensions = checks.integer("DiT", "dimensions", dimensions, low=1, high=3)
        shared = wide if positions == "sincos" else wide // self.heads
        if wide % self.heads or shared % (2 * self.dimensions):
            of = "width" if positions == "sincos" else "width / heads"
            raise ConfigError(f"DiT: heads must divide width, and 2 * dimensions = {2 * dimensions} must divide {of}, "
                              f"for positions={positions!r}; got width={wide}, heads={heads}")  # fmt: skip

        self.embedding = VectorEmbedding(
            wide, self.num_classes, "DiT", kind=embedding, features=256, vector_size=vector_size
        )
        numbers = self.patch**self.dimensions * self.channels
        self.stem = nn.Linear(numbers, wide)
        self.tokens = nn.Linear(self.token_size, wide) if self.token_size else None
        self.blocks = nn.ModuleList(
            _Block(wide, self.heads, dropout, rms_norm)
            for _ in range(checks.integer("DiT", "depth", scale["depth"], low=1))
        )
        self.head_modulation = nn.Linear(wide, 2 * wide)
        self.head_norm = nn.LayerNorm(wide, eps=1e-6, elementwise_affine=False)
        self.head = nn.Linear(wide, numbers * (2 if learned_variance else 1))
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if "modulation" in name or name.startswith("head.") or name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name in ("embedding.first.weight", "embedding.second.weight", "embedding.table.weight"):
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("weight"):
                nn.init.xavier_uniform_(parameter)

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
                f"DiT: x must have shape (batch, {self.channels}, {_SIDES[self.dimensions]}), got {tuple(x.shape)}; "
                "build the network with the channels (and dimensions: 1 for series, 3 for volumes) of the data"
            )
        if any(n % self.patch for n in x.shape[2:]):
            raise ConfigError(f"DiT: x must have shape (batch, {self.channels}, {_SIDES[self.dimensions]}) with sides "
                              f"that are multiples of patch={self.patch}, got {tuple(x.shape)}; "
                              "patch=1 takes any size")  # fmt: skip
        embedding = self.embedding(c_noise, label, x.shape[0], vector)
        grid = [n // self.patch for n in x.shape[2:]]
        h = self.stem(self._patches(x.to(self.stem.weight.dtype), grid))
        where, angles = places(grid, x.device), None
        if self.positions == "sincos":
            turns = waves(where, self.width // (2 * self.dimensions))
            h = h + torch.cat([turns.sin(), turns.cos()], dim=2).flatten(1).to(h.dtype)
        else:
            angles = waves(where, self.width // self.heads // (2 * self.dimensions)).flatten(1)
        more, mask = 0, None
        words = None if tokens is None else heard("DiT", tokens, len(x), self.token_size, h)
        if words is not None and self.tokens is not None:
            more = words.tokens.shape[1] - 1
            mask = F.pad(words.mask[..., 1:], (0, h.shape[1]), value=True)
            h = torch.cat([self.tokens(words.tokens[:, 1:]), h], dim=1)
            angles = None if angles is None else F.pad(angles, (0, 0, more, 0))  # they lie nowhere
        for block in self.blocks:
            h = block(h, embedding, angles, mask)
        shift, scale = self.head_modulation(embedding)[:, None].chunk(2, dim=2)
        out = self.head(torch.addcmul(shift, self.head_norm(h[:, more:]), 1 + scale))
        return self._image(out, grid).to(x.dtype)

    def _patches(self, x: Tensor, grid: list[int]) -> Tensor:
        """(B, C, *sides) to (B, N, C p^D)."""
        d = self.dimensions
        cut = x.reshape(*x.shape[:2], *(n for side in grid for n in (side, self.patch)))
        order = [0, *range(2, 2 + 2 * d, 2), 1, *range(3, 3 + 2 * d, 2)]
        return cut.permute(order).flatten(1 + d).flatten(1, d)

    def _image(self, tokens: Tensor, grid: list[int]) -> Tensor:
        """(B, N, p^D C) to (B, C, *sides)."""
        d = self.dimensions
        cut = tokens.reshape(len(tokens), *grid, *[self.patch] * d, -1)
        order = [0, 1 + 2 * d, *(axis for k in range(d) for axis in (1 + k, 1 + d + k))]
        return cut.permute(order).reshape(len(tokens), -1, *(n * self.patch for n in grid))
