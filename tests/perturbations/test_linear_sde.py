"""Any linear SDE by its f and g: the same as the class with closed forms, and what is no such SDE is refused."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import sde_gen as sg
from sde_gen.config.objects import build, describe
from sde_gen.digests import digest
from tests.perturbations import cases

F64 = torch.float64
TWINS = list(cases.TWINS.items())


def own(p):
    """The SDE with the drift and diffusion of another perturbation."""
    return sg.LinearSDE(p.drift, p.diffusion, sigma_min=float(p.sigma(0.0)))


PAIRS = [*TWINS, *((own(p), p) for p in (sg.VP(), sg.SubVP(), sg.VE(), sg.EDM()))]


@pytest.mark.parametrize(("p", "twin"), PAIRS, ids=str)
def test_every_derived_quantity_is_that_of_its_twin(p, twin):
    t = torch.cat([torch.tensor([0.0, 1e-12, 1e-8, 1e-5, 1e-3], dtype=F64), torch.linspace(0.01, 1, 100, dtype=F64)])
    s = 0.7 * t
    same = lambda got, want: torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-14)  # noqa: E731
    for name in ("alpha", "sigma", "half_log_snr", "drift", "diffusion", "size"):
        same(getattr(p, name)(t), getattr(twin, name)(t))
    for got, want in zip((*p.transition(s, t), *p.posterior(s, t)), (*twin.transition(s, t), *twin.posterior(s, t)),
                         strict=True):  # fmt: skip
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)  # what is left of a difference
    for got, want in zip(p.slopes(t[1:]), twin.slopes(t[1:]), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-12)
    lam = twin.half_log_snr(t[1:])
    torch.testing.assert_close(p.time(lam), t[1:], rtol=1e-9, atol=1e-12 if p.sigma_min else 0)
    assert p.prior_std == pytest.approx(twin.prior_std, rel=1e-12)
    if not isinstance(twin, sg.EDM):
        assert (p.t_min, p.t_sample, p.t_max) == (twin.t_min, twin.t_sample, twin.t_max)


@pytest.mark.parametrize("twin", [sg.VP(), sg.SubVP(), sg.VE()], ids=str)
def test_samplers_and_likelihood(twin):
    law = sg.GaussianMixture(
        [0.4, 0.6], [[-1.0, 0.2], [0.7, 0.5]], [[[0.2, 0.1], [0.1, 0.3]], [[0.1, 0.0], [0.0, 0.2]]]
    )
    ours, theirs = law.model(own(twin)), law.model(twin)
    for sampler in (
        sg.DDIM(10), sg.EulerMaruyama(30), sg.Ancestral(10), sg.ReverseDiffusion(10), sg.Heun(8), sg.DPMSolverPP2M(8),
        sg.PredictorCorrector(10), sg.ProbabilityFlow(rtol=1e-6, atol=1e-6),
    ):  # fmt: skip
        got, want = (sampler(model, (16, 2), seed=3, dtype=F64).x for model in (ours, theirs))
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    x = law.sample(6)
    got, want = (sg.log_likelihood(model, x, divergence="exact").log_prob for model in (ours, theirs))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_an_sde_without_closed_forms_against_its_moment_equations():
    """Kinks, a jump and a wave; the variance by an adaptive solver of another library, between the breaks."""

    def f(t):
        return -3 * torch.sin(2 * t) - torch.where(t < 0.3, 0.0, 2.0)

    table = (0.5, 3.0, 1.0, 2.0, 2.5)
    p = sg.LinearSDE(f, table)

    def slope(t, y):
        drift = float(f(torch.tensor(t, dtype=F64)))
        return [drift, 2 * drift * y[1] + np.interp(t, np.linspace(0, 1, 5), table) ** 2]

    y, breaks = [0.0, 0.0], [0.0, 0.25, 0.3, 0.5, 0.75, 1.0]
    for low, high in zip(breaks[:-1], breaks[1:], strict=True):  # noqa: RUF007
        inside = (low + 1e-15, high - 1e-15)
        y = solve_ivp(slope, inside, y, method="DOP853", rtol=1e-12, atol=1e-15).y[:, -1].tolist()
        assert float(p.log_alpha(torch.tensor(high, dtype=F64))) == pytest.approx(y[0], rel=1e-10)
        assert float(p.sigma(high)) ** 2 == pytest.approx(y[1], rel=1e-10)
    assert bool((p.half_log_snr(torch.linspace(0, 1, 5000, dtype=F64)).diff() < 0).all())


def test_rates_are_exactly_as_given():
    p = sg.LinearSDE(cases.vp_drift, cases.vp_diffusion)
    t = torch.linspace(0, 1, 9, dtype=F64)
    assert torch.equal(p.drift(t), cases.vp_drift(t))
    assert p.drift(torch.tensor(0.5)).dtype == torch.float32
    table = sg.LinearSDE((-1.0, -2.0, -5.0), (1.0,))
    assert float(table.drift(0.25)) == -1.5
    assert float(table.drift(0.9)) == pytest.approx(-4.4)
    assert torch.equal(table.diffusion(t), torch.ones_like(t))


def test_tables_are_stored_and_functions_are_not():
    p = sg.LinearSDE((-1.0, -2.0, -5.0), np.linspace(1, 3, 50), sigma_min=0.01)
    again = build(json.loads(json.dumps(describe(p, "sde"))), where="sde", stored=True)
    assert again == p
    assert hash(again) == hash(p)
    assert torch.equal(again.sigma(torch.linspace(0, 1, 9)), p.sigma(torch.linspace(0, 1, 9)))
    assert len(repr(p)) < 120
    with pytest.raises(sg.ConfigError, match=r"sde\.drift: a function cannot be written down as plain data"):
        describe(sg.LinearSDE(cases.vp_drift, (1.0,)), "sde")


def test_digests_go_by_what_the_functions_do():
    one, same, other = (sg.LinearSDE((0.0,), g) for g in (lambda t: 1 + t, lambda t: 1 + t, lambda t: 2 + t))
    assert digest(one) == digest(same) != digest(other)

    class Unhashable:
        __hash__ = None

        def __call__(self, t):
            return t

    with pytest.raises(sg.ConfigError, match="drift must be a function that hashes"):
        sg.LinearSDE(Unhashable(), (1.0,))


@pytest.mark.parametrize(
    ("f", "g", "match"),
    [
        (lambda t: 1 / (t - t), (1.0,), r"drift\(t\) must be finite on \[0, 1\], got inf"),
        (
            lambda t: torch.where(t > 0.5, math.nan, -1.0),
            (1.0,),
            r"drift\(t\) must be finite on \[0, 1\], got nan at t = 0.",
        ),
        ((0.0,), lambda t: 0.5 - t, r"diffusion\(t\) must be finite and at least 0 on \[0, 1\], got -"),
        ((0.0,), lambda t: torch.where(t > 0.5, 0.0, 1.0), r"must not be 0 over a stretch of time, got 0 from t = 0.5"),
        ((0.0,), (0.0,), "must not be 0 over a stretch"),
        (
            (0.0,),
            lambda t: t[..., None] * torch.ones(2, dtype=F64),
            r"diffusion\(t\) must be a real number or a tensor shaped",
        ),
        ((0.0,), lambda t: "one", r"diffusion\(t\) must be a real number .* got 'one'"),
        ((0.0,), lambda t: math.sqrt(t), r"diffusion\(t\) must be a real number .* use torch's functions"),
        ((-400.0,), (1.0,), "sigma/alpha is beyond float64 from t"),
        (lambda t: torch.rand(t.shape, dtype=F64), (1.0,), "too rough"),
        ("abc", (1.0,), "LinearSDE: drift must be a list of numbers, got 'abc'"),
        ((0.0, math.nan), (1.0,), r"drift\[1\] must be a finite number"),
        ((0.0,), None, "diffusion must be a list of numbers, got None"),
        ((0.0,), (), "at least one number"),
    ],
)
def test_refused(f, g, match):
    with pytest.raises(sg.ConfigError, match=match):
        sg.LinearSDE(drift=f, diffusion=g)
    with pytest.raises(sg.ConfigError, match="sigma_min must be"):
        sg.LinearSDE((0.0,), (1.0,), sigma_min=-1.0)
