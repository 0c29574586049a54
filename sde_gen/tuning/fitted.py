r"""A solver whose every number is fitted to a model.

A multistep rule with N network calls is a list of noise levels and, for each step, the weights of the state and of the
last m estimates,

.. math:: u_{k+1} = c_k u_k + \sum_{j<m} w_{kj} N_{k-j} , \qquad N_k = N(u_k, \lambda_k), \qquad k = 0 \dots N-1,

with :math:`u = x/\sqrt{\alpha^2+\sigma^2}`, N data, noise or velocity, and the sample :math:`u_N` at noise level 0.
Rules of all orders up to m are points of this set; `fit` moves from the best of them to where the error against a fine
solution of the same model is least. Shaul et al. 2024, arXiv:2403.01329 (non-stationary solvers), with m = N.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_gen.checks import checked
from sde_gen.conditions import Condition
from sde_gen.errors import ConfigError
from sde_gen.model import ScoreModel
from sde_gen.perturbations import Perturbation
from sde_gen.samplers.exponential import PREDICTIONS, from_state_and_data
from sde_gen.samplers.flow import unit_curves
from sde_gen.samplers.grid_sampler import Run, Step
from sde_gen.samplers.grids import GivenLambdas
from sde_gen.samplers.multistep import Multistep, Table
from sde_gen.tuning.reference import Calibration

#: Least distance between fitted levels at the end of a process that has one (VE, EDM).
_APART = 1e-6
#: Estimates that a fitted step may use, m of the module's formula: what one more would win is less than what it costs.
_DEPTH = 5


@dataclass(frozen=True)
class Fitted(Multistep):
    """Given noise levels and given combinations: N calls, for the model they were fitted to.

    Args:
        lambdas: N half log-SNRs, ascending; the first is that of the start.
        of_state: c_0 ... c_{N-1}.
        of_estimates: w_k = (w_k0, w_k1, ...) for k = 0 ... N - 1, newest estimate first, 1 to k + 1 of them.
        prediction: what is combined, "data", "noise" or "velocity".

    Raises:
        ConfigError: if the lengths do not fit, or steps, grid or denoise are given too.
    """

    lambdas: Sequence[float] = ()
    of_state: Sequence[float] = ()
    of_estimates: Sequence[Sequence[float]] = ()
    prediction: str = checked("velocity", choices=PREDICTIONS)

    def __post_init__(self) -> None:
        n = len(self.lambdas)
        lengths = [len(row) for row in self.of_estimates]
        fits = len(lengths) == n and all(1 <= length <= k + 1 for k, length in enumerate(lengths))
        if not n or len(self.of_state) != n or not fits:
            raise ConfigError(
                "Fitted: expected N lambdas, N numbers of_state and N rows of_estimates, of at most 1, 2, ..., N "
                f"numbers, got {n}, {len(self.of_state)} and rows of {lengths}"
            )
        grid = GivenLambdas(tuple(self.lambdas))
        if self.steps is not None or self.grid not in (None, grid) or self.denoise is not True:
            raise ConfigError("Fitted: its steps are its lambdas, and its last is onto noise level 0; give neither "
                              "steps, nor grid, nor denoise")  # fmt: skip
        for name, value in (
            ("lambdas", grid.values),
            ("of_state", tuple(map(float, self.of_state))),
            ("of_estimates", tuple(tuple(map(float, row)) for row in self.of_estimates)),
            ("grid", grid),
        ):
            object.__setattr__(self, name, value)
        super().__post_init__()

    @property
    def interpolates(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.prediction

    def table(self, p: Perturbation, times: Tensor) -> Table:
        size = [*p.size(times).tolist(), 1.0]  # of_state and of_estimates are of u, x = size u
        carry = [c * size[k + 1] / size[k] for k, c in enumerate(self.of_state)]
        return Table(carry, [[w * size[k + 1] for w in row] for k, row in enumerate(self.of_estimates)])

    def last_stepper(self, run: Run) -> Step | None:
        return self.stepper(run)


def rollout(
    model: ScoreModel, prediction: str, lambdas: Tensor, of_state: Tensor, of_estimates: Tensor, u: Tensor,
    condition: Condition,
) -> Tensor:  # fmt: skip
    """u_N as a differentiable function of everything; of_estimates (N, m), newest first."""
    alpha, sigma = unit_curves(lambdas)
    a, b = from_state_and_data(prediction, alpha, sigma)
    known: list[Tensor] = []
    for k in range(len(lambdas)):
        data = model.levels(alpha[k : k + 1], sigma[k : k + 1], u, condition).denoised(0, u)
        known = [a[k] * u + b[k] * data, *known[: of_estimates.shape[1] - 1]]
        u = of_state[k] * u
        for w, estimate in zip(of_estimates[k], known, strict=False):
            u = u + w * estimate
    return u


def expand(p: Perturbation, rule: Multistep, lambdas: Tensor) -> tuple[Tensor, Tensor]:
    """A multistep rule on these noise levels, as (c, w) of the module's formula."""
    times = p.time(lambdas)
    (alpha, sigma), size = p.curves(times), p.size(times)
    a, b = from_state_and_data(rule.interpolates, alpha[-1], sigma[-1])
    table, n = rule.table(p, times), len(lambdas)
    weights = torch.zeros(n, max(_DEPTH, *map(len, table.weights), 1), dtype=torch.float64)
    for k, row in enumerate(table.weights):
        weights[k, : len(row)] = torch.tensor(row, dtype=torch.float64) / size[k + 1]
    weights[-1, 0] = 1 / b  # the last data estimate is the sample
    state = torch.tensor(table.carry, dtype=torch.float64) * size[:-1] / size[1:]
    return torch.cat([state, -(a / b * size[-1])[None]]), weights


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
    state, weights = (v.clone().requires_grad_() for v in begin[1:])
    free = torch.ones_like(weights).tril()  # no estimates from before the start
    most = p.half_log_snr(torch.zeros(n, dtype=torch.float64)) - _APART * torch.arange(n - 1, -1, -1)

    def numbers() -> tuple[Tensor, Tensor, Tensor]:
        return torch.cat([first, first + steps.exp().cumsum(0)]).minimum(most), state, weights * free

    def error(rows: slice) -> Tensor:
        x = rollout(c.model, rule.interpolates, *numbers(), u[rows], c.condition[rows])
        return (x - c.sample[rows]).square().mean()

    calls, best, stale = 0, (float("inf"), begin), 0
    optimizer = torch.optim.LBFGS(
        [steps, state, weights], max_iter=10, max_eval=12, history_size=40, line_search_fn="strong_wolfe",
        tolerance_change=0.0, tolerance_grad=0.0,
    )  # fmt: skip

    def closure() -> Tensor:
        nonlocal calls
        calls += 3 * n
        optimizer.zero_grad()
        loss = error(slice(0, c.chosen_on)).log()
        loss.backward(inputs=[steps, state, weights])  # the network's own parameters get no gradient
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
    lam, of_state, w = (v.tolist() for v in best[1])
    rows = [row[: k + 1] for k, row in enumerate(w)]
    return Fitted(lambdas=lam, of_state=of_state, of_estimates=rows, prediction=rule.interpolates), best[0] ** 0.5
