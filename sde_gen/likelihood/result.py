"""What a likelihood computation returns."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sde_gen.errors import SDEGenError


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihoods of B samples, float64 tensors (B,) in nats unless said otherwise.

    Attributes:
        log_prob: log-density of the samples on the model's scale; NaN for a sample whose solve failed.
        standard_error: of log_prob, over independent probes; 0 for the exact divergence, NaN for a single probe.
        nfe: network calls of the sample that took most.
        nfe_per_sample: network calls of each sample, (B,) int64.
        prior_mismatch: log N(z; 0, prior_std^2 I) - log p(z) at the end z of each trajectory: what the standard prior
            adds to log_prob; oracles only, else None.
        truncation: log-density of the data with the least noise, minus that of the data: what starting at t_min adds
            to log_prob; `GaussianMixture` oracles only, else None.
        latent: the ends z of the trajectories, (B, *shape).
        dimensions: D, numbers in one sample.
        log_volume: log |d x / d raw| of the data's transform with the width of a level, in nats: log_prob + log_volume
            is the log-probability of the raw data (of its cell, for data with levels).
        failed: samples whose solve failed, index to error.
    """

    log_prob: Tensor
    standard_error: Tensor
    nfe: int
    nfe_per_sample: Tensor
    latent: Tensor
    dimensions: int
    log_volume: float = 0.0
    prior_mismatch: Tensor | None = None
    truncation: Tensor | None = None
    failed: Mapping[int, SDEGenError] = field(default_factory=dict)

    @property
    def bits_per_dim(self) -> Tensor:
        """-(log_prob + log_volume) / (D ln 2): bits per dimension of the raw data, if a transform was given."""
        return -(self.log_prob + self.log_volume) / (self.dimensions * math.log(2))

    @property
    def bits_per_dim_standard_error(self) -> Tensor:
        """Standard error of `bits_per_dim` over probes."""
        return self.standard_error / (self.dimensions * math.log(2))

    def mean(self) -> tuple[float, float]:
        """Mean log_prob over the samples that did not fail, and its standard error over samples and probes."""
        return _mean(self.log_prob)

    def mean_bits_per_dim(self) -> tuple[float, float]:
        """Mean `bits_per_dim` over the samples that did not fail, and its standard error over samples and probes."""
        return _mean(self.bits_per_dim)


def _mean(values: Tensor) -> tuple[float, float]:
    # The spread over samples contains that over probes, which are independent between samples.
    kept = values[~values.isnan()]
    if not len(kept):
        return math.nan, math.nan
    spread = float(kept.std()) / math.sqrt(len(kept)) if len(kept) > 1 else math.nan
    return float(kept.mean()), spread


def concatenated(parts: list[Likelihood]) -> Likelihood:
    """The parts of one batch as one."""
    if len(parts) == 1:
        return parts[0]

    def joined(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    head = parts[0]
    return Likelihood(
        torch.cat([part.log_prob for part in parts]),
        torch.cat([part.standard_error for part in parts]),
        max(part.nfe for part in parts),
        torch.cat([part.nfe_per_sample for part in parts]),
        torch.cat([part.latent for part in parts]),
        head.dimensions,
        head.log_volume,
        joined("prior_mismatch"),
        joined("truncation"),
        {index: error for part in parts for index, error in part.failed.items()},
    )
