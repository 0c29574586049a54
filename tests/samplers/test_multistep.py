"""Phi functions and weights of exponential integrators at all step sizes; rules that are the same by two names."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import sde_gen as sg
from sde_gen.samplers.exponential import NATURAL, PREDICTIONS, Points, integrals, lagrange, phi

SIZES = [1e-30, 1e-12, 1e-5, 1e-2, 0.1, 0.5, 0.999, 1.0, 1.001, 2.0, 7.0, 30.0]


def exact(k: int, z: float) -> float:
    """phi_k(z) = sum over n of z^n/(n + k)!, in exact rational arithmetic."""
    x, term, total = Fraction(z), Fraction(1, math.factorial(k)), Fraction(0)
    for n in range(1, 200):
        total += term
        term = term * x / (n + k)
    return float(total)


@pytest.mark.parametrize("z", [s * h for h in SIZES for s in (1, -1)])
def test_phi(z: float) -> None:
    """To 1e-13: just above 1, where the recursion begins, phi_4 has lost 2 digits; the series alone loses none."""
    values = phi(4, torch.tensor([z], dtype=torch.float64))
    for k, value in enumerate(values, 1):
        assert value.item() == pytest.approx(exact(k, z), rel=1e-13, abs=0), k


def test_lagrange() -> None:
    nodes = torch.tensor([[0.0, -0.3, -1.7, 2.0]], dtype=torch.float64)
    coefficients = lagrange(nodes)[0].numpy()
    for j in range(4):
        values = np.polynomial.polynomial.polyval(nodes[0].numpy(), coefficients[j])
        np.testing.assert_allclose(values, np.eye(4)[j], atol=1e-14)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("h", [1e-3, 0.1, 1.5])
def test_weights_against_quadrature(prediction: str, h: float) -> None:
    """Adaptive quadrature of each basis polynomial, from the definition, on uneven nodes a step or so apart."""
    p, first = sg.VP(), 2.0
    lams = [first, first - 0.7 * h, first - 2.9 * h, first - 3.3 * h]
    times = [float(p.time(v)) for v in (first, first + h, *lams[1:])]
    t, s, nodes = times[0], times[1], [times[0], *times[2:]]
    lam = [float(p.half_log_snr(v)) for v in nodes]
    begin, end = float(p.half_log_snr(t)), float(p.half_log_snr(s))

    def variable(v: float) -> float:
        return math.atan(math.exp(-v)) if prediction == "velocity" else v

    def kernel(v: float) -> float:
        a, b = float(p.alpha(s)), float(p.sigma(s))
        if prediction == "velocity":
            return -1 / (math.exp(v) + math.exp(-v))
        return a * math.exp(v - end) if prediction == "data" else -b * math.exp(end - v)

    one = [Points.of(p, torch.tensor([v], dtype=torch.float64)) for v in (t, s)]
    at = p.half_log_snr(torch.tensor([nodes], dtype=torch.float64))
    _, got = integrals(p, prediction, NATURAL[prediction], *one, at)
    for j in range(4):

        def integrand(v: float, j: int = j) -> float:
            others = [i for i in range(4) if i != j]
            return kernel(v) * math.prod(
                (variable(v) - variable(lam[i])) / (variable(lam[j]) - variable(lam[i])) for i in others
            )

        expected = quad(integrand, begin, end, epsabs=0, epsrel=1e-12)[0]
        # of nodes 1e-3 apart the distances are known to 1e-12, and cubics in them amplify that
        assert got[0, j].item() == pytest.approx(expected, rel=1e-8 if h < 0.01 else 1e-11)


def test_weights_of_a_constant_are_the_whole_step() -> None:
    """They sum to sigma_s/sigma_t's complement: data that do not change are reached exactly."""
    p, times = sg.VP(), torch.linspace(1.0, 0.01, 9, dtype=torch.float64)
    at = Points.of(p, times)
    nodes = torch.stack([at.lam[3:-1], at.lam[2:-2], at.lam[1:-3]], -1)
    carry, weight = integrals(p, "data", "lambda", at[3:-1], at[4:], nodes)
    torch.testing.assert_close(
        weight.sum(-1), p.alpha(times[4:]) - carry * p.alpha(times[3:-1]), rtol=1e-12, atol=1e-13
    )


MIXTURE = sg.GaussianMixture([0.5, 0.5], [[1.0, 0.2], [-0.7, 0.1]], [[[0.2, 0.0], [0.0, 0.1]]] * 2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (sg.DPMSolverPP2M, lambda **k: sg.AdamsBashforth(order=2, **k)),
        (sg.DPMSolverPP3M, lambda **k: sg.AdamsBashforth(order=3, **k)),
        (sg.DDIM, lambda **k: sg.AdamsBashforth(order=1, **k)),
        (sg.DDIM, lambda **k: sg.AdamsBashforth(order=1, prediction="noise", **k)),
        (sg.DEIS, lambda **k: sg.AdamsBashforth(prediction="noise", variable="time", **k)),
        (sg.LMS, lambda **k: sg.AdamsBashforth(order=4, prediction="noise", variable="rho", **k)),
    ],
)
def test_named_rules(one: object, other: object) -> None:
    model = MIXTURE.model(sg.SubVP())
    a, b = (make(steps=9, grid="karras")(model, (5, 2), dtype=torch.float64).x for make in (one, other))
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("make", [sg.AdamsBashforth, sg.UniPC])
def test_states_are_the_same_with_a_callback(make: type, order: int, denoise: bool) -> None:
    """A callback switches the reuse of buffers off, and the states it is given stay as they were."""
    if make is sg.UniPC and order == 1:
        return
    model = sg.ScoreModel(lambda x, c: torch.sin(3 * x) + c.to(x.dtype)[:, None] / 9, sg.VP(), sg.DataPrediction())
    start = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept, states, copies = start.clone(), [], []

    def callback(step: int, t: float, x: torch.Tensor) -> None:
        states.append(x)
        copies.append(x.clone())

    sampler = make(order=order, steps=11, denoise=denoise)
    bare = sampler(model, start=start).x
    assert torch.equal(sampler(model, start=start, callback=callback).x, bare)
    assert all(torch.equal(a, b) for a, b in zip(states, copies, strict=True))
    assert torch.equal(start, kept)


def test_start_up_keeps_the_order_on_a_coarse_start() -> None:
    """Order 3 without the correction of its first step would be 2 (the first step of DDIM leaves h^2, once)."""
    model, errors = MIXTURE.model(sg.VP()), []
    start = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lam = np.linspace(-1.0, 2.0, 3 * 2**10 + 1)
    truth = sg.AdamsBashforth(order=4, grid=sg.GivenLambdas(lam), denoise=False)(model, start=start).x
    for n in (32, 64, 128, 256):
        grid = sg.GivenLambdas(np.linspace(-1.0, 2.0, n + 1))
        errors.append(float((sg.DPMSolverPP3M(grid=grid, denoise=False)(model, start=start).x - truth).norm()))
    ratios = [a / b for a, b in pairwise(errors)]
    assert all(6.5 < r < 10 for r in ratios), ratios


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sg.AdamsBashforth(order=5), "order must be a whole number, between 1 and 4, got 5"),
        (lambda: sg.AdamsBashforth(order=0), "order must be a whole number, between 1 and 4, got 0"),
        (lambda: sg.AdamsBashforth(prediction="dat"), "did you mean 'data'"),
        (lambda: sg.AdamsBashforth(variable="sigma"), "variable must be one of"),
        (lambda: sg.UniPC(order=1), "order must be a whole number, between 2 and 4, got 1"),
        (lambda: sg.DEIS(order=5), "DEIS: order must be a whole number, between 1 and 4, got 5"),
        (lambda: sg.LMS(order=0), "LMS: order must be a whole number"),
        (lambda: sg.SingleStep(order=4), "order must be a whole number, between 2 and 3, got 4"),
        (lambda: sg.SingleStep(order=1), "between 2 and 3, got 1"),
        (lambda: sg.SingleStep(prediction="x"), "prediction must be one of"),
    ],
)
def test_bad_arguments(make: object, message: str) -> None:
    with pytest.raises(sg.ConfigError, match=message):
        make()


def test_steps_onto_no_noise() -> None:
    """Every rule lands on the denoised estimate where sigma = 0."""
    p = sg.VP()
    model = MIXTURE.model(p)
    for make in (sg.DPMSolverPP3M, sg.DEIS, sg.LMS, sg.PLMS, sg.UniPC, sg.SingleStep,
                 lambda **k: sg.AdamsBashforth(prediction="velocity", **k)):  # fmt: skip
        times = [0.9, 0.6, 0.3, 0.1]
        x = make(grid=[*times, 0.0])(model, (3, 2), dtype=torch.float64).x
        y = make(grid=times)(model, (3, 2), dtype=torch.float64).x
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)
