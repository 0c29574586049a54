"""Networks that say what the variance of a reverse step is: what uses it, and that nothing else notices it."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

import sde_gen as sg
from sde_gen.likelihood import variational_bound
from tests.perturbations.cases import DEFAULTS
from tests.properties.discovery import SAMPLERS
from tests.test_parameterizations import EACH, IDS

F64 = torch.float64


class Half(nn.Module):
    """F = tanh(x w) + c/10, of no particular use."""

    def __init__(self, dtype=F64):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.5, -0.2, 0.1], [0.3, 0.4, 0.0], [-0.6, 0.2, 0.7]], dtype=dtype))

    def forward(self, x, c_noise, **condition):
        return torch.tanh(x @ self.weight) + 0.1 * c_noise.to(x.dtype)[:, None]


class Both(nn.Module):
    """The same, and v."""

    learned_variance = True

    def __init__(self, v=None, dtype=F64):
        super().__init__()
        self.mean = Half(dtype)
        self.v = nn.Parameter(torch.tensor([0.9, -0.5, 0.1], dtype=dtype) if v is None else v)

    def forward(self, x, c_noise, **condition):
        return torch.cat([self.mean(x, c_noise), self.v.expand(x.shape)], 1)


def states(n=5):
    return torch.randn(n, 3, dtype=F64, generator=torch.Generator().manual_seed(3))


# -- networks and models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (lambda **k: sg.MLP(3, hidden=8, layers=1, **k), (3,)),
        (lambda **k: sg.UNet(2, width=4, multipliers=(1, 2), **k), (2, 5, 5)),
    ],
    ids=["mlp", "unet"],
)
def test_networks_with_a_learned_variance(network, shape):
    x, c = torch.randn(4, *shape), torch.linspace(-3, 3, 4)
    wide = network(learned_variance=True)
    out = wide(x, c)
    assert out.shape == (4, 2 * shape[0], *shape[1:])
    assert torch.equal(out, torch.zeros_like(out))
    assert out.dtype == wide(x.half(), c).to(x.dtype).dtype
    assert not network().learned_variance
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.normal_(0, 0.3)
    wide(x, c).square().sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in wide.parameters())
    model = sg.ScoreModel(wide, sg.DDPM())
    prediction = model(x, 0.5)
    assert prediction.noise.shape == prediction.log_variance_fraction.shape == x.shape
    with pytest.raises(sg.ConfigError, match="learned_variance must be True or False, got 1"):
        network(learned_variance=1)


def test_the_gain_of_the_mlp_is_for_what_is_predicted():
    network = sg.MLP(2, hidden=8, layers=1, learned_variance=True)
    with torch.no_grad():
        network.gain.bias.fill_(0.5)
    x = torch.randn(3, 2)
    assert torch.equal(network(x, torch.zeros(3)), torch.cat([0.5 * x, torch.zeros(3, 2)], 1))


def test_without_it_weights_and_output_are_as_before():
    for make in (lambda **k: sg.MLP(2, hidden=8, layers=1, **k), lambda **k: sg.UNet(1, width=4, **k)):
        torch.manual_seed(0)
        a = make()
        torch.manual_seed(0)
        b = make(learned_variance=False)
        assert {k: v.shape for k, v in a.state_dict().items()} == {k: v.shape for k, v in b.state_dict().items()}
    assert sg.ScoreModel(a, sg.VP())(torch.zeros(2, 1, 8, 8), 0.5).log_variance_fraction is None


@pytest.mark.parametrize("p", DEFAULTS, ids=str)
@pytest.mark.parametrize("parameterization", [case[0] for case in EACH], ids=IDS)
def test_the_second_half_changes_no_prediction(p, parameterization):
    one, two = (sg.ScoreModel(n, p, parameterization) for n in (Half(), Both()))
    t = p.nodes[[0, p.length // 2]].repeat(3)[:5] if p.is_chain else torch.linspace(0.1, 0.9, 5, dtype=F64)
    a, b = one(states(), t), two(states(), t)
    for name in ("denoised", "noise", "score", "v"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    assert torch.equal(b.log_variance_fraction, ((1 + two.network.v) / 2).expand(5, 3))
    assert torch.equal(*(m.levels(*(c[None] for c in p.curves(t)), states()).raw(0, states()) for m in (one, two)))


@pytest.mark.filterwarnings("ignore::sde_gen.errors.BetweenNodesWarning")
@pytest.mark.parametrize("name", [*SAMPLERS, "ProbabilityFlow"])
def test_samplers_that_do_not_ask_for_it_do_not_notice_it(name):
    sampler = sg.ProbabilityFlow(rtol=1e-3, atol=1e-3) if name == "ProbabilityFlow" else SAMPLERS[name].make(steps=5)
    for p in (sg.VP(), sg.DDPM(40)):
        one, two = (sg.ScoreModel(n, p, sg.VPrediction()) for n in (Half(), Both()))
        for other in (p, sg.VE()):
            a, b = (sampler(m.under(other), (4, 3), seed=1, dtype=F64) for m in (one, two))
            torch.testing.assert_close(a.x, b.x, rtol=1e-12, atol=1e-12)
            assert a.nfe == b.nfe


@pytest.mark.parametrize("weighting", ["simple", "likelihood", "min-snr", "edm"])
def test_objectives_that_do_not_ask_for_it_do_not_notice_it(weighting):
    objective = sg.DenoisingScoreMatching(weighting)
    for p in (sg.VP(), sg.DDPM(40)):
        losses = [
            objective(sg.ScoreModel(n, p), states(), generator=torch.Generator().manual_seed(1))
            for n in (Half(), Both())
        ]
        assert torch.equal(*losses)


def test_wrong_widths_are_refused():
    x = torch.zeros(4, 3)
    undeclared = sg.ScoreModel(lambda x, c: torch.cat([x, x], 1), sg.VP())
    for call in (lambda m: m(x, 0.5), lambda m: sg.DDIM(steps=2)(m, (4, 3))):
        with pytest.raises(
            sg.ConfigError, match=r"shape of its input, \(4, 3\), got \(4, 6\); .* learned_variance = T"
        ):
            call(undeclared)

    class Wrong(nn.Module):
        learned_variance = True

        def forward(self, x, c_noise):
            return x

    for call in (
        lambda m: m(x, 0.5),
        lambda m: sg.DDIM(steps=2)(m, (4, 3)),
        lambda m: sg.Ancestral(steps=2, variance="learned")(m, (4, 3)),
    ):
        with pytest.raises(sg.ConfigError, match=r"twice its input in dimension 1, for \(4, 3\), got \(4, 3\)"):
            call(sg.ScoreModel(Wrong(), sg.VP()))


# -- Ancestral --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [sg.DDPM(30), sg.NCSN(levels=20), sg.VP(), sg.SubVP(), sg.EDM()], ids=str)
@pytest.mark.parametrize(("v", "variance"), [(-1.0, "small"), (1.0, "large")])
@pytest.mark.parametrize("denoise", [True, False])
def test_at_the_ends_it_is_a_fixed_variance(p, v, variance, denoise):
    model = sg.ScoreModel(Both(torch.full((3,), v, dtype=F64)), p)
    learned, fixed = (
        sg.Ancestral(steps=9, variance=name, denoise=denoise)(model, (6, 3), seed=4, dtype=F64).x
        for name in ("learned", variance)
    )
    torch.testing.assert_close(learned, fixed, rtol=1e-10, atol=1e-10)
    other = sg.Ancestral(steps=9, variance="large" if v < 0 else "small", denoise=denoise)
    assert not torch.allclose(other(model, (6, 3), seed=4, dtype=F64).x, fixed, rtol=1e-3)


def test_a_step_of_the_paper():
    """DDPM with v in each dimension, from the betas alone (Ho et al. 2020, equation 7; Nichol & Dhariwal 2021, 15)."""
    p, network = sg.DDPM(25), Both()
    betas = np.linspace(1e-4, 0.02, 25) * 40
    bar = np.cumprod(1 - betas)
    draws = np.random.default_rng(0).standard_normal((25, 2, 3))
    x = want = torch.randn(2, 3, dtype=F64).numpy()
    got = sg.Ancestral(variance="learned")(
        sg.ScoreModel(network, p), start=torch.tensor(x), noise=lambda like, k, draw: torch.tensor(draws[k])
    ).x
    v, weight = network.v.detach().numpy(), network.mean.weight.detach().numpy()
    for k in range(24, -1, -1):
        c = np.float32(0.5 * np.log(bar[k] / (1 - bar[k])))
        eps = np.tanh(want @ weight) + 0.1 * c
        before = bar[k - 1] if k else 1.0
        denoised = (want - math.sqrt(1 - bar[k]) * eps) / math.sqrt(bar[k])
        mean = math.sqrt(before) * betas[k] / (1 - bar[k]) * denoised
        mean = mean + math.sqrt(1 - betas[k]) * (1 - before) / (1 - bar[k]) * want
        want = mean
        if k:
            tilde = betas[k] * (1 - before) / (1 - bar[k])
            log_variance = (v + 1) / 2 * math.log(betas[k]) + (1 - v) / 2 * math.log(tilde)
            want = want + np.exp(0.5 * log_variance) * draws[24 - k]
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-6, atol=1e-6)  # c_noise is float32


def test_it_goes_to_another_formulation_exactly():
    """Same lambdas and noise under VP, VE and EDM: x/alpha agrees, so the learned variance is carried over."""
    model = sg.ScoreModel(Both(), sg.VP(), sg.VPrediction())
    sampler = sg.Ancestral(grid=sg.GivenLambdas((-3.0, -1.0, 0.5, 2.0, 3.5)), variance="learned")
    start = states()
    results = {}
    for p in (sg.VP(), sg.VE(), sg.EDM(), sg.SubVP()):
        scale = p.alpha(p.time(torch.tensor(-3.0, dtype=F64)))
        results[type(p).__name__] = sampler(model.under(p), start=start * scale, seed=2).x
    for name in ("VE", "EDM", "SubVP"):
        torch.testing.assert_close(results[name], results["VP"], rtol=1e-9, atol=1e-9)
    large = sg.Ancestral(grid=sampler.grid, variance="large")
    assert not torch.allclose(large(model.under(sg.VE()), start=start, seed=2).x, results["VP"], rtol=1e-2)


def test_a_step_to_no_noise_draws_none():
    model = sg.ScoreModel(Both(), sg.VP())
    grid = [1.0, 0.5, 0.2]
    before = sg.Ancestral(grid=grid, variance="learned", denoise=False)(model, (4, 3), seed=1, dtype=F64).x
    last = sg.Ancestral(grid=[*grid, 0.0], variance="learned", denoise=False)(model, (4, 3), seed=1, dtype=F64).x
    torch.testing.assert_close(last, model(before, 0.2).denoised, rtol=1e-12, atol=1e-12)


def test_it_needs_a_network_that_has_it():
    match = "Ancestral: variance='learned' needs a network with a learned variance, .* learned_variance=True"
    for model in (sg.ScoreModel(Half(), sg.DDPM(30)), sg.EmpiricalData(torch.zeros(1, 3)).model(sg.DDPM(30))):
        with pytest.raises(sg.ConfigError, match=match):
            sg.Ancestral(variance="learned")(model, (2, 3), dtype=F64)
    corrected = sg.PredictorCorrector(predictor=sg.Ancestral(variance="learned"), corrector=None, steps=4)
    model = sg.ScoreModel(Both(), sg.DDPM(30))
    plain = sg.Ancestral(variance="learned", steps=4)
    assert torch.equal(corrected(model, (2, 3), dtype=F64).x, plain(model, (2, 3), dtype=F64).x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_in_the_networks_own_precision(dtype):
    model = sg.ScoreModel(Both(dtype=dtype), sg.DDPM(30))
    result = sg.Ancestral(variance="learned")(model, (8, 3), seed=1)
    assert result.x.dtype == torch.float32
    exact = sg.Ancestral(variance="learned")(sg.ScoreModel(Both(), sg.DDPM(30)), (8, 3), seed=1)
    torch.testing.assert_close(result.x, exact.x, rtol=0.1, atol=0.1 if dtype == torch.bfloat16 else 1e-4)


# -- objectives -------------------------------------------------------------------------------------------------------


def paper_terms(p, model, x0, noise, t):
    """K KL in each dimension from the posterior's coefficients and torch.distributions; nodes from the second on."""
    before = t - 1 / p.length
    of_x, of_data, std = (c[:, None] for c in p.posterior(before, t))
    x = p.perturb(x0, t, noise)
    out = model(x, t)
    small, large = 2 * std.log(), 2 * p.transition(before, t)[1].log()[:, None]
    f = (1 + model.network.v) / 2
    guess = Normal(of_x * x + of_data * out.denoised, (0.5 * ((1 - f) * small + f * large)).exp())
    return p.length * kl_divergence(Normal(of_x * x + of_data * x0, std), guess).mean(1), out


@pytest.mark.parametrize("p", [sg.DDPM(50), sg.NCSN(levels=40), sg.DDPM(30, "cosine")], ids=str)
def test_vlb_and_hybrid_by_their_definition(p):
    model = sg.ScoreModel(Both(), p)
    t = p.nodes[1::5]
    x0, noise = torch.randn(2, len(t), 3, dtype=F64)
    want, out = paper_terms(p, model, x0, noise, t)
    vlb = sg.DenoisingScoreMatching("vlb", "uniform")(model, x0, t=t, noise=noise)
    torch.testing.assert_close(vlb, want, rtol=1e-7, atol=1e-10)
    hybrid = sg.DenoisingScoreMatching("hybrid", vlb_weight=0.01)(model, x0, t=t, noise=noise)
    simple = (out.noise - noise).square().mean(1)
    torch.testing.assert_close(hybrid, simple + 0.01 * want, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("levels", [None, 17])
def test_in_hybrid_the_bound_trains_the_variance_alone(levels):
    """The mean's gradient is that of the simple loss; the variance's is that of the bound."""
    p = sg.DDPM(50)
    t = p.nodes[[0, 0, 1, 20, 49]]
    noise = torch.randn(5, 3, dtype=F64)
    x0 = (torch.randint(17, (5, 3)) / 8 - 1).double()
    gradients = {}
    for weighting in ("simple", "vlb", "hybrid"):
        model = sg.ScoreModel(Both(), p)
        objective = sg.DenoisingScoreMatching(weighting, "uniform", vlb_weight=0.5, levels=levels)
        objective(model, x0, t=t, noise=noise).sum().backward()
        gradients[weighting] = (model.network.mean.weight.grad, model.network.v.grad)
    assert not bool(gradients["simple"][1].any())
    torch.testing.assert_close(gradients["hybrid"][0], gradients["simple"][0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradients["hybrid"][1], 0.5 * gradients["vlb"][1], rtol=1e-12, atol=1e-14)
    assert float(gradients["vlb"][1].abs().min()) > 0
    assert not torch.allclose(gradients["vlb"][0], gradients["simple"][0], rtol=0.1)


@pytest.mark.parametrize("levels", [None, 17])
@pytest.mark.parametrize("variance", ["small", "large", "learned"])
@pytest.mark.parametrize("law", ["nodes", "importance"])
def test_vlb_is_the_variational_bound(law, variance, levels):
    """Its mean over nodes and noise is the bound, less the prior term, over D: 6 standard errors of both."""
    p = sg.DDPM(25)
    model = sg.ScoreModel(Both(), p)
    transform = sg.data.Affine.to_unit(-1, 1, 17) if levels else None
    x0 = (torch.randint(17, (40, 3), generator=torch.Generator().manual_seed(0)) / 8 - 1).double()
    many = x0.repeat(400, 1)
    generator = torch.Generator().manual_seed(1)
    objective = sg.DenoisingScoreMatching("vlb", law, variance=variance, levels=levels)
    with torch.no_grad():
        loss = objective(model, many, generator=generator)
    result = variational_bound(model, x0.repeat(20, 1), variance=variance, transform=transform, seed=3)
    each = (-result.log_prob - result.prior) / 3
    error = math.hypot(float(loss.std()) / 16000**0.5, float(result.standard_error.square().sum()) ** 0.5 / 800 / 3)
    assert abs(float(loss.mean() - each.mean())) < 6 * error
    assert error < 0.05 * float(each.mean().abs()) + 0.02


def test_the_best_variance_has_the_least_bound():
    """Data N(0, e): with the exact denoiser, descent of "hybrid" on v finds p(x_s|x_t)'s variance, e = 1 and 1e-4.

    At one node the best f solves r^f = 1 + expm1(2 (lambda_s - lambda_t)) E(eps_hat - eps)^2.
    """
    p, k = sg.DDPM(50), 10
    t, s = p.nodes[k], p.nodes[k - 1]
    alpha2, sigma2 = p.alpha(t) ** 2, p.sigma(t) ** 2
    e = torch.tensor([1.0, 0.05, 1e-4], dtype=F64)

    class Exact(Both):
        def forward(self, x, c_noise):
            noise = x * p.sigma(t) / (alpha2 * e + sigma2)
            return torch.cat([noise, self.v.expand(x.shape)], 1)

    model = sg.ScoreModel(Exact(torch.zeros(3, dtype=F64)), p)
    corners = math.sqrt(6) * torch.cat([torch.eye(6, dtype=F64), -torch.eye(6, dtype=F64)])
    x0, noise = corners[:, :3] * e.sqrt(), corners[:, 3:].clone()  # exact means of quadratics
    objective = sg.DenoisingScoreMatching("hybrid", vlb_weight=1.0)
    optimizer = torch.optim.LBFGS([model.network.v], max_iter=100, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = objective(model, x0, t=t.expand(12), noise=noise).mean()
        loss.backward(inputs=[model.network.v])
        return loss

    optimizer.step(closure)
    a, b = p.transition(s, t)
    true = 1 / (1 / (p.alpha(s) ** 2 * e + p.sigma(s) ** 2) + (a / b) ** 2)
    small = p.posterior(s, t)[2] ** 2
    f = (true / small).log() / (b**2 / small).log()
    torch.testing.assert_close((1 + model.network.v.detach()) / 2, f, rtol=1e-5, atol=1e-6)
    assert float(f[0]) > 0.95
    assert float(f[2]) < 0.1


def test_what_hybrid_and_vlb_refuse():
    x0 = torch.zeros(2, 3, dtype=F64)
    for objective in (sg.DenoisingScoreMatching("hybrid"), sg.DenoisingScoreMatching("vlb", variance="learned")):
        with pytest.raises(sg.ConfigError, match="needs a network with a learned variance"):
            objective(sg.ScoreModel(Half(), sg.DDPM()), x0)
    with pytest.raises(sg.ConfigError, match="'hybrid' learns the variance of a chain's steps"):
        sg.DenoisingScoreMatching("hybrid")(sg.ScoreModel(Both(), sg.VP()), x0)
    # a continuous bound has no steps, and so no variance
    one, two = (sg.ScoreModel(n, sg.VP()) for n in (Half(), Both()))
    losses = [sg.DenoisingScoreMatching("vlb")(m, x0, generator=torch.Generator().manual_seed(0)) for m in (one, two)]
    assert torch.equal(*losses)


def test_float32_losses_are_finite_at_every_node():
    """Also at the first node of images on levels far from what the network says, where a probability is e^-100000."""
    p = sg.DDPM(1000)
    model = sg.ScoreModel(Both(dtype=torch.float32), p)
    x0 = torch.ones(1000, 3)
    for levels in (None, 17, 256):
        for weighting in ("vlb", "hybrid"):
            objective = sg.DenoisingScoreMatching(weighting, levels=levels)
            loss = objective(model, x0, t=p.nodes, noise=torch.randn(1000, 3))
            assert bool(loss.isfinite().all())
            gradients = torch.autograd.grad(loss.sum(), list(model.parameters()))
            assert all(bool(g.isfinite().all()) for g in gradients)
