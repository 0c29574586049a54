"""Chains: their tables against independent numbers, and what happens between nodes."""

import math

import numpy as np
import pytest
import torch

import sde_gen as sg
from tests.perturbations import cases
from tests.perturbations.cases import CHAINS

F64 = torch.float64


@pytest.mark.parametrize("p", CHAINS, ids=str)
def test_nodes(p):
    k = p.length
    assert p.nodes.dtype == F64
    assert p.nodes.tolist() == [i / k for i in range(1, k + 1)]
    assert p.is_chain
    assert isinstance(p, sg.Chain)
    assert p.t_min == p.t_sample == 1 / k
    lam = torch.tensor([float(v) for v in cases.table(p)], dtype=F64)
    torch.testing.assert_close(p.half_log_snr(p.nodes), lam, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(p.half_log_snr(p.nodes.float()).double(), lam, rtol=2e-6, atol=2e-5)
    torch.testing.assert_close(p.time(lam), p.nodes, rtol=1e-11, atol=0)


@pytest.mark.parametrize("schedule", ["linear", "quadratic", "sigmoid", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 21, 100, 1000])
def test_betas_of_all_schedules(schedule, steps):
    largest = {"beta_max": 0.0009 * steps, "beta_min": 0.00001} if steps < 21 else {}
    p = sg.DDPM(steps, schedule, **largest)
    want = [float(b) for b in cases.ddpm_betas(steps, schedule, p.beta_min, p.beta_max)]
    assert p.betas.dtype == F64
    # The cosine betas come from differences of log alpha, 1e-16 absolute beside 4e-5.
    np.testing.assert_allclose(p.betas, want, rtol=1e-12 if schedule != "cosine" else 1e-11)
    assert min(want) > 0
    assert max(want) < 1


def test_numbers_of_the_ddpm_paper():
    p = sg.DDPM()
    assert float(p.betas[0]) == pytest.approx(1e-4, rel=1e-14)
    assert float(p.betas[-1]) == pytest.approx(0.02, rel=1e-14)
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    assert alpha_bar[-1] == pytest.approx(4.04e-5, abs=5e-8)
    np.testing.assert_allclose(p.alpha(p.nodes) ** 2, alpha_bar, rtol=1e-11)
    np.testing.assert_allclose(p.sigma(p.nodes) ** 2, 1 - alpha_bar, rtol=1e-10)


def test_cosine_schedule_follows_its_paper():
    """alpha_bar(t)/alpha_bar(0) of Nichol & Dhariwal, clipped at beta = 0.999 in the last step only."""
    k = 1000
    wave = np.cos((np.arange(k + 1) / k + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = 1 - wave[1:] / wave[:-1]
    p = sg.DDPM(k, "cosine")
    np.testing.assert_allclose(p.betas[:-1], betas[:-1], rtol=1e-9)
    assert float(p.betas[-1]) == 0.999 < betas[-1]
    np.testing.assert_allclose(p.alpha(p.nodes[:-1]) ** 2, (wave / wave[0])[1:-1], rtol=1e-9)


def test_other_lengths_keep_the_process():
    """Betas scale with 1000/K, so that the end of the chain hardly moves."""
    ends = [float(sg.DDPM(k).alpha(1.0)) for k in (100, 500, 1000, 4000)]
    # The sum of log(1 - beta) is -10.05 (1000/K fixed) minus half the sum of beta^2, which is 0.134 * 1000/K.
    for k, end in zip((100, 500, 1000, 4000), ends, strict=True):
        assert 2 * math.log(end) == pytest.approx(-10.05 - 0.067 * 1000 / k, rel=0.03)


def test_the_ddpm_chain_is_the_vp_sde_at_k_over_k():
    """Largest gap of the standard deviations 0.0013 at t = (i+1)/K; 0.0100 if node i is put at i/(K-1)."""
    p, vp = sg.DDPM(), sg.VP()
    gap = (p.sigma(p.nodes) - vp.sigma(p.nodes)).abs().max()
    assert float(gap) == pytest.approx(0.0013, abs=5e-5)
    wrong = (p.sigma(p.nodes) - vp.sigma(torch.linspace(0, 1, 1000, dtype=F64))).abs().max()
    assert float(wrong) == pytest.approx(0.0100, abs=5e-5)


@pytest.mark.parametrize("p", [p for p in CHAINS if isinstance(p, sg.DDPM)], ids=str)
def test_forward_steps_of_ddpm(p):
    """From one node to the next: x_k = sqrt(1 - beta) x_{k-1} + sqrt(beta) z; the first from clean data at t = 0."""
    nodes = torch.cat([torch.zeros(1, dtype=F64), p.nodes])
    a, b = p.transition(nodes[:-1], nodes[1:])
    torch.testing.assert_close(a, (1 - p.betas).sqrt(), rtol=1e-12, atol=0)
    # beta = 1e-4 comes out of a table of lambda with 16 digits.
    torch.testing.assert_close(b, p.betas.sqrt(), rtol=2e-12, atol=0)


@pytest.mark.parametrize("p", [p for p in CHAINS if isinstance(p, sg.DDPM)], ids=str)
def test_posterior_variance_is_beta_tilde(p):
    alpha_bar = np.cumprod(1 - p.betas.numpy())
    tilde = (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:]) * p.betas.numpy()[1:]
    np.testing.assert_allclose(p.posterior(p.nodes[:-1], p.nodes[1:])[2] ** 2, tilde, rtol=1e-9)


@pytest.mark.parametrize("p", [p for p in CHAINS if isinstance(p, sg.NCSN)], ids=str)
def test_levels_and_forward_steps_of_ncsn(p):
    sigmas = np.geomspace(p.sigma_min, p.sigma_max, p.levels)
    np.testing.assert_allclose(p.sigmas, sigmas, rtol=1e-12)
    np.testing.assert_allclose(p.sigma(p.nodes), sigmas, rtol=1e-12)
    assert bool((p.alpha(p.nodes) == 1).all())
    a, b = p.transition(p.nodes[:-1], p.nodes[1:])
    assert bool((a == 1).all())
    np.testing.assert_allclose(b**2, sigmas[1:] ** 2 - sigmas[:-1] ** 2, rtol=1e-11)


@pytest.mark.parametrize("p", [p for p in CHAINS if p.length > 2], ids=str)
@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.99])
def test_between_nodes_lambda_is_linear_in_t(p, share):
    left, right = p.nodes[:-1], p.nodes[1:]
    want = (1 - share) * p.half_log_snr(left) + share * p.half_log_snr(right)
    torch.testing.assert_close(p.half_log_snr((1 - share) * left + share * right), want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("p", CHAINS, ids=str)
def test_before_the_first_node_noise_to_signal_is_linear_in_t(p):
    first = (p.sigma(p.nodes[0]) / p.alpha(p.nodes[0])) ** 2
    share = torch.tensor([0.0, 1e-9, 0.01, 0.5, 0.999], dtype=F64)
    t = share * p.nodes[0]
    torch.testing.assert_close((p.sigma(t) / p.alpha(t)) ** 2, share * first, rtol=1e-12, atol=0)
    assert float(p.half_log_snr(0.0)) == math.inf


@pytest.mark.parametrize("p", CHAINS, ids=str)
def test_the_curves_have_no_jump(p):
    """A node just missed from either side gives the node's own noise level, to the 1e-9 that was missed."""
    for shift in (-1e-12, -1e-10, 1e-10, 1e-12):
        near = (p.nodes + shift / p.length).clamp(0, 1)
        torch.testing.assert_close(p.half_log_snr(near), p.half_log_snr(p.nodes), rtol=0, atol=1e-8)


def test_tables_are_shared_between_equal_chains_and_not_between_others():
    a, b = sg.NCSN(0.01, 1.0, 10), sg.NCSN(0.01, 2.0, 10)
    assert float(a.sigma(1.0)) == pytest.approx(1.0)
    assert float(b.sigma(1.0)) == pytest.approx(2.0)
    assert float(sg.NCSN(0.01, 1.0, 10).sigma(1.0)) == pytest.approx(1.0)
