r"""A small batch of a model's own trajectories, solved finely: what samplers, grids and solvers are judged by."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sde_gen.conditions import Condition
from sde_gen.errors import NonFiniteError
from sde_gen.model import ScoreModel
from sde_gen.rng import SeededNoise
from sde_gen.samplers.grid_sampler import GridSampler
from sde_gen.samplers.grids import GivenLambdas
from sde_gen.samplers.multistep import AdamsBashforth
from sde_gen.tuning.uncalibrated import is_exact

#: Steps of the reference solution; at order 4 its error is far below that of any sampler it is to judge.
_REFERENCE = 400
#: Numbers that one run over a calibration batch works on (rows times size times calls), with a network and with an
#: exact score, which costs less; and rows at least and at most. Errors hang on the few trajectories that change mode,
#: so that rows are worth more than many tries.
_NUMBERS, _EXACT, _FEWEST, _MOST = 2**18, 2**20, 128, 4096
#: Rows at least for the last decision, with a network and with an exact score: few runs are made on them.
_CHECKED, _CHECKED_EXACT = 128, 4096


@dataclass
class Calibration:
    """A batch of starts from the prior, their fine solution, and what it cost."""

    model: ScoreModel
    condition: Condition
    start: Tensor
    """x at the first time, (B, *shape), float64."""
    sample: Tensor
    lambdas: Tensor
    """Half log-SNRs of the reference."""
    bend: list[np.ndarray]
    """Root mean square of alpha^ times the p-th derivative of D, p = 1, 2, 3, at those."""
    chosen_on: int
    """Rows that choices are made on; those after them are for the last decision between a few."""
    calls: int = 0
    """Network calls made, each of up to one batch."""

    def squared(self, sampler: GridSampler, rows: slice | None = None) -> Tensor:
        """Mean square distance of each row, per number, to the fine solution; infinite if the sampler fails."""
        rows = slice(0, self.chosen_on) if rows is None else rows
        try:
            result = sampler(self.model, start=self.start[rows], condition=self.condition[rows])
        except NonFiniteError:
            return torch.full((len(self.start[rows]),), math.inf, dtype=torch.float64)
        self.calls += result.nfe
        return (result.x - self.sample[rows]).flatten(1).square().mean(1).nan_to_num(math.inf)

    def error(self, sampler: GridSampler, rows: slice | None = None) -> float:
        """Root mean square distance, per number, to the fine solution; infinite if the sampler fails."""
        return float(self.squared(sampler, rows).mean().sqrt())

    @property
    def checked(self) -> slice:
        return slice(self.chosen_on, len(self.start))

    @property
    def u(self) -> Tensor:
        """The starts over sqrt(alpha^2 + sigma^2)."""
        p, t = self.model.perturbation, self.model.perturbation.time(self.lambdas[0])
        return self.start / float(p.size(t))


def calibrate(
    model: ScoreModel, shape: Sequence[int], condition: Condition, seed: int, count: int | None, nfe: int
) -> Calibration:
    """Draw starts and solve them finely, from the first time down to the least noise the model is asked at.

    Args:
        shape: of one sample.
        condition: of the network; its rows are repeated along the batch.
        count: starts; None for a number that fits nfe, the calls of the samplers to be tried.
    """
    size = math.prod(shape)
    if count is None:
        numbers, least = (_EXACT, _CHECKED_EXACT) if is_exact(model) else (_NUMBERS, _CHECKED)
        chosen_on = min(max(numbers // (size * nfe), _FEWEST), _MOST) // 2
        count = chosen_on + max(chosen_on, least)
    else:
        chosen_on = count // 2
    p = model.perturbation
    high = model.times_within()[1]
    low = model.times_within(p.t_min)[0]
    tiled = condition.tiled(count)
    like = torch.empty((), dtype=torch.float64, device=model.device).expand(count, *shape)
    start = SeededNoise(seed)(like, -1, 0) * float(p.sigma(high))
    first, last = float(p.half_log_snr(high)), float(p.half_log_snr(low))
    lambdas = np.linspace(first, min(last, first + 40.0), _REFERENCE)
    states: list[Tensor] = []
    keep = slice(0, min(count, max(16, 2**14 // size)))
    sampler = AdamsBashforth(order=4, grid=GivenLambdas(tuple(lambdas)))

    def record(step: int, t: float, x: Tensor) -> None:
        if step < len(lambdas):
            states.append((x[keep] / float(p.size(t))).flatten(1).cpu())

    result = sampler(model, start=start, condition=tiled, callback=record, chunk=count)
    return Calibration(model, tiled, start, result.x, torch.from_numpy(lambdas), bend(torch.stack(states), lambdas),
                       chosen_on, result.nfe)  # fmt: skip


def bend(u: Tensor, lambdas: np.ndarray) -> list[np.ndarray]:
    """alpha^ times the p-th derivative of D, p = 1, 2, 3, root mean square: from du/dlambda = alpha^ D - alpha^^2 u."""
    alpha = np.sqrt(1 / (1 + np.exp(-2 * lambdas)))[:, None]
    h = lambdas[1] - lambdas[0]
    states = u.flatten(1).numpy()
    d = (np.gradient(states, h, axis=0) + alpha**2 * states) / alpha
    out = []
    for _ in range(3):
        d = np.gradient(d, h, axis=0)
        size = alpha[:, 0] * np.sqrt((d**2).mean(1))
        out.append(np.convolve(np.pad(size, 8, mode="edge"), np.ones(17) / 17, mode="valid"))
    return out
