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
`VelocityPrediction`  dx_p/dt                c_in sigma_p'/D           -sigma_p/D            alpha_p/alpha
====================  =====================  ========================  ====================  ============

where :math:`v = \alpha\,\epsilon - \sigma x_0`, :math:`S^2 = \sigma^2 + \alpha^2 sd^2` and
:math:`D = \sigma_p' \alpha_p - \sigma_p \alpha_p'`. Scaling (alpha, sigma, x) by a common factor leaves F's input and
the answer unchanged, so the network depends on the noise level lambda alone and does not know which formulation it
serves. A `Convention` says what else it is to be shown: the states of the process p that it was trained on
(:math:`c_{in} = \alpha_p/\alpha`), and the number that it was told for the time.
"""

import abc
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.conventions import Convention, Frame, half_log_snr
from sde_gen.errors import ConfigError
from sde_gen.perturbations import FlowMatching

__all__ = [
    "Coefficients",
    "DataPrediction",
    "EDMPreconditioning",
    "NoisePrediction",
    "Parameterization",
    "ScorePrediction",
    "VPrediction",
    "VelocityPrediction",
]


class Coefficients(NamedTuple):
    """The four coefficients of one or more noise levels, float64 tensors of one shape."""

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor


class Parameterization(abc.ABC):
    """What a network's raw output means: x0hat = c_skip x + c_out F(c_in x, c_noise)."""

    @abc.abstractmethod
    def coefficients(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        """The four coefficients at (alpha, sigma), float64 tensors of one shape, not both zero."""


class _Told(Parameterization):
    """A parameterization that may follow a convention."""

    convention: Convention | None

    def __post_init__(self) -> None:
        checks.fields(self)
        if self.convention is not None and not isinstance(self.convention, Convention):
            raise ConfigError(f"{type(self).__name__}: convention must be a Convention, such as "
                              f"Convention(DDPM(), 'index'), or None, got {self.convention!r}")  # fmt: skip

    def _frame(self, alpha: Tensor, sigma: Tensor) -> Frame:
        return (self.convention or _UNIT).frame(alpha, sigma)

    def _told(self, alpha: Tensor, sigma: Tensor, skip: Tensor, out: Tensor) -> Coefficients:
        if self.convention is None:
            return Coefficients(skip, out, torch.rsqrt(alpha.square() + sigma.square()), half_log_snr(alpha, sigma))
        seen = self.convention.frame(alpha, sigma)
        return Coefficients(skip, out, seen.scale, seen.noise)

    def __repr__(self) -> str:
        given = {f.name: getattr(self, f.name) for f in fields(self)}  # pyright: ignore[reportArgumentType]
        usual = {f.name: f.default for f in fields(self) if f.name != "sigma_data"}  # pyright: ignore[reportArgumentType]
        shown = [f"{name}={value!r}" for name, value in given.items() if value != usual.get(name)]
        return f"{type(self).__name__}({', '.join(shown)})"


_UNIT = Convention()
_STRAIGHT = Convention(FlowMatching(), "t")


@dataclass(frozen=True, repr=False)
class NoisePrediction(_Told):
    """F = eps, the noise in x = alpha x0 + sigma eps. Ho et al. 2020, arXiv:2006.11239.

    Args:
        convention: what the network is shown and told; by default states of unit size, and lambda.
    """

    convention: Convention | None = None

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        skip, out = 1 / alpha, -sigma / alpha
        if self.convention is not None:
            return self._told(alpha, sigma, skip, out)
        # What everybody's first run does, on one page.
        return Coefficients(skip, out, torch.rsqrt(alpha.square() + sigma.square()), alpha.log() - sigma.log())


@dataclass(frozen=True, repr=False)
class ScorePrediction(_Told):
    """F = sigma * score = -eps, of unit size at every noise level. Song & Ermon 2020, arXiv:2006.09011.

    Args:
        convention: what the network is shown and told; by default states of unit size, and lambda.
        of: "noise" for F = sigma * score; "score" for F = grad log p itself, of the states that the network is shown.

    Raises:
        ConfigError: for another `of`.
    """

    convention: Convention | None = None
    of: str = checks.checked("noise", choices=("noise", "score"))

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        if self.of == "noise":
            return self._told(alpha, sigma, 1 / alpha, sigma / alpha)
        seen = self._frame(alpha, sigma)
        return Coefficients(1 / alpha, seen.sigma * (sigma / alpha), seen.scale, seen.noise)


@dataclass(frozen=True, repr=False)
class DataPrediction(_Told):
    """F = x0, the data itself. Salimans & Ho 2022, arXiv:2202.00512.

    Args:
        convention: what the network is shown and told; by default states of unit size, and lambda.
    """

    convention: Convention | None = None

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        return self._told(alpha, sigma, torch.zeros_like(alpha), torch.ones_like(alpha))


@dataclass(frozen=True, repr=False)
class VPrediction(_Told):
    """F = v / sqrt(alpha^2 + sigma^2), v = alpha eps - sigma x0. Salimans & Ho 2022, arXiv:2202.00512.

    For variance-preserving processes the root is 1 and F is the v of the paper.

    Args:
        convention: what the network is shown and told; by default states of unit size, and lambda. With one, F is the v
            of its process, alpha_p eps - sigma_p x0.
    """

    convention: Convention | None = None

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        total = alpha.square() + sigma.square()
        root = total.rsqrt()
        if self.convention is None:
            return Coefficients(alpha / total, -sigma * root, root, half_log_snr(alpha, sigma))
        seen = self.convention.frame(alpha, sigma)
        # x0 = (alpha_p x_p - sigma_p F)/(alpha_p^2 + sigma_p^2), where sigma_p/(alpha_p^2 + sigma_p^2) = sigma/s/size_p
        return Coefficients(alpha / total, -sigma / (total * seen.scale), seen.scale, seen.noise)


@dataclass(frozen=True, repr=False)
class EDMPreconditioning(_Told):
    """The preconditioning that gives input and target unit variance at every noise level.

    c_noise = log(sigma/alpha)/4 = -lambda/4. Karras et al. 2022, arXiv:2206.00364.

    Args:
        sigma_data: standard deviation of the data, > 0.
        convention: what the network is told instead; what it is shown stays of unit variance.
        sign: -1 for a network that says -F.

    Raises:
        ConfigError: for values outside these.
    """

    sigma_data: float = checks.checked(0.5, above=0.0)
    convention: Convention | None = None
    sign: int = checks.checked(1, low=-1, high=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_no_sign(self)

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        total = sigma.square() + (alpha * self.sigma_data).square()
        root = total.rsqrt()
        told = self.convention.frame(alpha, sigma).noise if self.convention else -0.25 * (half_log_snr(alpha, sigma))
        return Coefficients(
            alpha * self.sigma_data**2 / total, self.sign * (sigma * self.sigma_data * root), root, told
        )


@dataclass(frozen=True, repr=False)
class VelocityPrediction(_Told):
    r"""F = dx_p/dt = alpha_p' x0 + sigma_p' eps, the velocity of the paths of the convention's process.

    .. math:: \hat x_0 = (\sigma_p' x_p - \sigma_p F)/(\sigma_p' \alpha_p - \sigma_p \alpha_p')

    On straight paths it is eps - x0. Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003.

    Args:
        convention: the process, what the network is shown and told; straight paths and t by default.
        sign: -1 where time was counted from noise to data, with the convention's number turned round, 1 - t.

    Raises:
        ConfigError: for values outside these, and for a convention without a process.
    """

    convention: Convention | None = _STRAIGHT
    sign: int = checks.checked(1, low=-1, high=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_no_sign(self)
        if self.convention is None or self.convention.process is None:
            raise ConfigError("VelocityPrediction: a velocity is that of a process; give a convention that has one, "
                              "such as Convention(FlowMatching(), 't')")  # fmt: skip

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        seen = self._frame(alpha, sigma)
        by_alpha, by_sigma = self.convention.process.slopes(seen.t)  # pyright: ignore[reportOptionalMemberAccess]
        turn = by_sigma * seen.alpha - seen.sigma * by_alpha
        return Coefficients(seen.scale * by_sigma / turn, -self.sign * seen.sigma / turn, seen.scale, seen.noise)


def _refuse_no_sign(given: EDMPreconditioning | VelocityPrediction) -> None:
    if given.sign == 0:
        raise ConfigError(f"{type(given).__name__}: sign must be 1 or -1, got 0")
