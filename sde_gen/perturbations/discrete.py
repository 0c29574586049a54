r"""Chains: perturbations defined on K nodes t_k = k/K, k = 1..K.

A chain is a table of half log-SNRs. Between its nodes it answers by interpolating lambda linearly in t; between t = 0
(clean data, sigma = 0) and the first node the noise-to-signal ratio exp(-2 lambda) grows linearly, as Brownian noise
does. Derivatives at a node are those of the interval before it, the one a reverse step from that node crosses.
"""

# What a subclass states of these two takes float64 tensors alone; see `Perturbation.__init_subclass__`.
# pyright: reportIncompatibleMethodOverride=false

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.checks import checked
from sde_gen.errors import ConfigError
from sde_gen.perturbations.base import Perturbation
from sde_gen.perturbations.continuous import Cosine

SCHEDULES = ("linear", "cosine", "quadratic", "sigmoid")

#: The largest beta of the cosine chain (Nichol & Dhariwal 2021): at 1 all signal would be lost in one step.
_LARGEST_COSINE_BETA = 0.999
#: Half log-SNR below which there is no signal left.
_NO_SIGNAL = -100.0


class Chain(Perturbation):
    """A perturbation on K nodes. Subclasses give the table of half log-SNRs, ascending in t."""

    is_chain: ClassVar[bool] = True

    @property
    def length(self) -> int:
        """K, the number of nodes."""
        raise NotImplementedError

    def table(self) -> Tensor:
        """Half log-SNR at the nodes, (K,), float64, on the CPU."""
        raise NotImplementedError

    @property
    def nodes(self) -> Tensor:
        """The K times t_k = k/K, k = 1..K, ascending, float64."""
        return torch.arange(1, self.length + 1, dtype=torch.float64) / self.length

    @property
    def t_min(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The first node, 1/K."""
        return 1.0 / self.length

    @property
    def t_sample(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The first node, 1/K."""
        return 1.0 / self.length

    def is_between(self, half_log_snr: Tensor) -> bool:
        """Whether some of these half log-SNRs, (n,), float64 on the CPU, are not those of nodes."""
        # Ascending in lambda; a node without signal is asked for by a lambda far below any other.
        nodes = self.half_log_snr(self.nodes).flip(0).clamp_min(_NO_SIGNAL)
        half_log_snr = half_log_snr.clamp_min(_NO_SIGNAL)
        after = torch.searchsorted(nodes, half_log_snr).clamp_max(len(nodes) - 1)
        before = (after - 1).clamp_min(0)
        gap = torch.minimum((nodes[after] - half_log_snr).abs(), (nodes[before] - half_log_snr).abs())
        # A time given in float32 is off its node by up to 1e-4 of the spacing.
        return bool((gap > 1e-3 * (nodes[after] - nodes[before]) + 1e-6).any())

    def _lambdas(self, like: Tensor) -> Tensor:
        return _placed(self, str(like.device))

    def _noise_to_signal(self, t: Tensor) -> Tensor:
        """sigma^2/alpha^2."""
        position = t * self.length
        table = self._lambdas(t)
        if self.length > 1:
            left = (torch.ceil(position.detach() - 1e-9) - 1).clamp(1, self.length - 1).long()  # node at or before
            before, after = table[left - 1], table[left]
            inside = (-2 * (before + (position - left) * (after - before))).exp()
        else:
            inside = (-2 * table[0]).exp() * position
        return torch.where(position <= 1, (-2 * table[0]).exp() * position, inside)

    def time(self, half_log_snr: Tensor) -> Tensor:
        table = self._lambdas(half_log_snr)
        first = (2 * (table[0] - half_log_snr)).exp()  # position in the first interval
        if self.length == 1:
            return first
        index = torch.searchsorted(-table, -half_log_snr.contiguous()).clamp(1, self.length - 1)
        before, after = table[index - 1], table[index]
        position = index + (half_log_snr - before) / (after - before)
        return torch.where(half_log_snr >= table[0], first, position) / self.length


@lru_cache(maxsize=256)
def _placed(chain: Chain, device: str) -> Tensor:
    return chain.table().to(device)


@dataclass(frozen=True)
class DDPM(Chain):
    """The variance-preserving chain x_k = sqrt(1 - beta_k) x_{k-1} + sqrt(beta_k) z.

    alpha_k^2 = prod (1 - beta_j), sigma^2 = 1 - alpha^2. Ho et al. 2020, arXiv:2006.11239; the cosine schedule is that
    of Nichol & Dhariwal 2021, arXiv:2102.09672.

    Args:
        steps: K >= 1, the number of nodes.
        schedule: "linear" in beta, "quadratic" (linear in sqrt(beta)), "sigmoid" or "cosine".
        beta_min: first beta at K = 1000, > 0; scaled by 1000/K. Not used by the cosine schedule.
        beta_max: last beta at K = 1000, >= beta_min; scaled by 1000/K. Not used by the cosine schedule.

    Raises:
        ConfigError: for values outside these ranges, or if some beta reaches 1 (linear: K <= 20).
    """

    steps: int = checked(1000, low=1)
    schedule: str = checked("linear", choices=SCHEDULES)
    beta_min: float = checked(1e-4, above=0.0)
    beta_max: float = checked(0.02, above=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta_min > self.beta_max:
            raise ConfigError(
                f"DDPM: beta_min must not exceed beta_max, got beta_min={self.beta_min!r}, beta_max={self.beta_max!r}"
            )
        if self.schedule != "cosine":
            largest = self.beta_max * 1000 / self.steps
            if not largest < 1 - 1e-12:
                fewest = math.floor(self.beta_max * 1000) + 1
                raise ConfigError(
                    f"DDPM: steps={self.steps} gives a last beta of {largest:.4g}, which must stay below 1; "
                    f"use steps >= {fewest}, a smaller beta_max, or schedule='cosine'"
                )

    @property
    def length(self) -> int:
        return self.steps

    @property
    def betas(self) -> Tensor:
        """beta_k, k = 1..K, float64."""
        low, high = self.beta_min * 1000 / self.steps, self.beta_max * 1000 / self.steps
        position = torch.linspace(0.0, 1.0, self.steps, dtype=torch.float64)
        if self.schedule == "linear":
            return low + position * (high - low)
        if self.schedule == "quadratic":
            return (math.sqrt(low) + position * (math.sqrt(high) - math.sqrt(low))).square()
        if self.schedule == "sigmoid":
            return low + torch.sigmoid(12 * position - 6) * (high - low)
        nodes = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        log_alpha = Cosine().log_alpha(nodes)
        return (-torch.expm1(2 * (log_alpha[1:] - log_alpha[:-1]))).clamp_max(_LARGEST_COSINE_BETA)

    def table(self) -> Tensor:
        log_alpha = 0.5 * torch.log1p(-self.betas).cumsum(0)
        return log_alpha - 0.5 * (-torch.expm1(2 * log_alpha)).log()

    def log_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * torch.log1p(self._noise_to_signal(t))

    def variance(self, t: Tensor) -> Tensor:
        return -torch.expm1(-torch.log1p(self._noise_to_signal(t)))  # r/(1+r), also where r overflows


@dataclass(frozen=True, repr=False)
class NCSN(Chain):
    """The noise levels of score matching with Langevin dynamics (SMLD): alpha = 1, sigma_k geometric, or as given.

    sigma_k = sigma_min (sigma_max/sigma_min)^((k-1)/(K-1)), ascending in t (papers list them descending).
    sigma_max should be about the largest distance between two data points. Song & Ermon 2019, arXiv:1907.05600;
    2020, arXiv:2006.09011.

    Args:
        sigma_min: smallest noise, > 0.
        sigma_max: largest noise, > sigma_min.
        levels: K >= 2.
        sigmas: instead of these three, the levels themselves, > 0, strictly rising or falling; kept ascending.

    Raises:
        ConfigError: for values outside these ranges, or both ways at once.
    """

    sigma_min: float = checked(0.01, above=0.0)
    sigma_max: float = checked(50.0, above=0.0)
    levels: int = checked(232, low=2)
    sigmas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.sigmas is not None:
            self._take(checks.listed("NCSN", "sigmas", self.sigmas))
        super().__post_init__()
        if self.sigma_min >= self.sigma_max:
            raise ConfigError(f"NCSN: sigma_min must be below sigma_max, got {self.sigma_min!r} and {self.sigma_max!r}")

    @property
    def length(self) -> int:
        return self.levels

    def _take(self, sigmas: tuple[float, ...]) -> None:
        sigmas = sigmas if sigmas[0] < sigmas[-1] else sigmas[::-1]
        if len(sigmas) < 2 or sigmas[0] <= 0 or not all(a < b for a, b in pairwise(sigmas)):
            raise ConfigError("NCSN: sigmas must be two or more different levels > 0, strictly rising or falling, "
                              f"got {len(sigmas)} values that are not")  # fmt: skip
        own = {"sigma_min": sigmas[0], "sigma_max": sigmas[-1], "levels": len(sigmas)}
        for name, value in own.items():
            if getattr(self, name) not in (value, type(self).__dataclass_fields__[name].default):
                raise ConfigError(f"NCSN: {name}={getattr(self, name)!r} and sigmas, which has {value!r}, "
                                  "do not agree; give one of them")  # fmt: skip
        for name, value in {**own, "sigmas": sigmas}.items():
            object.__setattr__(self, name, value)

    def table(self) -> Tensor:
        if self.sigmas is not None:
            return -torch.tensor(self.sigmas, dtype=torch.float64).log()
        return -torch.linspace(math.log(self.sigma_min), math.log(self.sigma_max), self.levels, dtype=torch.float64)

    def __repr__(self) -> str:
        listed = "" if self.sigmas is None else f", sigmas={hashlib.sha256(repr(self.sigmas).encode()).hexdigest()[:8]}"
        return f"NCSN(sigma_min={self.sigma_min!r}, sigma_max={self.sigma_max!r}, levels={self.levels!r}{listed})"

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def variance(self, t: Tensor) -> Tensor:
        return self._noise_to_signal(t)
