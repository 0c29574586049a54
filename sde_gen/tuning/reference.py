r"""What a model's own trajectories say about how to solve it: a small batch, its fine solution, and grids that fit.

Local error of a rule of order p over a step h at lambda is, in :math:`u = x/\sqrt{\alpha^2+\sigma^2}`, about
:math:`\hat\alpha\,|\partial_\lambda^p D|\, h^{p+1}`. It is the same in every step where the times have the density

.. math:: \rho(\lambda) \propto \big( \mathbb{E}\, |\hat\alpha\, \partial_\lambda^p D|^2 \big)^{1/(2(p+1))} ,

which is read off a fine solution and is the starting point; the density's logarithm is then moved at a few knots to
where the error of the sampler itself is least on one part of the batch, and kept if it is less on the other too.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_gen import checks as check
from sde_gen.errors import ConfigError, NonFiniteError
from sde_gen.model import ScoreModel
from sde_gen.samplers.dpm_solver import DPMSolverPP3M
from sde_gen.samplers.grid_sampler import GridSampler
from sde_gen.samplers.grids import GivenLambdas
from sde_gen.samplers.multistep import AdamsBashforth
from sde_gen.samplers.noise import SeededNoise

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
    condition: dict[str, Any]
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
            result = sampler(self.model, start=self.start[rows], condition=cut(self.condition, rows))
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


def cut(condition: Mapping[str, Any], rows: slice) -> dict[str, Any]:
    """The rows of a condition that has one for each sample."""
    return {k: v[rows] if isinstance(v, Tensor) and v.ndim else v for k, v in condition.items()}


def calibrate(
    model: ScoreModel, shape: Sequence[int], condition: Mapping[str, Any] | None, seed: int, count: int | None, nfe: int
) -> Calibration:
    """Draw starts and solve them finely, from the first time down to the least noise the model is asked at.

    Args:
        shape: of one sample.
        condition: of the network; tensors with rows are repeated along the batch.
        count: starts; None for a number that fits nfe, the calls of the samplers to be tried.
    """
    size = math.prod(shape)
    if count is None:
        numbers, least = (_EXACT, _CHECKED_EXACT) if model.network is None else (_NUMBERS, _CHECKED)
        chosen_on = min(max(numbers // (size * nfe), _FEWEST), _MOST) // 2
        count = chosen_on + max(chosen_on, least)
    else:
        chosen_on = count // 2
    p = model.perturbation
    high = model.times_within()[1]
    low = model.times_within(p.t_min)[0]
    kept = {}
    for key, value in (condition or {}).items():
        rows = isinstance(value, Tensor) and value.ndim
        kept[key] = value[torch.arange(count, device=value.device) % len(value)] if rows else value
    like = torch.empty((), dtype=torch.float64, device=model.device).expand(count, *shape)
    start = SeededNoise(seed)(like, -1, 0) * float(p.sigma(high))
    first, last = float(p.half_log_snr(high)), float(p.half_log_snr(low))
    lambdas = np.linspace(first, min(last, first + 40.0), _REFERENCE)
    states: list[Tensor] = []
    keep = slice(0, min(count, max(16, 2**14 // size)))
    sampler = AdamsBashforth(order=4, grid=GivenLambdas(tuple(lambdas)))

    def record(step: int, t: float, x: Tensor) -> None:
        if step < len(lambdas):
            states.append((x[keep] / float((p.alpha(t) ** 2 + p.sigma(t) ** 2) ** 0.5)).flatten(1).cpu())

    result = sampler(model, start=start, condition=kept, callback=record, chunk=count)
    return Calibration(model, kept, start, result.x, torch.from_numpy(lambdas), _bend(torch.stack(states), lambdas),
                       chosen_on, result.nfe)  # fmt: skip


def _bend(u: Tensor, lambdas: np.ndarray) -> list[np.ndarray]:
    """From du/dlambda = alpha^ D - alpha^^2 u along the reference."""
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


def placed(lambdas: np.ndarray, density: np.ndarray, n: int, last: float) -> tuple[float, ...]:
    """n half log-SNRs of this density, from the first of `lambdas` to `last`."""
    first = float(lambdas[0])
    if n == 1:
        return (first,)
    fine = np.linspace(first, last, 800)
    value = np.interp(fine, lambdas, density)
    mass = np.concatenate([[0.0], np.cumsum(0.5 * (value[1:] + value[:-1]))])
    at = np.interp(np.linspace(0, mass[-1], n), mass, fine)
    at[0], at[-1] = first, last
    return tuple(at.tolist())


def densities(c: Calibration) -> dict[str, np.ndarray]:
    """Densities in lambda to begin from: of local errors, and the classical rho powers."""
    lam = c.lambdas.numpy()
    out = {}
    for p, bend in enumerate(c.bend, 1):
        local = bend ** (1 / (p + 1))
        out[f"local{p}"] = local + 0.1 * local.mean()
    for rho in (2.0, 4.0, 7.0, 14.0):
        out[f"rho{rho:g}"] = np.exp(-(lam - lam[0]) / rho)
    out["lambda"] = np.ones_like(lam)
    return out


def last_levels(c: Calibration) -> list[float]:
    """Noise levels to end at: the model's least, its samplers' usual one, and between."""
    p = c.model.perturbation
    least = float(c.lambdas[-1])
    usual = min(float(p.half_log_snr(c.model.times_within()[0])), least)
    first = float(c.lambdas[0])
    return sorted({round(v, 6) for v in (usual - 0.25 * (usual - first), usual, 0.5 * (usual + least), least)})


def refine(
    c: Calibration, rule: GridSampler, n: int, density: np.ndarray, last: float, tries: int, knots: int = 5
) -> tuple[GivenLambdas, float]:
    """Move the logarithm of the density at some knots, and the last level, to the least error on rows to choose on."""
    from scipy.optimize import minimize

    lam = c.lambdas.numpy()
    at = np.linspace(lam[0], last, knots)

    def grid(v: np.ndarray) -> GivenLambdas:
        shift = np.interp(lam, at, np.clip(v[:-1], -4, 4))
        end = float(np.clip(last + v[-1], lam[0] + 1.0, lam[-1]))
        return GivenLambdas(placed(lam, density * np.exp(shift), n, end))

    def error(v: np.ndarray) -> float:
        return math.log(max(c.error(replace(rule, grid=grid(v), steps=None)), 1e-300))

    begin = np.zeros(knots + 1)
    simplex = np.vstack([begin, *(begin + 0.5 * row for row in np.eye(knots + 1))])
    found = minimize(error, begin, method="Nelder-Mead",
                     options={"maxfev": tries, "initial_simplex": simplex, "xatol": 1e-3, "fatol": 1e-3})  # fmt: skip
    before, after = (c.error(replace(rule, grid=grid(v), steps=None), c.checked) for v in (begin, found.x))
    return (grid(found.x), after) if after < before else (grid(begin), before)


def fit_levels(c: Calibration, rule: GridSampler, n: int, tries: int) -> tuple[GivenLambdas, float]:
    """The best of all densities and last levels, refined; and its error on the other rows."""
    lam, shapes = c.lambdas.numpy(), densities(c)
    starts = [(c.error(replace(rule, grid=GivenLambdas(placed(lam, shapes[name], n, last)))), name, last)
              for name in shapes for last in last_levels(c)]  # fmt: skip
    _, name, last = min(starts)
    return refine(c, rule, n, shapes[name], last, tries)


def fit_grid(
    model: ScoreModel,
    steps: int,
    sampler: GridSampler | None = None,
    *,
    shape: Sequence[int],
    condition: Mapping[str, Any] | None = None,
    count: int | None = None,
    tries: int = 120,
    seed: int = 0,
    folder: str | Path | None = None,
) -> GivenLambdas:
    """N times placed for a model: error density first, then the sampler's own error on a small batch.

    Args:
        model: the model.
        steps: number N of times, >= 1.
        sampler: whose steps are to be placed; `DPMSolverPP3M()` by default. Its own steps and grid are not used.
        shape: of one sample.
        condition: keyword arguments of the network, for the calibration batch; rows are repeated.
        count: starts in that batch; by default 192 to 4096, fewer for larger samples and more steps.
            Of an exact score 4160 to 6144.
        tries: sampler runs on the part of the batch to choose on, at most.
        seed: of the starts.
        folder: where the result is kept as JSON, under a name that depends on all of the above and on the weights.

    Returns:
        Half log-SNRs, as a grid for any sampler with as many times.

    Raises:
        ConfigError: for values outside these.
    """
    check.integer("fit_grid", "steps", steps)
    sampler = DPMSolverPP3M() if sampler is None else sampler
    if not isinstance(sampler, GridSampler) or sampler.is_stochastic:
        raise ConfigError(f"fit_grid: sampler must be deterministic with a grid, got {sampler!r}")
    rule = replace(sampler, grid=None, steps=None)
    path = (
        None if folder is None else Path(folder) / f"grid-{key_of(model, steps, rule, tuple(shape), count, seed)}.json"
    )
    if path is not None and path.is_file():
        return GivenLambdas(tuple(json.loads(path.read_text())["lambdas"]))
    grid, _ = fit_levels(calibrate(model, shape, condition, seed, count, steps), rule, steps, tries)
    if path is not None:
        keep(path, {"lambdas": grid.values})
    return grid


def keep(path: Path, value: Any) -> None:
    """Write JSON that is there whole or not at all, whichever process writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(value, indent=1))
    os.replace(part, path)


def key_of(model: ScoreModel, *parts: Any) -> str:
    """A name for a model's content and these settings: 16 hexadecimal digits."""
    about = (model.perturbation, model.trained_under, model.parameterization, type(model.network).__name__)
    digest = hashlib.sha256(repr((about, [p for p in parts if not isinstance(p, dict)])).encode())
    tensors: dict[str, Any] = dict(model.state_dict())
    for condition in (p for p in parts if isinstance(p, dict)):
        tensors |= {f"condition {k}": torch.as_tensor(v) for k, v in condition.items()}
    law = getattr(model, "law", None)
    tensors |= {k: v for k, v in vars(law).items() if isinstance(v, Tensor)} if law is not None else {}
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
