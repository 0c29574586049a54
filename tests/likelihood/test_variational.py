r"""The variational bound against exact numbers for Gaussian data.

For data N(m, diag e) every law of the forward process is Gaussian. Averaged over the data, a bound falls short of
log p by KL(forward process || model), which the chain rule splits over the steps the other way round,

    KL(p_K || N(0, sigma_K^2)) + sum_k E KL(p(x_{k-1}|x_k) || model) + E KL(p(x_0|x_1) || decoder),

with p(x_s|x_t) from Bayes for the marginal laws: no term of it is a term of the bound. Where only draws can test, the
mean of n independent draws is compared at 6 of its standard errors (false alarm 2e-9 each).
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

import sde_gen as sg
from sde_gen.data import Affine
from sde_gen.likelihood import variational_bound

F64 = torch.float64
MEAN, EIGEN = np.array([0.5, -0.3, 0.1]), np.array([0.4, 0.05, 0.9])
LAW = sg.GaussianMixture([1.0], MEAN[None], np.diag(EIGEN)[None])
CHAINS = [sg.DDPM(40), sg.DDPM(1000), sg.DDPM(30, "cosine"), sg.NCSN(0.05, 1.0, 30)]
SDES = [sg.VP(), sg.SubVP(), sg.VE(), sg.EDM(), sg.Cosine(), sg.FlowMatching()]


def kl(variance, other, mean2=0.0):
    """KL of N(0, variance) from N(d, other), mean2 = E d^2, summed over dimensions."""
    return float((0.5 * (np.log(other / variance) + (variance + mean2) / other - 1)).sum())


def exact_gap(p, times, variance):
    """E[log p - bound], see above; `variance` is "small", "large" or "best", p(x_s|x_t) itself."""
    alpha, sigma2 = p.alpha(times).numpy(), p.sigma(times).numpy() ** 2
    total = kl(alpha[-1] ** 2 * EIGEN + sigma2[-1], np.full(3, sigma2[-1]), (alpha[-1] * MEAN) ** 2)
    for k in range(1, len(times)):
        a = alpha[k] / alpha[k - 1]
        b2 = sigma2[k] - a**2 * sigma2[k - 1]
        prior = alpha[k - 1] ** 2 * EIGEN + sigma2[k - 1]  # of x_s
        true = 1 / (1 / prior + a**2 / b2)
        small = 1 / (1 / sigma2[k - 1] + a**2 / b2)
        total += kl(true, {"small": small, "large": b2, "best": true}[variance] * np.ones(3))
    rho2 = sigma2[0] / alpha[0] ** 2
    return total + kl(1 / (1 / EIGEN + 1 / rho2), np.full(3, rho2))


def agrees(values, expected, width=6.0):
    values = values.double()
    error = float(values.std()) / len(values) ** 0.5
    assert abs(float(values.mean()) - expected) < width * error, (float(values.mean()), expected, error)
    return error


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("p", CHAINS, ids=str)
def test_what_a_chain_loses_on_gaussian_data(p, variance):
    count = 100 if p.length > 100 else 2000
    x = LAW.sample(count, seed=1)
    result = variational_bound(LAW.model(p), x, variance=variance, seed=2)
    error = agrees(LAW.log_prob(x) - result.log_prob, exact_gap(p, p.nodes, variance))
    assert error < 0.15  # nats, of 3 dimensions
    assert result.nfe == p.length + 1
    assert result.terms.shape == (count, p.length)
    assert torch.equal(result.times, p.nodes)
    total = result.prior + result.reconstruction + result.diffusion
    torch.testing.assert_close(total, -result.log_prob, rtol=1e-12, atol=1e-12)


class BestVariance(nn.Module):
    """The exact denoiser of LAW in `DataPrediction` under p, and the f that makes each step p(x_s|x_t)."""

    learned_variance = True

    def __init__(self, p):
        super().__init__()
        self.lam = p.half_log_snr(p.nodes)
        t, s = p.nodes[1:], p.nodes[:-1]
        alpha, sigma2 = p.alpha(p.nodes), p.sigma(p.nodes) ** 2
        a, b = p.transition(s, t)
        e = torch.tensor(EIGEN)
        true = 1 / (1 / (alpha[:-1, None] ** 2 * e + sigma2[:-1, None]) + (a / b).square()[:, None])
        small = (b**2 * sigma2[:-1] / sigma2[1:])[:, None]
        fraction = (true / small).log() / (b[:, None] ** 2 / small).log()
        self.v = torch.cat([fraction[:1], fraction]) * 2 - 1
        self.alpha, self.sigma2, self.e, self.mean = alpha, sigma2, e, torch.tensor(MEAN)

    def forward(self, x, c_noise):
        k = (self.lam[None] - c_noise.double()[:, None]).abs().argmin(1)
        alpha, sigma2 = self.alpha[k, None], self.sigma2[k, None]
        x = x * (alpha**2 + sigma2).sqrt()
        denoised = self.mean + alpha * self.e / (alpha**2 * self.e + sigma2) * (x - alpha * self.mean)
        return torch.cat([denoised, self.v[k]], 1)


@pytest.mark.parametrize("p", [sg.DDPM(40), sg.NCSN(0.05, 20.0, 30)], ids=str)
def test_the_best_learned_variance_loses_nothing_between_the_ends(p):
    """Its gap is that of the prior and the decoder, below both fixed ones; also under another formulation."""
    x = LAW.sample(2000, seed=1)
    model = sg.ScoreModel(BestVariance(p), p, sg.DataPrediction())
    result = variational_bound(model, x, seed=2)
    want = exact_gap(p, p.nodes, "best")
    assert want < 0.2 * exact_gap(p, p.nodes, "small")
    assert want < exact_gap(p, p.nodes, "large")
    agrees(LAW.log_prob(x) - result.log_prob, want)
    assert torch.equal(variational_bound(model, x[:9], seed=2, variance="learned").log_prob, result.log_prob[:9])
    fixed = variational_bound(model, x[:50], seed=2, variance="small").log_prob
    torch.testing.assert_close(fixed, variational_bound(LAW.model(p), x[:50], seed=2).log_prob, rtol=1e-6, atol=1e-6)


def exact_continuous(p, x, least, most):
    """E bound given x: E[log p_1(x_1) - log q(x_1|x)] + E[log N(x_K; 0, sigma_K^2) - log p_K(x_K)] - E decoder."""
    ends = p.time(torch.tensor([most, least], dtype=F64))
    (a1, ak), (s1, sk) = p.alpha(ends).numpy(), p.sigma(ends).numpy()
    x = x.numpy()

    def expected(mean, variance, a, s):
        """E log N(a x + s z; mean, variance)"""
        return -0.5 * (np.log(2 * np.pi * variance) + ((a * x - mean) ** 2 + s**2) / variance)

    v1, vk, rho2 = a1**2 * EIGEN + s1**2, ak**2 * EIGEN + sk**2, (s1 / a1) ** 2
    gain = a1 * EIGEN / v1
    error2 = ((x - MEAN) * (1 - gain * a1)) ** 2 + (gain * s1) ** 2
    return torch.from_numpy(
        (
            expected(a1 * MEAN, v1, a1, s1) + 0.5 * np.log(2 * np.pi * math.e * s1**2)
            + expected(0.0, sk**2, ak, sk) - expected(ak * MEAN, vk, ak, sk)
            - 0.5 * (np.log(2 * np.pi * rho2) + error2 / rho2)
        ).sum(1)
    )  # fmt: skip


@pytest.mark.parametrize("p", SDES, ids=str)
def test_continuous_time_is_tight_but_for_the_ends(p):
    """For each x0 on its own: the mean of 250 estimates for each of 8 samples, and of all; no quadrature error."""
    x = LAW.sample(8, seed=3)
    many = x.repeat_interleave(250, 0)
    least, most = float(p.half_log_snr(p.t_max)), float(p.half_log_snr(p.t_min))
    for span in ((least, most), (-0.5, 2.5)):
        result = variational_bound(LAW.model(p), many, lambdas=None if span[0] == least else span, terms=16, seed=4)
        off = result.log_prob - exact_continuous(p, x, *span).repeat_interleave(250, 0)
        for part in off.reshape(8, 250):
            agrees(part, 0.0)
        assert agrees(off, 0.0) < 0.07
        assert result.nfe == 18
    # what is lost to the ends is next to nothing
    assert float((LAW.log_prob(x) - exact_continuous(p, x, least, most)).mean()) < 0.01


def test_it_is_one_bound_under_every_formulation():
    """The same network, range of lambda and seed: equal to 1e-9."""
    torch.manual_seed(0)
    network = sg.MLP(3, hidden=16, layers=1).double()
    nn.init.normal_(network.head.weight)
    model = sg.ScoreModel(network, sg.VP(), sg.VPrediction())
    x = LAW.sample(16, seed=3)
    want = variational_bound(model, x, lambdas=(-3.0, 4.0), terms=8)
    assert float(want.log_prob.std()) > 0.1
    for p in SDES[1:]:
        got = variational_bound(model.under(p), x, lambdas=(-3.0, 4.0), terms=8)
        torch.testing.assert_close(got.log_prob, want.log_prob, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(got.standard_error, want.standard_error, rtol=1e-7, atol=1e-9)
    # and a bound in steps on one lambda grid, with the posterior's variance
    want = variational_bound(model, x, lambdas=(-3.0, 4.0), steps=6, variance="small").log_prob
    for p in SDES[1:]:
        got = variational_bound(model.under(p), x, lambdas=(-3.0, 4.0), steps=6, variance="small").log_prob
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    # without a range, that of both processes is taken
    inside = variational_bound(model.under(sg.VE(0.001, 500.0)), x, terms=8)
    least, most = (float(sg.VP().half_log_snr(t)) for t in (1.0, 1e-5))
    torch.testing.assert_close(
        inside.log_prob, variational_bound(model, x, lambdas=(least, most), terms=8).log_prob, rtol=1e-7, atol=1e-7
    )


@pytest.mark.parametrize("p", [sg.VP(), sg.VE()], ids=str)
def test_steps_of_an_sde_and_fewer_steps_of_a_chain(p):
    x = LAW.sample(2000, seed=1)
    lam = torch.linspace(4.0, -3.0, 12, dtype=F64)
    for variance in ("small", "large"):
        result = variational_bound(LAW.model(p), x, lambdas=(-3.0, 4.0), steps=12, variance=variance, seed=2)
        agrees(LAW.log_prob(x) - result.log_prob, exact_gap(p, p.time(lam), variance))
    chain = sg.DDPM(1000)
    result = variational_bound(LAW.model(chain), x, steps=10, seed=2)
    assert torch.equal(result.times, chain.nodes[[0, 111, 222, 333, 444, 555, 666, 777, 888, 999]])
    agrees(LAW.log_prob(x) - result.log_prob, exact_gap(chain, result.times, "small"))


def test_it_is_below_the_density_of_a_mixture():
    law = sg.GaussianMixture([0.3, 0.7], [[1.0, 0.5], [-1.0, -0.5]], [(0.02 * torch.eye(2)).tolist()] * 2)
    x = law.sample(500, seed=1)
    gaps = {}
    for steps in (10, 40, 120):
        model = law.model(sg.DDPM(1000))
        gaps[steps] = (law.log_prob(x) - variational_bound(model, x, steps=steps, variance="large").log_prob).mean()
    assert gaps[10] > gaps[40] > gaps[120] > 0  # each about a third of the one before
    for p in SDES:
        off = law.log_prob(x) - variational_bound(law.model(p), x).log_prob
        error = float(off.std()) / len(x) ** 0.5
        assert -6 * error < float(off.mean()) < 0.05 + 6 * error
        assert error < 0.08


# -- data on levels ---------------------------------------------------------------------------------------------------


LEVELS = Affine.to_unit(0, 16, 17)


@pytest.mark.parametrize("p", [sg.DDPM(1000), sg.NCSN(0.01, 20.0, 1000), sg.VP()], ids=str)
def test_probabilities_of_levels(p):
    """A law of four raw values: log of their probabilities, within 0.08 nats (of 1.28) and from below."""
    raw = torch.tensor([0.0] * 4 + [3.0] * 3 + [4.0] * 2 + [16.0], dtype=F64)[:, None]
    data = LEVELS.forward(raw)
    log_p = torch.tensor([0.4] * 4 + [0.3] * 3 + [0.2] * 2 + [0.1], dtype=F64).log()
    model = sg.EmpiricalData(data).model(p)
    result = variational_bound(model, data.repeat(100, 1), transform=LEVELS, terms=100)
    off = log_p.repeat(100) - result.log_prob
    error = float(off.std()) / len(off) ** 0.5
    assert error < 0.025
    assert -6 * error < float(off.mean()) < 0.08 + 6 * error
    want = -result.log_prob / math.log(2)
    torch.testing.assert_close(result.bits_per_dim, want)
    assert result.nfe == (102 if p.is_chain else 100)


def test_bits_per_dim_on_the_scale_of_the_raw_data():
    """Stretching the raw data moves its density and nothing else."""
    x = LAW.sample(5, seed=1)
    model = LAW.model(sg.VP())
    plain = variational_bound(model, x, terms=4)
    scaled = variational_bound(model, x, terms=4, transform=Affine(1.0, (2.0, 4.0, 8.0)))
    assert torch.equal(plain.log_prob, scaled.log_prob)
    torch.testing.assert_close(plain.bits_per_dim, -plain.log_prob / (3 * math.log(2)))
    torch.testing.assert_close(scaled.bits_per_dim, plain.bits_per_dim + (1 + 2 + 3) / 3)
    torch.testing.assert_close(scaled.bits_per_dim_error, plain.standard_error / (3 * math.log(2)))


# -- error bars -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "options"),
    [
        (sg.DDPM(60), {}),
        (sg.DDPM(60), {"variance": "large"}),
        (sg.NCSN(0.05, 20.0, 60), {"terms": 10}),
        (sg.VP(), {"terms": 10}),
        (sg.DDPM(1, "cosine"), {}),  # the decoder alone
    ],
    ids=str,
)
def test_standard_errors_are_the_spread_of_repeats(p, options):
    """16 samples, 150 repeats: the mean square of the errors over the variance of the repeats, known to about 5%."""
    x = LAW.sample(16, seed=1)
    many = x.repeat_interleave(150, 0)
    result = variational_bound(LAW.model(p), many, seed=5, **options)
    spread = result.log_prob.reshape(16, 150).var(1).mean()
    ratio = float(result.standard_error.square().mean() / spread)
    assert 0.8 < ratio < 1.5  # on average too large rather than too small


@pytest.mark.parametrize("variance", ["small", "large"])
def test_a_random_subset_of_steps_is_unbiased(variance):
    x, p = LAW.sample(3000, seed=1), sg.DDPM(200)
    some = variational_bound(LAW.model(p), x, terms=7, variance=variance, seed=1)
    assert some.nfe == 9
    assert some.terms.shape == some.times.shape == (3000, 8)
    nodes = set(p.nodes.tolist())
    assert set(some.times.flatten().tolist()) <= nodes
    assert len(set(some.times[:, 1].tolist())) > 1  # drawn for each sample
    assert torch.equal(variational_bound(LAW.model(p), x[:1], terms=7, variance=variance, seed=1).times, some.times[:1])
    error = agrees(LAW.log_prob(x) - some.log_prob, exact_gap(p, p.nodes, variance))
    assert error < 0.1


# -- promises ---------------------------------------------------------------------------------------------------------


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.rows, self.largest, self.modes = 0, 0, set()

    def forward(self, x, c_noise, label=None):
        self.rows, self.largest = self.rows + len(x), max(self.largest, len(x))
        self.modes.add((self.training, torch.is_grad_enabled()))
        shift = 0.0 if label is None else 0.1 * label.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        return self.scale * x + shift


@pytest.mark.parametrize("p", [sg.DDPM(20, "cosine"), sg.VP()], ids=str)
@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)], ids=str)
def test_a_sample_depends_on_itself_alone(p, shape):
    network = Counting()
    model = sg.ScoreModel(network, p).train()
    x = torch.randn(7, *shape, generator=torch.Generator().manual_seed(0))
    label = torch.arange(7)
    options = {"terms": None if p.is_chain else 6, "seed": 2**63 + 5}
    whole = variational_bound(model, x, condition={"label": label}, **options)
    assert network.rows == 7 * whole.nfe
    assert network.modes == {(False, False)}
    assert model.training
    assert whole.log_prob.dtype == F64
    for chunk in (1, 3, 20):
        network.largest = 0
        part = variational_bound(model, x, condition={"label": label}, chunk=chunk, **options)
        torch.testing.assert_close(part.terms, whole.terms, rtol=1e-5, atol=1e-5)
        assert network.largest <= max(chunk, 2)
    later = variational_bound(model, x[4:], condition={"label": label[4:]}, first=4, **options)
    torch.testing.assert_close(later.terms, whole.terms[4:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(later.times.expand(3, -1), whole.times.expand(7, -1)[4:])
    other = variational_bound(model, x, condition={"label": label}, **(options | {"seed": 5}))
    assert bool((other.log_prob != whole.log_prob).all())  # all 64 bits of a seed count


def test_smallest_chains():
    x = LAW.sample(4, seed=1)
    one = variational_bound(LAW.model(sg.DDPM(1, "cosine")), x)
    assert one.terms.shape == (4, 1)
    assert one.nfe == 2
    assert bool(one.standard_error.isfinite().all())
    two = variational_bound(LAW.model(sg.NCSN(0.1, 3.0, 2)), x)
    assert two.terms.shape == (4, 2)
    assert bool(two.log_prob.isfinite().all())
    assert bool(two.standard_error.isnan().all())  # one draw of one term tells nothing


def test_refused():
    x, model = LAW.sample(4, seed=1), LAW.model(sg.VP())
    chain = LAW.model(sg.DDPM(50))
    for bad in (x[0], x.long(), x[:0], [1.0]):
        with pytest.raises(sg.DataError, match=r"x must be a floating tensor \(B, \*shape\) with B >= 1, got"):
            variational_bound(model, bad)
    hurt = x.clone()
    hurt[2, 1] = math.nan
    with pytest.raises(sg.DataError, match="sample 2 of x is NaN or infinite"):
        variational_bound(model, hurt)
    with pytest.raises(sg.DataError, match="sample 0 of x is not on the 17 levels from 0 to 16; give data without"):
        variational_bound(model, x, transform=LEVELS)
    with pytest.raises(sg.DataError, match="sample 1 of x is not on the 17 levels"):  # a level, but out of range
        variational_bound(model, LEVELS.forward(torch.tensor([[1.0, 2.0, 3.0], [1.0, 17.0, 0.0]])), transform=LEVELS)
    for kwargs, message in [
        ({"terms": 1}, "terms must be a whole number, at least 2, got 1"),
        ({"steps": 1}, "steps must be a whole number, at least 2, got 1"),
        ({"chunk": 0}, "chunk must be a whole number, at least 1"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"variance": "smal"}, "did you mean 'small'"),
        ({"variance": "small"}, "variance='small' is of a chain's steps; give steps=, or leave it out"),
        ({"lambdas": (2.0, 1.0)}, "least < most"),
        ({"lambdas": 2.0}, "two numbers"),
        ({"lambdas": (-30.0, 1.0)}, "half log-SNR -30 never occurs"),
        ({"condition": {"label": 1}}, "an oracle takes no condition"),
    ]:
        with pytest.raises(sg.ConfigError, match=message):
            variational_bound(model, x, **kwargs)
    for kwargs, message in [
        ({"lambdas": (-1.0, 1.0)}, "lambdas are of continuous time, but the perturbation is DDPM"),
        ({"steps": 51}, "steps=51 of a chain of 50 nodes"),
        ({"variance": "learned"}, "needs a network with a learned variance"),
    ]:
        with pytest.raises(sg.ConfigError, match=message):
            variational_bound(chain, x, **kwargs)
    with pytest.raises(sg.ConfigError, match="model must be a ScoreModel, got VP"):
        variational_bound(sg.VP(), x)
    with pytest.raises(sg.ConfigError, match="single node"):
        variational_bound(LAW.model(sg.DDPM(1, "cosine")), x, terms=5)


def test_a_network_that_fails_is_named():
    def network(x, c_noise):
        return torch.where((x[:, :1] > 3) & (c_noise[:, None] > 0), math.nan, x)

    x = torch.zeros(6, 2)
    x[4] = 100.0
    with pytest.raises(sg.NonFiniteError, match=r"term of the variational bound became NaN .* samples \[14\]"):
        variational_bound(sg.ScoreModel(network, sg.VP()), x, first=10)


def test_between_nodes_it_warns():
    model = sg.ScoreModel(lambda x, c: x, sg.DDPM(50)).under(sg.VE())
    with pytest.warns(sg.BetweenNodesWarning, match="trained on the 50 nodes"):
        variational_bound(model, torch.zeros(2, 2), terms=4)
    variational_bound(sg.ScoreModel(lambda x, c: x, sg.DDPM(50)), torch.zeros(2, 2))
