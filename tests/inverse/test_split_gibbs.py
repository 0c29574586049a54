"""Split Gibbs: its law to rounding on Gaussians, the stationary law of its two steps, and invariance."""

import math

import numpy as np
import pytest
import torch

import sde_gen as sg
from sde_gen.inverse import Mask, Matrix, Nonlinear, Posterior, SplitGibbs
from sde_gen.inverse.measurement import Measurement
from tests.properties.reading import law_of

G = torch.Generator().manual_seed(3)
ROOT = torch.randn(3, 3, generator=G, dtype=torch.float64)
COV, MEAN = ROOT @ ROOT.T / 3 + 0.2 * torch.eye(3), torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
GAUSSIAN = sg.GaussianMixture([1.0], MEAN[None], COV[None])
A = torch.randn(3, 3, generator=G, dtype=torch.float64)
Y = torch.tensor([0.4, -0.3, 0.2], dtype=torch.float64)
NOISE = 0.5


def measured() -> Measurement:
    return Measurement(Matrix(A), NOISE, (3,), torch.device("cpu"))


def observation_step(mean: np.ndarray, cov: np.ndarray, rho: float, split: bool) -> tuple[np.ndarray, np.ndarray]:
    """Law of z for x of this law, from the precision of z given x."""
    a, eye = A.numpy(), np.eye(3)
    r = NOISE**2 * eye - (rho**2 * a @ a.T if split else 0)
    precision = a.T @ np.linalg.inv(r) @ a + eye / rho**2
    spread = np.linalg.inv(precision)
    gain = spread / rho**2
    return gain @ mean + spread @ a.T @ np.linalg.inv(r) @ Y.numpy(), gain @ cov @ gain.T + spread


def chain(p: sg.Perturbation, times: list[float], mean: np.ndarray, cov: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Law of what an ancestral chain makes of z of this law, in the variable x/alpha with rho = sigma/alpha."""
    m, c, eye = MEAN.numpy(), COV.numpy(), np.eye(3)
    rhos = [math.exp(-float(p.half_log_snr(t))) for t in times]
    for now, after in zip(rhos, [*rhos[1:], 0.0], strict=True):
        gain = c @ np.linalg.inv(c + now**2 * eye)
        share = 1 - after**2 / now**2  # of the denoised estimate in the next state
        step = (1 - share) * eye + share * gain
        mean = step @ mean + share * (m - gain @ m)
        cov = step @ cov @ step.T + (after**2 * share) * eye
    return mean, cov


@pytest.mark.parametrize("p", [sg.VP(), sg.VE(), sg.FlowMatching()], ids=lambda p: type(p).__name__)
def test_its_law_is_that_of_the_recursion(p: sg.Perturbation) -> None:
    """The affine map read off by unit noises, against a recursion in precisions and another variable: 1e-9."""
    sampler = SplitGibbs(rounds=3, repeats=2, steps=4)
    posterior = Posterior(GAUSSIAN.model(p), Matrix(A), Y, NOISE)
    found, cov, _ = law_of(sampler, posterior, 3, 3 * (1 + 4 * 2 + 5 * 3))
    rhos = sampler.rhos(posterior, float(torch.linalg.matrix_norm(A, 2)) / NOISE)
    assert len(rhos) == 5
    assert rhos[-1] == pytest.approx(0.999 * NOISE / float(torch.linalg.matrix_norm(A, 2)))
    mean, expected = np.zeros(3), rhos[0] ** 2 * np.eye(3)
    for i, rho in enumerate(rhos):
        if i:
            mean, expected = observation_step(mean, expected, rho, split=rho == rhos[-1])
        mean, expected = chain(p, sampler.levels_down(posterior, rho).tolist(), mean, expected)
    np.testing.assert_allclose(found, mean, rtol=0, atol=1e-9)
    np.testing.assert_allclose(cov, expected, rtol=0, atol=1e-9)


def test_the_posterior_is_the_stationary_law() -> None:
    """With the exact law of x given z, one round leaves the posterior as it is if the noise is split, and only then."""
    exact = GAUSSIAN.condition(A, Y, NOISE)
    rho = 0.8 * NOISE / float(torch.linalg.matrix_norm(A, 2))
    draw, eye = measured(), torch.eye(3, dtype=torch.float64)
    y = draw.observed(Y, False)
    gain = COV @ torch.linalg.inv(COV + rho**2 * eye)  # of x given z
    for split in (True, False):
        zero = torch.zeros(3, 3, dtype=torch.float64)
        base = draw.near(y, zero[:1], rho, split, zero[:1], zero[:1])
        of_x = (draw.near(y, eye, rho, split, zero, zero) - base).T
        of_z = (draw.near(y, zero, rho, split, eye, zero) - base).T
        of_n = (draw.near(y, zero, rho, split, zero, eye) - base).T
        mean = of_x @ exact.means[0] + base[0]
        cov = of_x @ exact.covariances[0] @ of_x.T + of_z @ of_z.T + of_n @ of_n.T
        mean, cov = MEAN + gain @ (mean - MEAN), gain @ cov @ gain.T + COV - gain @ COV
        off = float((mean - exact.means[0]).abs().max()), float((cov - exact.covariances[0]).abs().max())
        assert max(off) < 1e-12 if split else min(off) > 1e-3


def test_more_steps_come_closer_to_the_posterior() -> None:
    exact = GAUSSIAN.condition(A, Y, NOISE)
    off = []
    for steps in (5, 10, 20):
        sampler = SplitGibbs(rounds=10, repeats=40, steps=steps)
        posterior = Posterior(GAUSSIAN.model(sg.VP()), Matrix(A), Y, NOISE)
        count = 3 * (1 + (steps - 1) * 50 + 49 * 2)
        mean, cov, _ = law_of(sampler, posterior, 3, count)
        off.append(max(np.abs(mean - exact.means[0].numpy()).max(), np.abs(cov - exact.covariances[0].numpy()).max()))
    assert off[0] > 1.5 * off[1] > 2.25 * off[2]
    assert off[2] < 0.04


def test_a_sample_does_not_depend_on_its_batch() -> None:
    network = sg.ScoreModel(lambda x, c: torch.sin(3 * x + c.to(x.dtype)[:, None]) * 0.5 + 0.3 * x, sg.VP())
    ys = torch.randn(9, 2, generator=G)
    sampler = SplitGibbs(rounds=2, repeats=1, steps=3)
    posterior = Posterior(network, Mask([True, False, True]), sg.Rows(ys), 0.2)
    whole = sampler(posterior, (9, 3), seed=4)
    assert whole.nfe == 9
    assert torch.equal(sampler(posterior, (9, 3), seed=4, chunk=4).x, whole.x)
    for i in (0, 5):
        alone = sampler(Posterior(network, Mask([True, False, True]), ys[i], 0.2), (1, 3), seed=4, first=i).x
        assert torch.equal(alone[0], whole.x[i])


def test_what_is_refused() -> None:
    with pytest.raises(sg.ConfigError, match="linear operator"):
        SplitGibbs()(GAUSSIAN.model(sg.VP()), (2, 3))
    with pytest.raises(sg.ConfigError, match="linear operator"):
        SplitGibbs()(Posterior(GAUSSIAN.model(sg.VP()), Nonlinear(torch.tanh), Y, 0.1), (2, 3))
    with pytest.raises(sg.ConfigError, match="repeats"):
        SplitGibbs(repeats=-1)
    broken = sg.ScoreModel(lambda x, c: x * math.nan, sg.VP())
    with pytest.raises(sg.NonFiniteError):
        SplitGibbs(rounds=2, repeats=0, steps=2)(Posterior(broken, Matrix(A), Y, 0.1), (2, 3))
