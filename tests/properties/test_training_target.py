r"""The objective at the exact model: its known minimum, and a gradient of zero there.

For Gaussian data N(m, S) the best noise estimate is eps_hat = sigma (alpha^2 S + sigma^2)^-1 (x - alpha m), and the
covariance of eps - eps_hat is I - sigma^2 (alpha^2 S + sigma^2)^-1. With e the eigenvalues of S,

    E |eps_hat - eps|^2 / D  =  mean over e of  alpha^2 e / (alpha^2 e + sigma^2).

The error is affine in (x0, eps) here, so its expected square is a sum over 4 D symmetric points: no sampling.
"""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from torch import nn

import sde_gen as sg
from sde_gen.objectives import TIME_LAWS, WEIGHTINGS
from tests.perturbations.cases import DEFAULTS
from tests.test_parameterizations import EACH, IDS

F64 = torch.float64
DIM = 3
MEAN = torch.tensor([0.7, -1.1, 0.2], dtype=F64)
ROOT = torch.tensor([[1.2, 0.0, 0.0], [0.5, 0.6, 0.0], [-0.3, 0.2, 0.25]], dtype=F64)
COV = ROOT @ ROOT.mT
EIGEN = torch.linalg.eigvalsh(COV)
ORACLE = sg.GaussianMixture([1.0], MEAN[None], COV[None])

#: "hybrid" trains a variance, which an oracle does not have: tests/test_learned_variance.py.
PLAIN = [w for w in WEIGHTINGS if w != "hybrid"]
COMBINATIONS = [
    (w, law, p)
    for w, law, p in itertools.product(PLAIN, TIME_LAWS, DEFAULTS)
    if (law != "importance" or w in ("likelihood", "vlb")) and (law != "nodes" or p.is_chain)
]
NAMES = [f"{w}-{law}-{type(p).__name__}" for w, law, p in COMBINATIONS]


def points():
    """x0 = m + R u and eps = v for (u, v) = +-sqrt(2 D) unit vectors: exact means of quadratics of Gaussians."""
    corners = (2 * DIM) ** 0.5 * torch.cat([torch.eye(2 * DIM, dtype=F64), -torch.eye(2 * DIM, dtype=F64)])
    return MEAN + corners[:, :DIM] @ ROOT.mT, corners[:, DIM:].clone()


def least_error(p, t):
    alpha2, sigma2 = p.alpha(t) ** 2, p.sigma(t) ** 2
    return (alpha2[..., None] * EIGEN / (alpha2[..., None] * EIGEN + sigma2[..., None])).mean(-1)


def times_of(p):
    return p.nodes[[0, p.length // 3, -1]] if p.is_chain else torch.tensor([max(p.t_min, 1e-4), 0.3, 0.95], dtype=F64)


@pytest.mark.parametrize(("weighting", "law", "p"), COMBINATIONS, ids=NAMES)
def test_known_minimum_at_the_oracle(weighting, law, p):
    """E loss(t) = w(t) mean_e alpha^2 e/(alpha^2 e + sigma^2) + c(t) to 1e-9, with w of `weight`, c of `constant`."""
    objective = sg.DenoisingScoreMatching(weighting, law)
    x0, noise = points()
    model = ORACLE.model(p)
    for t in times_of(p):
        each = t.expand(len(x0))
        loss = objective(model, x0, t=each, noise=noise)
        want = objective.weight(model, each)[0] * least_error(p, t) + objective.constant(model, each)[0]
        # eps_hat is a difference of terms of size |x|/sigma.
        size = 1 + float(p.alpha(t) / p.sigma(t))
        assert float(loss.mean()) == pytest.approx(float(want), rel=1e-9 + 1e-14 * size**2)


class Affine(nn.Module):
    """F = A x + b: the family in which the best answer for Gaussian data lies, at one noise level."""

    def __init__(self, parameterization, p, t):
        super().__init__()
        alpha, sigma = p.alpha(t), p.sigma(t)
        c = parameterization.coefficients(alpha, sigma)
        gain = alpha * COV @ torch.linalg.inv(alpha**2 * COV + sigma**2 * torch.eye(DIM, dtype=F64))
        # D = m + gain (x - alpha m) = c_skip x + c_out F(c_in x)
        self.matrix = nn.Parameter((gain - c.skip * torch.eye(DIM, dtype=F64)) / c.out / c.input)
        self.shift = nn.Parameter((MEAN - alpha * gain @ MEAN) / c.out)

    def forward(self, x, c_noise):
        return x @ self.matrix.mT + self.shift


@pytest.mark.parametrize("p", DEFAULTS, ids=str)
@pytest.mark.parametrize("weighting", PLAIN)
@pytest.mark.parametrize("parameterization", [case[0] for case in EACH], ids=IDS)
def test_zero_gradient_at_the_oracle_and_only_there(p, weighting, parameterization):
    objective = sg.DenoisingScoreMatching(weighting)
    x0, noise = points()
    for t in times_of(p)[1:]:
        each = t.expand(len(x0))
        network = Affine(parameterization, p, t)
        model = sg.ScoreModel(network, p, parameterization)
        loss = objective(model, x0, t=each, noise=noise).mean()
        gradient = torch.autograd.grad(loss, list(network.parameters()))
        best = loss.detach()
        # A step of 1e-3 in the shift changes the loss by w (c_out alpha/sigma 1e-3)^2, from the best, in any direction.
        c = parameterization.coefficients(p.alpha(t), p.sigma(t))
        rate = float(objective.weight(model, each)[0] * (c.out * p.alpha(t) / p.sigma(t)) ** 2)
        for g in gradient:
            assert float(g.abs().max()) < 1e-10 * max(rate, rate**0.5, float(best)) + 1e-13
        for sign in (-1, 1):
            with torch.no_grad():
                network.shift += sign * 1e-3
                moved = objective(model, x0, t=each, noise=noise).mean()
                network.shift -= sign * 1e-3
            assert float(moved - best) == pytest.approx(rate * 1e-6, rel=1e-6, abs=1e-13 * float(best))
        with torch.no_grad():
            network.matrix += 1e-2 * torch.ones(DIM, DIM, dtype=F64)
            assert float(objective(model, x0, t=each, noise=noise).mean()) > float(best)


# -- over all times ---------------------------------------------------------------------------------------------------


def integral(p, weight, power=1):
    """Mean over the uniform law on [t_min, t_max] of (weight x least error)^power, by quadrature in log t."""

    def density(log_t):
        t = torch.tensor(np.exp(log_t), dtype=F64)
        return float((weight(t) * least_error(p, t)) ** power * t)

    low = max(p.t_min, 1e-9)
    pieces = np.linspace(np.log(low), np.log(p.t_max), 12)
    total = sum(quad(density, a, b, epsrel=1e-8, limit=200)[0] for a, b in itertools.pairwise(pieces))
    return total / (p.t_max - p.t_min)


def likelihood_weight(p):
    return lambda t: (p.diffusion(t) / p.sigma(t)) ** 2


CONTINUOUS = [sg.VP(), sg.SubVP(), sg.VE(), sg.Cosine(), sg.FlowMatching()]


#: Variance of one importance-sampled draw of the likelihood-weighted loss, as a part of that of a uniform draw.
RATIOS = [1.09e-3, 6.09e-4, 1.0, 1.54e-3, 6.98e-4]  # VE's lambda is linear in t: the two laws are one


@pytest.mark.parametrize(("p", "ratio"), list(zip(CONTINUOUS, RATIOS, strict=True)), ids=str)
def test_importance_sampling_is_unbiased_with_less_variance(p, ratio):
    """Both laws estimate int g^2/sigma^2 (least error) dt: the mean of 20,000 importance-sampled draws has it to 1e-3,
    and one draw varies less by the factor listed above."""
    model = ORACLE.model(p)
    importance = sg.DenoisingScoreMatching("likelihood", "importance")
    uniform = sg.DenoisingScoreMatching("likelihood", "uniform")
    t = importance.times(model, 20_000, generator=torch.Generator().manual_seed(1))
    values = importance.weight(model, t) * least_error(p, t)
    exact = integral(p, likelihood_weight(p))
    assert float(values.mean()) == pytest.approx(exact, rel=1e-3)
    assert torch.allclose(uniform.weight(model, t), likelihood_weight(p)(t))
    variance_uniform = integral(p, likelihood_weight(p), power=2) - exact**2
    got = float(values.var()) / variance_uniform
    assert got == pytest.approx(ratio, rel=0.05)


@pytest.mark.parametrize("p", [p for p in DEFAULTS if p.is_chain], ids=str)
def test_importance_sampling_of_nodes_is_unbiased(p):
    """Mean over the K nodes of w_k e_k, from nodes drawn in proportion to w_k."""
    model = ORACLE.model(p)
    objective = sg.DenoisingScoreMatching("likelihood")
    assert objective.law_for(model) == "importance"
    t = objective.times(model, 50_000, generator=torch.Generator().manual_seed(1))
    exact = float((likelihood_weight(p)(p.nodes) * least_error(p, p.nodes)).mean())
    assert float((objective.weight(model, t) * least_error(p, t)).mean()) == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("p", [sg.VP(), sg.VE(), sg.FlowMatching()], ids=str)
def test_stratified_times_have_less_variance(p):
    """Variance of the mean loss of a batch of 64 over 300 batches: below 1/50 of that of independent times (an F ratio
    of 300 and 300 degrees of freedom exceeds 2 with probability below 1e-8)."""
    model = ORACLE.model(p)
    spread = {}
    for law in ("uniform", "stratified"):
        gen = torch.Generator().manual_seed(5)
        objective = sg.DenoisingScoreMatching("simple", law)
        means = torch.stack([least_error(p, objective.times(model, 64, generator=gen)).mean() for _ in range(300)])
        spread[law] = float(means.var())
        assert float(means.mean()) == pytest.approx(integral(p, lambda t: 1.0), abs=6 * (spread[law] / 300) ** 0.5)
    assert spread["stratified"] < spread["uniform"] / 50


# -- the laws of the times --------------------------------------------------------------------------------------------

N = 20_000


def draw(p, law, weighting="simple", **kwargs):
    objective = sg.DenoisingScoreMatching(weighting, law, **kwargs)
    return objective.times(ORACLE.model(p), N, generator=torch.Generator().manual_seed(17))


def not_refuted(values, cdf):
    """Kolmogorov-Smirnov at a false alarm of 1e-6; at N = 20,000 it sees a distribution function off by 0.019."""
    assert stats.kstest(np.asarray(values), cdf).pvalue > 1e-6


@pytest.mark.parametrize("p", CONTINUOUS + [sg.EDM()], ids=str)
def test_laws_of_continuous_processes(p):
    width = p.t_max - p.t_min
    for law in ("uniform", "stratified"):
        t = draw(p, law)
        assert t.dtype == F64
        assert p.t_min <= float(t.min()) < float(t.max()) <= p.t_max
        not_refuted(t, stats.uniform(p.t_min, width).cdf)
    cells = ((t - p.t_min) / width * N).floor().clamp_max(N - 1)
    assert int((cells - torch.arange(N)).abs().max()) <= 1  # one in each cell, up to rounding at its edge
    assert int((cells == torch.arange(N)).sum()) > N - 50
    t = draw(p, "importance", "likelihood")
    assert p.t_min <= float(t.min()) < float(t.max()) <= p.t_max
    high, low = (float(p.half_log_snr(v)) for v in (p.t_min, p.t_max))
    not_refuted(p.half_log_snr(t), stats.uniform(low, high - low).cdf)


def test_log_normal_law():
    not_refuted(-sg.EDM().half_log_snr(draw(sg.EDM(), "log-normal")), stats.norm(-1.2, 1.2).cdf)
    t = draw(sg.VP(), "log-normal", log_mean=0.3, log_std=0.7)
    not_refuted(-sg.VP().half_log_snr(t), stats.norm(0.3, 0.7).cdf)
    far = draw(sg.VP(), "log-normal", log_mean=50.0)  # beyond the process: its ends, not outside
    assert set(far.tolist()) == {1.0}
    assert draw(sg.VP(), "log-normal", log_mean=-50.0).tolist() == pytest.approx([1e-5] * N, rel=1e-12)


@pytest.mark.parametrize("p", [sg.DDPM(50), sg.NCSN(0.01, 5.0, 12), sg.DDPM(1, "cosine")], ids=str)
@pytest.mark.parametrize("law", ["auto", "uniform", "stratified", "nodes", "log-normal", "importance"])
def test_chains_are_trained_on_their_nodes_alone(p, law):
    t = draw(p, law, "likelihood" if law == "importance" else "simple")
    index = t * p.length
    assert set(t.tolist()) <= set(p.nodes.tolist())
    counts = torch.bincount(index.round().long() - 1, minlength=p.length).double()
    if law in ("auto", "uniform", "nodes", "stratified"):
        share = torch.full((p.length,), 1 / p.length, dtype=F64)
    elif law == "importance":
        share = likelihood_weight(p)(p.nodes) / likelihood_weight(p)(p.nodes).sum()
    else:  # the node nearest in t to where log(sigma/alpha) is -1.2 + 1.2 z
        edges = [0.0, *((p.nodes[:-1] + p.nodes[1:]) / 2).tolist(), 1.0]
        tail = stats.norm(-1.2, 1.2).cdf(-p.half_log_snr(torch.tensor(edges, dtype=F64)))
        tail[0], tail[-1] = 0.0, 1.0
        share = torch.tensor(np.diff(tail))
    kept = share * N > 5
    chi2 = float(((counts - N * share) ** 2 / (N * share))[kept].sum())
    assert chi2 < stats.chi2.isf(1e-6, max(int(kept.sum()), 1))
    if law in ("stratified", "importance"):
        assert float((counts - N * share).abs().max()) <= 2
