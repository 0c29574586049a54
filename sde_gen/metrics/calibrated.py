"""Whether draws from posteriors are as spread as they should be: ranks, coverage and the score of the draws.

Each truth x_n has S draws of its own, from the law that is claimed for it. Where that law is right, truth and draws are
exchangeable, so that the rank of the truth among its draws is uniform on 0..S (Talts et al. 2018, arXiv:1804.06788).
Averages over observations see a wrong width and a bias; what they do not see are errors that cancel between
observations, such as wrong weights of modes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import chisquare
from torch import Tensor

from sde_gen.checks import integer, number
from sde_gen.errors import DataError
from sde_gen.rng import keyed_generator

_BINS = 10  # of ranks, at most; five truths each at least
_KEY = 0x5BC


@dataclass(frozen=True)
class Coverage:
    """How often central regions hold the truth.

    Attributes:
        level: that was asked for.
        nominal: probability of the region of S draws that comes nearest to it.
        found: part of the truths' values inside.
        standard_error: of `found`, over the truths.
    """

    level: float
    nominal: float
    found: float
    standard_error: float | None


@dataclass(frozen=True)
class Calibration:
    """What `calibration` found.

    Attributes:
        n, draws: truths, and draws for each.
        crps: continuous ranked probability score, mean over values: E|X - x| - E|X - X'|/2 over different pairs
            (Gneiting & Raftery 2007); in the units of the values, lower is better.
        crps_error: its standard error over the truths; None of one truth.
        coverage: of the central regions.
        p_values: of uniform ranks, by chi-square, for each of `statistics` random directions; small: not calibrated.
    """

    n: int
    draws: int
    crps: float
    crps_error: float | None
    coverage: tuple[Coverage, ...]
    p_values: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def ranks(draws: Tensor, truth: Tensor) -> Tensor:
    """How many of the draws lie below the truth, for each value; of those that are equal half, rounded down.

    Args:
        draws: (S, N, *shape).
        truth: (N, *shape).

    Returns:
        (N, *shape) int64 in 0..S.
    """
    return (draws < truth).sum(0) + (draws == truth).sum(0) // 2


def calibration(
    draws: Tensor, truth: Tensor, levels: Sequence[float] = (0.5, 0.9), statistics: int = 4, seed: int = 0
) -> Calibration:
    """Score, coverage and ranks of draws from posteriors against the truths that the observations came from.

    Args:
        draws: (S, N, *shape), S >= 2 draws for each of N truths.
        truth: (N, *shape).
        levels: probabilities in (0, 1) of central regions.
        statistics: number of random directions whose ranks are tested.
        seed: of the directions.

    Raises:
        DataError: shapes that do not fit, NaN or infinite values.  ConfigError: a level outside (0, 1).
    """
    if draws.dim() < 2 or draws.shape[1:] != truth.shape or len(draws) < 2 or not truth.numel():
        raise DataError(
            f"calibration: draws must be (S, N, *shape) with S >= 2 and truth (N, *shape), got {tuple(draws.shape)} "
            f"and {tuple(truth.shape)}"
        )
    integer("calibration", "statistics", statistics, low=0)
    draws = draws.detach().double().cpu().flatten(2) if draws.dim() > 2 else draws.detach().double().cpu()[:, :, None]
    truth = truth.detach().double().cpu().reshape(draws.shape[1:])
    if not (bool(draws.isfinite().all()) and bool(truth.isfinite().all())):
        raise DataError("calibration: draws or truth hold NaN or infinity")
    count, n = draws.shape[:2]
    place = ranks(draws, truth)
    covered = []
    for level in levels:
        level = number("calibration", "levels", level, low=0, high=1, open_low=True, open_high=True)
        outer = round((1 - level) / 2 * (count + 1))
        inside = ((place >= outer) & (place <= count - outer)).double().mean(1)
        nominal = (count + 1 - 2 * outer) / (count + 1)
        covered.append(Coverage(level, nominal, float(inside.mean()), _error(inside)))
    score = _crps(draws, truth).mean(1)
    directions = torch.randn(
        truth.shape[1], statistics, generator=keyed_generator(seed, 0, 0, _KEY), dtype=torch.float64
    )
    projected = ranks(draws @ directions, truth @ directions)
    bins = max(1, min(_BINS, n // 5, count + 1))
    p_values = tuple(_uniform(r.numpy(), count, bins) for r in projected.T) if bins > 1 else ()
    return Calibration(n, count, float(score.mean()), _error(score), tuple(covered), p_values)


def _crps(draws: Tensor, truth: Tensor) -> Tensor:
    """(N, D): E|X - x| - E|X - X'|/2; the second by order statistics, over pairs of different draws."""
    count = len(draws)
    ordered = draws.sort(0).values
    weights = (2 * torch.arange(1, count + 1, dtype=torch.float64) - count - 1).reshape(-1, 1, 1)
    spread = 2 * (weights * ordered).sum(0) / (count * (count - 1))
    return (draws - truth).abs().mean(0) - spread / 2


def _uniform(found: np.ndarray, count: int, bins: int) -> float:
    """p-value of ranks in 0..count being uniform; bins hold the ranks that fall to them, and are weighted by these."""
    edge = np.arange(count + 1) * bins // (count + 1)
    expected = np.bincount(edge, minlength=bins) * len(found) / (count + 1)
    return float(chisquare(np.bincount(edge[found], minlength=bins), expected).pvalue)


def _error(x: Tensor) -> float | None:
    return float(x.std() / len(x) ** 0.5) if len(x) > 1 else None
