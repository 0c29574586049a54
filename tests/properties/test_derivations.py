"""What the base class derives from the two curves, for every perturbation there is."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

import sde_gen as sg
from sde_gen.perturbations import Perturbation
from tests.perturbations import cases
from tests.perturbations.cases import ALL, CHAINS, CLASSES, CONTINUOUS

F64 = torch.float64


def inner_times(p, n=41):
    """Times strictly inside [0, 1] and off the nodes of chains, where the curves have a corner."""
    t = torch.linspace(0.001, 0.999 * p.t_max, n, dtype=F64)
    return (torch.floor(t * p.length) + 0.37) / p.length if p.is_chain else t


def on_mesh(p, n=23):
    """Times at which a process may stand, first to last: nodes of a chain, else 0 ... t_max."""
    if p.is_chain:
        return torch.cat([torch.zeros(1, dtype=F64), p.nodes[:: max(1, len(p.nodes) // n)], p.nodes[-1:]]).unique()
    return torch.cat([torch.tensor([0.0, 1e-9, 1e-6, 1e-3], dtype=F64), torch.linspace(0.02, p.t_max, n, dtype=F64)])


def pairs(p):
    """All s < t of the mesh."""
    mesh = on_mesh(p, 11)
    i, j = torch.triu_indices(len(mesh), len(mesh), offset=1)
    return mesh[i], mesh[j]


def test_discovery_reaches_every_class():
    assert {cls.__name__ for cls in CLASSES} == {type(p).__name__ for p in ALL}


# -- f and g ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", ALL, ids=str)
def test_drift_and_diffusion_against_autograd_of_alpha_and_sigma(p):
    t = inner_times(p).requires_grad_()
    alpha, sigma = p.alpha(t), p.sigma(t)
    (d_alpha,) = (
        torch.autograd.grad(alpha.sum(), t, retain_graph=True, allow_unused=True) if alpha.requires_grad else (None,)
    )
    d_alpha = torch.zeros_like(t) if d_alpha is None else d_alpha
    (d_sigma,) = torch.autograd.grad(sigma.sum(), t)
    f = d_alpha / alpha
    g2 = 2 * sigma * d_sigma - 2 * f * sigma**2
    torch.testing.assert_close(p.drift(t), f, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(p.diffusion(t) ** 2, g2, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("p", ALL, ids=str)
def test_squared_diffusion_is_the_fall_of_the_log_snr(p):
    """g^2 = -2 lambda' sigma^2."""
    t = inner_times(p).requires_grad_()
    (slope,) = torch.autograd.grad(p.half_log_snr(t).sum(), t)
    torch.testing.assert_close(p.diffusion(t) ** 2, (-2 * slope * p.sigma(t) ** 2).detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("p", [p for p in cases.DEFAULTS if not p.is_chain], ids=str)
def test_moment_equations_of_the_forward_process(p):
    """d alpha/dt = f alpha and d sigma^2/dt = 2 f sigma^2 + g^2, integrated, give the curves back to 1e-9."""
    low, high = 0.01, min(p.t_max, 0.97)

    def slope(t, y):
        f, g = p.drift(t).item(), p.diffusion(t).item()
        return [f * y[0], 2 * f * y[1] + g * g]

    start = [float(p.alpha(low)), float(p.sigma(low)) ** 2]
    mesh = np.linspace(low, high, 7)
    answer = solve_ivp(slope, (low, high), start, method="DOP853", rtol=3e-11, atol=1e-15, t_eval=mesh)
    np.testing.assert_allclose(answer.y[0], p.alpha(torch.tensor(mesh)), rtol=1e-9)
    np.testing.assert_allclose(answer.y[1], p.sigma(torch.tensor(mesh)) ** 2, rtol=1e-9)


@pytest.mark.parametrize("p", ALL, ids=str)
def test_moment_equations_solved_by_quadrature(p):
    """Their solution, log alpha = int f and (sigma/alpha)^2 = int (g/alpha)^2, over each interval of a mesh (the nodes
    of a chain), by Gauss-Legendre in u with t = s + h u^4, which also takes the steep start."""
    x, w = (torch.tensor(v) for v in np.polynomial.legendre.leggauss(64))
    u, weight = (x + 1) / 2, w / 2
    mesh = torch.cat([torch.zeros(1, dtype=F64), p.nodes]) if p.is_chain else on_mesh(p)
    mesh = mesh[mesh < 0.97] if p.t_max < 1 else mesh  # beyond, the drift's pole at t = 1 is what limits the rule
    which = torch.arange(len(mesh) - 1)[:: max(1, len(mesh) // 40)]
    s, t = mesh[which], mesh[which + 1]
    inside = s[:, None] + (t - s)[:, None] * u**4
    weight = (t - s)[:, None] * 4 * u**3 * weight
    torch.testing.assert_close(
        (weight * p.drift(inside)).sum(1), (p.alpha(t) / p.alpha(s)).log(), rtol=1e-9, atol=1e-13
    )
    grown = (weight * (p.diffusion(inside) / p.alpha(inside)) ** 2).sum(1)
    ratio = [(p.sigma(v) / p.alpha(v)) ** 2 for v in (s, t)]
    torch.testing.assert_close(grown, ratio[1] - ratio[0], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("p", CHAINS, ids=str)
def test_rates_at_a_node_are_those_of_the_interval_before_it(p):
    k = p.nodes[:: max(1, len(p.nodes) // 50)]
    k = k[p.alpha(k) > 0]  # without signal they are infinite
    for rate in (p.drift, p.diffusion):
        torch.testing.assert_close(rate(k), rate(k - 1e-6 / p.length), rtol=1e-4, atol=1e-9)


# -- kernels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", ALL, ids=str)
def test_kernel_moves_the_marginal_at_s_to_the_marginal_at_t(p):
    s, t = pairs(p)
    a, b = p.transition(s, t)
    torch.testing.assert_close(a * p.alpha(s), p.alpha(t), rtol=1e-12, atol=0)
    torch.testing.assert_close(a**2 * p.sigma(s) ** 2 + b**2, p.sigma(t) ** 2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("p", ALL, ids=str)
def test_kernels_compose(p):
    mesh = on_mesh(p, 9)
    for i, s in enumerate(mesh):
        for j in range(i + 1, len(mesh)):
            u, t = mesh[j], mesh[j:]
            (a1, b1), (a2, b2), (a, b) = p.transition(s, u), p.transition(u, t), p.transition(s, t)
            torch.testing.assert_close(a1 * a2, a, rtol=1e-12, atol=0)
            torch.testing.assert_close((a2 * b1) ** 2 + b2**2, b**2, rtol=1e-11, atol=0)


@pytest.mark.parametrize("p", CONTINUOUS, ids=str)
@pytest.mark.parametrize("h", [1e-3, 1e-6, 1e-9])
def test_short_steps_do_not_cancel(p, h):
    """b^2 over a step of 1e-9 against 60 digits; sigma_t^2 - a^2 sigma_s^2 taken naively loses 9 of 16."""
    for s in (0.05, 0.5, 0.9):
        t = s + h
        (ls, vs), (lt, vt) = cases.reference(p, s), cases.reference(p, t)
        a2 = cases.mp.exp(2 * (lt - ls))
        a, b = p.transition(s, t)
        assert float(a) == pytest.approx(float(cases.mp.sqrt(a2)), rel=1e-13)
        # lambda_t - lambda_s is a difference of numbers of size 5 with 16 digits: 1e-15/h relative, not 1e-15/h^2.
        assert float(b) ** 2 == pytest.approx(float(vt - a2 * vs), rel=1e-11 + 3e-15 / h)


@pytest.mark.parametrize("p", ALL, ids=str)
def test_posterior_is_the_product_of_two_gaussians(p):
    """p(x_s | x_t, x_0) is proportional to p(x_t | x_s) p(x_s | x_0): precisions add, and precisions times means."""
    s, t = pairs(p)
    keep = p.sigma(s) > 0
    s, t = s[keep], t[keep]
    a, b = p.transition(s, t)
    c_t, c_0, std = p.posterior(s, t)
    precision = a**2 / b**2 + 1 / p.sigma(s) ** 2
    torch.testing.assert_close(std**2, 1 / precision, rtol=1e-11, atol=0)
    torch.testing.assert_close(c_t, a / b**2 / precision, rtol=1e-11, atol=0)
    torch.testing.assert_close(c_0, p.alpha(s) / p.sigma(s) ** 2 / precision, rtol=1e-11, atol=0)


@pytest.mark.parametrize("p", ALL, ids=str)
def test_posterior_by_brute_force_on_a_line(p):
    """Mean and variance of the normalised product of the two densities, on a fine grid of x_s."""
    s, t = (float(p.nodes[0]), 1.0) if p.is_chain else (0.21, 0.47)
    if p.is_chain and p.length == 1:
        s = 0.5
    x0, xt = 0.8, -0.4
    a, b = (float(v) for v in p.transition(s, t))
    c_t, c_0, std = (float(v) for v in p.posterior(s, t))
    mean = c_t * xt + c_0 * x0
    line = np.linspace(mean - 12 * std, mean + 12 * std, 20001)
    log_density = -0.5 * ((xt - a * line) / b) ** 2 - 0.5 * ((line - float(p.alpha(s)) * x0) / float(p.sigma(s))) ** 2
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    assert (density * line).sum() == pytest.approx(mean, rel=1e-9, abs=1e-9 * std)
    assert (density * (line - mean) ** 2).sum() == pytest.approx(std**2, rel=1e-9)


# -- lambda and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", ALL, ids=str)
def test_time_to_lambda_and_back(p):
    t = torch.cat([torch.tensor([0.0, 1e-12, 1e-8, 1e-5, 1e-3], dtype=F64), torch.linspace(0.01, 1, 100, dtype=F64)])
    there = p.half_log_snr(t)
    # Where sigma does not vanish, lambda has no room for the last digits of a tiny t.
    finite_start = math.isfinite(float(p.half_log_snr(0.0)))
    torch.testing.assert_close(p.time(there), t, rtol=1e-9, atol=1e-12 if finite_start else 0)
    again = p.half_log_snr(p.time(there))
    torch.testing.assert_close(again, there, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("p", ALL, ids=str)
def test_lambda_to_time_and_back(p):
    top, bottom = (min(max(float(p.half_log_snr(t)), -30.0), 25.0) for t in (0.0, 1.0))
    lam = torch.linspace(bottom, top, 301, dtype=F64)
    t = p.time(lam)
    assert bool((t.diff() < 0).all())
    # Near t = 1 with alpha = 0 a unit in the last place of t is a large step of lambda.
    resolved = t < 1 - 1e-3
    torch.testing.assert_close(p.half_log_snr(t)[resolved], lam[resolved], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("p", ALL, ids=str)
def test_stated_inverse_against_the_generic_bisection(p):
    lam = p.half_log_snr(torch.tensor([1e-9, 1e-6, 1e-4, 0.003, 0.04, 0.3, 0.77, 0.95, 0.999], dtype=F64))
    torch.testing.assert_close(p.time(lam), Perturbation._time(p, lam), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("p", ALL, ids=str)
def test_lambdas_that_never_occur_are_refused(p):
    top, bottom = float(p.half_log_snr(0.0)), float(p.half_log_snr(1.0))
    for lam in [math.nan] + [v for v in (top + 1e-3, bottom - 1e-3) if math.isfinite(v)]:
        with pytest.raises(sg.ConfigError, match="never occurs; it lies in") as info:
            p.time(torch.tensor([0.5 * (max(bottom, -9) + min(top, 9)), lam], dtype=F64))
        assert type(p).__name__ in str(info.value)
        assert f"{lam:.6g}" in str(info.value)
    # What rounding to float32 adds is not refused.
    for end, at in ((top, 0.0), (bottom, 1.0)):
        if math.isfinite(end):
            up = torch.tensor(end, dtype=torch.float32) * (1 + 1.2e-7)
            assert float(p.time(up)) == pytest.approx(at, abs=1e-5)


# -- any parameters ---------------------------------------------------------------------------------------------------


@st.composite
def perturbations(draw):
    name = draw(st.sampled_from(sorted(cases.INSTANCES)))
    number = lambda low, high: draw(st.floats(low, high))  # noqa: E731
    if name in ("VP", "SubVP"):
        low = number(0, 5)
        return getattr(sg, name)(low, low + number(0.01, 60))
    if name in ("VE", "NCSN", "EDM"):
        low = math.exp(number(-7, 2))
        extra = {"VE": (), "EDM": (number(1, 20),), "NCSN": (draw(st.integers(2, 300)),)}[name]
        return getattr(sg, name)(low, low * math.exp(number(0.05, 11)), *extra)
    if name == "Cosine":
        return sg.Cosine(number(0, 1))
    if name == "FlowMatching":
        return sg.FlowMatching()
    if name == "LinearSDE":
        return draw(st.sampled_from(list(cases.TWINS)))
    if name == "Table":
        return sg.Table.from_betas(draw(st.lists(st.floats(1e-6, 0.9), min_size=1, max_size=60)))
    assert name == "DDPM", "a new perturbation needs a strategy here"
    steps, schedule = draw(st.integers(1, 400)), draw(st.sampled_from(["linear", "cosine", "quadratic", "sigmoid"]))
    # A beta below 0.99, and a chain that does not lose its signal beyond the range of float64, exp(-700).
    high = number(1e-5, min(0.99, -math.expm1(-500 / steps)) * 1e-3) * steps
    return sg.DDPM(steps, schedule, high * number(1e-3, 1), high)


@given(perturbations(), st.tuples(*[st.floats(1e-6, 0.99)] * 3))
@example(sg.VP(0.0, 20.0), (1e-6, 0.5, 0.99))
@example(sg.DDPM(1, "cosine"), (0.2, 0.5, 0.9))
def test_any_parameters(p, times):
    s, u, t = sorted(times)
    lam = p.half_log_snr(torch.tensor([0.0, s, u, t, 1.0], dtype=F64))
    assert bool((lam.diff() <= 0).all())
    assert not bool(lam.isnan().any())
    assert float(p.alpha(t)) >= 0
    assert float(p.sigma(t)) > 0
    assert float(p.drift(t)) <= 0
    assert float(p.diffusion(t)) >= 0
    assert float(p.half_log_snr(p.time(float(lam[2])))) == pytest.approx(float(lam[2]), rel=1e-9, abs=1e-9)
    want_alpha, want_sigma = cases.reference_alpha_sigma(p, u)
    # alpha of a steep process at late times, exp(-20), has the error of log alpha times its size.
    assert float(p.alpha(u)) == pytest.approx(want_alpha, rel=1e-11)
    assert float(p.sigma(u)) == pytest.approx(want_sigma, rel=1e-11)
    (a1, b1), (a2, b2), (a, b) = p.transition(s, u), p.transition(u, t), p.transition(s, t)
    assert float(a1 * a2) == pytest.approx(float(a), rel=1e-11)
    # Relative to sigma_t: where s, u and t are equal to many digits, b is what is left of a difference.
    assert float((a2 * b1) ** 2 + b2**2) == pytest.approx(float(b**2), rel=1e-9, abs=1e-12 * float(p.sigma(t)) ** 2)
    c_t, c_0, std = p.posterior(s, t)
    variance = float(c_t**2 * p.sigma(t) ** 2 + std**2)
    assert variance == pytest.approx(float(p.sigma(s)) ** 2, rel=1e-9)  # x_t and x_s have the right marginals
    assert float(c_t * p.alpha(t) + c_0) == pytest.approx(float(p.alpha(s)), rel=1e-9)
