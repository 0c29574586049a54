r"""A measurement near one point: its error there, a linear map, and :math:`(I + r^2 AA^\top)^{-1}`.

For a linear operator the map is the same everywhere; for :math:`y = h(x) + n` it is the derivative of h at the denoised
estimate, written out, (B, m, D). Everything in units of the noise and in float64.
"""

from functools import cached_property

import torch
from torch import Tensor

from sde_gen.inverse.measurement import Measurement

#: Pairs of opposite draws that tell mean and variance of h where its derivative is not to be used.
_PAIRS = 8


class Linear:
    """A linear measurement at x.

    Args:
        measured: the operator and its noise.
        y: the observation, (B, m) or (1, m).
        x: where, (B, *shape).
        variance: r^2 of the samples around x, a number or (B, 1).

    Attributes:
        error: y - A x, (B, m).
    """

    def __init__(self, measured: Measurement, y: Tensor, x: Tensor, variance: float | Tensor) -> None:
        self.measured, self.variance = measured, variance
        self.error = y - measured.forward(x)

    def forward(self, v: Tensor) -> Tensor:
        """A v, (B, m)."""
        return self.measured.forward(v)

    def adjoint(self, u: Tensor) -> Tensor:
        """A' u, (B, *shape)."""
        return self.measured.adjoint(u)

    def solve(self, v: Tensor) -> Tensor:
        """(I + r^2 A A')^-1 v."""
        return self.measured.solve(v, self.variance)

    def log_det(self) -> Tensor | float:
        """log det(I + r^2 A A')."""
        return self.measured.log_det(self.variance)


class Tangent(Linear):
    """A measurement that is not linear, by its derivative at x."""

    def __init__(self, measured: Measurement, y: Tensor, x: Tensor, variance: float | Tensor) -> None:
        self.measured, self.variance, self._like = measured, variance, x
        value, self._slope = measured.jacobian(x)
        self.error = y - value

    def forward(self, v: Tensor) -> Tensor:
        return torch.einsum("bmd,bd->bm", self._slope, v.to(torch.float64).flatten(1))

    def adjoint(self, u: Tensor) -> Tensor:
        return torch.einsum("bmd,bm->bd", self._slope, u).reshape(self._like.shape)

    @cached_property
    def _factor(self) -> Tensor:
        gram = torch.as_tensor(self.variance).reshape(-1, 1, 1) * (self._slope @ self._slope.mT)
        return torch.linalg.cholesky_ex(gram + torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device))[0]

    def solve(self, v: Tensor) -> Tensor:
        return torch.cholesky_solve(v[..., None], self._factor)[..., 0]

    def log_det(self) -> Tensor:
        return 2 * self._factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


class Sampled(Linear):
    """A measurement that is not linear, by the mean and variance of each number over draws around x.

    The draws are the same for all samples and times, so that what follows is a function of x alone.
    """

    def __init__(self, measured: Measurement, y: Tensor, x: Tensor, variance: float | Tensor) -> None:
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(_PAIRS, *x.shape[1:], dtype=torch.float64, generator=generator).to(x.device)
        z = torch.cat([z, -z])
        std = torch.as_tensor(variance, dtype=torch.float64, device=x.device).sqrt().reshape(-1, *[1] * (x.ndim - 1))
        draws = torch.stack([measured.forward(x.to(torch.float64) + std * each) for each in z])
        self.error = y - draws.mean(0)
        self._spread = 1 + draws.var(0)

    def solve(self, v: Tensor) -> Tensor:
        return v / self._spread

    def log_det(self) -> Tensor:
        return self._spread.log().sum(1)
