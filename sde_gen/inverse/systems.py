"""Systems of particles: the noise they are moved by, how they are resampled, and what is returned of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.errors import ConfigError
from sde_gen.rng import keyed_generator
from sde_gen.samplers.noise import NoiseSource
from sde_gen.samplers.sampler import Samples

_POOL = 0x900


@dataclass(frozen=True, kw_only=True)
class Particles(Samples):
    """What `TwistedSMC` returns: one sample of each system, and what the systems tell.

    Attributes:
        x: one particle of each system, drawn by weight, (n, *shape).
        nfe: network calls made for each sample, those of all its particles.
        log_evidence: log p(y) in nats, float64: (), over all systems, or (n,) where each has an observation or
            condition of its own.
        log_evidence_error: its standard error over systems, (); NaN where there is one.
        system_log_evidence: of each system, (n,).
        ess: effective particles at each time, (n, K), before they are resampled: 1 to N.
        ancestors: how many of the particles at the start have descendants at the end, (n,).
        particles: all of them, (n, N, *shape), with `log_weights`, (n, N), normalised; None unless `return_all`.
        experts: probability of each expert of a `Mixture`, (n, J), from all particles of a system; None of others.

    One draw of each system counts all systems alike, though some met the observation better than others: the law of `x`
    is off by a part in proportion to 1/N, and that of `pooled()` by one in proportion to 1/(n N).
    """

    log_evidence: Tensor
    log_evidence_error: Tensor
    system_log_evidence: Tensor
    ess: Tensor
    ancestors: Tensor
    particles: Tensor | None = None
    log_weights: Tensor | None = None
    experts: Tensor | None = None

    def pooled(self, n: int | None = None, seed: int = 0) -> Tensor:
        """Draws from all systems together, by evidence times weight: right for fewer particles, but not independent.

        They are worth sum(Z)^2/sum(Z^2) independent ones, Z the evidence of each system. With `return_all` they come
        from all particles, and else from `x`.

        Args:
            n: number of draws, >= 1; by default one for each system.
            seed: of the draws.

        Returns:
            (n, *shape).

        Raises:
            ConfigError: where systems do not share one observation, so that there is nothing to pool.
        """
        where, systems = "Particles.pooled", len(self.x)
        if self.log_evidence.ndim:
            raise ConfigError(f"{where}: each system has an observation or condition of its own; use x")
        count = systems if n is None else checks.integer(where, "n", n)
        states, weights = self.x, self.system_log_evidence[:, None]
        if self.particles is not None and self.log_weights is not None:
            states, weights = self.particles.flatten(0, 1), weights + self.log_weights
        u = torch.rand(1, 1, dtype=torch.float64, generator=keyed_generator(seed, _POOL))
        return states[systematic(weights.reshape(1, -1), u.to(weights.device), count)[0]]


def opposite(source: NoiseSource, wide: Tensor, k: int) -> Tensor:
    """Standard normal numbers shaped like (n, N, *shape), those of the second half the opposite of the first's.

    So the particles of a system lie more evenly than independent ones would, which halves the error of its law. Each is
    still standard normal given the past, which is all that an unbiased evidence asks for.
    """
    half = source(wide[:, : (wide.shape[1] + 1) // 2], k, 0)
    return torch.cat([half, -half[:, : wide.shape[1] // 2]], 1)


def effective(log_weights: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 of each row, 1 to N."""
    return (2 * log_weights.logsumexp(1) - (2 * log_weights).logsumexp(1)).exp()


def uniform(normal: Tensor) -> Tensor:
    """Numbers in (0, 1) from standard normal ones, float64."""
    return torch.special.ndtr(normal.to(torch.float64)).clamp(1e-12, 1 - 1e-12)


def systematic(log_weights: Tensor, u: Tensor, count: int | None = None) -> Tensor:
    """Indices of `count` draws (N by default) from each row, in proportion to weight, at (u + j)/count."""
    count = log_weights.shape[1] if count is None else count
    heights = log_weights.softmax(1).cumsum(1)
    at = (u + torch.arange(count, device=u.device)) / count * heights[:, -1:]
    return torch.searchsorted(heights, at).clamp_max(log_weights.shape[1] - 1)
