"""Attention between the places of an image."""

from torch import Tensor
from torch.nn import functional as F


def attended(qkv: Tensor, heads: int) -> Tensor:
    """softmax(q k / sqrt(c)) v over all places, (B, 3 C, *sides) to (B, C, *sides), in heads of c = C / heads channels.

    Each head's features lie side by side in memory, as fast kernels want them; with channels last nothing is copied.
    """
    tokens = qkv.flatten(2).transpose(1, 2).contiguous().unflatten(2, (3, heads, -1))
    query, key, value = tokens.permute(2, 0, 3, 1, 4).unbind(0)
    h = F.scaled_dot_product_attention(query, key, value)
    return h.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, qkv.shape[2:])
