"""Attention between the places of an image, and of them to tokens."""

import math
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from sde_gen.errors import ConfigError


def attended(qkv: Tensor, heads: int) -> Tensor:
    """softmax(q k / sqrt(c)) v over all places, (B, 3 C, *sides) to (B, C, *sides), in heads of c = C / heads channels.

    Each head's features lie side by side in memory, as fast kernels want them; with channels last nothing is copied.
    """
    tokens = qkv.flatten(2).transpose(1, 2).contiguous().unflatten(2, (3, heads, -1))
    query, key, value = tokens.permute(2, 0, 3, 1, 4).unbind(0)
    h = F.scaled_dot_product_attention(query, key, value)
    return h.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, qkv.shape[2:])


def heads_of(channels: int, most: int) -> int:
    """The fewest heads of at most `most` channels each."""
    return next(n for n in range(math.ceil(channels / most), channels + 1) if channels % n == 0)


class Heard(NamedTuple):
    """Tokens that a network was given, behind a token of zeros, which is nothing."""

    tokens: Tensor
    """(B, 1 + T, size)."""
    mask: Tensor
    """(B, 1, 1, 1 + T): whether there is one. Tokens of zeros are what shorter lists are filled up with."""


def heard(owner: str, tokens: Tensor, batch: int, size: int, like: Tensor) -> Heard:
    """The tokens of a call, checked and in the dtype of `like`.

    Raises:
        ConfigError: for another shape than (batch, T, size).
    """
    if not size or tokens.dim() != 3 or (len(tokens), tokens.shape[2]) != (batch, size):
        raise ConfigError(
            f"{owner}: tokens must have shape ({batch}, count, {size}), as token_size says, got {tuple(tokens.shape)}"
        )
    there = F.pad((tokens != 0).any(2), (1, 0), value=True)
    return Heard(F.pad(tokens.to(like.dtype), (0, 0, 1, 0)), there[:, None, None])


def told(query: Tensor, key_value: Tensor, mask: Tensor, heads: int) -> Tensor:
    """softmax(q k / sqrt(c)) v over tokens, shaped like the queries (B, C, *sides); (B, T, 2 C) are keys and values."""
    q = query.flatten(2).transpose(1, 2).unflatten(2, (heads, -1)).transpose(1, 2)
    k, v = key_value.unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return h.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, query.shape[2:])


class TokenAttention(nn.Module):
    """x + out(attention of norm(x) to tokens), which starts as x (Rombach et al. 2022, arXiv:2112.10752).

    Keys, values and the output have no bias, and each place may attend to a token of zeros instead: where there are no
    tokens, or all are zeros, x is left as it is.

    Args:
        channels: of x.
        token_size: length of a token.
        norm: of x, before queries are made.
        heads: number of heads.
    """

    def __init__(self, channels: int, token_size: int, norm: nn.Module, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, norm
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(token_size, 2 * channels, bias=False)
        self.out = nn.Linear(channels, channels, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, tokens: Heard | None) -> Tensor:
        """(B, channels, *sides) to the same."""
        if tokens is None:
            return x
        query = self.query(self.norm(x).movedim(1, -1)).movedim(-1, 1)
        h = told(query, self.key_value(tokens.tokens), tokens.mask, self.heads)
        return x + self.out(h.movedim(1, -1)).movedim(-1, 1)
