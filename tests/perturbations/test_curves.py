"""The curves against their formulas with 60 digits, at every size of t and in every dtype."""

import math

import mpmath as mp
import numpy as np
import pytest
import torch

import sde_gen as sg
from tests.perturbations import cases

SMALL = [0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3]
TIMES = [*SMALL, 0.01, 0.1, 0.25, 0.5, 0.7, 0.9, 0.99, 0.999, 0.9999, 1.0]


def test_every_perturbation_is_covered():
    names = {cls.__name__ for cls in cases.CLASSES}
    assert names == set(cases.INSTANCES), "a new perturbation needs instances in tests/perturbations/cases.py"
    assert names == set(cases.REFERENCE), "a new perturbation needs its curves in tests/perturbations/cases.py"
    assert all(isinstance(p, getattr(sg, name)) for name, ps in cases.INSTANCES.items() for p in ps)
    assert {"VP", "SubVP", "VE", "Cosine", "EDM", "FlowMatching", "DDPM", "NCSN"} <= names


@pytest.mark.parametrize("p", cases.ALL, ids=str)
def test_float64_to_eleven_digits(p):
    t = torch.tensor(TIMES, dtype=torch.float64)
    alpha, sigma = zip(*(cases.reference_alpha_sigma(p, u) for u in TIMES), strict=True)
    np.testing.assert_allclose(p.alpha(t), alpha, rtol=1e-11, atol=0)
    np.testing.assert_allclose(p.sigma(t), sigma, rtol=1e-11, atol=0)
    np.testing.assert_allclose(p.half_log_snr(t), [cases.reference_lambda(p, u) for u in TIMES], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("p", cases.ALL, ids=str)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8), (torch.float16, 2**-10)])
def test_lower_precisions_lose_only_the_last_rounding(p, dtype, rtol):
    """1e-6 relative in float32 down to t = 1e-12, where sqrt(1 - exp(.)) taken naively is 0.6 % off at 1e-5."""
    t = torch.tensor(TIMES).to(dtype)
    truth = [cases.reference_alpha_sigma(p, float(u)) for u in t]
    for got, want in ((p.alpha(t), [a for a, _ in truth]), (p.sigma(t), [s for _, s in truth])):
        assert got.dtype == dtype
        # Half precision has no numbers below 6e-8: an absolute error of that size is its own.
        np.testing.assert_allclose(got.double(), want, rtol=rtol, atol=6e-8 if dtype == torch.float16 else 0)
    lam = p.half_log_snr(t)
    want = [cases.reference_lambda(p, float(u)) for u in t]
    np.testing.assert_allclose(lam.double(), want, rtol=max(rtol, 1e-6), atol=1e-12)


@pytest.mark.parametrize("p", cases.ALL, ids=str)
def test_rates_against_numerical_derivatives_with_60_digits(p):
    """f = d log alpha/dt and g^2 = d sigma^2/dt - 2 f sigma^2 by central differences of the 60-digit curves."""
    for t in (1e-5, 0.00137, 0.0317, 0.1234, 0.45678, 0.87654, 0.9973):
        u, h = mp.mpf(t), mp.mpf(10) ** -18
        (la, va), (lb, vb) = (cases.REFERENCE[type(p).__name__](p, u + k * h) for k in (-1, 1))
        f = (lb - la) / (2 * h)
        g2 = (vb - va) / (2 * h) - 2 * f * (va + vb) / 2
        assert float(p.drift(t)) == pytest.approx(float(f), rel=1e-10, abs=1e-12), t
        assert float(p.diffusion(t)) ** 2 == pytest.approx(float(g2), rel=1e-10, abs=1e-12), t


def _closed_form(p, t):
    p = cases.TWINS.get(p, p)
    """f and g^2 as the papers print them."""
    if isinstance(p, sg.VP | sg.SubVP):
        beta = p.beta_min + t * (p.beta_max - p.beta_min)
        integral = p.beta_min * t + 0.5 * t**2 * (p.beta_max - p.beta_min)
        return -beta / 2, beta if isinstance(p, sg.VP) else beta * -math.expm1(-2 * integral)
    if isinstance(p, sg.VE):
        sigma = p.sigma_min * (p.sigma_max / p.sigma_min) ** t
        return 0.0, 2 * math.log(p.sigma_max / p.sigma_min) * sigma**2
    if isinstance(p, sg.EDM):
        low, high = p.sigma_min ** (1 / p.rho), p.sigma_max ** (1 / p.rho)
        root = low + t * (high - low)
        return 0.0, 2 * root**p.rho * p.rho * root ** (p.rho - 1) * (high - low)
    if isinstance(p, sg.Cosine):
        rate = math.pi / 2 / (1 + p.s)
        return -rate * math.tan(rate * (t + p.s)), 2 * rate * math.tan(rate * (t + p.s))
    assert isinstance(p, sg.FlowMatching), "a new continuous perturbation needs its drift and diffusion here"
    return -1 / (1 - t), 2 * t / (1 - t)


@pytest.mark.parametrize("p", cases.CONTINUOUS, ids=str)
@pytest.mark.parametrize("t", [0.0, 1e-8, 1e-5, 0.01, 0.3, 0.77, 0.999])
def test_rates_against_the_papers(p, t):
    f, g2 = _closed_form(p, t)
    assert float(p.drift(t)) == pytest.approx(f, rel=1e-11, abs=1e-14)
    assert float(p.diffusion(t)) ** 2 == pytest.approx(g2, rel=1e-11, abs=1e-14)


@pytest.mark.parametrize("p", [sg.Cosine(), sg.Cosine(0.3), sg.FlowMatching()], ids=str)
def test_where_alpha_vanishes_the_rates_are_infinite(p):
    assert float(p.alpha(1.0)) == 0.0
    assert float(p.sigma(1.0)) == pytest.approx(1.0, rel=1e-15)
    assert float(p.half_log_snr(1.0)) == -math.inf
    assert float(p.drift(1.0)) == -math.inf
    assert float(p.diffusion(1.0)) == math.inf
    assert p.t_max == 0.999


@pytest.mark.parametrize("p", cases.ALL, ids=str)
def test_end_points_are_defined_for_every_method(p):
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for name in ("alpha", "sigma", "half_log_snr", "drift", "diffusion"):
        assert not getattr(p, name)(ends).isnan().any(), name
    pairs = [(0.0, 0.0), (0.0, 1e-60), (0.0, p.t_min), (0.0, 0.5), (0.0, 1.0), (0.5, 0.5), (0.5, 1.0), (1.0, 1.0)]
    for s, t in pairs:
        for value in (*p.transition(s, t), *p.posterior(s, t)):
            assert not bool(value.isnan()), (s, t)
            assert bool(value.isfinite()), (s, t)
    for t in (0.3, 1.0):  # standing still, and from clean data to now
        assert [float(v) for v in p.transition(t, t)] == [1.0, 0.0]
        assert [float(v) for v in p.posterior(t, t)] == [1.0, 0.0, 0.0]
    lam = p.half_log_snr(ends)
    assert p.time(lam).tolist() == [0.0, 1.0]
    assert p.perturb(torch.ones(2, 3), ends, torch.ones(2, 3)).isfinite().all()


@pytest.mark.parametrize("p", cases.ALL, ids=str)
def test_the_process_starts_at_the_data(p):
    assert float(p.alpha(0.0)) == 1.0
    assert float(p.sigma(0.0)) == (p.sigma_min if isinstance(p, sg.VE | sg.EDM) else 0.0) or float(
        p.sigma(0.0)
    ) == pytest.approx(p.sigma_min, rel=1e-14)


@pytest.mark.parametrize("p", cases.ALL, ids=str)
def test_lambda_falls_strictly(p):
    t = torch.linspace(0, 1, 4001, dtype=torch.float64)
    assert bool((p.half_log_snr(t).diff() < 0).all())
    assert bool((p.diffusion(t) >= 0).all())
    assert bool((p.drift(t) <= 0).all())


@pytest.mark.parametrize(
    ("p", "std"),
    [
        (sg.VP(), math.sqrt(1 - math.exp(-10.05))),
        (sg.SubVP(), 1 - math.exp(-10.05)),
        (sg.VE(), 50.0),
        (sg.EDM(), 80.0),
        (sg.NCSN(), 50.0),
        (sg.DDPM(), math.sqrt(1 - 4.0358e-5)),
        (sg.FlowMatching(), 0.999),
        (
            sg.Cosine(),
            math.sqrt(1 - (math.cos(math.pi / 2 * 1.007 / 1.008) / math.cos(math.pi / 2 * 0.008 / 1.008)) ** 2),
        ),
    ],
    ids=str,
)
def test_prior_std(p, std):
    assert isinstance(p.prior_std, float)
    assert p.prior_std == pytest.approx(std, rel=1e-9)


def test_ranges_of_times():
    """The constants that the papers use, and a chain's first node."""
    assert [(p.t_min, p.t_sample, p.t_max) for p in (sg.VP(), sg.SubVP())] == [(1e-5, 1e-3, 1.0)] * 2
    assert (sg.VE().t_min, sg.VE().t_sample, sg.VE().t_max) == (1e-5, 1e-5, 1.0)
    assert (sg.EDM().t_min, sg.EDM().t_sample, sg.EDM().t_max) == (0.0, 0.0, 1.0)
    assert (sg.Cosine().t_min, sg.Cosine().t_sample) == (1e-5, 1e-3)
    assert (sg.FlowMatching().t_min, sg.FlowMatching().t_sample) == (1e-5, 1e-3)
    assert (sg.DDPM(50).t_min, sg.DDPM(50).t_sample, sg.DDPM(50).t_max) == (0.02, 0.02, 1.0)
    assert (sg.NCSN().t_min, sg.NCSN().t_sample) == (1 / 232, 1 / 232)
    assert [type(p).__name__ for p in cases.DEFAULTS if p.is_chain] == ["DDPM", "NCSN", "Table"]
