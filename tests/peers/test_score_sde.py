"""The rules of Song et al. 2021 (arXiv:2011.13456) as their published code applies them, written out in numpy.

No installation is needed. Labels: their chain index i = 0 ... N-1 is the node t = (i+1)/N here. Their discretised VP
process has beta_i = linspace(beta_min/N, beta_max/N, N), which is DDPM(N) with its default betas 0.1/1000 ... 20/1000
scaled by 1000/N; their VE process has geometric sigma_i, NCSN's levels.
"""

import numpy as np
import pytest
import torch

import sde_gen as sg
from tests.peers.problem import F64, Noise, model_of, states

N = 30
T = np.linspace(0.0, 1.0, 21)[1:]


def test_marginals():
    log_mean = -0.25 * T**2 * (20 - 0.1) - 0.5 * T * 0.1
    t = torch.tensor(T)
    for p, std in ((sg.VP(), np.sqrt(1 - np.exp(2 * log_mean))), (sg.SubVP(), 1 - np.exp(2 * log_mean))):
        np.testing.assert_allclose(p.alpha(t), np.exp(log_mean), rtol=1e-12)
        np.testing.assert_allclose(p.sigma(t), std, rtol=1e-12)
    np.testing.assert_allclose(sg.VE().sigma(t), 0.01 * 5000**T, rtol=1e-12)


def test_coefficients_of_the_sdes():
    t = torch.tensor(T)
    beta = 0.1 + T * 19.9
    np.testing.assert_allclose(sg.VP().drift(t), -0.5 * beta, rtol=1e-12)
    np.testing.assert_allclose(sg.VP().diffusion(t), np.sqrt(beta), rtol=1e-11)
    discount = 1 - np.exp(-2 * 0.1 * T - 19.9 * T**2)
    np.testing.assert_allclose(sg.SubVP().diffusion(t), np.sqrt(beta * discount), rtol=1e-11)
    sigma = 0.01 * 5000**T
    np.testing.assert_allclose(sg.VE().diffusion(t), sigma * np.sqrt(2 * np.log(5000)), rtol=1e-11)
    assert bool((sg.VE().drift(t) == 0).all())


class Case:
    """A chain with its tables, the model's score as a numpy function of (x, i), and the noise."""

    def __init__(self, p):
        self.p, self.model, self.noise = p, model_of(p), Noise()
        self.x = states(p)
        if isinstance(p, sg.DDPM):
            self.beta = np.linspace(0.1 / N, 20 / N, N)
            self.std = np.sqrt(1 - np.cumprod(1 - self.beta))
            self.alpha = 1 - self.beta  # what their correctors multiply the step size with
        else:
            self.std = np.geomspace(p.sigma_min, p.sigma_max, N)
            self.alpha = np.ones(N)

    def score(self, x, i):
        return self.model(torch.tensor(x), float(self.p.nodes[i])).score.numpy()

    def z(self, x, i, draw):
        return self.noise(torch.tensor(x), N - 1 - i, draw).numpy()


VP_CHAIN, VE_CHAIN = sg.DDPM(N), sg.NCSN(0.01, 8.0, N)


def reverse_diffusion(c, x, i):
    """x - (f - G^2 score) + G z of their discretised processes."""
    if isinstance(c.p, sg.DDPM):
        f, g = np.sqrt(1 - c.beta[i]) * x - x, np.sqrt(c.beta[i])
    else:
        f, g = 0.0, np.sqrt(c.std[i] ** 2 - c.std[i - 1] ** 2)
    return x - (f - g**2 * c.score(x, i)) + g * c.z(x, i, 0)


def ancestral(c, x, i):
    if isinstance(c.p, sg.DDPM):
        beta = c.beta[i]
        return (x + beta * c.score(x, i)) / np.sqrt(1 - beta) + np.sqrt(beta) * c.z(x, i, 0)
    now, after = c.std[i], c.std[i - 1]
    mean = x + (now**2 - after**2) * c.score(x, i)
    return mean + np.sqrt(after**2 * (now**2 - after**2) / now**2) * c.z(x, i, 0)


def nothing(c, x, i):
    return x


def langevin(snr, steps):
    """Their step size: from the means of the norms over the batch."""

    def move(c, x, i):
        for j in range(steps):
            grad, z = c.score(x, i), c.z(x, i, 1 + j)
            grad_norm, noise_norm = (np.linalg.norm(v.reshape(len(v), -1), axis=-1).mean() for v in (grad, z))
            size = (snr * noise_norm / grad_norm) ** 2 * 2 * c.alpha[i]
            x = x + size * grad + np.sqrt(size * 2) * z
        return x

    return move


def ald(snr, steps):
    """Their "ald" corrector: the step size from the marginal standard deviation."""

    def move(c, x, i):
        for j in range(steps):
            size = (snr * c.std[i]) ** 2 * 2 * c.alpha[i]
            x = x + size * c.score(x, i) + np.sqrt(size * 2) * c.z(x, i, 1 + j)
        return x

    return move


PREDICTORS = {
    "reverse": (reverse_diffusion, lambda p: sg.ReverseDiffusion()),
    "ancestral": (ancestral, lambda p: sg.Ancestral(variance="large" if isinstance(p, sg.DDPM) else "small")),
    "none": (nothing, lambda p: None),
}
CORRECTORS = {
    "none": (nothing, None),
    "langevin": (langevin(0.16, 1), sg.Langevin(snr=0.16, norm="batch")),
    "langevin3": (langevin(0.01, 3), sg.Langevin(snr=0.01, steps=3, norm="batch")),
    "ald": (ald(0.16, 2), sg.Langevin(snr=0.16, steps=2, step="fixed")),
}


@pytest.mark.parametrize("p", [VP_CHAIN, VE_CHAIN], ids=["VP", "VE"])
@pytest.mark.parametrize(
    ("predictor", "corrector"), [(p, c) for p in PREDICTORS for c in CORRECTORS if (p, c) != ("none", "none")]
)
def test_predictor_corrector(p, predictor, corrector):
    """Corrector, then predictor, at i = N-1 ... 1, state by state. (At i = 0 theirs returns the predictor's mean
    without noise, or with no predictor the state itself; here the last time is denoised by Tweedie's formula.)"""
    c = Case(p)
    x, path = c.x.numpy(), []
    for i in range(N - 1, 0, -1):
        x = CORRECTORS[corrector][0](c, x, i)
        x = PREDICTORS[predictor][0](c, x, i)
        path.append(x)
    mine = []
    sampler = sg.PredictorCorrector(
        predictor=PREDICTORS[predictor][1](p), corrector=CORRECTORS[corrector][1], steps=N - 1, denoise=False
    )
    result = sampler(
        c.model, start=c.x, noise=c.noise, callback=lambda step, t, state: mine.append(state.numpy().copy())
    )
    assert len(mine) == N
    for a, b in zip(mine[1:], path, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(result.x, path[-1], rtol=1e-9, atol=1e-9)


def test_alone_the_predictors_are_samplers():
    for name, p in (("reverse", VP_CHAIN), ("reverse", VE_CHAIN), ("ancestral", VP_CHAIN), ("ancestral", VE_CHAIN)):
        c = Case(p)
        x = c.x.numpy()
        for i in range(N - 1, 0, -1):
            x = PREDICTORS[name][0](c, x, i)
        mine = PREDICTORS[name][1](p)(c.model, start=c.x, noise=c.noise)  # all nodes, then denoised
        last = c.model(torch.tensor(x), float(p.nodes[0])).denoised
        torch.testing.assert_close(mine.x, last, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("p", [sg.VP(), sg.SubVP(), sg.VE()], ids=str)
@pytest.mark.parametrize("eta", [1.0, 0.0], ids=["sde", "ode"])
def test_euler_maruyama(p, eta):
    """x + [f x - g^2 score (1 or 1/2)] dt + g sqrt(-dt) z. Their dt is -1/N on times spaced by (1 - eps)/(N - 1); here
    it is the spacing, and this test says so: with -1/N instead the answer moves by more than 1e-3."""
    model, noise, x = model_of(p), Noise(), states(p)
    times = np.linspace(1.0, 1e-3, 20)
    for correct in (True, False):
        y = x.numpy()
        for k, t in enumerate(times[:-1]):
            dt = times[k + 1] - t if correct else -1 / len(times)
            beta, sigma = 0.1 + t * 19.9, 0.01 * 5000**t
            if isinstance(p, sg.VE):
                f, g = 0.0, sigma * np.sqrt(2 * np.log(5000))
            else:
                f = -0.5 * beta
                g = np.sqrt(beta * (1 - np.exp(-0.2 * t - 19.9 * t**2) if isinstance(p, sg.SubVP) else 1.0))
            score = model(torch.tensor(y), float(t)).score.numpy()
            z = noise(torch.tensor(y), k, 0).numpy()
            y = y + (f * y - g**2 * score * (1.0 if eta else 0.5)) * dt + eta * g * np.sqrt(-dt) * z
        mine = sg.EulerMaruyama(eta=eta, grid=times.tolist(), denoise=False)(model, start=x, noise=noise).x.numpy()
        if correct:
            np.testing.assert_allclose(mine, y, rtol=1e-9, atol=1e-9)
        else:
            assert np.abs(mine - y).max() > 1e-3


def test_its_sub_vp_corrector_reads_a_table_that_sub_vp_does_not_have():
    """Their Langevin corrector looks up sde.alphas, which their sub-VP class never sets. Here the factor is the squared
    forward scale of the step, which every process has."""
    p = sg.SubVP()
    model, x = model_of(p), states(p)
    mine = sg.PredictorCorrector(corrector=sg.Langevin(snr=0.05, norm="batch"), steps=10)(model, start=x, noise=Noise())
    assert bool(mine.x.isfinite().all())
    assert mine.x.dtype == F64
