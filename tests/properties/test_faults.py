"""What goes wrong says so: NaN at any call, budgets, stiff equations; under `python -O` too."""

import math
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sde_gen as sg
from tests.properties.discovery import CORRECTORS, SAMPLERS

ROOT = Path(__file__).parents[2]


class Breaks(torch.nn.Module):
    """Answers `value` in the rows `rows` at call number `at`, and sensibly else."""

    def __init__(self, at: int = -1, value: float = math.nan, rows: tuple[int, ...] = (1, 3)) -> None:
        super().__init__()
        self.at, self.value, self.rows, self.calls = at, value, list(rows), 0

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        out = 0.3 * x
        if self.calls == self.at:
            out[self.rows] = self.value
        self.calls += 1
        return out


def run(sampler: sg.Sampler, network: torch.nn.Module, **kwargs: Any) -> sg.Samples:
    return sampler(sg.ScoreModel(network, sg.VP()), (5, 2), **kwargs)


FIXED: dict[str, sg.Sampler] = {
    **{name: case.make(steps=3) for name, case in SAMPLERS.items()},
    "DDIM(no denoise)": sg.DDIM(steps=3, denoise=False),
    **{f"PC with {n}": sg.PredictorCorrector(corrector=c, steps=3) for n, c in CORRECTORS.items()},
}
#: These mix the samples, so a fault of one is a fault of all.
MIXED = {"PC with Langevin(batch)"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", FIXED)
def test_non_finite_answer_at_any_call(name: str, value: float) -> None:
    sampler = FIXED[name]
    healthy, ends, seen = Breaks(), [], []

    def record(step: int, t: float, x: Tensor, *_: object) -> None:
        if step:
            ends.append(healthy.calls)
        seen.append(t)

    calls = run(sampler, healthy, callback=record).nfe
    for at in range(calls):
        step = next(i for i, end in enumerate(ends) if end > at)
        with pytest.raises(sg.NonFiniteError) as caught:
            run(sampler, Breaks(at, value), first=10)
        error = caught.value
        assert error.step == step, f"call {at}"
        assert error.t == pytest.approx(seen[step], abs=1e-12)
        assert error.indices == ((11, 13) if name not in MIXED else error.indices)
        assert re.search(rf"at step {step} \(t = {seen[step]:.6g}\) for samples \[1", str(error))
        assert error.exit_code == 70


def test_a_large_but_finite_state_is_no_fault() -> None:
    class Large(torch.nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return torch.full_like(x, 1e30)

    assert run(sg.DDIM(steps=3), Large()).x.isfinite().all()


def test_half_precision_sums_do_not_overflow() -> None:
    model = sg.GaussianMixture([1.0], [[0.0] * 64], [torch.eye(64).tolist()]).model(sg.VE())
    start = torch.full((1500, 64), 50.0, dtype=torch.float16)  # their sum is 70 times the largest float16
    x = sg.DDIM(steps=3)(model, start=start).x
    assert x.dtype == torch.float16
    assert x.isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("method", ["dopri5", "torchdiffeq:dopri5", "bosh3", "RK45", "LSODA", "rk4"])
def test_non_finite_answer_in_an_ode_solver(method: str, value: float) -> None:
    sampler = sg.ProbabilityFlow(method=method, **({"steps": 3} if method == "rk4" else {}))
    for at in (0, 1, 5, 9):
        rows = (0,) if sampler.is_adaptive and method != "dopri5" else (1, 3)
        with pytest.raises(sg.NonFiniteError) as caught:
            run(sampler, Breaks(at, value, rows), first=20)
        assert caught.value.step == at
        assert caught.value.indices == tuple(20 + r for r in rows)
    network = Breaks()
    run(sampler, network)
    with pytest.raises(sg.NonFiniteError):  # the last call of all, the denoising
        run(sampler, Breaks(network.calls - 1, value, (0,)))


@pytest.mark.parametrize("method", ["dopri5", "bosh3", "RK45", "rk4"])
def test_a_fault_in_an_ode_solver_names_a_time(method: str) -> None:
    """`error.t` is a time in [0, 1], as the class says, though these solvers run in lambda."""
    sampler = sg.ProbabilityFlow(method=method, **({"steps": 3} if method == "rk4" else {}))
    with pytest.raises(sg.NonFiniteError) as caught:
        run(sampler, Breaks(0, rows=(0,)), dtype=torch.float64)
    assert caught.value.t == pytest.approx(1.0, abs=1e-9)


def test_the_error_survives_pickling() -> None:
    with pytest.raises(sg.NonFiniteError) as caught:
        run(sg.DDIM(steps=3), Breaks(1))
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own error, as multiprocessing passes it on
    assert (copy.step, copy.t, copy.indices, str(copy)) == (
        caught.value.step, caught.value.t, caught.value.indices, str(caught.value),
    )  # fmt: skip
    many = sg.NonFiniteError(2, 0.5, range(20))
    assert "0, 1, 2, 3, 4, 5, 6, 7, ...]" in str(many)


class Wild(torch.nn.Module):
    """Oscillates a thousand times over the run."""

    calls = 0

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        self.calls += 1
        return torch.sin(3000 * c_noise[:, None].to(x.dtype) + x)


@pytest.mark.parametrize(
    "method", ["dopri5", "torchdiffeq:dopri5", "dopri8", "bosh3", "RK45", "DOP853", "Radau", "LSODA"]
)
def test_a_spent_budget_is_an_error(method: str) -> None:
    model = sg.ScoreModel(Wild(), sg.VP(), sg.DataPrediction())
    sampler = sg.ProbabilityFlow(method=method, max_nfe=100)
    with pytest.raises(sg.SolverError, match=r"max_nfe=100 network calls.*samples? \[?7.*raise max_nfe"):
        sampler(model, (2, 2), seed=0, first=7, dtype=torch.float64)
    # Never overdrawn; ours stops before a step that it could not finish, the others at the very call.
    assert model.network.calls == (97 if method == "dopri5" else 100)
    assert sg.SolverError.exit_code == 70


def test_the_budget_is_kept_to_the_call() -> None:
    """A budget of exactly the calls needed is enough; one less is not, and it is never overdrawn."""
    for denoise in (True, False):
        network = Breaks()
        needed = run(sg.ProbabilityFlow(denoise=denoise), network)
        most = int(needed.nfe_per_sample.max()) - denoise
        run(sg.ProbabilityFlow(max_nfe=most, denoise=denoise), Breaks())
        network = Breaks()
        with pytest.raises(sg.SolverError):
            run(sg.ProbabilityFlow(max_nfe=most - 1, denoise=denoise), network)
        assert network.calls <= most - 1


def test_a_discontinuous_equation_stops_with_an_error() -> None:
    """No step is small enough where the slope jumps at random: the step size underflows or the budget ends."""

    class Noise(torch.nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return torch.sign(torch.sin(1e9 * x.double())).to(x.dtype) * 1e6

    model = sg.ScoreModel(Noise(), sg.VP(), sg.DataPrediction())
    with pytest.raises(sg.SolverError, match=r"samples \[0, 1\]|samples \[0\]|samples \[1\]"):
        sg.ProbabilityFlow(rtol=1e-10, atol=1e-10, max_nfe=2000)(model, (2, 2), dtype=torch.float64)


OPTIMISED = """
import math, sys, torch
import sde_gen as sg
from tests.properties import test_arguments as a, test_faults as f
torch.set_num_threads(1)
if __debug__: sys.exit("not run with -O")
def refused(kind, function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except kind:
        return
    sys.exit(f"no {kind.__name__} from {function} {args} {kwargs}")
for name, sampler in f.FIXED.items():
    refused(sg.NonFiniteError, f.run, sampler, f.Breaks(0))
    refused(sg.NonFiniteError, f.run, sampler, f.Breaks(0, math.inf))
for method in ("dopri5", "torchdiffeq:dopri5", "bosh3", "RK45", "LSODA"):
    refused(sg.NonFiniteError, f.run, sg.ProbabilityFlow(method=method), f.Breaks(3, rows=(0,)))
    wild = sg.ScoreModel(f.Wild(), sg.VP(), sg.DataPrediction())
    refused(sg.SolverError, sg.ProbabilityFlow(method=method, max_nfe=100), wild, (1, 2), dtype=torch.float64)
refused(sg.NonFiniteError, f.run, sg.ProbabilityFlow(method="rk4", steps=3), f.Breaks(3))
for make, kwargs, _ in a.BAD:
    refused(sg.ConfigError, make, **kwargs)
for sampler, p, message in a.DOMAIN:
    if message is not None:
        refused(sg.ConfigError, sampler, a.MODEL.under(p), (3, 2))
for kwargs, _ in a.CALLS:
    refused(sg.ConfigError, sg.DDIM(steps=2), a.MODEL, **kwargs)
print("all refused")
"""


def test_the_same_faults_under_python_optimised() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-O", "-c", OPTIMISED], env=env, cwd=ROOT, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.stdout == "all refused\n", done.stdout + done.stderr
