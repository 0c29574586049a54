"""Products of models and tilted models: closed forms on Gaussians, the law on mixtures, and what is refused."""

import math

import pytest
import torch
from torch import Tensor

import sde_gen as sg
from sde_gen.inverse import Matrix, Posterior, Product, Tilted

EYE = torch.eye(2, dtype=torch.float64)
ONE = sg.GaussianMixture([1.0], [[0.5, -0.2]], (0.3 * EYE)[None])
TWO = sg.GaussianMixture([1.0], [[-0.3, 0.4]], torch.tensor([[[0.5, 0.2], [0.2, 0.4]]]))
MODES = sg.GaussianMixture([0.6, 0.4], [[-1.0, 0.0], [1.0, 0.3]], torch.stack([0.05 * EYE, 0.08 * EYE]))


def product(laws: list[sg.GaussianMixture], powers: list[float]) -> tuple[Tensor, Tensor, float]:
    """Mean, covariance and log of the integral of a product of powers of Gaussians."""
    precisions = [torch.linalg.inv(law.covariances[0]) for law in laws]
    p = sum(w * q for w, q in zip(powers, precisions, strict=True))
    h = sum(w * q @ law.means[0] for w, q, law in zip(powers, precisions, laws, strict=True))
    cov = torch.linalg.inv(p)
    mean = cov @ h
    at_mean = sum(w * law.log_prob(mean[None])[0] for w, law in zip(powers, laws, strict=True))
    return mean, cov, float(at_mean + 0.5 * torch.logdet(cov) + math.log(2 * math.pi))


@pytest.mark.parametrize(
    ("laws", "powers"),
    [([ONE, TWO], [1.0, 1.0]), ([ONE], [0.5]), ([TWO], [2.0]), ([ONE, TWO], [1.6, -0.6]), ([ONE, TWO], [0.5, 0.5])],
    ids=["product", "hot", "cold", "quotient", "geometric mean"],
)
def test_products_of_gaussians(laws: list[sg.GaussianMixture], powers: list[float]) -> None:
    """Mean and covariance of 1000 draws, and the integral, whose error falls with the steps."""
    mean, cov, log_integral = product(laws, powers)
    model = Product([law.model(sg.VP()) for law in laws], powers)
    coarse, fine = (
        sg.TwistedSMC(particles=8, steps=steps)(model, (1000, 2), seed=2, dtype=torch.float64) for steps in (25, 150)
    )
    assert bool(((fine.x.mean(0) - mean).abs() < 0.2 * cov.diagonal().sqrt()).all())  # 6 standard errors
    assert bool(((fine.x.T.cov() - cov).abs() < 0.2 * cov.diagonal().max()).all())
    off, before = (abs(float(result.log_evidence) - log_integral) for result in (fine, coarse))
    assert off < 0.13
    assert off < before / 2


def test_powers_of_one_law_that_add_up_to_one_are_that_law() -> None:
    model = MODES.model(sg.VP())
    same = Product([model, model, model], [1.0, 1.0, -1.0])
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(same(x, 0.3).denoised, model(x, 0.3).denoised, rtol=1e-12, atol=1e-12)
    levels = same.levels(*sg.VP().curves(torch.tensor([0.3], dtype=torch.float64)), x)
    *_, rate = levels.twist(0, x)
    assert float(rate.abs().max()) < 1e-20
    assert levels.calls == 3


def test_particles_mend_the_weights_of_modes_of_a_product() -> None:
    """Guidance alone gives the better mode 31 % of the draws and not 63 %."""
    other = sg.GaussianMixture([0.7, 0.3], [[-0.6, 0.5], [1.0, 0.3]], torch.stack([0.05 * EYE, 0.05 * EYE]))
    grid = torch.linspace(-3, 3, 301, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    density = (MODES.log_prob(points) + other.log_prob(points)).exp()
    right = float(density[points[:, 0] > 0].sum() / density.sum())
    model = Product([MODES.model(sg.VP()), other.model(sg.VP())])
    guided = sg.Ancestral(steps=100, grid="lambda")(model, (1000, 2), seed=1, dtype=torch.float64).x
    result = sg.TwistedSMC(particles=16)(model, (1000, 2), seed=1, dtype=torch.float64)
    assert abs(float((result.x[:, 0] > 0).double().mean()) - right) < 0.07  # 4.6 standard errors
    assert abs(float((guided[:, 0] > 0).double().mean()) - right) > 0.25
    integral = float(density.sum() * (grid[1] - grid[0]) ** 2)
    assert float(result.log_evidence.exp()) == pytest.approx(integral, rel=0.2)


def test_two_observations_of_one_unknown_from_the_models_of_each() -> None:
    a, noise, ys = [[1.0, 0.5]], 0.4, ([0.3], [0.6])
    given = [MODES.condition(a, y, noise) for y in ys]
    exact = given[0].condition(a, ys[1], noise)
    model = Product([*(law.model(sg.VP()) for law in given), MODES.model(sg.VP())], [1.0, 1.0, -1.0])
    result = sg.TwistedSMC(particles=16, steps=150)(model, (800, 2), seed=3, dtype=torch.float64)
    right = torch.cdist(result.x, exact.means).argmin(1).bincount(minlength=2) / 800
    assert float((right - exact.weights).abs().max()) < 0.07
    # p(y1) p(y2) times the integral of p(x | y1) p(x | y2)/p(x) is p(y1, y2)
    found = float(result.log_evidence + given[0].log_evidence + given[1].log_evidence)
    assert found == pytest.approx(float(exact.log_evidence), abs=0.15)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("p", [sg.VP(), sg.VE()], ids=["VP", "VE"])
def test_a_likelihood_of_yours(p: sg.Perturbation, guided: bool) -> None:
    """A Gaussian likelihood by hand is that of the operator: the law and the evidence."""
    a, y, noise = torch.tensor([[1.0, 0.5]], dtype=torch.float64), torch.tensor([0.2], dtype=torch.float64), 0.4
    exact = MODES.condition(a, y, noise)

    def log_prob(x: Tensor) -> Tensor:
        return torch.distributions.Normal(y, noise).log_prob(x @ a.to(x).T)[:, 0]

    tilted = Tilted(MODES.model(p), log_prob, guided=guided)
    result = sg.TwistedSMC(particles=16)(tilted, (800, 2), seed=1, dtype=torch.float64)
    assert float(result.log_evidence) == pytest.approx(float(exact.log_evidence), abs=0.05)
    off = torch.cdist(result.x, exact.means).argmin(1).bincount(minlength=2) / 800 - exact.weights
    assert float(off.abs().max()) < 0.07
    assert result.products == (result.nfe if guided else 0)


def test_a_tilt_by_a_constant_changes_nothing_but_the_evidence() -> None:
    model = MODES.model(sg.VP())
    smc = sg.TwistedSMC(particles=4, steps=10)
    tilted = Tilted(model, lambda x: 0 * x[:, 0] + 0.7)
    result = smc(tilted, (6, 2), seed=1, dtype=torch.float64)
    assert float(result.log_evidence) == pytest.approx(0.7)
    torch.testing.assert_close(result.ess, torch.full_like(result.ess, 4.0))
    x = torch.randn(5, 2, dtype=torch.float64)
    torch.testing.assert_close(tilted(x, 0.4).denoised, model(x, 0.4).denoised)
    torch.testing.assert_close(tilted.under(sg.VE())(x, 0.4).denoised, model.under(sg.VE())(x, 0.4).denoised)


def test_the_members_of_a_product_may_be_guided_or_networks() -> None:
    network = sg.ScoreModel(lambda x, c: 0.3 * x, sg.VP())
    posterior = Posterior(network, Matrix([[1.0, 0.0]]), [0.3], 0.5)
    model = Product([posterior, network], [1.0, 0.5])
    result = sg.TwistedSMC(particles=3, steps=6)(model, (4, 2), seed=0)
    assert result.nfe == 3 * 6 * 2
    assert result.products > 0
    x = torch.randn(3, 2)
    for t in (0.4, torch.tensor([0.2, 0.4, 0.6])):
        parts = [m(x, t).denoised for m in (posterior, network)]
        alpha, sigma = sg.VP().curves(t)
        share = (alpha / (alpha**2 + sigma**2)).float().reshape(-1, 1)
        torch.testing.assert_close(model(x, t).denoised, parts[0] + 0.5 * parts[1] - 0.5 * share * x)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Product([]), "one model or more"),
        (lambda: Product([ONE.model(sg.VP())], [0.0]), "not 0"),
        (lambda: Product([ONE.model(sg.VP())], [1.0, 2.0]), "for each"),
        (lambda: Product([ONE.model(sg.VP()), TWO.model(sg.VE())]), "one perturbation"),
        (lambda: Product([ONE.model(sg.VP())], [2.0], spread=0.0), "spread"),
        (lambda: sg.log_likelihood(Product([ONE.model(sg.VP())]), torch.zeros(1, 2)), "no likelihood"),
        (lambda: Tilted(ONE.model(sg.VP()), 3), "log_prob"),
        (lambda: Tilted(ONE.model(sg.VP()), lambda x: x[:, 0], draws=3), "even"),
        (lambda: Tilted(ONE.model(sg.VP()), lambda x: x)(torch.zeros(1, 2), 0.5), "one number for each"),
        (lambda: Tilted(ONE.model(sg.VP()), lambda x: x[:, 0].detach())(torch.zeros(1, 2), 0.5), "guided=False"),
    ],
)  # fmt: skip
def test_what_is_refused(make, says: str) -> None:
    with pytest.raises(sg.ConfigError, match=says):
        make()
