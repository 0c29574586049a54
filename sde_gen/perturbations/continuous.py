r"""Perturbations for every t in [0, 1].

================  ======================================  ==========================================================
class             log alpha(t)                            sigma(t)^2
================  ======================================  ==========================================================
`VP`              -t^2 (b1-b0)/4 - t b0/2                 1 - alpha^2
`SubVP`           the same                                (1 - alpha^2)^2
`VE`              0                                       sigma_min^2 (sigma_max/sigma_min)^(2t)
`EDM`             0                                       (m + t (M - m))^(2 rho), m = sigma_min^(1/rho),
                                                          M = sigma_max^(1/rho)
`Cosine`          log(cos(a(t))/cos(a(0))), a =           1 - alpha^2
                  pi/2 (t+s)/(1+s)
`FlowMatching`    log(1-t)                                t^2
================  ======================================  ==========================================================
"""

# What a subclass states of these two takes float64 tensors alone; see `Perturbation.__init_subclass__`.
# pyright: reportIncompatibleMethodOverride=false

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sde_gen.checks import checked
from sde_gen.errors import ConfigError
from sde_gen.perturbations.base import Perturbation


def _refuse_reversed(where: str, low: str, low_value: float, high: str, high_value: float) -> None:
    if low_value >= high_value:
        raise ConfigError(f"{where}: {low} must be below {high}, got {low}={low_value!r} and {high}={high_value!r}")


@dataclass(frozen=True)
class _LinearBeta(Perturbation):
    """Shared by VP and sub-VP: d log alpha / dt = -beta(t)/2 with beta(t) = beta_min + t (beta_max - beta_min)."""

    beta_min: float = checked(0.1, low=0.0)
    beta_max: float = checked(20.0, above=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta_min > self.beta_max:
            raise ConfigError(f"{type(self).__name__}: beta_min must not exceed beta_max, got "
                              f"beta_min={self.beta_min!r} and beta_max={self.beta_max!r}")  # fmt: skip

    def log_alpha(self, t: Tensor) -> Tensor:
        return -t * (0.25 * (self.beta_max - self.beta_min) * t + 0.5 * self.beta_min)

    def _time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        # Root of a t^2 + b t = -log alpha, in the form that does not cancel and allows a = 0 (constant beta).
        a, b = 0.25 * (self.beta_max - self.beta_min), 0.5 * self.beta_min
        return -2 * log_alpha / (b + (b * b - 4 * a * log_alpha).sqrt())


@dataclass(frozen=True)
class VP(_LinearBeta):
    """Variance-preserving SDE, dx = -beta/2 x dt + sqrt(beta) dw, beta linear in t: the limit of DDPM's chain.

    alpha^2 = exp(-t^2 (beta_max - beta_min)/2 - t beta_min), sigma^2 = 1 - alpha^2. Song et al. 2021, arXiv:2011.13456.

    Args:
        beta_min: beta at t = 0, >= 0.
        beta_max: beta at t = 1, >= beta_min and > 0.

    Raises:
        ConfigError: for values outside these ranges.
    """

    def variance(self, t: Tensor) -> Tensor:
        return -torch.expm1(2 * self.log_alpha(t))

    def time(self, half_log_snr: Tensor) -> Tensor:
        return self._time_of_log_alpha(0.5 * torch.nn.functional.logsigmoid(2 * half_log_snr))


@dataclass(frozen=True)
class SubVP(_LinearBeta):
    """Sub-VP SDE: the drift of `VP` with less noise; its standard deviation is the variance of VP.

    sigma = 1 - alpha^2, so sigma is about beta_min t near t = 0 (1e-6 at t = 1e-5). Song et al. 2021, arXiv:2011.13456.

    Args:
        beta_min: beta at t = 0, >= 0.
        beta_max: beta at t = 1, >= beta_min and > 0.

    Raises:
        ConfigError: for values outside these ranges.
    """

    def variance(self, t: Tensor) -> Tensor:
        return torch.expm1(2 * self.log_alpha(t)).square()

    def half_log_snr(self, t: Tensor) -> Tensor:
        # Not from the square: at t = 1e-300 it would underflow.
        return self.log_alpha(t) - (-torch.expm1(2 * self.log_alpha(t))).log()

    def time(self, half_log_snr: Tensor) -> Tensor:
        # sigma/alpha = 1/alpha - alpha = -2 sinh(log alpha)
        return self._time_of_log_alpha(-torch.asinh(0.5 * (-half_log_snr).exp()))


@dataclass(frozen=True)
class VE(Perturbation):
    """Variance-exploding SDE, dx = sqrt(d sigma^2/dt) dw with geometric sigma(t): the limit of NCSN's levels.

    sigma = sigma_min (sigma_max/sigma_min)^t; at t = 0 the data is already smoothed by sigma_min. The prior is
    N(0, sigma_max^2), so sigma_max should be about the largest distance between two data points.
    Song et al. 2021, arXiv:2011.13456.

    Args:
        sigma_min: noise at t = 0, > 0.
        sigma_max: noise at t = 1, > sigma_min.

    Raises:
        ConfigError: for values outside these ranges.
    """

    sigma_min: float = checked(0.01, above=0.0)
    sigma_max: float = checked(50.0, above=0.0)
    t_sample: ClassVar[float] = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_reversed("VE", "sigma_min", self.sigma_min, "sigma_max", self.sigma_max)

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def variance(self, t: Tensor) -> Tensor:
        return (self.sigma_min * (self.sigma_max / self.sigma_min) ** t).square()

    def _log_sigma(self, t: Tensor) -> Tensor:
        return math.log(self.sigma_min) + t * math.log(self.sigma_max / self.sigma_min)

    def half_log_snr(self, t: Tensor) -> Tensor:
        return -self._log_sigma(t)

    def time(self, half_log_snr: Tensor) -> Tensor:
        return (-half_log_snr - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class EDM(Perturbation):
    """The process of Karras et al.: alpha = 1, with sigma itself as time, mapped to [0, 1] by their grid.

    sigma(t) = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho, so a grid uniform in t is the grid
    of the paper. Karras et al. 2022, arXiv:2206.00364.

    Args:
        sigma_min: noise at t = 0, > 0.
        sigma_max: noise at t = 1, > sigma_min.
        rho: exponent, >= 1.

    Raises:
        ConfigError: for values outside these ranges.
    """

    sigma_min: float = checked(0.002, above=0.0)
    sigma_max: float = checked(80.0, above=0.0)
    rho: float = checked(7.0, low=1.0)
    t_min: ClassVar[float] = 0.0
    t_sample: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_reversed("EDM", "sigma_min", self.sigma_min, "sigma_max", self.sigma_max)

    def _root(self, t: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return low + t * (high - low)

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def variance(self, t: Tensor) -> Tensor:
        return self._root(t) ** (2 * self.rho)

    def half_log_snr(self, t: Tensor) -> Tensor:
        return -self.rho * self._root(t).log()

    def time(self, half_log_snr: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return ((-half_log_snr / self.rho).exp() - low) / (high - low)


@dataclass(frozen=True)
class Cosine(Perturbation):
    """Variance-preserving process whose alpha is a quarter of a cosine; the limit of the cosine DDPM chain.

    alpha = cos(a(t))/cos(a(0)), a = pi/2 (t+s)/(1+s); sigma^2 = 1 - alpha^2. alpha(1) = 0 makes the drift infinite
    there, so t_max = 0.999. Nichol & Dhariwal 2021, arXiv:2102.09672.

    Args:
        s: offset that keeps sigma from being too small near t = 0, in [0, 1].

    Raises:
        ConfigError: for s outside its range.
    """

    s: float = checked(0.008, low=0.0, high=1.0)
    t_max: ClassVar[float] = 0.999

    @property
    def _rate(self) -> float:
        return 0.5 * math.pi / (1 + self.s)

    def log_alpha(self, t: Tensor) -> Tensor:
        # cos(a) = sin(pi/2 - a): exactly 0 at t = 1 and accurate beside it.
        return torch.sin(self._rate * (1 - t)).log() - math.log(math.sin(self._rate))

    def variance(self, t: Tensor) -> Tensor:
        # cos(a0)^2 - cos(a)^2 = sin(a - a0) sin(a + a0): no cancellation near t = 0.
        sines = torch.sin(self._rate * t) * torch.sin(self._rate * (t + 2 * self.s))
        return sines / math.cos(self._rate * self.s) ** 2

    def time(self, half_log_snr: Tensor) -> Tensor:
        # cos(a) = alpha cos(a0), so t = (arccos(alpha cos a0) - a0)/rate; near t = 0 through the sine instead:
        # sin(a)^2 = sin(a0)^2 + sigma^2 cos(a0)^2.
        a0 = self._rate * self.s
        alpha2, sigma2 = torch.sigmoid(2 * half_log_snr), torch.sigmoid(-2 * half_log_snr)
        cosine = alpha2.sqrt() * math.cos(a0)
        # sin(a) - sin(a0) = sigma^2 cos(a0)^2 / (sin(a) + sin(a0)), and a - a0 = atan2 of the difference of angles.
        sine = (math.sin(a0) ** 2 + sigma2 * math.cos(a0) ** 2).sqrt()
        rise = sigma2 * math.cos(a0) ** 2 / (sine + math.sin(a0))
        fall = math.cos(a0) * sigma2 / (1 + alpha2.sqrt())
        # sin(a - a0) = sin a cos a0 - cos a sin a0, with sin a = sin a0 + rise and cos a = cos a0 - fall.
        return torch.atan2(rise * math.cos(a0) + fall * math.sin(a0), cosine * math.cos(a0) + sine * math.sin(a0)) / (
            self._rate
        )


@dataclass(frozen=True)
class FlowMatching(Perturbation):
    """Linear path from data to noise, x_t = (1-t) x_0 + t eps, seen as a Gaussian perturbation.

    alpha = 1 - t, sigma = t. alpha(1) = 0 makes the drift infinite there, so t_max = 0.999.
    Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003.
    """

    t_max: ClassVar[float] = 0.999

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.log1p(-t)

    def variance(self, t: Tensor) -> Tensor:
        return t.square()

    def half_log_snr(self, t: Tensor) -> Tensor:
        return torch.log1p(-t) - t.log()

    def time(self, half_log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-half_log_snr)
