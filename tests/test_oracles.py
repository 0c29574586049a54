"""Oracles against quadrature, autograd, scipy and brute force."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad

import sde_gen as sg
from sde_gen import oracles
from tests.perturbations.cases import DEFAULTS

F64 = torch.float64


def covariance(gen, dim):
    root = torch.randn(dim, dim, generator=gen, dtype=F64)
    return root @ root.mT / dim + 0.05 * torch.eye(dim, dtype=F64)


def mixture(dim, components=3, seed=1):
    gen = torch.Generator().manual_seed(seed)
    return sg.GaussianMixture(
        torch.rand(components, generator=gen, dtype=F64) + 0.1,
        1.5 * torch.randn(components, dim, generator=gen, dtype=F64),
        torch.stack([covariance(gen, dim) for _ in range(components)]),
    )


def marginal(mix, alpha, sigma):
    """scipy's frozen components of the law of alpha x0 + sigma z."""
    noise = sigma**2 * np.eye(mix.dim)
    return [
        (float(w), stats.multivariate_normal(alpha * m.numpy(), alpha**2 * c.numpy() + noise))
        for w, m, c in zip(mix.weights, mix.means, mix.covariances, strict=True)
    ]


def states(model, t, n=6, seed=0):
    p = model.perturbation
    x0 = model.law.sample(n, seed)
    return p.perturb(x0, t, torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed), dtype=F64))


TIMES = (1e-3, 0.1, 0.5, 0.97)


@pytest.mark.parametrize("p", DEFAULTS, ids=str)
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_log_density_against_scipy(p, dim):
    mix = mixture(dim)
    model = mix.model(p)
    for t in TIMES:
        x = states(model, t)
        parts = [np.log(w) + d.logpdf(x.numpy()) for w, d in marginal(mix, float(p.alpha(t)), float(p.sigma(t)))]
        np.testing.assert_allclose(model.log_prob(x, t), np.logaddexp.reduce(parts), rtol=1e-10, atol=1e-10)
    x = mix.sample(5)
    parts = [np.log(w) + d.logpdf(x.numpy()) for w, d in marginal(mix, 1.0, 0.0)]
    np.testing.assert_allclose(mix.log_prob(x), np.logaddexp.reduce(parts), rtol=1e-10, atol=1e-10)


def test_log_density_against_torch_distributions():
    mix = mixture(3)
    components = torch.distributions.MultivariateNormal(mix.means, mix.covariances)
    law = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(mix.weights), components)
    x = 4 * torch.randn(20, 3, dtype=F64)
    torch.testing.assert_close(mix.log_prob(x), law.log_prob(x), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(mix.log_prob(x.float()), law.log_prob(x.float().double()), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("p", DEFAULTS, ids=str)
@pytest.mark.parametrize(
    "law", [mixture(2), mixture(5), sg.EmpiricalData(torch.randn(7, 3, dtype=F64))], ids=["2", "5", "data"]
)
def test_score_is_the_gradient_of_the_log_density(p, law):
    model = law.model(p)
    for t in (0.1, 0.5, 0.97):
        x = states(model, t).requires_grad_()
        (gradient,) = torch.autograd.grad(model.log_prob(x, t).sum(), x)
        got = model(x.detach(), t).score
        # score = (alpha D - x)/sigma^2 is a difference of terms of size |x|/sigma^2.
        scale = 1e-12 * (1 + x.detach().abs().max() / p.sigma(t) ** 2)
        torch.testing.assert_close(got, gradient, rtol=1e-9, atol=float(scale))


@pytest.mark.parametrize("p", [sg.VP(), sg.VE(), sg.DDPM(50), sg.FlowMatching()], ids=str)
@pytest.mark.parametrize("t", [0.05, 0.4, 0.95])
def test_one_dimension_by_quadrature(p, t):
    """p_t integrates to 1; p_t = int p_0 N; D = E[x0 | x]: all by scipy.quad from p_0 and the kernel alone."""
    mix = mixture(1)
    model, alpha, sigma = mix.model(p), float(p.alpha(t)), float(p.sigma(t))
    p0 = lambda v: math.exp(float(mix.log_prob(torch.tensor([[v]], dtype=F64))))  # noqa: E731
    for x in (-1.3 * alpha, 0.4 * alpha + 0.3 * sigma, alpha + sigma):
        centre, width = x / alpha, sigma / alpha
        inner = {c for c in (centre - 8 * width, centre, centre + 8 * width) if -14 < c < 14}
        pieces = list(itertools.pairwise([-14.0, *sorted(inner), 14.0]))

        def integral(of, x=x, pieces=pieces):
            density = lambda v: of(v) * p0(v) * stats.norm.pdf(x, alpha * v, sigma)  # noqa: E731
            return sum(quad(density, a, b, epsabs=1e-13, epsrel=1e-10)[0] for a, b in pieces)

        mass, mean = integral(lambda v: 1.0), integral(lambda v: v)
        state = torch.tensor([[x]], dtype=F64)
        assert float(model.log_prob(state, t)) == pytest.approx(math.log(mass), abs=1e-8)
        assert float(model(state, t).denoised) == pytest.approx(mean / mass, abs=1e-8)


@pytest.mark.parametrize("t", [0.02, 0.3, 1.0])
def test_densities_integrate_to_one_in_two_dimensions(t):
    """By the trapezoidal rule, which is exact to rounding for a smooth density that vanishes at the edge."""
    for model in (mixture(2).model(sg.VP()), sg.EmpiricalData(torch.randn(4, 2, dtype=F64)).model(sg.VP())):
        line = torch.linspace(-13, 13, 1041, dtype=F64)
        grid = torch.cartesian_prod(line, line)
        sigma = float(model.perturbation.sigma(t))
        spacing = float(line[1] - line[0])
        if isinstance(model.law, sg.EmpiricalData) and sigma < 2 * spacing:
            continue  # too narrow for this grid
        density = model.log_prob(grid, t).exp()
        assert float(density.sum()) * spacing**2 == pytest.approx(1.0, abs=1e-9)
        mean = (density[:, None] * grid).sum(0) * spacing**2
        law = model.law
        want = law.data.mean(0) if isinstance(law, sg.EmpiricalData) else law.weights @ law.means
        torch.testing.assert_close(mean, model.perturbation.alpha(t).double() * want, rtol=0, atol=1e-8)


@pytest.mark.parametrize("p", DEFAULTS, ids=str)
def test_one_gaussian_has_an_affine_denoiser(p):
    gen = torch.Generator().manual_seed(4)
    mean, cov = torch.randn(4, generator=gen, dtype=F64), covariance(gen, 4)
    model = sg.GaussianMixture([2.0], mean[None], cov[None]).model(p)
    for t in TIMES:
        x, alpha, sigma = states(model, t), p.alpha(t), p.sigma(t)
        total = alpha**2 * cov + sigma**2 * torch.eye(4, dtype=F64)
        want = mean + alpha * (cov @ torch.linalg.solve(total, (x - alpha * mean).mT)).mT
        torch.testing.assert_close(model(x, t).denoised, want, rtol=1e-10, atol=1e-10)


def test_sampling_moments():
    """Mean and covariance of 200,000 samples. Each entry is within 5.5 of its standard errors: 9 entries at 3.8e-8
    each, so a false alarm has probability 3.5e-7. It would see a mean off by 0.02 or a covariance off by 3 %."""
    mix, n = mixture(3), 200_000
    x = mix.sample(n, seed=11)
    assert (x.dtype, tuple(x.shape)) == (F64, (n, 3))
    mean = mix.weights @ mix.means
    centred = mix.means - mean
    cov = torch.einsum("k,kij->ij", mix.weights, mix.covariances + centred[:, :, None] * centred[:, None, :])
    error = (x.mean(0) - mean).abs() / (cov.diagonal() / n).sqrt()
    assert float(error.max()) < 5.5
    products = torch.einsum("ni,nj->nij", x - mean, x - mean)
    spread = products.std(0) / math.sqrt(n)
    error = ((products.mean(0) - cov) / spread).abs()
    assert float(error.max()) < 5.5


def test_samples_depend_on_all_bits_of_the_seed_alone():
    for law in (mixture(2), sg.EmpiricalData(torch.arange(1000.0)[:, None])):
        a = law.sample(50, seed=3)
        torch.manual_seed(99)
        assert torch.equal(a, law.sample(50, seed=3))
        assert not torch.equal(a, law.sample(50, seed=3 + 2**32))
        assert not torch.equal(a, law.sample(50, seed=4))
        assert torch.equal(law.sample(50), law.sample(50, seed=0))


def test_drawn_data_points():
    """20,000 draws of 10 points: chi-square at a false alarm of 1e-6 (44.8 for 9 degrees of freedom: 1e-6)."""
    data = torch.arange(10.0)[:, None]
    x = sg.EmpiricalData(data).sample(20_000, seed=5)
    assert x.dtype == F64
    counts = torch.bincount(x.flatten().long(), minlength=10).numpy()
    assert ((counts - 2000) ** 2 / 2000).sum() < stats.chi2.isf(1e-6, 9)
    assert set(x.flatten().tolist()) == set(range(10))


# -- finite data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", DEFAULTS, ids=str)
def test_empirical_data_against_brute_force(p):
    """softmax of -|x - alpha x_i|^2/(2 sigma^2) with numpy's own sums, per-row times, and images."""
    data = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(2), dtype=F64)
    model = sg.EmpiricalData(data).model(p)
    t = torch.tensor([0.05, 0.2, 0.5, 0.9], dtype=F64)
    x = states(model, t, 4)
    out, log_p = model(x, t), model.log_prob(x, t)
    for row in range(4):
        alpha, sigma = float(p.alpha(t[row])), float(p.sigma(t[row]))
        squares = ((x[row].numpy() - alpha * data.numpy()) ** 2).sum((1, 2))
        exponent = -squares / (2 * sigma**2)
        r = np.exp(exponent - exponent.max())
        want = np.tensordot(r / r.sum(), data.numpy(), 1)
        np.testing.assert_allclose(out.denoised[row], want, rtol=1e-11, atol=1e-13)
        density = np.logaddexp.reduce(exponent) - math.log(6) - 6 * math.log(sigma) - 3 * math.log(2 * math.pi)
        assert float(log_p[row]) == pytest.approx(density, rel=1e-11)
        single = model(x[row : row + 1], float(t[row]))
        torch.testing.assert_close(single.denoised[0], out.denoised[row], rtol=1e-12, atol=1e-13)
        assert float(model.log_prob(x[row : row + 1], float(t[row]))) == pytest.approx(float(log_p[row]), rel=1e-12)


def test_empirical_data_is_the_limit_of_narrow_gaussians():
    data = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=F64)
    narrow = sg.GaussianMixture(torch.ones(5), data, 1e-14 * torch.eye(3).expand(5, 3, 3))
    for t in (0.1, 0.5, 1.0):
        a, b = sg.EmpiricalData(data).model(sg.VP()), narrow.model(sg.VP())
        x = states(a, t)
        torch.testing.assert_close(a(x, t).denoised, b(x, t).denoised, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(a.log_prob(x, t), b.log_prob(x, t), rtol=1e-8, atol=1e-8)


def test_no_noise():
    """At sigma = 0 the nearest point, ties shared; a Gaussian law keeps its density."""
    model = sg.EmpiricalData([[0.0], [1.0], [1.0], [3.0]]).model(sg.VP())
    x = torch.tensor([[0.1], [1.0], [2.2], [0.5]], dtype=F64)
    assert model(x, 0.0).denoised.flatten().tolist() == pytest.approx([0.0, 1.0, 3.0, 2 / 3])
    gaussian = mixture(2).model(sg.VP())
    x = mixture(2).sample(4)
    torch.testing.assert_close(gaussian(x, 0.0).denoised, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gaussian.log_prob(x, 0.0), mixture(2).log_prob(x))


@pytest.mark.parametrize("t", [0.3, torch.linspace(0.1, 0.9, 11, dtype=F64)], ids=["one", "each"])
def test_chunks_do_not_change_the_answer(monkeypatch, t):
    model = sg.EmpiricalData(torch.randn(9, 4, dtype=F64)).model(sg.VP())
    x = states(model, t, 11)
    whole, density = model(x, t).denoised, model.log_prob(x, t)
    for size in (1, 2 * 36, 5 * 36):
        monkeypatch.setattr(oracles, "_LARGEST_TABLE", size)
        # Equal but for the order in which a matrix product of another size is summed.
        torch.testing.assert_close(model(x, t).denoised, whole, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(model.log_prob(x, t), density, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64], ids=str)
def test_answers_in_the_dtype_of_the_state(dtype):
    for law in (mixture(2), sg.EmpiricalData(torch.randn(5, 2))):
        model = law.model(sg.VP())
        x = states(model, 0.4).to(dtype)
        out = model(x, torch.tensor(0.4))
        assert out.denoised.dtype == out.score.dtype == dtype
        assert model.log_prob(x, 0.4).dtype == F64
        exact = model(x.double(), torch.tensor(0.4)).denoised
        torch.testing.assert_close(out.denoised, exact.to(dtype))


def test_under_another_perturbation():
    model = mixture(2).model(sg.VP())
    other = model.under(sg.NCSN())
    assert isinstance(other, sg.Oracle)
    assert other.law is model.law
    lam = sg.NCSN().half_log_snr(sg.NCSN().nodes[[60, 120, 180]])
    t, u = sg.VP().time(lam), sg.NCSN().time(lam)
    x = states(model, t, 3)
    scaled = x / sg.VP().alpha(t)[:, None]
    torch.testing.assert_close(other(scaled, u).denoised, model(x, t).denoised, rtol=1e-9, atol=1e-10)
    assert list(model.parameters()) == []
    assert model.device == torch.device("cpu")
    assert model.state_dict() == {}


EYE = [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (([1.0], [[0.0, 0.0]], [[[1.0]]]), r"do not fit together, got \(1,\), \(1, 2\) and \(1, 1, 1\)"),
        (([1.0, 1.0], [[0.0, 0.0]], [EYE]), "do not fit together"),
        ((1.0, [[0.0, 0.0]], [EYE]), "do not fit together"),
        (([1.0], [0.0, 0.0], [EYE]), "do not fit together"),
        (([], torch.zeros(0, 2), torch.zeros(0, 2, 2)), "do not fit together"),
        (([0.0], [[0.0, 0.0]], [EYE]), "weights must be positive"),
        (([-1.0], [[0.0, 0.0]], [EYE]), "weights must be positive"),
        (([math.inf], [[0.0, 0.0]], [EYE]), "finite"),
        (([1.0], [[math.nan, 0.0]], [EYE]), "finite"),
        (([1.0], [[0.0, 0.0]], [[[math.inf, 0.0], [0.0, 1.0]]]), "finite"),
        (([1.0], [[0.0, 0.0]], [[[1.0, 0.1], [0.0, 1.0]]]), "must be symmetric"),
        (([1.0], [[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]]), "positive definite, got an eigenvalue of -1"),
        (([1.0], [[0.0, 0.0]], [[[1.0, 0.0], [0.0, 0.0]]]), "positive definite, got an eigenvalue of 0"),
    ],
)
def test_refused_mixtures(arguments, match):
    with pytest.raises(sg.ConfigError, match=f"GaussianMixture: .*{match}"):
        sg.GaussianMixture(*arguments)


@pytest.mark.parametrize(
    "data", [torch.zeros(0, 2), torch.zeros(3), torch.tensor([[math.nan]]), torch.zeros(3, 0)], ids=str
)
def test_refused_data(data):
    with pytest.raises(sg.ConfigError, match=r"EmpiricalData: data must be finite, of shape \(N, \*shape\)"):
        sg.EmpiricalData(data)


def test_refused_states_and_conditions():
    with pytest.raises(sg.ConfigError, match=r"states must have shape \(B, 2\), got \(4, 3\)"):
        mixture(2).model(sg.VP())(torch.zeros(4, 3), 0.3).denoised  # noqa: B018
    with pytest.raises(sg.ConfigError, match=r"states must have shape \(B, 2\), got \(4, 2, 1\)"):
        mixture(2).log_prob(torch.zeros(4, 2, 1))
    with pytest.raises(sg.ConfigError, match=r"states must have shape \(B, 2, 2\), got \(4, 3\)"):
        sg.EmpiricalData(torch.zeros(3, 2, 2)).model(sg.VP())(torch.zeros(4, 3), 0.3)
    with pytest.raises(sg.ConfigError, match="an oracle takes no condition, got 'label'"):
        mixture(2).model(sg.VP())(torch.zeros(4, 2), 0.3, label=torch.zeros(4))


def test_weights_are_normalised_and_inputs_are_copied():
    weights = torch.tensor([1.0, 3.0])
    mix = sg.GaussianMixture(weights, [[0.0], [1.0]], [[[1.0]], [[2.0]]])
    assert mix.weights.tolist() == [0.25, 0.75]
    assert mix.dim == 1
    assert (mix.means.dtype, mix.covariances.dtype) == (F64, F64)


def test_a_mixture_given_an_observation_is_bayes_rule() -> None:
    """log p(x) + log p(y | x) - log p(y) = log p(x | y) at any x, and in two observations as in one."""
    g = torch.Generator().manual_seed(4)
    root = torch.randn(3, 4, 4, generator=g, dtype=torch.float64)
    mixture = sg.GaussianMixture([0.5, 0.3, 0.2], torch.randn(3, 4, generator=g), root @ root.mT + 0.1 * torch.eye(4))
    a, y = torch.randn(2, 4, generator=g, dtype=torch.float64), torch.tensor([0.4, -0.2], dtype=torch.float64)
    x = torch.randn(9, 4, generator=g, dtype=torch.float64)
    for noise in (0.5, 1e-3, torch.tensor([0.1, 0.2]), torch.tensor([[0.2, 0.1], [0.1, 0.3]])):
        post = mixture.condition(a, y, noise)
        r = torch.as_tensor(noise, dtype=torch.float64)
        r = r if r.ndim == 2 else torch.diag(r.square().expand(2))
        near = post.sample(9, 1) if r[0, 0] < 1e-5 else x  # elsewhere 1e6 standard deviations are compared
        likelihood = torch.distributions.MultivariateNormal(near @ a.T, r).log_prob(y)
        found = mixture.log_prob(near) + likelihood - post.log_evidence
        torch.testing.assert_close(post.log_prob(near), found, rtol=1e-7, atol=1e-6)
    both = mixture.condition(a[:1], y[:1], 0.5).condition(a[1:], y[1:], 0.5)
    once = mixture.condition(a, y, 0.5)
    torch.testing.assert_close(both.log_prob(x), once.log_prob(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(both.log_evidence, once.log_evidence, rtol=1e-12, atol=1e-12)


def test_a_component_that_is_ruled_out_keeps_its_place() -> None:
    mixture = sg.GaussianMixture([0.5, 0.5], [[-100.0], [100.0]], [[[1.0]], [[1.0]]])
    post = mixture.condition([[1.0]], [100.0], 0.1)
    assert len(post.weights) == 2
    assert post.weights[1] == 1
    assert post.sample(50).min() > 99


@pytest.mark.parametrize(
    "arguments", [([[1.0]], [1.0], 0.1), ([[1.0, 0.0]], [1.0, 2.0], 0.1), ([[1.0, 0.0]], [1.0], 0.0),
                  ([[1.0, 0.0]], [1.0], [0.1, 0.1])]
)  # fmt: skip
def test_conditioning_refuses_what_does_not_fit(arguments) -> None:
    mixture = sg.GaussianMixture([1.0], [[0.0, 0.0]], [[[1.0, 0.0], [0.0, 1.0]]])
    with pytest.raises(sg.ConfigError, match=r"condition"):
        mixture.condition(*arguments)
