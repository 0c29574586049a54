r"""Noise levels placed for a model.

Local error of a rule of order p over a step h at lambda is, in :math:`u = x/\sqrt{\alpha^2+\sigma^2}`, about
:math:`\hat\alpha\,|\partial_\lambda^p D|\, h^{p+1}`. It is the same in every step where the times have the density

.. math:: \rho(\lambda) \propto \big( \mathbb{E}\, |\hat\alpha\, \partial_\lambda^p D|^2 \big)^{1/(2(p+1))} ,

which is read off a fine solution and is the starting point; the density's logarithm is then moved at a few knots to
where the error of the sampler itself is least on one part of the batch, and kept if it is less on the other too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sde_gen import checks
from sde_gen.conditions import Condition
from sde_gen.errors import ConfigError
from sde_gen.model import ScoreModel
from sde_gen.samplers.grid_sampler import GridSampler
from sde_gen.samplers.grids import GivenLambdas
from sde_gen.samplers.named_multistep import DPMSolverPP3M
from sde_gen.tuning.kept import kept
from sde_gen.tuning.reference import Calibration, calibrate


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
        out[f"local{p}"] = local + 0.1 * local.mean() if local.any() else np.ones_like(lam)
    for rho in (2.0, 4.0, 7.0, 14.0):
        out[f"rho{rho:g}"] = np.exp(-(lam - lam[0]) / rho)
    out["lambda"] = np.ones_like(lam)
    return out


def last_levels(c: Calibration) -> list[float]:
    """Noise levels to end at: the model's least, its samplers' usual one, and between."""
    p, first, least = c.model.perturbation, float(c.lambdas[0]), float(c.lambdas[-1])
    usual = min(float(p.half_log_snr(c.model.times_within()[0])), least)
    most = float(p.half_log_snr(0.0))  # which rounding must not pass
    found = (usual - 0.25 * (usual - first), usual, 0.5 * (usual + least), least)
    return sorted({min(round(v, 6), most) for v in found})


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
        condition: of the network, for the calibration batch; its rows are repeated.
        count: starts in that batch; by default 192 to 4096, fewer for larger samples and more steps.
            Of an exact score 4160 to 6144.
        tries: sampler runs on the part of the batch to choose on, at most.
        seed: of the starts.
        folder: where the result is kept as JSON, under a name that depends on all of the above, by content.

    Returns:
        Half log-SNRs, as a grid for any sampler with as many times.

    Raises:
        ConfigError: for values outside these; with a folder, for a model or condition whose content cannot be told.
    """
    checks.integer("fit_grid", "steps", steps)
    checks.integer("fit_grid", "tries", tries)
    if count is not None:
        checks.integer("fit_grid", "count", count, low=4)
    shape = checks.integers("fit_grid", "shape", shape)
    sampler = DPMSolverPP3M() if sampler is None else sampler
    if not isinstance(sampler, GridSampler) or sampler.is_stochastic:
        raise ConfigError(f"fit_grid: sampler must be deterministic with a grid, got {sampler!r}")
    rule, told = replace(sampler, grid=None, steps=None), Condition.of("fit_grid", condition, None)

    def measure() -> dict[str, Any]:
        return {"lambdas": fit_levels(calibrate(model, shape, told, seed, count, steps), rule, steps, tries)[0].values}

    about = (model, steps, rule, shape, told, count, tries, seed)
    return GivenLambdas(tuple(kept("fit_grid", folder, "grid", about, measure)["lambdas"]))
