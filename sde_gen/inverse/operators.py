r"""What is measured of a sample: y = A x, or y = h(x), before noise.

A linear operator states `apply` and `transpose`, and where it can the eigenvalues of :math:`AA^\top` (`gram`), with
which :math:`(s^2 I + r^2 AA^\top)^{-1}` is one product. Operators of images are in `image_operators.py`.
"""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.errors import ConfigError

Basis = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Gram:
    """The eigenvalues of A A', and the way to its eigenvectors and back; (B, m) in and out.

    Args:
        values: eigenvalues >= 0, (m,), or () where all are one, float64.
        into, back: the orthonormal change of basis and its inverse; None where A A' is diagonal.
    """

    values: Tensor
    into: Basis | None = None
    back: Basis | None = None

    def weighted(self, v: Tensor, weights: Tensor) -> Tensor:
        """f(A A') v for the function of the eigenvalues with these values."""
        return v * weights if self.into is None or self.back is None else self.back(self.into(v) * weights)


class Operator(abc.ABC):
    """What is measured of a sample; `A @ B` measures A of what B measures.

    Attributes:
        is_linear: whether it has a transpose.
        norm: largest singular value of A, or a bound of it: samples are taken down to noise below noise_std/norm.
    """

    is_linear: bool = True
    norm: float = 1.0

    @abc.abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """The measurement of each sample: (B, *shape) to (B, *out), in the dtype of x."""

    @abc.abstractmethod
    def transpose(self, v: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A' v for v (B, *out): (B, *shape), where `shape` is that of a sample."""

    def gram(self, shape: tuple[int, ...]) -> Gram | None:
        """Eigenvalues of A A' for samples of this shape, where they are known without a decomposition."""
        return None

    def read(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        """An observation as it is given, with a row for each, as (rows, m)."""
        return y.flatten(1)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the measurement of one sample."""
        return tuple(self.apply(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:])

    def matrix(self, shape: tuple[int, ...]) -> Tensor:
        """A as a matrix (m, D), float64, on the CPU.

        Raises:
            ConfigError: for an operator that is not linear.
        """
        if not self.is_linear:
            raise ConfigError(f"{type(self).__name__}: it is not linear, so it has no matrix")
        size = math.prod(shape)
        return self.apply(torch.eye(size, dtype=torch.float64).reshape(size, *shape)).flatten(1).T.contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        return self.apply(x)

    def __matmul__(self, inner: "Operator") -> "Composed":
        if not isinstance(inner, Operator):
            return NotImplemented
        return Composed(self, inner)


class Matrix(Operator):
    """y = A x of the flattened sample.

    Args:
        matrix: A, (m, D), finite.

    Raises:
        ConfigError: for another shape, or a number that is not finite.
    """

    def __init__(self, matrix: Any) -> None:
        a = torch.as_tensor(matrix, dtype=torch.float64).detach()
        if a.ndim != 2 or not a.numel() or not bool(a.isfinite().all()):
            raise ConfigError(f"Matrix: expected a finite matrix (m, D), got {tuple(a.shape)}")
        self.entries = a
        self.norm = float(torch.linalg.matrix_norm(a, 2))

    def apply(self, x: Tensor) -> Tensor:
        return _checked("Matrix", x.flatten(1), self.entries.shape[1]) @ self.entries.to(x).T

    def transpose(self, v: Tensor, shape: tuple[int, ...]) -> Tensor:
        return (v @ self.entries.to(v)).reshape(-1, *shape)

    def __repr__(self) -> str:
        return f"Matrix({' x '.join(map(str, self.entries.shape))})"


class Mask(Operator):
    """The entries of a sample that are seen, in their order: inpainting.

    Args:
        seen: True where an entry is seen, of the sample's shape or of its last dimensions (one mask for all channels).
            An observation may be given as the m numbers seen, or as a whole sample of which the rest is not read.

    Raises:
        ConfigError: for a mask that sees nothing, or is not of truth values.
    """

    def __init__(self, seen: Any) -> None:
        mask = torch.as_tensor(seen).detach()
        if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
            raise ConfigError("Mask: seen must be True where an entry is seen and False elsewhere (or 1 and 0)")
        self.seen = mask.bool()
        if not bool(self.seen.any()):
            raise ConfigError("Mask: it sees nothing; give True for at least one entry")

    def _index(self, shape: tuple[int, ...]) -> Tensor:
        try:
            return self.seen.expand(shape).flatten().nonzero()[:, 0]
        except RuntimeError:
            raise ConfigError(
                f"Mask: a mask of shape {tuple(self.seen.shape)} does not fit samples of shape {shape}"
            ) from None

    def apply(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, self._index(tuple(x.shape[1:])).to(x.device)]

    def transpose(self, v: Tensor, shape: tuple[int, ...]) -> Tensor:
        whole = torch.zeros(len(v), math.prod(shape), dtype=v.dtype, device=v.device)
        return whole.index_copy(1, self._index(shape).to(v.device), v).reshape(-1, *shape)

    def gram(self, shape: tuple[int, ...]) -> Gram:
        return Gram(torch.ones((), dtype=torch.float64))

    def read(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        rows = y.flatten(1)
        return rows[:, self._index(shape).to(y.device)] if rows.shape[1] == math.prod(shape) else rows

    def __repr__(self) -> str:
        return f"Mask({int(self.seen.sum())} of {self.seen.numel()} seen)"


class Reshape(Operator):
    """The sample in another shape, such as an image from a vector: `Blur(std=1.0) @ Reshape((1, 8, 8))`.

    Args:
        shape: of what comes out, for one sample.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = checks.integers("Reshape", "shape", shape)

    def apply(self, x: Tensor) -> Tensor:
        return _checked("Reshape", x.flatten(1), math.prod(self.shape)).reshape(-1, *self.shape)

    def transpose(self, v: Tensor, shape: tuple[int, ...]) -> Tensor:
        return v.reshape(-1, *shape)

    def gram(self, shape: tuple[int, ...]) -> Gram:
        return Gram(torch.ones((), dtype=torch.float64))

    def __repr__(self) -> str:
        return f"Reshape({self.shape})"


class Composed(Operator):
    """y = A (B x), made by `A @ B`.

    Args:
        outer, inner: A, linear or not, and B.
    """

    def __init__(self, outer: Operator, inner: Operator) -> None:
        self.outer, self.inner = outer, inner
        self.is_linear = outer.is_linear and inner.is_linear
        self.norm = outer.norm * inner.norm

    def apply(self, x: Tensor) -> Tensor:
        return self.outer.apply(self.inner.apply(x))

    def transpose(self, v: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self.inner.transpose(self.outer.transpose(v, self.inner.output_shape(shape)), shape)

    def gram(self, shape: tuple[int, ...]) -> Gram | None:
        # Only a change of shape leaves A A' as it is.
        return self.outer.gram(self.inner.output_shape(shape)) if isinstance(self.inner, Reshape) else None

    def read(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self.outer.read(y, self.inner.output_shape(shape))

    def __repr__(self) -> str:
        return f"{self.outer!r} @ {self.inner!r}"


class Nonlinear(Operator):
    """y = h(x) for any function of yours.

    Args:
        function: h, from (B, *shape) to (B, *out), row by row. Guidance takes its derivatives by automatic
            differentiation, where `twist="none"` does without.
        norm: about the largest slope of h, > 0.

    Raises:
        ConfigError: for what is no function, or a norm that is not positive.
    """

    is_linear = False

    def __init__(self, function: Callable[[Tensor], Tensor], norm: float = 1.0) -> None:
        if not callable(function):
            raise ConfigError(f"Nonlinear: function must be callable, got {function!r}")
        self.function = function
        self.norm = checks.number("Nonlinear", "norm", norm, low=0.0, open_low=True)

    def apply(self, x: Tensor) -> Tensor:
        y = self.function(x)
        if not isinstance(y, Tensor) or y.ndim < 1 or len(y) != len(x):
            raise ConfigError(
                "Nonlinear: the function must return a tensor with a row for each sample, (B, *out), got "
                f"{tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__} for {tuple(x.shape)}"
            )
        return y

    def transpose(self, v: Tensor, shape: tuple[int, ...]) -> Tensor:
        raise ConfigError("Nonlinear: it has no transpose, only derivatives at a point")

    def __repr__(self) -> str:
        return f"Nonlinear({getattr(self.function, '__name__', type(self.function).__name__)})"


def _checked(where: str, x: Tensor, size: int) -> Tensor:
    if x.shape[1] != size:
        raise ConfigError(f"{where}: it takes samples of {size} numbers, got {x.shape[1]}")
    return x
