r"""What the raw output F of a network means, as four coefficients of (alpha, sigma).

.. math:: \hat x_0 = c_{skip}\, x + c_{out}\, F(c_{in}\, x,\; c_{noise})

With :math:`s = \sqrt{\alpha^2 + \sigma^2}`:

====================  =====================  ========================  ====================  ============
class                 F is                   c_skip                    c_out                 c_in
====================  =====================  ========================  ====================  ============
`NoisePrediction`     eps                    1/alpha                   -sigma/alpha          1/s
`ScorePrediction`     sigma * score          1/alpha                   sigma/alpha           1/s
`DataPrediction`      x0                     0                         1                     1/s
`VPrediction`         v/s                    alpha/s^2                 -sigma/s              1/s
`EDMPreconditioning`  of Karras et al.       alpha sd^2/S^2            sigma sd/S            1/S
====================  =====================  ========================  ====================  ============

where :math:`v = \alpha\,\epsilon - \sigma x_0` and :math:`S^2 = \sigma^2 + \alpha^2 sd^2`. Scaling (alpha, sigma, x)
by a common factor leaves F's input and the answer unchanged, so the network depends on the noise level lambda alone and
does not know which formulation it serves.
"""

import abc
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sde_gen import checks

__all__ = [
    "Coefficients",
    "DataPrediction",
    "EDMPreconditioning",
    "NoisePrediction",
    "Parameterization",
    "ScorePrediction",
    "VPrediction",
]


class Coefficients(NamedTuple):
    """The four coefficients of one or more noise levels, float64 tensors of one shape."""

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor


def half_log_snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    """lambda = log(alpha/sigma), +-inf at the ends."""
    return alpha.log() - sigma.log()


class Parameterization(abc.ABC):
    """What a network's raw output means: x0hat = c_skip x + c_out F(c_in x, c_noise)."""

    @abc.abstractmethod
    def coefficients(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        """The four coefficients at (alpha, sigma), float64 tensors of one shape, not both zero."""


@dataclass(frozen=True)
class NoisePrediction(Parameterization):
    """F = eps, the noise in x = alpha x0 + sigma eps. Ho et al. 2020, arXiv:2006.11239."""

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        return Coefficients(
            1 / alpha, -sigma / alpha, torch.rsqrt(alpha.square() + sigma.square()), alpha.log() - sigma.log()
        )


@dataclass(frozen=True)
class ScorePrediction(Parameterization):
    """F = sigma * score = -eps, of unit size at every noise level. Song & Ermon 2020, arXiv:2006.09011."""

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        return Coefficients(
            1 / alpha, sigma / alpha, torch.rsqrt(alpha.square() + sigma.square()), alpha.log() - sigma.log()
        )


@dataclass(frozen=True)
class DataPrediction(Parameterization):
    """F = x0, the data itself. Salimans & Ho 2022, arXiv:2202.00512."""

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        return Coefficients(
            torch.zeros_like(alpha),
            torch.ones_like(alpha),
            torch.rsqrt(alpha.square() + sigma.square()),
            alpha.log() - sigma.log(),
        )


@dataclass(frozen=True)
class VPrediction(Parameterization):
    """F = v / sqrt(alpha^2 + sigma^2), v = alpha eps - sigma x0. Salimans & Ho 2022, arXiv:2202.00512.

    For variance-preserving processes the root is 1 and F is the v of the paper.
    """

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        total = alpha.square() + sigma.square()
        root = total.rsqrt()
        return Coefficients(alpha / total, -sigma * root, root, alpha.log() - sigma.log())


@dataclass(frozen=True)
class EDMPreconditioning(Parameterization):
    """The preconditioning that gives input and target unit variance at every noise level.

    c_noise = log(sigma/alpha)/4 = -lambda/4. Karras et al. 2022, arXiv:2206.00364.

    Args:
        sigma_data: standard deviation of the data, > 0.

    Raises:
        ConfigError: for sigma_data outside its range.
    """

    sigma_data: float = checks.checked(0.5, above=0.0)

    def __post_init__(self) -> None:
        checks.fields(self)

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        total = sigma.square() + (alpha * self.sigma_data).square()
        root = total.rsqrt()
        return Coefficients(
            alpha * self.sigma_data**2 / total,
            sigma * self.sigma_data * root,
            root,
            -0.25 * (alpha.log() - sigma.log()),
        )
