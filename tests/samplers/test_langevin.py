"""The Langevin corrector's step sizes, number by number on given noise; annealed Langevin's link between its steps."""

import contextlib
import math

import numpy as np
import pytest
import torch
from torch import Tensor

import sde_gen as sg
from tests.properties import curves
from tests.properties.discovery import PERTURBATIONS, gaussian, oracle

MEAN, COV = gaussian(3)
NOISE = np.random.default_rng(5).standard_normal((2, 4, 3))
START = np.random.default_rng(6).standard_normal((4, 3))


class Given:
    """Draw 1 + j is NOISE[j]; nothing else may be drawn."""

    def __call__(self, like: Tensor, step: int, draw: int) -> Tensor:
        return torch.from_numpy(NOISE[draw - 1]).reshape(like.shape)


def score(x: np.ndarray, curve: curves.Curve, t: float) -> np.ndarray:
    total = curve.alpha(t) ** 2 * COV + curve.variance(t) * np.eye(3)
    return -np.linalg.solve(total, (x - curve.alpha(t) * MEAN).T).T


def by_hand(name: str, corrector: sg.Langevin, t: float, s: float) -> np.ndarray:
    """e = 2 a (r |z|/|score|)^2; x + e score + sqrt(2 e) z, with |z|/|score| at most cap sigma."""
    curve, x = curves.CURVES[name], START
    a = (curve.alpha(t) / curve.alpha(s)) ** 2
    for j in range(corrector.steps):
        g, z = score(x, curve, t), NOISE[j]
        z_norm, g_norm = np.sqrt((z**2).sum(1)), np.sqrt((g**2).sum(1))
        if corrector.norm == "batch":
            ratio = np.full(4, z_norm.mean() / g_norm.mean())
        else:
            ratio = z_norm / g_norm
            if corrector.cap is not None:
                ratio = np.minimum(ratio, corrector.cap * curve.sigma(t))
        e = (2 * a * (corrector.snr * ratio) ** 2)[:, None]
        x = x + e * g + np.sqrt(2 * e) * z
    return x


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("options", [{"cap": None}, {"cap": 1.0}, {"cap": 0.7}, {"norm": "batch"}], ids=str)
@pytest.mark.parametrize("name", PERTURBATIONS)
def test_adaptive_step(name: str, options: dict[str, object], steps: int) -> None:
    corrector = sg.Langevin(snr=0.16, steps=steps, **options)
    nodes = curves.CURVES[name].nodes
    t, s = (round(0.7 * nodes) / nodes, round(0.4 * nodes) / nodes) if nodes else (0.7, 0.4)
    sampler = sg.PredictorCorrector(predictor=None, corrector=corrector, grid=[t, s], denoise=False)
    x = sampler(oracle(MEAN, COV, PERTURBATIONS[name]), start=torch.from_numpy(START), noise=Given()).x
    np.testing.assert_allclose(x, by_hand(name, corrector, t, s), rtol=1e-11, atol=1e-11)


def test_the_cap_is_felt_by_some_samples_only() -> None:
    """The case above tests both branches: with cap 1 under VP at t = 0.7 two kinds of samples exist."""
    curve = curves.CURVES["VP"]
    ratio = np.linalg.norm(NOISE[0], axis=1) / np.linalg.norm(score(START, curve, 0.7), axis=1)
    capped = ratio > curve.sigma(0.7)
    assert capped.any()
    assert not capped.all()
    # "batch" has no cap: its ratio is that of the means.
    one, other = by_hand("VP", sg.Langevin(norm="batch"), 0.7, 0.4), by_hand("VP", sg.Langevin(cap=None), 0.7, 0.4)
    assert np.abs(one - other).max() > 1e-3


def test_last_time_is_followed_by_the_data() -> None:
    """At the last time a = alpha^2, with the denoised estimate after it."""
    curve, model, t = curves.CURVES["VP"], oracle(MEAN, COV, sg.VP()), 0.4
    corrector = sg.Langevin(snr=0.2, cap=None)
    x = sg.PredictorCorrector(corrector=corrector, grid=[t])(model, start=torch.from_numpy(START), noise=Given()).x
    g, z = score(START, curve, t), NOISE[0]
    ratio = np.linalg.norm(z, axis=1) / np.linalg.norm(g, axis=1)
    e = (2 * curve.alpha(t) ** 2 * (0.2 * ratio) ** 2)[:, None]
    moved = START + e * g + np.sqrt(2 * e) * z
    expected = (moved + curve.variance(t) * score(moved, curve, t)) / curve.alpha(t)  # Tweedie
    np.testing.assert_allclose(x, expected, rtol=1e-11, atol=1e-11)


def test_norms_are_over_all_of_a_sample_s_numbers() -> None:
    class Flat(torch.nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return 0.5 * x

    m = sg.ScoreModel(Flat(), sg.VE())
    sampler = sg.PredictorCorrector(predictor=None, corrector=sg.Langevin(cap=None), grid=[0.5, 0.3], denoise=False)
    flat = sampler(m, start=torch.from_numpy(START), noise=Given()).x
    image = sampler(m, start=torch.from_numpy(START).reshape(4, 1, 3, 1), noise=Given()).x
    torch.testing.assert_close(image.reshape(4, 3), flat)


@pytest.mark.parametrize("norm", ["sample", "batch"])
@pytest.mark.parametrize("cap", [None, 1.0])
def test_a_score_of_zero_gives_no_nan_where_it_is_capped(norm: str, cap: float | None) -> None:
    class Zero(torch.nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return torch.zeros_like(x)

    sampler = sg.PredictorCorrector(corrector=sg.Langevin(norm=norm, cap=cap), steps=2)
    if norm == "sample" and cap:
        assert sampler(sg.ScoreModel(Zero(), sg.VE()), (3, 2)).x.isfinite().all()
    else:  # without a cap a stationary point has no step size: an error, or a large finite state, but no silent NaN
        with contextlib.suppress(sg.NonFiniteError):
            assert sampler(sg.ScoreModel(Zero(), sg.VE()), (3, 2)).x.isfinite().all()


def test_step_size_links_to_the_signal_to_noise_ratio() -> None:
    """step_size = 2 r^2 sigma_L^2; r = 0.176 at sigma_L = 0.01 is the published 6.2e-6."""
    published = 2 * 0.176**2 * 0.01**2
    assert published == pytest.approx(6.2e-6, rel=1e-2)
    model = oracle(MEAN, COV, sg.NCSN(levels=10))
    size = 2 * 0.3**2 * 0.01**2
    by_size = sg.AnnealedLangevin(step_size=size, steps_per_level=2)(model, (3, 3), dtype=torch.float64).x
    by_snr = sg.AnnealedLangevin(snr=0.3, steps_per_level=2)(model, (3, 3), dtype=torch.float64).x
    torch.testing.assert_close(by_size, by_snr, rtol=1e-10, atol=1e-10)
    # Elsewhere the last level is sigma/alpha.
    p = sg.VP()
    rho = float(p.sigma(0.3) / p.alpha(0.3))
    times = [0.9, 0.6, 0.3]
    one = sg.AnnealedLangevin(step_size=0.5 * rho**2, grid=times)(oracle(MEAN, COV, p), (3, 3), dtype=torch.float64).x
    two = sg.AnnealedLangevin(snr=0.5, grid=times)(oracle(MEAN, COV, p), (3, 3), dtype=torch.float64).x
    torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


def test_too_large_a_step_is_refused_at_its_limit() -> None:
    model = oracle(MEAN, COV, sg.NCSN(levels=10))
    sg.AnnealedLangevin(step_size=1.99e-4)(model, (1, 3))
    with pytest.raises(sg.ConfigError, match=r"it must be below 2: lower step_size \(below 0.0002 at the last level"):
        sg.AnnealedLangevin(step_size=2.01e-4)(model, (1, 3))


def test_defaults() -> None:
    assert sg.Langevin() == sg.Langevin(snr=0.16, steps=1, step="adaptive", norm="sample", cap=1.0)
    assert sg.AnnealedLangevin() == sg.AnnealedLangevin(steps_per_level=5, snr=0.176, step_size=None, rule="langevin")
    assert sg.AnnealedLangevin(rule="consistent").snr == 0.08
    assert sg.PredictorCorrector() == sg.PredictorCorrector(
        predictor=sg.ReverseDiffusion(), corrector=sg.Langevin(snr=0.05)
    )
    assert sg.EulerMaruyama() == sg.EulerMaruyama(eta=1.0)
    assert sg.DDIM() == sg.DDIM(eta=0.0)
    assert sg.Ancestral() == sg.Ancestral(variance="small")
    assert sg.DPMSolverPP2M() == sg.DPMSolverPP2M(exact=True)
    assert sg.ProbabilityFlow() == sg.ProbabilityFlow(
        method="dopri5", rtol=1e-5, atol=1e-5, max_nfe=10_000, steps=None, denoise=True
    )
    assert math.isclose(sg.KarrasRho().rho, 7.0)
