"""Chains: their tables against independent numbers, and what happens between nodes."""

import json
import math

import numpy as np
import pytest
import torch

import sde_gen as sg
from sde_gen.config.objects import build, describe
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
    sigmas = np.geomspace(p.sigma_min, p.sigma_max, p.levels) if p.sigmas is None else np.array(p.sigmas)
    np.testing.assert_allclose(p.sigma(p.nodes), sigmas, rtol=1e-12)
    assert bool((p.alpha(p.nodes) == 1).all())
    a, b = p.transition(p.nodes[:-1], p.nodes[1:])
    assert bool((a == 1).all())
    np.testing.assert_allclose(b**2, sigmas[1:] ** 2 - sigmas[:-1] ** 2, rtol=1e-11)


@pytest.mark.parametrize("p", [p for p in CHAINS if p.length > 2], ids=str)
@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.99])
def test_between_nodes_lambda_is_linear_in_t(p, share):
    with_signal = p.nodes[: round(p.t_max * p.length)]
    left, right = with_signal[:-1], with_signal[1:]
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
    nodes = p.nodes[: round(p.t_max * p.length)]  # lambda falls without bound where no signal is left
    for shift in (-1e-12, -1e-10, 1e-10, 1e-12):
        near = (nodes + shift / p.length).clamp(0, 1)
        torch.testing.assert_close(p.half_log_snr(near), p.half_log_snr(nodes), rtol=0, atol=1e-8)
    assert p.t_max == 1 or float(p.alpha(1 - 1e-14)) < 1e-6


def test_a_table_of_a_schedule_is_its_chain():
    ddpm, t = sg.DDPM(100, "cosine"), torch.linspace(0, 1, 501, dtype=F64)
    for p in (sg.Table.from_betas(ddpm.betas), sg.Table.from_alpha_bars((ddpm.alpha(ddpm.nodes) ** 2).tolist())):
        for name in ("alpha", "sigma", "half_log_snr", "drift", "diffusion"):
            torch.testing.assert_close(getattr(p, name)(t), getattr(ddpm, name)(t), rtol=1e-9, atol=1e-9)
        assert (p.t_min, p.t_max, p.length) == (0.01, 1.0, 100)
    levels = sg.NCSN(0.02, 5.0, 12)
    listed = sg.NCSN(sigmas=levels.sigma(levels.nodes).flip(0))
    assert (listed.sigma_min, listed.sigma_max, listed.levels) == pytest.approx((0.02, 5.0, 12), rel=1e-14)
    torch.testing.assert_close(listed.sigma(t), levels.sigma(t), rtol=1e-12, atol=0)


def test_zero_terminal_snr():
    """Algorithm 1 of Lin et al.: the square roots are shifted to end at 0 and scaled to begin where they did."""
    ddpm = sg.DDPM(1000)
    p = sg.Table.zero_terminal_snr(ddpm)
    root = np.sqrt(np.cumprod(1 - ddpm.betas.numpy()))
    want = (root - root[-1]) * root[0] / (root[0] - root[-1])
    np.testing.assert_allclose(p.alpha(p.nodes), want, rtol=1e-11, atol=1e-15)
    assert float(p.alpha(1.0)) == 0.0
    assert float(p.sigma(1.0)) == 1.0
    assert p.t_max == 0.999
    # From the node before: alpha/sigma falls linearly to 0.
    snr = [float(p.alpha(t) / p.sigma(t)) for t in (0.999, 0.99925, 0.9995, 1.0)]
    np.testing.assert_allclose(snr, [snr[0], 0.75 * snr[0], 0.5 * snr[0], 0.0], rtol=1e-9)
    a, b = p.transition(0.999, 1.0)
    assert (float(a), float(b)) == (0.0, 1.0)
    assert not p.is_between(p.half_log_snr(p.nodes))
    assert not p.is_between(torch.tensor([-345.4], dtype=F64))
    assert p.is_between(p.half_log_snr(torch.tensor([0.5005, 0.9995], dtype=F64)))


def test_long_lists_print_in_short_and_are_told_apart():
    a, b = sg.Table.from_betas([1e-3] * 500), sg.Table.from_betas([1e-3] * 499 + [2e-3])
    assert repr(a).startswith("Table(500 nodes, lambda 3.453 to 0.2161, ")
    assert max(len(repr(p)) for p in (a, b, sg.NCSN(sigmas=range(1, 500)))) < 100
    assert repr(a) != repr(b)
    assert a != b
    assert a == sg.Table(list(a.log_alpha_bar))
    assert sg.NCSN(sigmas=(1, 2, 4)) != sg.NCSN(sigmas=(1, 3, 4))
    assert repr(sg.NCSN()) == "NCSN(sigma_min=0.01, sigma_max=50.0, levels=232)"


@pytest.mark.parametrize("p", [sg.Table.zero_terminal_snr(sg.DDPM(30)), sg.NCSN(sigmas=(0.1, 2, 3))], ids=str)
def test_lists_are_stored_as_lists(p):
    node = describe(p, "sde")
    assert all(type(value) in (int, float, str, list) for value in node.values())
    stored = json.loads(json.dumps(node))
    again = build(stored, where="sde", stored=True)
    assert again == p
    assert hash(again) == hash(p)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: sg.Table((-0.1, -0.1)), "log_alpha_bar must lie below 0 and fall .* got -0.1 after -0.1 at node 2"),
        (lambda: sg.Table((0.0,)), "got 0.0 after 0.0 at node 1"),
        (lambda: sg.Table((-0.1, math.nan)), r"log_alpha_bar\[1\] must be a number"),
        (lambda: sg.Table(()), "at least one number"),
        (lambda: sg.Table("abc"), "must be a list of numbers, got 'abc'"),
        (lambda: sg.Table(0.5), "must be a list of numbers, got 0.5"),
        (lambda: sg.Table(torch.zeros(2, 2)), "must be a list of numbers"),
        (lambda: sg.Table((-math.inf,)), "only a last node may have no signal"),
        (lambda: sg.Table((-1, -math.inf, -math.inf)), "got -inf after -inf at node 3"),
        (lambda: sg.Table.from_betas([0.1, 1.0, 0.1]), r"betas\[1\] must be a number in \(0, 1\).*got 1.0"),
        (lambda: sg.Table.from_betas([0.1, 0.0]), r"betas\[1\] must be"),
        (lambda: sg.Table.from_alpha_bars([0.5, 0.6]), r"got alpha_bars\[1\]=0.6 after 0.5"),
        (lambda: sg.Table.from_alpha_bars([1.0]), r"got alpha_bars\[0\]=1.0 after 1.0"),
        (lambda: sg.Table.from_alpha_bars([0.5, 0.0, 0.0]), r"got alpha_bars\[1\]=0.0 after 0.5"),
        (lambda: sg.Table.zero_terminal_snr(sg.NCSN()), "give a variance-preserving chain"),
        (lambda: sg.Table.zero_terminal_snr(sg.VP()), "give a variance-preserving chain"),
        (lambda: sg.NCSN(sigmas=(1.0,)), "two or more different levels > 0"),
        (lambda: sg.NCSN(sigmas=(1.0, 0.5, 2.0)), "strictly rising or falling"),
        (lambda: sg.NCSN(sigmas=(0.0, 1.0)), "levels > 0"),
        (lambda: sg.NCSN(levels=7, sigmas=(0.1, 1.0)), "levels=7 and sigmas, which has 2, do not agree"),
    ],
)
def test_refused_lists(make, match):
    with pytest.raises(sg.ConfigError, match=match):
        make()


def test_tables_are_shared_between_equal_chains_and_not_between_others():
    a, b = sg.NCSN(0.01, 1.0, 10), sg.NCSN(0.01, 2.0, 10)
    assert float(a.sigma(1.0)) == pytest.approx(1.0)
    assert float(b.sigma(1.0)) == pytest.approx(2.0)
    assert float(sg.NCSN(0.01, 1.0, 10).sigma(1.0)) == pytest.approx(1.0)
