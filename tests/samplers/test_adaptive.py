"""The adaptive solver, step by step against a second implementation, and its guards at their limits."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import RK45
from torch import Tensor

import sde_gen as sg
from sde_gen.samplers.dormand_prince import dormand_prince

Function = Callable[[float, np.ndarray], np.ndarray]


def rms(x: np.ndarray) -> float:
    return float(np.sqrt((x**2).mean()))


def by_hand(
    f: Function, u: np.ndarray, begin: float, end: float, rtol: float, atol: float
) -> tuple[np.ndarray, int, int]:
    """Dormand-Prince with scipy's tableau, the starting step of Hairer et al. II.4 and the PI control of Gustafsson:
    h grows by 0.9 err^(-0.7/5) before^(0.4/5), after a rejected step by 0.9 err^(-1/5), within [0.2, 5].
    Returns the state, the number of calls, and that of rejected steps."""
    direction, span = math.copysign(1.0, end - begin), abs(end - begin)
    s, k, calls, before, rejected = begin, f(begin, u), 1, 1.0, 0
    scale = atol + rtol * np.abs(u)
    h = min(max(0.01 * rms(u / scale) / max(rms(k / scale), 1e-30), 1e-6 * span), 0.1 * span)
    while True:
        left = (end - s) * direction
        last = h >= left * (1 - 1e-12)
        step = (left if last else h) * direction
        ks = [k]
        for c, row in zip(RK45.C[1:], RK45.A[1:], strict=True):
            ks.append(f(s + c * step, u + step * sum(a * kk for a, kk in zip(row, ks, strict=False))))
        new = u + step * sum(b * kk for b, kk in zip(RK45.B, ks, strict=True))
        ks.append(f(s + step, new))
        calls += 6
        error = step * sum(e * kk for e, kk in zip(RK45.E, ks, strict=True))
        size = max(rms(error / (atol + rtol * np.maximum(np.abs(u), np.abs(new)))), 1e-10)
        if size <= 1:
            u, k, s = new, ks[-1], s + step
            if last:
                return u, calls, rejected
            factor, before = 0.9 * size ** (-0.7 / 5) * before ** (0.4 / 5), size
        else:
            factor, rejected = 0.9 * size ** (-1 / 5), rejected + 1
        h = abs(step) * min(max(factor, 0.2), 5.0)


def bumpy(s: float, u: np.ndarray) -> np.ndarray:
    """Smooth, with a sudden bump at s = 0.3 that makes the solver reject steps."""
    return np.array([-u[1], u[0], -0.5 * u[2]]) * (0.5 + 40 * math.exp(-200 * (s - 0.3) ** 2))


def shrinking(s: float, u: np.ndarray) -> np.ndarray:
    return -u * np.array([1.0, 2.0, 30.0]) * (1 + s)


def nearly_still(s: float, u: np.ndarray) -> np.ndarray:
    return 1e-9 * u


@pytest.mark.parametrize("tolerance", [(1e-4, 1e-6), (1e-6, 1e-4), (1e-9, 1e-9)])
@pytest.mark.parametrize(("begin", "end"), [(-1.0, 2.0), (2.0, -1.0)])
@pytest.mark.parametrize("f", [bumpy, shrinking, nearly_still], ids=lambda f: f.__name__)
def test_every_step_is_that_of_the_second_implementation(
    f: Function, begin: float, end: float, tolerance: tuple[float, float]
) -> None:
    if f is shrinking and end < begin:
        begin, end = 0.0, -0.9  # backwards it grows
    starts = np.array([[1.0, 0.3, -2.0], [0.01, 2.0, 0.5]])

    def slope(u: Tensor, s: Tensor, rows: Tensor) -> Tensor:
        pairs = zip(s.tolist(), u.numpy(), strict=True)
        return torch.from_numpy(np.array([f(t, row) for t, row in pairs]).reshape(u.shape))

    rtol, atol = tolerance
    got = dormand_prince(slope, torch.from_numpy(starts), begin, end, rtol=rtol, atol=atol, max_calls=100_000)
    for i, start in enumerate(starts):
        expected, calls, rejected = by_hand(f, start, begin, end, rtol, atol)
        assert int(got.calls[i]) == calls
        # Steps are chosen from error estimates that are small differences, so rounding moves them, and with them the
        # result, within its tolerance: as much as a change of the start by 1e-15 does here.
        nudged, _, _ = by_hand(f, start * (1 + 1e-15), begin, end, rtol, atol)
        atol_here = 1e-12 + 100 * float(np.abs(nudged - expected).max())
        assert atol_here < rtol * np.abs(expected).max() + atol
        np.testing.assert_allclose(got.u[i], expected, rtol=1e-11, atol=atol_here)
        if f is bumpy:
            assert rejected > 0  # so that both branches of the control are tested


def test_a_budget_of_exactly_the_calls_needed() -> None:
    def slope(u: Tensor, s: Tensor, rows: Tensor) -> Tensor:
        return -u

    u = torch.ones(1, 2, dtype=torch.float64)
    needed = int(dormand_prince(slope, u, 0.0, 3.0, rtol=1e-6, atol=1e-6, max_calls=10**6).calls)
    dormand_prince(slope, u, 0.0, 3.0, rtol=1e-6, atol=1e-6, max_calls=needed)
    with pytest.raises(sg.SolverError, match=rf"more than max_nfe={needed - 1} network calls are needed"):
        dormand_prince(slope, u, 0.0, 3.0, rtol=1e-6, atol=1e-6, max_calls=needed - 1)


def test_a_step_that_underflows() -> None:
    """A pole that no step crosses: u' = u^2 from 1 explodes at s = 1."""

    def slope(u: Tensor, s: Tensor, rows: Tensor) -> Tensor:
        return u.square()

    u = torch.ones(2, 1, dtype=torch.float64)
    with pytest.raises((sg.SolverError, sg.NonFiniteError), match=r"samples \[5, 6\]") as caught:
        dormand_prince(slope, u, 0.0, 2.0, rtol=1e-8, atol=1e-8, max_calls=10**6, first=5)
    if isinstance(caught.value, sg.SolverError):
        assert "step became too small" in str(caught.value)


def test_the_given_state_is_not_changed() -> None:
    u = torch.ones(3, 2, dtype=torch.float64)
    dormand_prince(lambda v, s, rows: -v, u, 0.0, 1.0, rtol=1e-3, atol=1e-3, max_calls=1000)
    assert torch.equal(u, torch.ones(3, 2, dtype=torch.float64))


def test_slope_is_asked_for_the_rows_it_is_told() -> None:
    """Rows differ in speed, so they finish apart; each call names its rows."""
    speed = torch.tensor([1.0, 30.0, 5.0], dtype=torch.float64)
    asked = torch.zeros(3, dtype=torch.long)

    def slope(u: Tensor, s: Tensor, rows: Tensor) -> Tensor:
        asked[rows] += 1
        return -speed[rows, None] * u

    u = torch.ones(3, 2, dtype=torch.float64)
    got = dormand_prince(slope, u, 0.0, 1.0, rtol=1e-7, atol=1e-9, max_calls=10**5)
    torch.testing.assert_close(got.u, torch.exp(-speed)[:, None].expand(3, 2), rtol=0, atol=1e-6)
    assert torch.equal(asked, got.calls)
    assert len(set(asked.tolist())) == 3


def normal(size: int, deviation: float) -> sg.GaussianMixture:
    return sg.GaussianMixture([1.0], torch.zeros(1, size), torch.eye(size)[None] * deviation**2)


@pytest.mark.parametrize(
    ("method", "bound"),
    [("dopri5", 1e-5), ("DOP853", 1e-5), ("torchdiffeq:dopri5", 1e-5), ("rk4", 0.03)],
)
@pytest.mark.parametrize("at", [5, (0.9, 0.25, 0.5)])
def test_a_callback_sees_the_exact_flow_between_the_ends(
    method: str, bound: float, at: int | tuple[float, ...]
) -> None:
    p, deviation = sg.VP(), 0.5
    model = normal(3, deviation).model(p)
    steps = 40 if method == "rk4" else None
    sampler = sg.ProbabilityFlow(method=method, rtol=1e-7, atol=1e-7, steps=steps, at=at)
    start = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states: list[tuple[int, float, Tensor]] = []
    result = sampler(model, start=start, callback=lambda k, t, x: states.append((k, t, x.clone())))
    inner = states[1:-1]
    assert [k for k, _, _ in states] == list(range(len(inner) + 2))
    times = [t for _, t, _ in inner]
    lam = p.half_log_snr(torch.tensor(times, dtype=torch.float64))
    if isinstance(at, int):
        high, low = p.half_log_snr(sampler.times(model)).tolist()
        assert len(times) == at
        assert torch.allclose(lam, torch.linspace(high, low, at + 2, dtype=torch.float64)[1:-1])
    else:
        assert times == [0.9, 0.5, 0.25]

    def width(t: float) -> Tensor:
        return (p.alpha(t) ** 2 * deviation**2 + p.sigma(t) ** 2) ** 0.5

    for _, t, x in inner:  # of a normal law the flow stretches, by the ratio of the standard deviations
        assert torch.allclose(x, start * width(t) / width(float(sampler.times(model)[0])), atol=bound, rtol=0)
    without = sg.ProbabilityFlow(method=method, rtol=1e-7, atol=1e-7, steps=steps)(model, start=start)
    more = 3 * len(inner) if method == "DOP853" else 0  # its interpolant asks three times more
    assert without.nfe <= result.nfe <= without.nfe + more
    assert torch.equal(result.x, without.x)


def test_times_of_a_callback_lie_within_those_of_the_sampler() -> None:
    model = normal(2, 1.0).model(sg.VP())
    for at in (-1, 1.5, True, "3", (0.5, math.nan)):
        with pytest.raises(sg.ConfigError, match="ProbabilityFlow: at must be"):
            sg.ProbabilityFlow(at=at)  # type: ignore[arg-type]
    with pytest.raises(sg.ConfigError, match=r"at must lie in \[0.001, 1\], got 1.5"):
        sg.ProbabilityFlow(at=(0.5, 1.5))(model, (2, 2), callback=lambda k, t, x: None)
