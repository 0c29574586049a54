"""Stochastic solvers: identities, moments, any number of steps; the adaptive one against a second implementation."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

import sde_gen as sg
from sde_gen.samplers import adaptive_sde
from sde_gen.samplers.stochastic import moments
from tests.properties.discovery import PERTURBATIONS

MIXTURE = sg.GaussianMixture(
    [0.6, 0.4], [[0.5, -0.4], [-0.7, 0.3]], np.array([np.diag([0.03, 0.02]), np.diag([0.01, 0.04])])
)

FIXED: dict[str, Any] = {
    "ExponentialSDE": sg.ExponentialSDE,
    **{f"SDEDPMSolverPP({n})": lambda n=n, **k: sg.SDEDPMSolverPP(solver_order=n, **k) for n in (1, 2, 3)},
    "StochasticHeun": sg.StochasticHeun,
    "EDMChurn": sg.EDMChurn,
    "Restart": sg.Restart,
    "Restart(DPMSolverPP2M)": lambda **k: sg.Restart(rule=sg.DPMSolverPP2M(), intervals=[(0.3, 2, 2, None)], **k),
}


@pytest.mark.parametrize("z", [0.0, 1e-12, 1e-3, 0.5, 1.0, 1.0 + 1e-12, 3.0, 40.0, 700.0, math.inf])
def test_moments_against_quadrature(z: float) -> None:
    got = [float(m) for m in moments(torch.tensor([z], dtype=torch.float64), 3)]
    for m, value in enumerate(got):
        expected = 1.0 if z == math.inf else z * quad(
            lambda v, m=m: math.exp(-z * (1 - v)) * v**m, 0, 1, epsabs=1e-15, epsrel=1e-13,
            points=[1 - 1 / z, 1 - 10 / z] if z > 20 else None,
        )[0]  # fmt: skip
        assert value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_first_order_rules_are_ancestral_sampling(name: str) -> None:
    """At eta = 1 the exponential step is the draw from p(x_s | x_t, x0hat), and at eta = 0 DDIM."""
    model = MIXTURE.model(PERTURBATIONS[name])
    grid = sg.ArctanLambda() if not PERTURBATIONS[name].is_chain else sg.ChainNodes()
    expected = sg.Ancestral(steps=9, grid=grid)(model, (5, 2), seed=3, dtype=torch.float64).x
    for sampler in (sg.ExponentialSDE(steps=9), sg.SDEDPMSolverPP(solver_order=1, steps=9)):
        x = sampler(model, (5, 2), seed=3, dtype=torch.float64).x
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-11)
    expected = sg.DDIM(steps=9, grid=grid)(model, (5, 2), seed=3, dtype=torch.float64).x
    x = sg.ExponentialSDE(eta=0.0, steps=9)(model, (5, 2), seed=3, dtype=torch.float64).x
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-11)


def test_without_noise_they_are_the_deterministic_rules() -> None:
    model = MIXTURE.model(sg.VP())
    options: dict[str, Any] = {"steps": 12, "grid": "karras"}
    heun = sg.Heun(**options)(model, (5, 2), seed=3, dtype=torch.float64).x
    for sampler in (
        sg.EDMChurn(s_churn=0.0, **options),
        sg.EDMChurn(s_tmin=1e6, s_tmax=1e7, **options),
        sg.Restart(intervals=[], **options),
        sg.Restart(intervals=[(1e-9, 1e-8, 1, 1)], **options),
    ):
        torch.testing.assert_close(sampler(model, (5, 2), seed=3, dtype=torch.float64).x, heun, rtol=0, atol=1e-11)
    two_m = sg.DPMSolverPP2M(**options)(model, (5, 2), seed=3, dtype=torch.float64).x
    small = sg.SDEDPMSolverPP(eta=1e-9, **options)(model, (5, 2), seed=3, dtype=torch.float64).x
    torch.testing.assert_close(small, two_m, rtol=0, atol=1e-7)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PERTURBATIONS)
def test_any_number_of_steps(name: str, steps: int) -> None:
    """Finite under every perturbation, on its default grid and on others, and of the size of the data from 10 on."""
    p = PERTURBATIONS[name]
    if p.is_chain and steps > 100:
        p = sg.NCSN(levels=1000) if name == "NCSN" else sg.DDPM(steps=1000, schedule=p.schedule)
    model = MIXTURE.model(p)
    for sampler, make in FIXED.items():
        for grid, denoise in ((None, True), ("lambda", True), ("uniform", True), ("uniform", False)):
            x = make(steps=steps, grid=grid, denoise=denoise)(model, (16, 2), seed=1).x
            assert x.isfinite().all(), f"{sampler} on {grid}"
            if steps >= 10 and grid != "uniform":
                assert x.abs().max() < 20, f"{sampler} on {grid}"


def test_churn_never_rises_above_the_first_level() -> None:
    for p in (sg.VP(), sg.EDM(), sg.NCSN()):
        times = sg.EDMChurn(steps=40).times(MIXTURE.model(p))
        raised = sg.EDMChurn(s_churn=1e6, s_tmax=math.inf, s_tmin=0.0).raised(p, times)
        rho, up = torch.exp(-p.half_log_snr(times))[:-1], torch.exp(-p.half_log_snr(raised))
        torch.testing.assert_close(up, (rho * math.sqrt(2)).clamp_max(rho[0]), rtol=1e-9, atol=0)
        low, high = float(rho[30]) * 1.01, float(rho[5]) * 0.99
        raised = sg.EDMChurn(s_tmin=low, s_tmax=high).raised(p, times)
        assert ((raised > times[:-1]) == (torch.arange(39) > 5) & (torch.arange(39) < 30)).all()


def test_restart_visits_what_it_says() -> None:
    """Levels sigma/alpha of EDM, whose time is a power of them; intervals outside the grid are cut or left out."""
    model = MIXTURE.model(sg.EDM())
    grid = sg.GivenLambdas(tuple(-math.log(v) for v in (80.0, 10.0, 1.0, 0.1, 0.01)))

    def levels(*intervals: Any) -> list[float]:
        times = sg.Restart(grid=grid, intervals=intervals).times(model)
        return torch.exp(-sg.EDM().half_log_snr(times)).tolist()

    up = [80.0, 10.0, 1.0, 0.1]
    assert levels((0.1, 10, 2, None)) == pytest.approx([*up, 10, 1, 0.1, 10, 1, 0.1, 0.01])
    assert levels((0.1, 10, 1, 1)) == pytest.approx([*up, 10, 0.1, 0.01])
    assert levels((0.5, 5, 1, 1)) == pytest.approx([80, 10, 5, 1, 0.5, 5, 0.5, 0.1, 0.01])
    middle = ((5 ** (1 / 7) + 0.5 ** (1 / 7)) / 2) ** 7
    assert levels((0.5, 5, 1, 2)) == pytest.approx([80, 10, 5, 1, 0.5, 5, middle, 0.5, 0.1, 0.01])
    assert levels((0.001, 0.1, 1, 1)) == pytest.approx([*up, 0.01, 0.1, 0.01])
    assert levels((10, 1000, 1, 1)) == pytest.approx([80, 10, 80, 10, 1, 0.1, 0.01])
    assert levels((1e-4, 1e-3, 3, 1), (1e3, 1e4, 3, 1)) == pytest.approx([*up, 0.01])
    two = levels((0.1, 1, 1, None), (1, 80, 1, 1))
    assert two == pytest.approx([80, 10, 1, 80, 1, 0.1, 1, 0.1, 0.01])


# -- the adaptive solver -----------------------------------------------------------------------------------------------


class Numbered:
    """The k-th attempt's normals of a few samples, fixed."""

    def __init__(self, rows: int, dim: int) -> None:
        self.values = np.random.default_rng(5).standard_normal((20_000, rows, dim))

    def __call__(self, like: Tensor, step: int, draw: int) -> Tensor:
        assert draw == 0
        return torch.from_numpy(self.values[step])


def by_hand(x: np.ndarray, z: np.ndarray, eta: float, rtol: float, atol: float, widest: float) -> tuple[Any, int, int]:
    """One sample of VP with a Brownian path B as a table: values at known times, bridges between. Returns the denoised
    state, the calls and the rejected steps."""
    p, c = sg.VP(), 1 + eta**2
    lam, end = float(p.half_log_snr(1.0)), float(p.half_log_snr(1e-3))
    model = MIXTURE.model(p)

    def alpha(v: float) -> float:
        return 1 / math.sqrt(1 + math.exp(-2 * v))

    def denoised(u: np.ndarray, v: float) -> np.ndarray:
        a = torch.tensor(alpha(v), dtype=torch.float64)
        state = torch.from_numpy(u)[None]
        return model.levels(a[None], (1 - a**2).sqrt()[None], state).denoised(0, state)[0].numpy()

    def clock(v: float) -> float:  # of dB = eta sqrt(2) e^(-v) e^(cv) dw
        return math.exp(2 * eta**2 * v)

    ahead: list[tuple[float, np.ndarray]] = []  # (time, B there - B now), ascending
    u, h, attempt, rejected = x, min(0.01 * (end - lam), math.inf), 0, 0
    d, calls = denoised(u, lam), 1
    while True:
        goal = end if h >= (end - lam) * (1 - 1e-12) else lam + h
        if not ahead:
            ahead.insert(0, (goal, math.sqrt(clock(goal) - clock(lam)) * z[attempt]))
        elif goal - lam < 0.99 * (ahead[0][0] - lam):
            there, value = ahead[0]
            w = (clock(goal) - clock(lam)) / (clock(there) - clock(lam))
            spread = math.sqrt((clock(goal) - clock(lam)) * (clock(there) - clock(goal)) / (clock(there) - clock(lam)))
            ahead.insert(0, (goal, w * value + spread * z[attempt]))
        goal, increment = ahead[0]
        attempt, h = attempt + 1, goal - lam
        v, kernel = np.polynomial.legendre.leggauss(40)
        v, weights = 0.5 * (v + 1), 0.5 * kernel * c * h * np.exp(-c * h * (1 - 0.5 * (v + 1)))
        a = alpha(goal)
        first = a / alpha(lam) * math.exp(-c * h) * u + a * weights.sum() * d + a * math.exp(-c * goal) * increment
        change = a * (weights @ v) * (denoised(first, goal) - d)
        calls += 1
        error = math.sqrt(np.mean((change / (atol + rtol * np.maximum(abs(u), abs(first)))) ** 2))
        factor = min(max(0.9 * max(error, 1e-10) ** -0.9, 0.2), 5)
        if error > 1:
            h, rejected = h * min(factor, 0.5), rejected + 1
            continue
        u, lam, h = first + change, goal, min(h * factor, widest)
        ahead = [(time, value - increment) for time, value in ahead[1:]]
        d, calls = denoised(u, lam), calls + 1
        if lam == end:
            return d, calls, rejected


@pytest.mark.parametrize(("eta", "tolerance"), [(1.0, 0.01), (0.5, 0.01), (1.7, 0.02)])
def test_every_step_is_that_of_the_second_implementation(eta: float, tolerance: float) -> None:
    noise, start = Numbered(4, 2), np.random.default_rng(1).standard_normal((4, 2))
    sampler = sg.AdaptiveSDE(eta=eta, rtol=tolerance, atol=tolerance / 2, max_step=0.7)
    result = sampler(MIXTURE.model(sg.VP()), start=torch.from_numpy(start), noise=noise)
    total = 0
    for i in range(4):
        p = sg.VP()
        root = math.sqrt(float(p.alpha(1.0)) ** 2 + float(p.sigma(1.0)) ** 2)
        expected, calls, rejected = by_hand(start[i] / root, noise.values[:, i], eta, tolerance, tolerance / 2, 0.7)
        assert int(result.nfe_per_sample[i]) == calls
        np.testing.assert_allclose(result.x[i], expected, rtol=0, atol=1e-9)
        total += rejected
    assert total > 5  # so that the bridge is used


class Picky(torch.nn.Module):
    """A tiny denoiser that grows with x/sigma: only steps with a large positive noise are rejected."""

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return 1e-6 * torch.relu(x * (1 + torch.exp(2 * c_noise[:, None].double())).sqrt() - 1.0)


def test_rejected_steps_leave_no_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is noise alone, N(0, sigma^2) at every time, whatever is rejected: 2^16 numbers, 6 standard errors of
    mean and variance, rate 4e-9 each. Noise drawn anew after each rejection fails the same test, by 2 to 1."""
    model = sg.ScoreModel(Picky(), sg.VP(), sg.DataPrediction())
    sampler = sg.AdaptiveSDE(rtol=1e-12, atol=3e-8, denoise=False, max_step=3.0)

    def moments_of() -> tuple[float, float, int]:
        result = sampler(model, (2**16, 1), seed=4, dtype=torch.float64, chunk=2**16)
        z = result.x / float(sg.VP().sigma(1e-3))
        return float(z.mean()) * 2**8, (float(z.var()) - 1) * 2**7.5, int((result.nfe_per_sample).max())

    mean, variance, most = moments_of()
    assert abs(mean) < 6
    assert abs(variance) < 6
    assert most > 40  # against 2 for each of the 4 or so steps that are never rejected

    def forgetful(path: Any, begin: Tensor, end: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        path.depth = torch.ones_like(path.depth)
        return end, z

    monkeypatch.setattr(adaptive_sde._Path, "take", forgetful)
    mean, variance, _ = moments_of()
    assert max(abs(mean), abs(variance)) > 12


def test_the_bridge_is_a_rotation() -> None:
    """Increments of the parts add up to the whole, and two normals become two independent ones."""
    like = torch.zeros(1, 2, dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    path = adaptive_sde._Path(like, 0.8)
    at = [torch.tensor([v], dtype=torch.float64) for v in (-1.0, 0.3, 1.1)]
    end, whole = path.take(at[0], at[2], eye[:1])
    assert end == at[2]
    end, first = path.take(at[0], at[1], eye[1:])
    assert end == at[1]
    path.drop(torch.tensor([True]))
    end, second = path.take(at[1], at[1] + 5, torch.full((1, 2), math.nan, dtype=torch.float64))  # nothing new is drawn
    assert end == at[2]
    turn = torch.cat([first, second])
    torch.testing.assert_close(turn @ turn.T, eye, rtol=0, atol=1e-14)

    def clock(v: Tensor) -> Tensor:
        return torch.exp(2 * 0.8**2 * v)

    parts = (clock(at[1]) - clock(at[0])).sqrt() * first + (clock(at[2]) - clock(at[1])).sqrt() * second
    torch.testing.assert_close(parts, (clock(at[2]) - clock(at[0])).sqrt() * whole, rtol=0, atol=1e-14)


def test_adaptive_steps_reach_the_law() -> None:
    """Mean and variance of a Gaussian under several processes: 2^12 numbers, 6 standard errors and 1 % for the
    tolerance; steps of the whole interval would give no variance at all."""
    law = sg.GaussianMixture([1.0], [[0.7, -0.2]], [[[0.25, 0.0], [0.0, 0.25]]])
    for p in (sg.VP(), sg.FlowMatching(), sg.EDM(), sg.NCSN(levels=100)):
        x = sg.AdaptiveSDE(rtol=0.01, atol=0.005)(law.model(p), (2**11, 2), seed=2, dtype=torch.float64).x
        z = (x - torch.tensor([0.7, -0.2])) / 0.5
        assert abs(float(z.mean())) < 6 / 2**6 + 0.01
        assert abs(float(z.square().mean()) - 1) < 6 * 2**0.5 / 2**6 + 0.01


def test_adaptive_invariance() -> None:
    """The same steps under every formulation: one equation in (lambda, u)."""

    class Ends(sg.Oracle):
        def times_within(self, t_low: float | None = None) -> tuple[float, float]:
            return float(self.perturbation.time(3.0)), float(self.perturbation.time(-3.0))

    start = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    answers = []
    for p in PERTURBATIONS.values():
        x = start * float(p.sigma(p.time(-3.0)))
        answers.append(sg.AdaptiveSDE(rtol=0.05)(Ends(MIXTURE, p), start=x, noise=Numbered(3, 2)))
    for other in answers[1:]:
        torch.testing.assert_close(other.x, answers[0].x, rtol=0, atol=1e-10)
        assert torch.equal(other.nfe_per_sample, answers[0].nfe_per_sample)


class Fails(torch.nn.Module):
    """NaN at one call for its rows 1 and 3."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.calls = at, 0

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        out = 0.3 * x
        if self.calls == self.at:
            out[[1, 3]] = math.nan
        self.calls += 1
        return out


def test_adaptive_faults() -> None:
    for at in (0, 1, 7):
        with pytest.raises(sg.NonFiniteError, match="adaptive SDE solver") as caught:
            sg.AdaptiveSDE()(sg.ScoreModel(Fails(at), sg.VP()), (5, 2), first=20)
        assert caught.value.indices == (21, 23)
        assert 0 < caught.value.t <= 1
        if at == 0:
            assert caught.value.t == pytest.approx(1.0, abs=1e-9)


def test_the_budget_is_kept_to_the_call() -> None:
    for denoise in (True, False):
        network = Fails(-1)
        sampler = sg.AdaptiveSDE(denoise=denoise)
        needed = sampler(sg.ScoreModel(network, sg.VP()), (1, 2), first=7).nfe
        assert needed == network.calls
        sg.AdaptiveSDE(denoise=denoise, max_nfe=needed)(sg.ScoreModel(Fails(-1), sg.VP()), (1, 2), first=7)
        network = Fails(-1)
        with pytest.raises(
            sg.SolverError, match=rf"more than max_nfe={needed - 1} network calls .*\[7\].*raise max_nfe"
        ):
            sg.AdaptiveSDE(denoise=denoise, max_nfe=needed - 1)(sg.ScoreModel(network, sg.VP()), (1, 2), first=7)
        assert network.calls == needed - 1


def test_a_step_that_underflows() -> None:
    class Jumps(torch.nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return 1e6 * torch.sign(torch.sin(1e9 * x.double())).to(x.dtype)

    model = sg.ScoreModel(Jumps(), sg.VP(), sg.DataPrediction())
    with pytest.raises(sg.SolverError, match=r"samples \[\d"):
        sg.AdaptiveSDE(rtol=1e-10, atol=1e-10, max_nfe=2000)(model, (2, 2), dtype=torch.float64)


def test_conditions_follow_their_samples() -> None:
    """Rows that finish or are rejected apart keep their own condition."""

    class Labelled(torch.nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
            return torch.sin(3 * x + label.to(x.dtype)[:, None] + c_noise.to(x.dtype)[:, None])

    model, label = sg.ScoreModel(Labelled(), sg.VP(), sg.DataPrediction()), torch.arange(6.0)
    whole = sg.AdaptiveSDE(rtol=0.05)(model, (6, 2), seed=1, condition={"label": label})
    assert len(set(whole.nfe_per_sample.tolist())) > 1
    for i in range(6):
        alone = sg.AdaptiveSDE(rtol=0.05)(model, (1, 2), seed=1, first=i, condition={"label": label[i : i + 1]})
        assert torch.equal(alone.x[0], whole.x[i])
        assert alone.nfe == int(whole.nfe_per_sample[i])
