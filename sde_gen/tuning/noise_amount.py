r"""How much noise suits a network, between which levels and on which grid, judged by held-out data.

A fine solution cannot tell: where the network errs, samples of the reverse SDE come nearer to the data than those of
its own probability-flow ODE, since noise forgets earlier errors; of an exact score they do not. So samplers are told
apart by the energy distance of their samples X to data Y,

.. math:: E = 2\,\mathbb{E}|X-Y| - \mathbb{E}|X-X'| - \mathbb{E}|Y-Y'| .

By successive halving, on one half of the data: strengths and grids on few starts; the best of them on more, then those
beside the best in its last level, its order and the interval of its noise; the best two on more still. What is left
takes the place of the deterministic sampler only if it is nearer by `SURE` standard errors, on other starts and the
other half of the data, which nothing was chosen on. Karras et al. 2022, arXiv:2206.00364 (section 4); Jamieson &
Talwalkar 2016, arXiv:1502.07943.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sde_gen.conditions import Condition
from sde_gen.digests import digest
from sde_gen.errors import ConfigError, NonFiniteError
from sde_gen.metrics.jackknife import blocks, euclidean
from sde_gen.model import ScoreModel
from sde_gen.rng import keyed_generator
from sde_gen.samplers.grid_sampler import GridSampler
from sde_gen.samplers.stochastic import SDEDPMSolverPP
from sde_gen.tuning.uncalibrated import levels, uncalibrated

_LOG = logging.getLogger("sde_gen")
#: Strengths of the noise and widths of the grid that are tried; a width of 1 without noise is the usual rule.
_ETAS, _WIDTHS = (0.0, 0.4, 0.7, 1.0, 1.4), (1.0, 1.6)
#: Beside the best: later or earlier last levels; with noise also order 3, and none of it at low or at high levels.
_BESIDE = ({"deeper": -0.7}, {"deeper": 0.7})
_BESIDE_NOISY = (*_BESIDE, {"order": 3}, {"s_tmin": 0.3}, {"s_tmax": 3.0})
#: Starts of each in the last comparison in units (of the first look 1), units of all looks, starts of a unit at least.
_LAST, _UNITS, _FEWEST = 8, 44, 32
#: Starts that calls are counted by, and calls for each that a sampler makes, unless told otherwise.
BATCH, CALLS_FOR_EACH = 64, 2 * _UNITS
#: Held-out samples of each half: at least, and of more these are taken.
LEAST, _MOST = 32, 1024
#: Standard errors by which the winner has to be nearer to the data.
SURE = 2.0


class Held:
    """Held-out data (n, *shape), told apart by content.

    Raises:
        ConfigError: unless they are a finite floating tensor of at least two times `LEAST` samples.
    """

    def __init__(self, value: Tensor) -> None:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2 or len(value) < 2 * LEAST:
            shown = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(f"Auto: data must be a floating tensor (n, *shape) of at least {2 * LEAST} held-out "
                              f"samples on the model's scale, got {shown}")  # fmt: skip
        if not bool(value.isfinite().all()):
            raise ConfigError("Auto: data must be finite; leave out the samples with NaN or infinity")
        self.value = value.detach().cpu()
        self._key = digest(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and other._key == self._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"<data {tuple(self.value.shape)}>"


@dataclass
class _Trial:
    """A place in the space of choices, its sampler, and what that has drawn."""

    place: dict[str, Any]
    sampler: GridSampler
    x: Tensor
    distance: float = math.inf


class _Race:
    """Samplers on the same starts and beside the same data.

    Attributes:
        rows: starts times network calls on them, so far.
    """

    def __init__(self, model: ScoreModel, condition: Condition, seed: int, data: Tensor, late: Callable[[], bool]):
        self.model, self.condition, self.seed, self.data, self.late, self.rows = model, condition, seed, data, late, 0

    def drawn(self, sampler: GridSampler, first: int, count: int) -> Tensor:
        """Samples first ... count - 1; NaN where they are not finite."""
        shape = (count - first, *self.data.shape[1:])
        told = self.condition.tiled(count)[slice(first, count)]
        try:
            got = sampler(self.model, shape, seed=self.seed, first=first, condition=told, dtype=torch.float32)
        except NonFiniteError:
            return torch.full(shape, math.nan)
        self.rows += got.nfe * len(got.x)
        return got.x.cpu()

    def best(self, trials: list[_Trial], count: int, kept: int) -> list[_Trial]:
        """The nearest `kept` of these, by `count` samples of each."""
        for trial in trials:
            if self.late():
                break
            trial.x = torch.cat([trial.x, self.drawn(trial.sampler, len(trial.x), count)])
            trial.distance = nearness(trial.x, self.data)
        return sorted(trials, key=lambda trial: (math.isnan(trial.distance), trial.distance))[:kept]


def choose_noise(
    model: ScoreModel, condition: Condition, seed: int, nfe: int, usual: GridSampler, data: Tensor,
    calls: int, seconds: float | None, price: int,
) -> tuple[GridSampler, tuple[float, float] | None, int]:  # fmt: skip
    """The sampler, its gain over `usual` with a standard error (None: not measured), and the batch calls made.

    Args:
        usual: the deterministic choice, which is kept unless another is clearly nearer to the data.
        data: held out, (n, *shape).
        calls: on `BATCH` starts, at most.
        seconds: no trial begins after so many.
        price: network calls of one that a sampler makes.
    """
    began, unit = time.perf_counter(), BATCH * calls // (_UNITS * nfe * price)
    if unit < _FEWEST or nfe < 3:
        return usual, None, 0
    _LOG.info("Auto: noise='auto' makes at most %d calls more", calls)
    shuffled = data[torch.randperm(len(data), generator=keyed_generator(seed, 4))]
    half, shape = min(len(data) // 2, _MOST), data.shape[1:]

    def late() -> bool:
        return seconds is not None and time.perf_counter() - began > seconds

    def trial(eta: float, wider: float, deeper: float = 0.0, order: int = 2, **between: Any) -> _Trial:
        place = {"eta": eta, "wider": wider, "deeper": deeper, "order": order, **between}
        sampler = SDEDPMSolverPP(solver_order=order, eta=eta, **between) if eta else uncalibrated(model, nfe, shape)
        sampler = replace(sampler, grid=levels(model, nfe, nfe, shape, 0.0, wider, deeper))
        return _Trial(place, sampler, data.new_empty(0, *data.shape[1:]))

    race = _Race(model, condition, seed + 2, shuffled[:half], late)
    found = race.best([trial(eta, wider) for eta in _ETAS for wider in _WIDTHS], unit, 4)
    place = race.best(found, 2 * unit, 1)[0].place
    beside = [trial(**{**place, **change}) for change in (_BESIDE_NOISY if place["eta"] else _BESIDE)]
    found = race.best(race.best([*found, *beside], 2 * unit, 2), 4 * unit, 1)
    gain, winner = None, found[0].sampler
    last = _Race(model, condition, seed + 3, shuffled[half : 2 * half], late)
    if not late():
        before, after = (last.drawn(sampler, 0, _LAST * unit) for sampler in (usual, winner))
        gain = paired_gain(before, after, last.data)
    better = gain is not None and gain[0] > SURE * gain[1]
    return winner if better else usual, gain, math.ceil((race.rows + last.rows) / BATCH)


def _distances(x: Tensor, data: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean distances of each sample to the data and to the other samples, and of each datum to the samples."""
    x, y = (each.flatten(1).double() for each in (x, data))
    across, own = [], []
    for part in blocks(x, y if len(y) > len(x) else x):
        across.append(euclidean(part, y))
        own.append(euclidean(part, x).sum(1) / (len(x) - 1))
    table = torch.cat(across)
    return table.mean(1), torch.cat(own), table.mean(0)


def nearness(x: Tensor, data: Tensor) -> float:
    """The energy distance of samples to data without bias, but for what the data have among themselves."""
    across, own, _ = _distances(x, data)
    return float(2 * across.mean() - own.mean())


def paired_gain(one: Tensor, other: Tensor, data: Tensor) -> tuple[float, float]:
    r"""By how much the energy distance to data of `other` is less than that of `one`, and its standard error.

    .. math:: \mathrm{se}^2 = \mathrm{var}_i(h_i - h'_i)/n + \mathrm{var}_j(k_j - k'_j)/m, \qquad
              h_i = 2\,(|x_i - Y| - |x_i - X'|), \quad k_j = 2\,|X - y_j|,

    with means over what has no index: how the estimate moves with each start, which both sets share, and each datum.
    For two sets of one law it is somewhat too large, not too small.
    """
    (a, b, c), (d, e, f) = _distances(one, data), _distances(other, data)
    by_start, by_datum = 2 * ((a - b) - (d - e)), 2 * (c - f)
    error = by_start.var() / len(by_start) + by_datum.var() / len(by_datum)
    return float((2 * a - b - 2 * d + e).mean()), float(error.sqrt())
