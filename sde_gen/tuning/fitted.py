r"""A solver whose every number is fitted to a model.

A deterministic solver with N network calls is, whatever its family, a list of noise levels and two arrays: each state
is a linear combination of the start and of the denoised estimates so far,

.. math:: u_k = c_k u_0 + \sum_{j<k} w_{kj} D_j , \qquad D_k = D(u_k, \lambda_k), \qquad k = 1 \dots N,

with :math:`u = x/\sqrt{\alpha^2+\sigma^2}` and the sample :math:`u_N` at noise level 0. Rules of any order are points
of this set; `fit` moves from the best of them to where the error against a fine solution of the same model is least.
Shaul et al. 2024, arXiv:2403.01329 (non-stationary solvers).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_gen.conditions import Condition
from sde_gen.errors import ConfigError
from sde_gen.model import ScoreModel
from sde_gen.perturbations import Perturbation
from sde_gen.samplers.exponential import from_state_and_data
from sde_gen.samplers.flow import unit_curves
from sde_gen.samplers.grid_sampler import GridSampler, Run, Step, require_finite
from sde_gen.samplers.grids import GivenLambdas
from sde_gen.samplers.multistep import Multistep
from sde_gen.tuning.reference import Calibration

#: Least distance between fitted levels at the end of a process that has one (VE, EDM).
_APART = 1e-6


@dataclass(frozen=True)
class Fitted(GridSampler):
    """Given noise levels and given combinations: N calls, for the model they were fitted to.

    Args:
        lambdas: N half log-SNRs, ascending; the first is that of the start.
        of_start: c_1 ... c_N.
        of_estimates: w_k = (w_k0, ..., w_k,k-1) for k = 1 ... N.

    Raises:
        ConfigError: if the lengths do not fit, or steps, grid or denoise are given too.
    """

    lambdas: Sequence[float] = ()
    of_start: Sequence[float] = ()
    of_estimates: Sequence[Sequence[float]] = ()

    def __post_init__(self) -> None:
        n = len(self.lambdas)
        lengths = [len(row) for row in self.of_estimates]
        if not n or len(self.of_start) != n or lengths != list(range(1, n + 1)):
            raise ConfigError(
                "Fitted: expected N lambdas, N numbers of_start and rows of 1, 2, ..., N numbers of_estimates, got "
                f"{n}, {len(self.of_start)} and rows of {lengths}"
            )
        grid = GivenLambdas(tuple(self.lambdas))
        if self.steps is not None or self.grid not in (None, grid) or self.denoise is not True:
            raise ConfigError("Fitted: its steps are its lambdas, and its last is onto noise level 0; give neither "
                              "steps, nor grid, nor denoise")  # fmt: skip
        for name, value in (
            ("lambdas", grid.values),
            ("of_start", tuple(map(float, self.of_start))),
            ("of_estimates", tuple(tuple(map(float, row)) for row in self.of_estimates)),
            ("grid", grid),
        ):
            object.__setattr__(self, name, value)
        super().__post_init__()

    def stepper(self, run: Run) -> Step:
        e = run.levels
        size = (e.alpha.square() + e.sigma.square()).sqrt()
        after = torch.cat([size[1:], torch.ones_like(size[:1])])
        start = torch.tensor(self.of_start, dtype=torch.float64) * after / size[0]
        require_finite(self, run.perturbation, run.times, start)
        n = len(start)
        # Of the start and the raw estimates, in one product a step: x_{k+1} = weights[k] @ (x_0, D_0, ..., D_k).
        weights = torch.zeros(n, n + 1, dtype=torch.float64)
        weights[:, 0] = start
        for k, row in enumerate(self.of_estimates):
            weights[k, 1 : k + 2] = torch.tensor(row, dtype=torch.float64) * after[k]
        skip, out, raw = e.skip.tolist(), e.out.tolist(), e.raw
        weights = weights.to(run.state)

        def step(k: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
            known = x.new_empty((n + 1, *x.shape)) if memory is None else memory
            if memory is None:
                known[0].copy_(x)
            torch.mul(x, skip[k], out=known[k + 1]).add_(raw(k, x), alpha=out[k])
            return (weights[k, : k + 2] @ known[: k + 2].flatten(1)).reshape(x.shape), known

        return step

    def last_stepper(self, run: Run) -> Step | None:
        return self.stepper(run)


def rollout(
    model: ScoreModel, lambdas: Tensor, of_start: Tensor, of_estimates: Tensor, u: Tensor, condition: Condition
) -> Tensor:
    """u_N as a differentiable function of everything; of_estimates (N, N), lower triangular."""
    alpha, sigma = unit_curves(lambdas)
    known: list[Tensor] = []
    state = u
    for k in range(len(lambdas)):
        known.append(model.levels(alpha[k : k + 1], sigma[k : k + 1], state, condition).denoised(0, state))
        state = of_start[k] * u
        for j, d in enumerate(known):
            state = state + of_estimates[k, j] * d
    return state


def expand(p: Perturbation, rule: Multistep, lambdas: Tensor) -> tuple[Tensor, Tensor]:
    """A multistep rule on these noise levels, as (c, w) of the module's formula."""
    times = p.time(lambdas)
    (alpha, sigma), size = p.curves(times), p.size(times)
    a, b = from_state_and_data(rule.interpolates, alpha, sigma)
    table, n = rule.table(p, times), len(lambdas)
    state = torch.zeros(n + 1, n + 1, dtype=torch.float64)  # columns: the start, D_0, D_1, ...
    known = torch.zeros_like(state)
    state[0, 0] = 1.0
    state[n, n] = 1.0  # the last estimate is the sample
    for k in range(n - 1):
        known[k] = a[k] * state[k]
        known[k, k + 1] += b[k]
        state[k + 1] = table.carry[k] * state[k]
        for j, w in enumerate(table.weights[k]):
            state[k + 1] += w * known[k - j]
    scale = torch.cat([size[1:], torch.ones_like(size[:1])])[:, None]
    state = state[1:] / scale
    return state[:, 0] * size[0], state[:, 1:]


def fit(c: Calibration, rule: Multistep, evaluations: int) -> tuple[Fitted, float]:
    """Least squares over all numbers from a rule on its grid, by L-BFGS; what is best on the other rows is kept.

    Args:
        rule: with a grid of half log-SNRs.
        evaluations: of the error and its gradient, at most. The calls are counted in `c`, a gradient as two.

    Returns:
        The solver, and its error on the other rows (root mean square per number).
    """
    p, n, u = c.model.perturbation, len(rule.grid.values), c.u
    lambdas = torch.tensor(rule.grid.values, dtype=torch.float64)
    begin = (lambdas, *expand(p, rule, lambdas))
    first, steps = lambdas[:1], lambdas.diff().log().requires_grad_()  # keeps the levels in order
    start, weights = (v.clone().requires_grad_() for v in begin[1:])
    free = torch.ones_like(weights).tril()
    most = p.half_log_snr(torch.zeros(n, dtype=torch.float64)) - _APART * torch.arange(n - 1, -1, -1)

    def numbers() -> tuple[Tensor, Tensor, Tensor]:
        return torch.cat([first, first + steps.exp().cumsum(0)]).minimum(most), start, weights * free

    def error(rows: slice) -> Tensor:
        return (rollout(c.model, *numbers(), u[rows], c.condition[rows]) - c.sample[rows]).square().mean()

    calls, best, stale = 0, (float("inf"), begin), 0
    optimizer = torch.optim.LBFGS(
        [steps, start, weights], max_iter=10, max_eval=12, history_size=40, line_search_fn="strong_wolfe",
        tolerance_change=0.0, tolerance_grad=0.0,
    )  # fmt: skip

    def closure() -> Tensor:
        nonlocal calls
        calls += 3 * n
        optimizer.zero_grad()
        loss = error(slice(0, c.chosen_on)).log()
        loss.backward(inputs=[steps, start, weights])  # the network's own parameters get no gradient
        return loss

    while calls < 3 * n * evaluations and stale < 5:
        with torch.enable_grad():
            loss = optimizer.step(closure)
        with torch.no_grad():
            now = float(error(c.checked))
        calls += n
        stale = 0 if now < 0.98 * best[0] else stale + 1
        if now < best[0]:
            best = now, tuple(v.detach().clone() for v in numbers())
        if not bool(torch.as_tensor(loss).isfinite()):
            break
    c.calls += calls
    lam, of_start, w = (v.tolist() for v in best[1])
    rows = [row[: k + 1] for k, row in enumerate(w)]
    return Fitted(lambdas=lam, of_start=of_start, of_estimates=rows), best[0] ** 0.5
