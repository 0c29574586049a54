r"""Solving with :math:`I + c\,A J A^\top`, one vector-Jacobian product for each column or direction.

The matrix is a covariance where J is the Jacobian of an exact denoiser. That of a network is neither symmetric nor
positive, so what has no business in a covariance is left out, sample by sample.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]
#: Rounding that curvature may lie below that of the noise.
_SLACK = 1e-6


def written_out(
    error: Tensor, forward: Map, adjoint: Map, pulled: Map, c: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(I + |S|)^-1 e, J' A' of that, and log det(I + |S|), where S = c A J' A' and |S| = (S' S)^(1/2), which is S
    if S is a covariance.

    So S (I + |S|)^-1 is at most 1 whatever S is, and no observation is overshot. Singular directions along which S has
    negative curvature are left out.

    Args:
        error: e, (B, m), float64.
        forward, adjoint, pulled: A, A' and J' of each row.
        c: sigma^2/alpha, a number or (B, 1).
    """
    units = torch.eye(error.shape[1], dtype=error.dtype, device=error.device)
    backs = [pulled(adjoint(unit.expand_as(error))) for unit in units]
    matrix = torch.stack([c * forward(back) for back in backs], -1)
    sound = matrix.isfinite().flatten(1).all(1)  # a row that is not would stop the decomposition of all
    left, values, right = torch.linalg.svd(torch.where(sound[:, None, None], matrix, 0.0))
    curvature = values * (left.mT * right).sum(-1)
    shrunk = torch.where(curvature < -_SLACK * (1 + values[:, :1]), 0.0, 1 / (1 + values))
    u = torch.einsum("bij,bi->bj", right, shrunk * torch.einsum("bij,bj->bi", right, error))
    u = torch.where(sound[:, None], u, torch.nan)
    moved = torch.zeros_like(backs[0])
    for j, back in enumerate(backs):
        moved = moved + u[:, j].reshape(-1, *[1] * (back.ndim - 1)) * back
    return u, moved, torch.log1p(values).sum(1)


def conjugate(
    error: Tensor, forward: Map, adjoint: Map, pulled: Map, solve: Map, c: float | Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """About (I + c A J' A')^-1 e, and J' A' of that, by conjugate gradients preconditioned with `solve`.

    A sample stops at the first direction of less curvature than the noise alone has; if that is the first direction, it
    takes the preconditioner's own step along it.
    """
    u, moved, r = torch.zeros_like(error), torch.zeros((), dtype=error.dtype, device=error.device), error
    p = z = solve(r)
    rz = (r * z).sum(1, keepdim=True)
    live = torch.ones_like(rz, dtype=torch.bool)
    for step in range(steps):
        back = pulled(adjoint(p))
        ap = p + c * forward(back)
        curvature, least = (p * ap).sum(1, keepdim=True), p.square().sum(1, keepdim=True) * (1 - _SLACK)
        sound = ~(curvature < least)  # what is NaN stays so
        a = torch.where(live & sound & (rz != 0), rz / curvature, 0.0)
        if step == 0:
            a = torch.where(sound, a, 1.0)
        live = live & sound
        u, r = u + a * p, r - a * ap
        moved = moved + a.reshape(-1, *[1] * (back.ndim - 1)) * back
        z = solve(r)
        new = (r * z).sum(1, keepdim=True)
        p, rz = z + torch.where(live & (rz != 0), new / rz, 0.0) * p, new
    return u, moved
