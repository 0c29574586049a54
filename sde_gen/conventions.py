"""How other people's networks are called: on whose states, and with which number for the time."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.errors import ConfigError
from sde_gen.perturbations import Chain, Perturbation

__all__ = ["Convention"]

#: What `Convention(time=)` may be.
TIMES = ("t", "index", "sigma", "log_sigma", "atan", "half_log_snr")
#: A chain's index this close to a whole number is that number.
_WHOLE = 1e-6


class Frame(NamedTuple):
    """How a network sees some noise levels, float64 tensors of one shape."""

    t: Tensor
    """Time of its process."""
    alpha: Tensor
    """Of the state x_p that it is shown."""
    sigma: Tensor
    scale: Tensor
    """x_p/x."""
    noise: Tensor
    """What it is told."""


def half_log_snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    """lambda = log(alpha/sigma), +-inf at the ends."""
    return alpha.log() - sigma.log()


@dataclass(frozen=True)
class Convention:
    r"""How a network was called when it was trained: on whose states, and with which number for the time.

    At any (alpha, sigma) of any formulation it is shown :math:`x_p = (\alpha_p(t)/\alpha)\, x`, where t is the time of
    its process with the same half log-SNR, and told c_noise = scale * (number) + offset. Beyond the noise levels of the
    process t stays at its end.

    Args:
        process: the process p whose states the network saw; None: states of unit size, alpha_p^2 + sigma_p^2 = 1.
        time: the number: "t"; "index", K t - 1 of a chain, within [0, K-1] and between nodes not whole; "sigma" and
            "log_sigma" of the process; "atan", atan(sigma/alpha); or "half_log_snr", log(alpha/sigma).
        scale, offset: what the number is multiplied by, not 0, and what is added then.
        rounded: whether the network knows whole numbers only: the index, or else c_noise, is rounded.

    Raises:
        ConfigError: for values outside these; t without a process, or the index of one that is no chain.
    """

    process: Perturbation | None = None
    time: str = checks.checked("half_log_snr", choices=TIMES)
    scale: float = checks.checked(1.0)
    offset: float = checks.checked(0.0)
    rounded: bool = checks.checked(False)

    def __post_init__(self) -> None:
        checks.fields(self)
        if self.process is not None and not isinstance(self.process, Perturbation):
            raise ConfigError(f"Convention: process must be a Perturbation such as VP(), or None, got {self.process!r}")
        if self.time == "index" and not isinstance(self.process, Chain):
            raise ConfigError(f"Convention: time='index' needs a chain such as DDPM(), got {self.process!r}; "
                              "use time='t'")  # fmt: skip
        if self.time == "t" and self.process is None:
            raise ConfigError("Convention: time='t' needs a process, such as Convention(FlowMatching(), 't')")
        if self.scale == 0:
            raise ConfigError("Convention: scale must not be 0, or the network would be told nothing, got 0")

    def frame(self, alpha: Tensor, sigma: Tensor) -> Frame:
        """What the network is shown and told at (alpha, sigma), float64 tensors of one shape, not both zero."""
        root, lam, p = (alpha.square() + sigma.square()).sqrt(), half_log_snr(alpha, sigma), self.process
        if p is None:
            t, size = torch.zeros_like(lam), torch.ones_like(lam)
        else:
            least, most = _range(p)
            t = p.time(lam.clamp(least, most))
            size = p.size(t)
        seen = Frame(t, alpha / root * size, sigma / root * size, size / root, lam)  # the ratio is exactly that asked
        told = self.scale * self._number(seen, torch.atan2(sigma, alpha)) + self.offset
        return seen._replace(noise=told.round() if self.rounded and self.time != "index" else told)

    def _number(self, seen: Frame, angle: Tensor) -> Tensor:
        if self.time == "index" and isinstance(self.process, Chain):
            index = (seen.t * self.process.length - 1).clamp(0, self.process.length - 1)
            whole = index.round()
            return whole if self.rounded else torch.where((index - whole).abs() < _WHOLE, whole, index)
        numbers = {"t": seen.t, "sigma": seen.sigma, "atan": angle, "half_log_snr": seen.noise}
        return seen.sigma.log() if self.time == "log_sigma" else numbers[self.time]


@lru_cache(maxsize=256)
def _range(p: Perturbation) -> tuple[float, float]:
    """The least and the largest half log-SNR of a process."""
    return float(p.half_log_snr(1.0)), float(p.half_log_snr(0.0))
