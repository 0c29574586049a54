r"""An operator and its Gaussian noise for samples of one shape, in units of the noise.

With noise covariance R and :math:`W = R^{-1/2}`, everything is said of :math:`\tilde A = WA` and
:math:`\tilde y = Wy`, whose noise is standard normal, so that a number, a vector and a covariance are one case. All of
it in float64, whatever the samples are in: at noise of 1e-3 the matrices to be solved with span twelve decades.
"""

import math
from typing import Any

import torch
from torch import Tensor

from sde_gen.errors import ConfigError
from sde_gen.inverse.operators import Gram, Operator

#: Largest matrix that is written out where nothing is known of A A', and the most rows of it to decompose.
_DENSE_NUMBERS, _DENSE_ROWS = 2**22, 2048
#: Steps of conjugate gradients where nothing is known of A A' and its matrix is too large.
_STEPS = 50
_LOG_TAU = math.log(2 * math.pi)


class Measurement:
    """y = A x + noise, or y = h(x) + noise, for samples of one shape on one device.

    Args:
        operator: A or h.
        noise_std: of each number, > 0; a vector (m,), or a covariance (m, m).
        shape: of a sample.
        device: where the samples are.

    Attributes:
        size: m.
        gram: eigenvalues of W A A' W'; None where they are not known and the matrix is too large.
        log_scale: log of the density of the noise at 0, in nats.

    Raises:
        ConfigError: for noise of another kind or shape.
    """

    def __init__(self, operator: Operator, noise_std: Any, shape: tuple[int, ...], device: torch.device) -> None:
        self.operator, self.shape = operator, shape
        self.size = math.prod(operator.output_shape(shape))
        std, factor = read_noise(noise_std, self.size)
        self._std, self._factor = std.to(device), None if factor is None else factor.to(device)
        spread = std.log().expand(self.size).sum() if factor is None else factor.diagonal().log().sum()
        self.log_scale = -float(spread) - 0.5 * self.size * _LOG_TAU
        self.gram: Gram | None = None
        known = operator.gram(shape) if operator.is_linear else None
        if known is not None and factor is None and (std.ndim == 0 or known.into is None):
            self.gram = Gram((known.values.to(device) / self._std.square()), known.into, known.back)
        elif operator.is_linear and self.size * math.prod(shape) <= _DENSE_NUMBERS and self.size <= _DENSE_ROWS:
            dense = self.white(operator.matrix(shape).T.to(device)).T
            values, vectors = torch.linalg.eigh(dense @ dense.T)
            values = values.clamp_min(0.0)
            self.gram = Gram(values, lambda v: v @ vectors, lambda v: v @ vectors.T)

    # -- both ways -----------------------------------------------------------------------------------------------------

    def white(self, v: Tensor) -> Tensor:
        """W v for v (B, m)."""
        if self._factor is None:
            return v / self._std
        return torch.linalg.solve_triangular(self._factor, v.T, upper=False).T

    def forward(self, x: Tensor) -> Tensor:
        """W A x, or W h(x): (B, m), float64."""
        return self.white(self.operator.apply(x.to(torch.float64)).flatten(1))

    def adjoint(self, u: Tensor) -> Tensor:
        """A' W' u: (B, *shape), float64."""
        if self._factor is None:
            u = u / self._std
        else:
            u = torch.linalg.solve_triangular(self._factor.T, u.T, upper=True).T
        return self.operator.transpose(u.reshape(len(u), *self.operator.output_shape(self.shape)), self.shape)

    def solve(self, v: Tensor, variance: float | Tensor) -> Tensor:
        """(I + r^2 W A A' W')^-1 v for r^2 a number, or (B, 1)."""
        if self.gram is not None:
            return self.gram.weighted(v, 1 / (1 + variance * self.gram.values))
        u, r = torch.zeros_like(v), v
        p, rr = r, r.square().sum(1, keepdim=True)
        for _ in range(_STEPS):
            ap = p + variance * self.forward(self.adjoint(p))
            a = rr / (p * ap).sum(1, keepdim=True).clamp_min(1e-300)
            u, r = u + a * p, r - a * ap
            new = r.square().sum(1, keepdim=True)
            p, rr = r + new / rr.clamp_min(1e-300) * p, new
        return u

    def log_det(self, variance: float | Tensor) -> Tensor | float:
        """log det(I + r^2 W A A' W'), () or (B,); 0 if it is not known, as it is the same for all samples."""
        if self.gram is None:
            return 0.0
        scaled = torch.as_tensor(variance * self.gram.values)
        return torch.log1p(scaled).expand(*scaled.shape[:-1], self.size).sum(-1)

    def log_likelihood(self, y: Tensor, x: Tensor) -> Tensor:
        """log p(y | x) in nats, (B,), for y in units of the noise, (B, m) or (1, m)."""
        return self.log_scale - 0.5 * (y - self.forward(x)).square().sum(1)

    def near(self, y: Tensor, x: Tensor, rho: float, split: bool, z: Tensor, n: Tensor) -> Tensor:
        """A draw of N(z; x, rho^2 I) N(y; A z, R') up to its constant: (B, *shape), float64.

        The unconditional draw is moved by what its own observation is off, which makes a conditional one of it.

        Args:
            split: whether R' = R - rho^2 A A', and not R; rho |A| at most the noise.
            z, n: standard normal numbers, (B, *shape) and (B, m).
        """
        x = x.to(torch.float64) + rho * z.to(torch.float64)
        if split and self.gram is not None:
            n = self.gram.weighted(n, (1 - rho**2 * self.gram.values).clamp_min(0.0).sqrt())
        error = y - n - self.forward(x)
        return x + rho**2 * self.adjoint(error if split else self.solve(error, rho**2))

    def jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """W h(x), (B, m), and its derivative W dh/dx, (B, m, D), by m vector-Jacobian products of h alone."""
        with torch.enable_grad():
            at = x.detach().to(torch.float64).requires_grad_()
            value = self.forward(at)
            rows = [
                torch.autograd.grad(value[:, j].sum(), at, retain_graph=True)[0].flatten(1)
                for j in range(self.size)
            ]  # fmt: skip
        return value.detach(), torch.stack(rows, 1)

    def observed(self, y: Tensor, rows: bool) -> Tensor:
        """W y as (B, m) or (1, m), float64.

        Raises:
            ConfigError: for another number of values than is measured, or one that is not finite.
        """
        y = y.detach().to(self._std.device, torch.float64)
        try:
            flat = self.operator.read(y if rows else y[None], self.shape)
        except (RuntimeError, IndexError):
            flat = y.reshape(1, -1)
        if flat.shape[1] != self.size:
            raise ConfigError(
                f"y: {self.operator!r} measures {self.size} numbers of samples of shape {self.shape}, got "
                f"{tuple(y.shape)}" + ("" if rows else "; for one observation for each sample, sg.Rows(y)")
            )
        if not bool(flat.isfinite().all()):
            raise ConfigError("y: an observation must be finite; leave missing numbers out with a Mask")
        return self.white(flat)


def read_noise(noise_std: Any, size: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Standard deviations, () or (m,), float64, and the lower Cholesky factor of a covariance, or None.

    Raises:
        ConfigError: for what is not positive (definite), or of another size than m.
    """
    given = torch.as_tensor(noise_std, dtype=torch.float64).detach().cpu()
    if given.ndim > 2 or (size is not None and given.ndim and any(n != size for n in given.shape)):
        wanted = "m" if size is None else str(size)
        raise ConfigError(
            f"noise_std: expected a number, a vector ({wanted},) or a covariance ({wanted}, {wanted}), got "
            f"{tuple(given.shape)}"
        )
    if not bool(given.isfinite().all()) or (given.ndim < 2 and bool((given <= 0).any())):
        raise ConfigError(f"noise_std: must be finite and positive, got {noise_std!r}; without noise, give a small one")
    if given.ndim < 2:
        return given, None
    factor, failed = torch.linalg.cholesky_ex(given)
    if bool(failed) or bool((given - given.T).abs().max() > 1e-9 * given.abs().max()):
        raise ConfigError("noise_std: a covariance must be symmetric and positive definite")
    return given.diagonal().sqrt(), factor
