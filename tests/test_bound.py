"""The terms of the bound against torch.distributions, scipy and the papers' chain in numpy."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence

import sde_gen as sg
from sde_gen import bound_terms as bound
from sde_gen.data import Affine
from tests.perturbations.cases import DEFAULTS

F64 = torch.float64


@pytest.mark.parametrize("p", DEFAULTS, ids=str)
@pytest.mark.parametrize("fraction", [0.0, 1.0, 0.3, -0.4, 1.7])
def test_the_kl_of_a_step(p, fraction):
    """From the posterior's mean and standard deviation, for steps of all sizes; variance r^f times the posterior's."""
    generator = torch.Generator().manual_seed(0)
    x0, other, noise = torch.randn(3, 20, dtype=F64, generator=generator)
    t = torch.linspace(0.1, p.t_max, 20, dtype=F64)
    s = t * torch.rand(20, dtype=F64, generator=generator).clamp(0.05, 0.95)
    of_x, of_data, std = p.posterior(s, t)
    x = p.perturb(x0, t, noise)
    noise_hat = (x - p.alpha(t) * other) / p.sigma(t)
    small, large = std.square().log(), p.transition(s, t)[1].square().log()
    model = Normal(of_x * x + of_data * other, (0.5 * (small + fraction * (large - small))).exp())
    want = kl_divergence(Normal(of_x * x + of_data * x0, std), model)
    gain, gap = bound.mean_gain(p, s, t), bound.log_variance_gap(p, s, t)
    shape = fraction if fraction in (0.0, 1.0) else torch.full((20,), fraction, dtype=F64)
    got = bound.step_kl((noise_hat - noise).square(), gain, gap, shape)
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-12)


def test_the_variances_are_those_of_the_papers():
    """Ho et al. 2020: beta-tilde and beta; Nichol & Dhariwal 2021: beta-tilde_1 = 0 is replaced by beta-tilde_2."""
    p = sg.DDPM(50)
    betas = np.linspace(1e-4 * 20, 0.02 * 20, 50)
    bar = np.cumprod(1 - betas)
    before = np.append(1.0, bar[:-1])
    tilde = betas * (1 - before) / (1 - bar)
    t, s = p.nodes[1:], p.nodes[:-1]
    np.testing.assert_allclose(bound.log_variance_gap(p, s, t), np.log(betas[1:] / tilde[1:]), rtol=1e-9)
    like = torch.zeros(3, dtype=F64)
    for f, want in ((0.0, tilde[1]), (1.0, betas[0]), (0.25, tilde[1] ** 0.75 * betas[0] ** 0.25)):
        fraction = torch.full((3,), f, dtype=F64)
        got = bound.decoder_log_variance(p, p.nodes[0], p.nodes[1], fraction, like)
        np.testing.assert_allclose(got, math.log(want), rtol=1e-12)
    for fixed in (0.0, 1.0):  # both fixed ones take it, as in their code
        got = bound.decoder_log_variance(p, p.nodes[0], p.nodes[1], fixed, like)
        np.testing.assert_allclose(got, math.log(tilde[1]), rtol=1e-12)
    np.testing.assert_allclose(
        bound.decoder_log_variance(p, p.nodes[0], None, 0.0, like), math.log(betas[0]), rtol=1e-9
    )


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_probabilities_of_levels(levels, dtype):
    """Against scipy, also far out in the tails; and they add up to one."""
    transform = Affine.to_unit(-3.0, 5.0, levels)
    x = transform.forward(torch.linspace(-3.0, 5.0, levels, dtype=F64)).to(dtype)
    half = 1 / (levels - 1)
    for mean in (-1.0, -0.98, 0.1, 0.5, 1.3):
        for std in (0.003, 0.05, 0.7):
            log_variance = torch.tensor(2 * math.log(std), dtype=dtype)
            nll = bound.level_nll(x, torch.full_like(x, mean), log_variance, transform)
            assert bool(nll.isfinite().all())
            assert float((-nll.double()).exp().sum()) == pytest.approx(
                1.0, rel=1e-5 if dtype == torch.float32 else 1e-12
            )
            if dtype == F64:
                below, above = (x.numpy() - half - mean) / std, (x.numpy() + half - mean) / std
                below[0], above[-1] = -np.inf, np.inf
                near = (below < 5) & (above > -5)
                upper = below > 0
                mass = np.where(upper, norm.sf(below) - norm.sf(above), norm.cdf(above) - norm.cdf(below))
                want = np.log(np.where(near, mass, 1.0))
                np.testing.assert_allclose(-nll.numpy()[near], want[near], rtol=1e-9, atol=1e-12)


def test_the_far_tail_of_a_level_has_its_asymptotic_value_and_a_gradient():
    """A level 400 standard deviations away: log Phi(-z) = -z^2/2 - log(z sqrt(2 pi)) + O(z^-2), slope z/s."""
    transform = Affine.to_unit(-1, 1, 3)
    for dtype in (torch.float32, F64):
        mean = torch.tensor([0.9], dtype=dtype, requires_grad=True)
        x = torch.tensor([-1.0], dtype=dtype)
        nll = bound.level_nll(x, mean, torch.tensor(2 * math.log(0.0035), dtype=dtype), transform)
        z = (0.9 + 0.5) / 0.0035
        assert float(nll.detach()) == pytest.approx(z**2 / 2 + math.log(z * math.sqrt(2 * math.pi)), rel=1e-5)
        (gradient,) = torch.autograd.grad(nll.sum(), mean)
        assert float(gradient) == pytest.approx(z / 0.0035, rel=0.02 if dtype == torch.float32 else 1e-4)  # torch's own
    inside = torch.tensor([0.0], requires_grad=True)
    sure = bound.level_nll(torch.zeros(1), inside, torch.tensor(-12.0), transform)
    assert float(sure.detach()) == pytest.approx(0.0, abs=1e-6)
    assert bool(torch.autograd.grad(sure.sum(), inside)[0].isfinite().all())
    assert float(bound.level_nll(torch.ones(1), torch.full((1,), 5.0), torch.tensor(-6.0), transform)) == 0.0


def test_the_decoder_of_the_noise_itself():
    """p(level | z) by Bayes with equal weights, against numpy."""
    transform = Affine.to_unit(0, 4, 5)
    x0 = torch.tensor([-1.0, 0.5, 1.0], dtype=F64)
    noise = torch.tensor([0.3, -2.0, 1.0], dtype=F64)
    for rho in (0.1, 0.4, 3.0):
        z = x0 + rho * noise
        like = norm.pdf(z.numpy()[:, None], np.linspace(-1, 1, 5)[None], rho)
        want = -np.log(like / like.sum(1, keepdims=True))[[0, 1, 2], [0, 3, 4]]
        got = bound.level_posterior_nll(x0, noise, rho, transform)
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)


def test_the_density_of_the_decoder_is_right_on_average():
    p, first = sg.NCSN(0.3, 3.0, 5), sg.NCSN(0.3, 3.0, 5).nodes[0]
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    z, w = torch.tensor(nodes), torch.tensor(weights / weights.sum())
    x0, denoised = 0.7, 0.4 + 0.2 * z  # some function of the noise
    noise_hat = (x0 + 0.3 * z - denoised) / 0.3
    want = (-Normal(denoised, 0.3).log_prob(torch.tensor(x0, dtype=F64)) * w).sum()
    assert float((bound.density_nll(p, first, noise_hat, z) * w).sum()) == pytest.approx(float(want), rel=1e-12)


def test_which_variance_is_meant():
    plain = sg.ScoreModel(sg.MLP(2, hidden=4, layers=1), sg.DDPM())
    learned = sg.ScoreModel(sg.MLP(2, hidden=4, layers=1, learned_variance=True), sg.DDPM())
    assert bound.chosen_variance("x", "auto", plain) == "small"
    assert bound.chosen_variance("x", "auto", learned) == "learned"
    for variance in ("small", "large"):
        assert bound.chosen_variance("x", variance, learned) == variance
    with pytest.raises(sg.ConfigError, match="x needs a network with a learned variance"):
        bound.chosen_variance("x", "learned", plain)
    with pytest.raises(sg.ConfigError, match="no levels"):
        bound.level_nll(torch.zeros(1), torch.zeros(1), torch.zeros(()), Affine())
