r"""What the discretisation alone costs, measured where the answer is known exactly.

Deterministic samplers: distance to the exact solution of the probability-flow ODE of a mixture of three Gaussians. In
:math:`y = x/\alpha` it is :math:`dy/d\lambda = D - y`, the same for all formulations, so one reference serves all.

Stochastic samplers: error of the output's variance for Gaussian data (weak order). For a Gaussian every score is
affine and so is the sampler; the variance is read off exactly from runs with one unit noise at a time.

Both run over the half log-SNRs [-3, 2.5], or the part of it that the process has, in which data of standard deviations
0.3 to 1.2 goes from nearly hidden to nearly clean, on a grid even in lambda.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sde_gen.comparison.cells.cell import Cell, Context, Result
from sde_gen.errors import ConfigError
from sde_gen.oracles import GaussianMixture, Oracle
from sde_gen.perturbations import Perturbation
from sde_gen.samplers import GridSampler, ProbabilityFlow, Sampler

WINDOW = (-3.0, 2.5)
COUNTS = (64, 128, 256, 512)
_WEIGHTS = [0.5, 0.3, 0.2]
_MEANS = [[1.0, 0.3], [-0.8, 0.9], [-0.2, -1.1]]
_COVARIANCES = [[[0.25, 0.1], [0.1, 0.2]], [[0.1, -0.03], [-0.03, 0.3]], [[0.4, 0.0], [0.0, 0.12]]]
_STARTS = [[0.3, -1.1], [1.4, 0.6], [-0.7, -0.2], [0.05, 1.7]]  # in units of the noise at the start
_VARIANCE = 0.25


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedOrder(Cell):
    """The order of convergence of a sampler under a perturbation."""

    kind: ClassVar[str] = "order"
    perturbation: Perturbation
    sampler: Sampler

    def compute(self, context: Context, stop: Callable[[], bool]) -> Result:
        """See `fitted_order`."""
        return fitted_order(self.sampler, self.perturbation), {}


class Window(Oracle):
    """An oracle that samplers ask within the window only."""

    def times_within(self, t_low: float | None = None) -> tuple[float, float]:
        """The times at which lambda is at the ends of the window."""
        first, last = self.perturbation.time(torch.tensor(window(self.perturbation), dtype=torch.float64)).tolist()
        return last, first


def window(p: Perturbation) -> tuple[float, float]:
    """The part of `WINDOW` that the process has.

    Raises:
        ConfigError: none, or hardly any.
    """
    first, last = (float(p.half_log_snr(t)) for t in (p.t_max, p.t_sample))
    low, high = max(WINDOW[0], first), min(WINDOW[1], last)
    if high - low < 1.0:
        raise ConfigError(f"{p} has hardly any of the half log-SNRs {WINDOW} of the problem")
    return low, high


def fitted_order(sampler: Sampler, p: Perturbation) -> dict[str, Any]:
    """Claimed order, and the slope of log error against log steps with its standard error.

    Raises:
        ConfigError: the sampler claims no order, chooses its own steps, or `p` does not cover the window.
    """
    if "steps" not in getattr(sampler, "__dataclass_fields__", {}) or (
        isinstance(sampler, ProbabilityFlow) and sampler.is_adaptive
    ):
        raise ConfigError("chooses its own steps, so there is no number of steps to converge in")
    claimed = sampler.order
    if claimed is None:
        raise ConfigError("claims no order: more steps alone do not make it exact")
    error = _weak if sampler.is_stochastic else _strong
    errors = [error(_with(sampler, n), p) for n in COUNTS]
    x, y = np.log(COUNTS), np.log(errors)
    slope, intercept = np.polyfit(x, y, 1)
    rest = y - slope * x - intercept
    deviation = math.sqrt(float((rest**2).sum()) / (len(x) - 2) / float(((x - x.mean()) ** 2).sum()))
    return {
        "error_kind": "weak" if sampler.is_stochastic else "strong",
        "claimed": float(claimed),
        "fitted": float(-slope),
        "standard_error": deviation,
        "counts": list(COUNTS),
        "errors": [float(e) for e in errors],
    }


def _with(sampler: Any, n: int) -> Sampler:
    if isinstance(sampler, GridSampler):
        return replace(sampler, steps=n, grid="lambda", denoise=False)
    return replace(sampler, steps=n, denoise=False)


def _ends(p: Perturbation) -> tuple[float, float, float]:
    """alpha and sigma at the first time, alpha at the last."""
    t = p.time(torch.tensor(window(p), dtype=torch.float64))
    alpha, sigma = p.alpha(t).tolist(), p.sigma(t).tolist()
    return alpha[0], sigma[0], alpha[1]


def _strong(sampler: Sampler, p: Perturbation) -> float:
    _, sigma, alpha_end = _ends(p)
    model = Window(GaussianMixture(_WEIGHTS, _MEANS, _COVARIANCES), p)
    start = torch.tensor(_STARTS, dtype=torch.float64) * sigma
    y = sampler(model, start=start).x / alpha_end
    return float((y - reference(*window(p))).square().mean().sqrt())


@lru_cache(maxsize=8)
def reference(first: float, last: float) -> Tensor:
    """The exact flow of y between two half log-SNRs, to about 1e-11."""
    from scipy.integrate import solve_ivp

    law = GaussianMixture(_WEIGHTS, _MEANS, _COVARIANCES)
    one = torch.ones((), dtype=torch.float64)

    def slope(lam: float, y: Any) -> Any:
        state = torch.from_numpy(y).reshape(-1, 2)
        return (law.denoise(state, one, one * math.exp(-lam)) - state).numpy().ravel()

    begin = (torch.tensor(_STARTS, dtype=torch.float64) * math.exp(-first)).numpy().ravel()
    end = solve_ivp(slope, (first, last), begin, method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
    return torch.from_numpy(end).reshape(-1, 2)


class UnitNoise:
    """One unit noise for each row of the batch: the draws are numbered as they come, and row r + 2 is 1 at draw r.

    Attributes:
        drawn: number of different (step, draw) pairs that were asked for.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[int, int], int] = {}

    @property
    def drawn(self) -> int:
        """How many noises the sampler uses."""
        return len(self._rows)

    def __call__(self, like: Tensor, step: int, draw: int) -> Tensor:
        row = self._rows.setdefault((step, draw), len(self._rows)) + 2
        noise = torch.zeros_like(like)
        if row < len(like):
            noise[row] = 1.0
        return noise


def _weak(sampler: Sampler, p: Perturbation) -> float:
    alpha, sigma, alpha_end = _ends(p)
    model = Window(GaussianMixture([1.0], [[0.0]], [[[_VARIANCE]]]), p)
    counter = UnitNoise()
    sampler(model, start=torch.zeros(1, 1, dtype=torch.float64), noise=counter)
    start = torch.zeros(counter.drawn + 2, 1, dtype=torch.float64)
    start[1] = math.sqrt(_VARIANCE * alpha**2 + sigma**2)
    x = sampler(model, start=start, noise=UnitNoise()).x
    variance = float((x[1:] - x[0]).square().sum())
    sigma_end = alpha_end * math.exp(-window(p)[1])
    return abs(variance - (_VARIANCE * alpha_end**2 + sigma_end**2))
