r"""The divergence of a flow, exactly or in expectation, from the one network call that also gives its slope.

For random v with :math:`E[v v^T] = I`, :math:`v^T J v` is an unbiased estimate of the trace of the Jacobian J
(Hutchinson 1990), and :math:`v^T J` is one vector-Jacobian product. Entries of +-1 (Rademacher) make the diagonal exact
and leave a variance of :math:`2\sum_{i\ne j} S_{ij}^2` with S the symmetric part of J; normal entries have
:math:`2|S|_F^2`.

Along a trajectory J changes slowly, so what counts is the sum over neighbouring nodes. Rows of a Walsh-Hadamard matrix,
:math:`H_{rc} = (-1)^{|r \wedge c|}`, times one random sign for each coordinate, are Rademacher each, and the mean of
:math:`v v^T` over a block of :math:`2^m` of them in turn is the identity but for pairs of coordinates whose indices
agree in their lowest m bits. Taken node after node they cancel each other's errors as a quasi-random sequence does.
For images the index interleaves the bits of row and column, so that it is neighbouring pixels, whose entries of J are
large, that cancel first.
"""

import math
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sde_gen.rng import SeededNoise
from sde_gen.shapes import trailing

#: Numbers held at once by one batch of vector-Jacobian products: about 128 MiB of float32.
_LARGEST_BATCH = 2**25

#: The probes of a network call: (P, n, *shape) for the node and the rows of the batch.
Draw = Callable[[int, Tensor], Tensor]


def with_divergence(slope: Callable[[Tensor], Tensor], u: Tensor, probes: Tensor | None) -> tuple[Tensor, Tensor]:
    """slope(u) and its divergence: exact, (n, 1), or one estimate for each probe, (n, P); float64.

    Args:
        slope: (n, *shape) -> (n, *shape), each row by itself.
        u: (n, *shape).
        probes: (P, n, *shape); None for the exact trace by D vector-Jacobian products.
    """
    with torch.inference_mode(False), torch.enable_grad():
        u = u.detach().clone().requires_grad_()
        f = slope(u)
        if not f.requires_grad:  # a constant slope
            return f.detach(), torch.zeros(len(u), 1 if probes is None else len(probes)).to(u.device, torch.float64)
        if probes is not None:
            return f.detach(), torch.cat([_products(f, u, v) for v in _blocks(probes, u)], 1)
        size = u[0].numel()
        total = torch.zeros(len(u), 1, dtype=torch.float64, device=u.device)
        identity = torch.eye(size, dtype=u.dtype, device=u.device)
        for block in identity.split(max(1, _LARGEST_BATCH // max(1, u.numel()))):
            v = block.reshape(len(block), 1, *u.shape[1:]).expand(-1, len(u), *u.shape[1:])
            total += _products(f, u, v).sum(1, keepdim=True)
        return f.detach(), total


def _blocks(probes: Tensor, u: Tensor) -> Sequence[Tensor]:
    return probes.split(max(1, _LARGEST_BATCH // max(1, u.numel())))


def _products(f: Tensor, u: Tensor, probes: Tensor) -> Tensor:
    """v^T J v for each probe, (n, P), float64."""
    if len(probes) == 1:
        (row,) = torch.autograd.grad(f, u, probes[0], retain_graph=True)
        rows = row[None]
    else:
        try:
            with warnings.catch_warnings():
                # Operations without a batching rule are run one probe at a time, which torch remarks on.
                warnings.simplefilter("ignore")
                (rows,) = torch.autograd.grad(f, u, probes, retain_graph=True, is_grads_batched=True)
        except RuntimeError:  # an operation that cannot be batched at all
            rows = torch.stack([torch.autograd.grad(f, u, v, retain_graph=True)[0] for v in probes])
    return (rows * probes).flatten(2).sum(2, dtype=torch.float64).T


def fixed_probes(kind: str, count: int, seed: int, first: int, like: Tensor) -> Tensor:
    """Independent probes, (P, B, *shape), the same for a sample whatever the batch: "rademacher" or "gaussian"."""
    source = SeededNoise(seed, first)
    drawn = torch.stack([source(like, _STEP, j) for j in range(count)])
    return _signs(drawn) if kind == "rademacher" else drawn


def fresh_probes(count: int, seed: int, first: int, like: Tensor) -> Draw:
    """Independent Rademacher probes, new at each node."""
    source = SeededNoise(seed, first)
    return lambda node, u: torch.stack([_signs(source(like, _STEP + node, j)) for j in range(count)])


def walsh_probes(groups: int, together: int, seed: int, first: int, like: Tensor) -> Draw:
    """Walsh rows in turn, `together` of them at a node for each of `groups` independent random sign patterns."""
    source = SeededNoise(seed, first)
    signs = torch.stack([_signs(source(like, _STEP, j)) for j in range(groups)])
    index = _interleaved(tuple(like.shape[1:])).to(like.device)
    length = 1 << max(1, int(index.max()).bit_length())

    def draw(node: int, u: Tensor) -> Tensor:
        rows = [(node * together + j) % length for j in range(together)]
        walsh = torch.stack([1.0 - 2.0 * _parity(index & row) for row in rows]).to(like.dtype)
        return (signs[:, None] * walsh[None, :, None]).flatten(0, 1)

    return draw


#: Step number of the probes in the noise source, away from those of samplers.
_STEP = 1 << 40


def _signs(normal: Tensor) -> Tensor:
    return torch.where(normal >= 0, 1.0, -1.0).to(normal.dtype)


def _parity(value: Tensor) -> Tensor:
    """1 where a whole number has an odd number of bits set."""
    for shift in (32, 16, 8, 4, 2, 1):
        value = value ^ (value >> shift)
    return value & 1


def _interleaved(shape: tuple[int, ...]) -> Tensor:
    """A whole number for each coordinate of `shape`: the bits of its indices in turn, the last axis first."""
    axes = [torch.arange(n).reshape(trailing(torch.arange(n), len(shape) - i).shape) for i, n in enumerate(shape)]
    widths = [max(0, math.ceil(math.log2(n))) for n in shape]
    code = torch.zeros(shape, dtype=torch.long)
    place = 0
    for bit in range(max(widths, default=0)):
        for axis, width in reversed(list(zip(axes, widths, strict=True))):
            if bit < width:
                code = code | (((axis >> bit) & 1) << place)
                place += 1
    return code
