"""Operators of images (B, C, H, W), or (B, H, W): blur, fewer pixels, grey, some frequencies."""

import math
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.errors import ConfigError
from sde_gen.inverse.operators import Gram, Operator


class Blur(Operator):
    """A convolution of each channel; the image goes on periodically beyond its edges.

    Args:
        kernel: (h, w), odd sizes, centred; taken as it is.
        std: of a Gaussian kernel in pixels instead, > 0, whose weights add up to one.

    Raises:
        ConfigError: unless exactly one of the two is given, and is of this kind.
    """

    def __init__(self, kernel: Any = None, std: float | None = None) -> None:
        if (kernel is None) == (std is None):
            raise ConfigError("Blur: give either a kernel (h, w) or std=, that of a Gaussian kernel in pixels")
        if std is not None:
            std = checks.number("Blur", "std", std, low=0.0, open_low=True)
            reach = torch.arange(-math.ceil(4 * std), math.ceil(4 * std) + 1, dtype=torch.float64)
            line = (-0.5 * (reach / std).square()).exp()
            kernel = torch.outer(line, line) / line.sum().square()
        k = torch.as_tensor(kernel, dtype=torch.float64).detach()
        if k.ndim != 2 or k.shape[0] % 2 == 0 or k.shape[1] % 2 == 0 or not bool(k.isfinite().all()):
            raise ConfigError(f"Blur: kernel must be a finite matrix with odd sizes, got {tuple(k.shape)}")
        self.kernel, self.std = k, std
        self.norm = float(k.abs().sum())

    def _spectrum(self, shape: torch.Size | tuple[int, ...], like: Tensor) -> Tensor:
        """Fourier transform of the kernel wrapped around an image of this size."""
        height, width = shape[-2:]
        rows, columns = (torch.arange(n) - n // 2 for n in self.kernel.shape)
        whole = torch.zeros(height, width, dtype=torch.float64)
        at = torch.meshgrid(rows % height, columns % width, indexing="ij")
        whole.index_put_(at, self.kernel, accumulate=True)
        return torch.fft.fft2(whole).to(like.device, torch.promote_types(like.dtype, torch.complex64))

    def apply(self, x: Tensor) -> Tensor:
        _image("Blur", x.shape[1:])
        return torch.fft.ifft2(torch.fft.fft2(x) * self._spectrum(x.shape, x)).real

    def transpose(self, v: Tensor, shape: tuple[int, ...]) -> Tensor:
        v = v.reshape(-1, *shape)
        return torch.fft.ifft2(torch.fft.fft2(v) * self._spectrum(shape, v).conj()).real

    def gram(self, shape: tuple[int, ...]) -> Gram:
        _image("Blur", shape)
        power = self._spectrum(shape, torch.empty((), dtype=torch.float64)).abs().square()
        return Gram(
            power.expand(shape).reshape(-1),
            lambda v: torch.fft.fft2(v.reshape(-1, *shape), norm="ortho").flatten(1),
            lambda v: torch.fft.ifft2(v.reshape(-1, *shape), norm="ortho").real.flatten(1),
        )

    def __repr__(self) -> str:
        return f"Blur(std={self.std:g})" if self.std else f"Blur({' x '.join(map(str, self.kernel.shape))})"


class Downsample(Operator):
    """Means over squares of factor x factor pixels: super-resolution.

    Args:
        factor: >= 2; the image's sides are multiples of it.

    Raises:
        ConfigError: for another factor, or an image of other sides.
    """

    def __init__(self, factor: int) -> None:
        self.factor = checks.integer("Downsample", "factor", factor, low=2)
        self.norm = 1.0 / self.factor

    def apply(self, x: Tensor) -> Tensor:
        f = self.factor
        _image("Downsample", x.shape[1:])
        height, width = x.shape[-2:]
        if height % f or width % f:
            raise ConfigError(f"Downsample: sides of {height} x {width} pixels are not multiples of {f}")
        return x.reshape(*x.shape[:-2], height // f, f, width // f, f).mean((-3, -1))

    def transpose(self, v: Tensor, shape: tuple[int, ...]) -> Tensor:
        f = self.factor
        v = v.reshape(-1, *shape[:-2], shape[-2] // f, shape[-1] // f)
        return v.repeat_interleave(f, -1).repeat_interleave(f, -2) / f**2

    def gram(self, shape: tuple[int, ...]) -> Gram:
        return Gram(torch.tensor(1.0 / self.factor**2, dtype=torch.float64))

    def __repr__(self) -> str:
        return f"Downsample({self.factor})"


class Grey(Operator):
    """One channel from several, a weighted sum of them: colourising.

    Args:
        weights: one for each channel; by default those of luma (ITU-R BT.601), 0.299, 0.587 and 0.114.
    """

    def __init__(self, weights: Any = (0.299, 0.587, 0.114)) -> None:
        self.weights = torch.as_tensor(weights, dtype=torch.float64).detach()
        if self.weights.ndim != 1 or not bool(self.weights.isfinite().all()) or not bool(self.weights.any()):
            raise ConfigError(f"Grey: weights must be one number for each channel, not all zero, got {weights!r}")
        self.norm = float(self.weights.norm())

    def apply(self, x: Tensor) -> Tensor:
        if x.ndim < 3 or x.shape[1] != len(self.weights):
            raise ConfigError(f"Grey: it takes images of {len(self.weights)} channels, got shape {tuple(x.shape[1:])}")
        return torch.einsum("bc...,c->b...", x, self.weights.to(x))[:, None]

    def transpose(self, v: Tensor, shape: tuple[int, ...]) -> Tensor:
        return v.reshape(-1, 1, *shape[1:]) * self.weights.to(v).reshape(-1, *[1] * (len(shape) - 1))

    def gram(self, shape: tuple[int, ...]) -> Gram:
        return Gram(self.weights.square().sum())

    def __repr__(self) -> str:
        return f"Grey({self.weights.tolist()})"


class Fourier(Operator):
    """Some of the frequencies of each channel, orthonormal, as real numbers: magnetic resonance, deconvolution.

    A real image has the same, conjugate, at k and -k: a pair of which either is seen gives sqrt(2) times its real and
    its imaginary part, a frequency that is its own opposite its real part. So A A' = I. `measured(spectrum)` makes the
    observation from complex values.

    Args:
        seen: (H, W), True at the frequencies that are seen, laid out as `torch.fft.fft2` has them.

    Raises:
        ConfigError: for a mask that is not of this kind.
    """

    def __init__(self, seen: Any) -> None:
        mask = torch.as_tensor(seen).detach().bool()
        if mask.ndim != 2 or not bool(mask.any()):
            raise ConfigError(f"Fourier: seen must be a mask (H, W) that sees something, got {tuple(mask.shape)}")
        opposite = mask.flip(0, 1).roll((1, 1), (0, 1))
        number = torch.arange(mask.numel()).reshape(mask.shape)
        mirror = number.flip(0, 1).roll((1, 1), (0, 1))
        self.seen = mask
        both = mask | opposite
        self._pairs = (both & (number < mirror)).flatten().nonzero()[:, 0]
        self._alone = (both & (number == mirror)).flatten().nonzero()[:, 0]

    def apply(self, x: Tensor) -> Tensor:
        _image("Fourier", x.shape[1:])
        if x.shape[-2:] != self.seen.shape:
            raise ConfigError(
                f"Fourier: a mask of {tuple(self.seen.shape)} does not fit images of {tuple(x.shape[-2:])}"
            )
        return self.measured(torch.fft.fft2(x, norm="ortho"))

    def measured(self, spectrum: Tensor) -> Tensor:
        """The observation (B, *channels, m) in a spectrum (B, *channels, H, W) as `torch.fft.fft2(norm="ortho")`."""
        flat = spectrum.flatten(-2)
        pairs, alone = flat[..., self._pairs.to(flat.device)], flat[..., self._alone.to(flat.device)]
        return torch.cat([2**0.5 * pairs.real, 2**0.5 * pairs.imag, alone.real], -1)

    def transpose(self, v: Tensor, shape: tuple[int, ...]) -> Tensor:
        height, width = self.seen.shape
        pairs, alone = len(self._pairs), len(self._alone)
        v = v.reshape(-1, *shape[:-2], 2 * pairs + alone)
        complex_type = torch.promote_types(v.dtype, torch.complex64)
        flat = torch.zeros(*v.shape[:-1], height * width, dtype=complex_type, device=v.device)
        flat[..., self._pairs.to(v.device)] = torch.complex(v[..., :pairs], v[..., pairs : 2 * pairs]) * 2**0.5
        flat[..., self._alone.to(v.device)] = v[..., 2 * pairs :].to(complex_type)
        # The real part is the mean of a spectrum and its mirror image, whose other half is left at zero here.
        return torch.fft.ifft2(flat.unflatten(-1, (height, width)), norm="ortho").real

    def gram(self, shape: tuple[int, ...]) -> Gram:
        return Gram(torch.ones((), dtype=torch.float64))

    def __repr__(self) -> str:
        return f"Fourier({int(self.seen.sum())} of {self.seen.numel()} seen)"


def _image(where: str, shape: torch.Size | tuple[int, ...]) -> None:
    if len(shape) < 2:
        raise ConfigError(
            f"{where}: it takes images (B, C, H, W), got samples of shape {tuple(shape)}; "
            f"for vectors, {where}(...) @ Reshape((C, H, W))"
        )
