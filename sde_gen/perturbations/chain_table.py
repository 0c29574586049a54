r"""A chain whose nodes are given as a list, such as the schedule that came with somebody's network."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.errors import ConfigError
from sde_gen.perturbations.discrete import Chain


@dataclass(frozen=True, repr=False)
class Table(Chain):
    r"""A variance-preserving chain by its list of :math:`\log\bar\alpha_k`, k = 1..K.

    alpha_k^2 = alpha_bar_k, sigma_k^2 = 1 - alpha_bar_k. The last node may have no signal at all, alpha_bar_K = 0 (zero
    terminal SNR, Lin et al. 2024, arXiv:2305.08891): alpha/sigma then falls linearly in t over the last interval, as on
    a straight path to noise, and t_max is the node before, except for samplers that are finite there. Made by
    `from_betas`, `from_alpha_bars` or `zero_terminal_snr`.

    Args:
        log_alpha_bar: below 0, strictly falling; only the last may be -inf.

    Raises:
        ConfigError: for what is no such list.
    """

    log_alpha_bar: tuple[float, ...]

    def __post_init__(self) -> None:
        values = checks.listed("Table", "log_alpha_bar", self.log_alpha_bar, infinite=True)
        for k, (before, after) in enumerate(pairwise((0.0, *values))):
            if not after < before:
                raise ConfigError(f"Table: log_alpha_bar must lie below 0 and fall from node to node, got {after!r} "
                                  f"after {before!r} at node {k + 1}; signal is only lost")  # fmt: skip
        if values[0] == -math.inf:
            raise ConfigError("Table: only a last node may have no signal, and it needs one before it")
        object.__setattr__(self, "log_alpha_bar", values)

    @classmethod
    def from_betas(cls, betas: Iterable[float] | Tensor) -> Self:
        """The chain x_k = sqrt(1 - beta_k) x_{k-1} + sqrt(beta_k) z; alpha_bar_k = prod (1 - beta_j), in float64.

        Raises:
            ConfigError: for a beta outside (0, 1); only the last may be 1.
        """
        values = checks.listed("Table.from_betas", "betas", betas)
        for k, beta in enumerate(values):
            if not 0 < beta < 1 and not (beta == 1 and k == len(values) - 1):
                raise ConfigError(f"Table.from_betas: betas[{k}] must be a number in (0, 1), the last in (0, 1], "
                                  f"got {beta!r}")  # fmt: skip
        return cls(tuple(torch.log1p(-torch.tensor(values, dtype=torch.float64)).cumsum(0).tolist()))

    @classmethod
    def from_alpha_bars(cls, alpha_bars: Iterable[float] | Tensor) -> Self:
        """The chain with alpha_k^2 = alpha_bar_k, such as `alphas_cumprod` of other libraries.

        Raises:
            ConfigError: for an alpha_bar outside (0, 1), or above the one before; only the last may be 0.
        """
        values = checks.listed("Table.from_alpha_bars", "alpha_bars", alpha_bars)
        for k, (before, after) in enumerate(pairwise((1.0, *values))):
            if not 0 <= after < before or (after == 0 and k < len(values) - 1):
                raise ConfigError(f"Table.from_alpha_bars: alpha_bars must fall from below 1 to 0 at the last node or "
                                  f"above, got alpha_bars[{k}]={after!r} after {before!r}")  # fmt: skip
        return cls(tuple(math.log(value) if value else -math.inf for value in values))

    @classmethod
    def zero_terminal_snr(cls, chain: Chain) -> Self:
        r"""A variance-preserving chain, shifted and scaled so that no signal is left at the last node.

        .. math:: \alpha'_k = (\alpha_k - \alpha_K)\, \alpha_1/(\alpha_1 - \alpha_K)

        Lin et al. 2024, arXiv:2305.08891.

        Raises:
            ConfigError: for what is no chain of two nodes or more with alpha^2 + sigma^2 = 1.
        """
        if not isinstance(chain, Chain) or chain.length < 2 or float((chain.size(chain.nodes) - 1).abs().max()) > 1e-9:
            raise ConfigError("Table.zero_terminal_snr: give a variance-preserving chain of two nodes or more, such as "
                              f"DDPM(), got {chain!r}")  # fmt: skip
        log_alpha = chain.log_alpha(chain.nodes)
        lost = torch.expm1(log_alpha - log_alpha[0])  # alpha_k/alpha_1 - 1
        return cls(tuple((2 * (log_alpha[0] + torch.log1p(-lost / lost[-1]))).tolist()))

    @property
    def length(self) -> int:
        return len(self.log_alpha_bar)

    @property
    def t_max(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The last node with signal, 1 or 1 - 1/K."""
        return 1.0 - self._is_spent / self.length

    @property
    def _is_spent(self) -> bool:
        """Whether no signal is left at the last node."""
        return self.log_alpha_bar[-1] == -math.inf

    def table(self) -> Tensor:
        log_bar = torch.tensor(self.log_alpha_bar, dtype=torch.float64)
        return 0.5 * (log_bar - (-torch.expm1(log_bar)).log())

    def log_alpha(self, t: Tensor) -> Tensor:
        here = -0.5 * torch.log1p(self._noise_to_signal(t.clamp_max(self.t_max)))
        if not self._is_spent:
            return here
        return torch.where(t > self.t_max, self._fading(t).log() - 0.5 * torch.log1p(self._fading(t).square()), here)

    def variance(self, t: Tensor) -> Tensor:
        here = -torch.expm1(-torch.log1p(self._noise_to_signal(t.clamp_max(self.t_max))))
        return torch.where(t > self.t_max, 1 / (1 + self._fading(t).square()), here) if self._is_spent else here

    def _fading(self, t: Tensor) -> Tensor:
        """alpha/sigma in the last interval."""
        return self._lambdas(t)[-2].exp() * self.length * (1 - t.clamp_min(self.t_max))

    def time(self, half_log_snr: Tensor) -> Tensor:
        if not self._is_spent:
            return super()._time(half_log_snr)
        last = self._lambdas(half_log_snr)[-2]
        before = super()._time(half_log_snr.clamp_min(last))
        return torch.where(half_log_snr < last, 1 - (half_log_snr - last).exp() / self.length, before)

    def __repr__(self) -> str:
        """Too many numbers to print: how many, and which by a digest."""
        content = hashlib.sha256(repr(self.log_alpha_bar).encode()).hexdigest()[:8]
        return f"Table({self.length} nodes, lambda {self.table()[0]:.4g} to {self.table()[-1]:.4g}, {content})"
