r"""The probability-flow ODE by general-purpose solvers.

All formulations are integrated in lambda and in the scaling of `flow.Flow`, so the answer does not depend on the
formulation. Song et al. 2021, arXiv:2011.13456, section 4.3.

A denoised sample differs from the flow's end at noise level 0 by what the flow still had to do: for data of standard
deviation s along some direction, :math:`D - x_0 \approx -\rho^2/(2s^2)\, x_0` at :math:`\rho = \sigma/\alpha`. A
tolerance on the steps alone therefore has a floor. An adaptive method that denoises goes down to
:math:`\rho = 0.1\sqrt{tol}`, where that is below a tenth of the tolerance for any s >= 0.05, and
where the right-hand side is so smooth that the steps are long.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torchdiffeq import odeint

from sde_gen import checks
from sde_gen.checks import checked
from sde_gen.errors import ConfigError, NonFiniteError, SolverError
from sde_gen.model import ScoreModel
from sde_gen.perturbations import Perturbation
from sde_gen.samplers.dormand_prince import SLOPE, dormand_prince
from sde_gen.samplers.flow import Flow
from sde_gen.samplers.sampler import Job, Sampler, Solved

_SCIPY = {"RK45": 5, "RK23": 3, "DOP853": 8, "Radau": 5, "BDF": 5, "LSODA": 5}
_TORCHDIFFEQ = {"dopri5": 5, "dopri8": 8, "bosh3": 3, "fehlberg2": 2, "adaptive_heun": 2}
_TORCHDIFFEQ_FIXED = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
_ORDERS = _SCIPY | _TORCHDIFFEQ | _TORCHDIFFEQ_FIXED | {f"torchdiffeq:{name}": n for name, n in _TORCHDIFFEQ.items()}

#: sigma/alpha where a tolerance ends, over its root.
_END = 0.1


@dataclass(frozen=True)
class ProbabilityFlow(Sampler):
    """Probability-flow ODE sampler: deterministic given its start.

    Args:
        method: "dopri5" steps each sample on its own in one batch. Other methods are torchdiffeq's adaptive ones
            ("dopri8", "bosh3", "fehlberg2", "adaptive_heun", "torchdiffeq:dopri5") and scipy's `solve_ivp` ("RK45",
            "RK23", "DOP853", "Radau", "BDF", "LSODA"), which share one step size over all they are given and are
            therefore run on one sample at a time, unless `batched`; and torchdiffeq's fixed-step ones ("euler",
            "midpoint", "heun2", "heun3", "rk4") over `steps` equal steps in lambda, on all samples at once.
        rtol, atol: tolerances of adaptive methods, > 0; atol is 1e-5 by default, or rtol where that is less.
        max_nfe: most network calls for any one sample, >= 1.
        steps: of fixed-step methods only, >= 1.
        denoise: whether the state at the end is denoised (one more call), and adaptive methods then go down as far as
            the tolerances ask: below the times visited, with a network to the least noise it was trained on. Without,
            the state at the last time.
        at: where a callback sees the state between the two ends: so many times, even in lambda, or the times
            themselves. By the solver's own dense output (a straight line between the steps of fixed-step methods), so
            the steps are what they were, and no further call is made (by "DOP853" three for each step looked into).
        batched: whether an adaptive method of torchdiffeq takes all samples at once, with the steps that the most
            demanding of them needs: far fewer calls, and each sample then depends on the others within the tolerances.

    Raises:
        ConfigError: for values outside these; and when run, `SolverError` when max_nfe runs out, `NonFiniteError` when
            the network's answer is NaN or infinite.
    """

    method: str = checked("dopri5", choices=tuple(_ORDERS))
    rtol: float = checked(1e-5, above=0.0)
    atol: float | None = checked(None, above=0.0)
    max_nfe: int = checked(10_000, low=1)
    steps: int | None = None
    denoise: bool = checked(True)
    at: int | Sequence[float] = 0
    batched: bool = checked(False)

    def __post_init__(self) -> None:
        where = "ProbabilityFlow"
        checks.fields(self)
        if self.atol is None:
            object.__setattr__(self, "atol", self._atol)
        if self.batched and self._name not in _TORCHDIFFEQ:
            raise ConfigError(
                f"{where}: batched is of torchdiffeq's adaptive methods, {', '.join(_TORCHDIFFEQ)}; "
                f"method={self.method!r} is {'batched anyway' if not self.is_adaptive else 'not one'}"
            )
        if self.is_adaptive and self.steps is not None:
            raise ConfigError(
                f"{where}: method={self.method!r} chooses its own steps; set rtol and atol, "
                f"or a fixed-step method: {', '.join(_TORCHDIFFEQ_FIXED)}"
            )
        if not self.is_adaptive:
            checks.integer(where, f"steps (of method={self.method!r})", self.steps)
        if isinstance(self.at, Sequence) and not isinstance(self.at, str):
            for t in self.at:
                checks.number(where, "at", t)
            object.__setattr__(self, "at", tuple(sorted(map(float, self.at), reverse=True)))
        else:
            checks.integer(where, "at", self.at, low=0)

    @property
    def _name(self) -> str:
        return self.method.removeprefix("torchdiffeq:")

    @property
    def _atol(self) -> float:
        return min(1e-5, self.rtol) if self.atol is None else self.atol

    @property
    def is_adaptive(self) -> bool:
        """Whether the method chooses its own steps."""
        return self.method not in _TORCHDIFFEQ_FIXED

    @property
    def order(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Order of the method in the step size."""
        return float(_ORDERS[self.method])

    def solve(self, job: Job) -> Solved:
        try:
            return self._integrate(job)
        except NonFiniteError as error:
            if error.where != SLOPE:
                raise
            # The solvers know lambda; the error names a time of this formulation.
            p = job.model.perturbation
            low, high = self.times(job.model).flip(0).tolist()
            t = float(p.time(min(max(error.t, float(p.half_log_snr(high))), float(p.half_log_snr(low)))))
            raise NonFiniteError(error.step, t, error.indices, SLOPE) from error

    def _integrate(self, job: Job) -> Solved:
        p, times, x = job.model.perturbation, self.times(job.model), job.x
        lam = p.half_log_snr(times)
        if not bool(lam.isfinite().all()):
            raise ConfigError(f"ProbabilityFlow: lambda is infinite at an end of {times.tolist()} under {p}")
        job.model.warn_between_nodes(lam.mean())
        begin, end = float(lam[0]), self._end(job.model, float(lam[1]))
        root = p.size(times).tolist()
        if job.callback is not None:
            job.callback(0, float(times[0]), x[: job.count])
        problem = _Problem(job, self.max_nfe)
        between = self._between(p, times) if job.callback is not None else []
        visited = [*p.half_log_snr(torch.tensor(between, dtype=torch.float64)).tolist(), end]
        u = x / root[0]
        if self.method == "dopri5" and not self.batched:
            solution = dormand_prince(problem.slope, u, begin, end, rtol=self.rtol, atol=self._atol,
                                      max_calls=self.max_nfe, first=job.first, at=visited[:-1])  # fmt: skip
            u, calls = solution.u, solution.calls
            seen = [] if solution.at is None else list(solution.at.unbind(1))
        elif not self.is_adaptive:
            *seen, u = self._fixed(problem, u, begin, visited)
            calls = torch.full((len(x),), problem.calls)
        elif self.batched:
            *seen, u = self._torchdiffeq(problem, u, begin, visited, None)
            calls = torch.full((len(x),), problem.calls)
        else:
            solve = self._scipy if self.method in _SCIPY else self._torchdiffeq
            parts, counts = [], []
            for i in range(len(x)):
                problem.calls = 0
                parts.append(solve(problem, u[i : i + 1], begin, visited, i))
                counts.append(problem.calls)
            *seen, u = torch.cat(parts, 1)
            calls = torch.tensor(counts)
        for j, (t, state) in enumerate(zip(between, seen, strict=True)):
            job.callback(j + 1, t, state[: job.count] * float(p.size(t)))  # pyright: ignore[reportOptionalCall]
        if self.denoise:
            u = problem.denoised(u, torch.full((len(u),), end, dtype=torch.float64, device=u.device), None)
            calls = calls + 1
        else:
            u = u * root[1]
        bad = (~u[: job.count].flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            raise NonFiniteError(int(calls.max()), float(times[1]), [job.first + i for i in bad])
        if job.callback is not None:
            job.callback(len(between) + 1, 0.0 if self.denoise else float(times[1]), u[: job.count])
        job.products.append(problem.products)
        return u, int(calls.max()), calls

    def _end(self, model: ScoreModel, usual: float) -> float:
        """Half log-SNR to go down to: the usual one, or as deep as the tolerances ask and the network knows."""
        if not self.denoise or not self.is_adaptive:
            return usual
        asked = -math.log(_END * math.sqrt(max(self.rtol, self._atol)))
        p = model.perturbation
        known = math.inf if model.network is None else float(p.half_log_snr(model.times_within(p.t_min)[0]))
        return max(usual, min(asked, known))

    def _between(self, p: Perturbation, times: Tensor) -> list[float]:
        """The times of `at`, descending."""
        high, low = times.tolist()
        if isinstance(self.at, Sequence):
            if outside := [t for t in self.at if not low <= t <= high]:
                raise ConfigError(f"ProbabilityFlow: at must lie in [{low:g}, {high:g}], got {outside[0]:g}")
            return list(self.at)
        begin, end = p.half_log_snr(times).tolist()
        inside = torch.linspace(begin, end, self.at + 2, dtype=torch.float64)[1:-1]
        return p.time(inside).tolist()

    # Each gives the states at the lambdas `visited`, of which the last is the end, (len(visited), B, *shape).

    def _fixed(self, problem: "_Problem", u: Tensor, begin: float, visited: list[float]) -> Tensor:

        stops = torch.tensor([begin, *visited], dtype=torch.float64, device=u.device)
        grid = torch.linspace(begin, visited[-1], (self.steps or 1) + 1, dtype=torch.float64, device=u.device)
        options = {"grid_constructor": lambda f, y, t: grid}
        return torch.as_tensor(odeint(problem.shared(None), u, stops, method=self._name, options=options)[1:])

    def _torchdiffeq(
        self, problem: "_Problem", u: Tensor, begin: float, visited: list[float], row: int | None
    ) -> Tensor:

        stops = torch.tensor([begin, *visited], dtype=torch.float64, device=u.device)
        options = None if row is not None else {"norm": lambda y: y.flatten(1).square().mean(1).sqrt().max()}
        try:
            states = odeint(problem.shared(row), u, stops, rtol=self.rtol, atol=self._atol, method=self._name,
                            options=options)  # fmt: skip
            return torch.as_tensor(states[1:])
        except AssertionError as error:  # its own guards; under `python -O` the call budget stops it instead
            raise self._failed(problem, row, str(error)) from error

    def _scipy(self, problem: "_Problem", u: Tensor, begin: float, visited: list[float], row: int) -> Tensor:

        slope = problem.shared(row)

        def flat(s: float, y: Any) -> Any:
            state = torch.from_numpy(y).to(u).reshape(u.shape)
            return slope(torch.tensor(s, dtype=torch.float64), state).to(torch.float64).cpu().numpy().reshape(-1)

        y0 = u.to(torch.float64).cpu().numpy().reshape(-1)
        answer = solve_ivp(flat, (begin, visited[-1]), y0, method=self.method, rtol=self.rtol, atol=self._atol,
                           t_eval=visited)  # fmt: skip
        if not answer.success:
            raise self._failed(problem, row, answer.message)
        return torch.from_numpy(answer.y.T.copy()).to(u).reshape(len(visited), *u.shape)

    def _failed(self, problem: "_Problem", row: int | None, why: str) -> SolverError:
        which = "" if row is None else f" sample {problem.first + row}:"
        return SolverError(
            f"ProbabilityFlow(method={self.method!r}):{which} {why}; loosen rtol and atol, or use another method"
        )


class _Problem(Flow):
    """The right-hand side with its call count and guards, for solvers with one time for all rows."""

    def __init__(self, job: Job, max_nfe: int) -> None:
        super().__init__(job.model, job.condition)
        self.first, self.max_nfe, self.calls = job.first, max_nfe, 0

    def shared(self, row: int | None) -> Callable[[Tensor, Tensor], Tensor]:
        """f(s, u), refusing a spent budget and NaN."""

        def f(s: Tensor, u: Tensor) -> Tensor:
            if self.calls >= self.max_nfe:
                where = "" if row is None else f" for sample {self.first + row}"
                raise SolverError(
                    f"ProbabilityFlow: needs more than max_nfe={self.max_nfe} network calls{where}, stopped at "
                    f"lambda = {float(s):.4g}; loosen rtol and atol, or raise max_nfe"
                )
            rows = None if row is None else torch.tensor([row], device=u.device)
            slope = self.slope(u, s.to(device=u.device, dtype=torch.float64).expand(len(u)), rows)
            self.calls += 1
            bad = ~slope.flatten(1).isfinite().all(1)
            if bool(bad.any()):
                rows_bad = bad.nonzero().flatten() if row is None else torch.tensor([row])
                raise NonFiniteError(self.calls - 1, float(s), [self.first + int(i) for i in rows_bad], SLOPE)
            return slope

        return f
