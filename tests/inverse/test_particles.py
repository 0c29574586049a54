"""Particles: unbiased evidence, the law, invariance, and what is counted and refused."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

import sde_gen as sg
from sde_gen.inverse import Mask, Matrix, Posterior
from tests.properties.reading import law_of

G = torch.Generator().manual_seed(0)
ROOT = torch.randn(3, 3, generator=G, dtype=torch.float64)
GAUSSIAN = sg.GaussianMixture([1.0], [[0.3, -0.2, 0.1]], (ROOT @ ROOT.T / 3 + 0.1 * torch.eye(3))[None])
A = Matrix(torch.randn(2, 3, generator=G))
Y = torch.tensor([0.4, -0.3])
MIXTURE = sg.GaussianMixture(
    [0.5, 0.2, 0.3], [[1.0, 0.4, 0.0], [-0.8, 0.5, 0.3], [-0.1, -0.7, 0.2]], 0.03 * torch.eye(3).expand(3, 3, 3)
)
PERTURBATIONS = [sg.VP(), sg.VE(), sg.EDM(), sg.FlowMatching(), sg.DDPM(steps=200), sg.NCSN(levels=150)]


@dataclass(frozen=True)
class Middle(sg.OneStepSampler):
    """The chain without particles, its variance written in rho = sigma/alpha."""

    is_stochastic = True

    def coefficients(self, p: sg.Perturbation, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (alpha, _), now, after = p.curves(s), (-p.half_log_snr(t)).exp(), (-p.half_log_snr(s)).exp()
        share = 1 - after**2 / now**2
        return (1 - share) * alpha / p.alpha(t), alpha * share, alpha * ((now**2 - after**2) * after / now).sqrt()


def ids(p: sg.Perturbation) -> str:
    return type(p).__name__


@pytest.mark.parametrize("twist", ["pigdm", "mmps", "none"])
@pytest.mark.parametrize("p", PERTURBATIONS, ids=ids)
def test_the_evidence_is_unbiased(p: sg.Perturbation, twist: str) -> None:
    """For Gaussian data the chain is affine, so its own evidence is known, whatever the number of steps: here 16."""
    posterior = Posterior(GAUSSIAN.model(p), A, Y, 0.3, twist)
    times = sg.TwistedSMC(steps=16).times(posterior)
    chain = Middle(grid=times.tolist())
    mean, cov, _ = law_of(chain, GAUSSIAN.model(p), 3, 3 * 16)
    a = A.entries.numpy()
    law = torch.distributions.MultivariateNormal(
        torch.from_numpy(a @ mean), torch.from_numpy(a @ cov @ a.T + 0.09 * np.eye(2))
    )
    for particles, resample in ((6, 0.7), (3, 0.0)):
        smc = sg.TwistedSMC(particles=particles, steps=16, resample=resample)
        result = smc(posterior, (2000, 3), seed=5, dtype=torch.float64)
        ratio = (result.system_log_evidence - law.log_prob(Y.double())).exp()
        error = float(ratio.std() / len(ratio) ** 0.5)
        assert error < (0.03 if resample else 0.15)
        assert abs(float(ratio.mean()) - 1) < 3 * error
        assert float(result.log_evidence) == pytest.approx(float(ratio.mean().log() + law.log_prob(Y.double())))
        assert float(result.log_evidence_error) == pytest.approx(error / float(ratio.mean()))


@pytest.mark.parametrize("method", ["mmps", "pigdm", "none"])
def test_one_grid_of_lambda_gives_the_same_particles_under_every_formulation(method: str) -> None:
    lambdas = tuple(np.linspace(-3.0, 3.25, 14).tolist())
    smc = sg.TwistedSMC(particles=5, grid=sg.GivenLambdas(lambdas), resample=0.9, return_all=True)
    results = [
        smc(Posterior(MIXTURE.model(p), A, Y, 0.2, method), (6, 3), seed=3, dtype=torch.float64)
        for p in [*PERTURBATIONS, sg.SubVP(), sg.Cosine()]
    ]
    assert float(results[0].ess.min()) < 4.5  # something was resampled
    for other in results[1:]:
        for name in ("x", "particles", "log_weights", "system_log_evidence", "ess"):
            torch.testing.assert_close(getattr(other, name), getattr(results[0], name), rtol=0, atol=1e-9)


def sliced(a: Tensor, b: Tensor) -> float:
    """Sliced Wasserstein-2 distance, 128 directions."""
    v = torch.randn(a.shape[1], 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = v / v.norm(dim=0)
    return float(((a @ v).sort(0)[0] - (b @ v).sort(0)[0]).square().mean().sqrt())


@pytest.mark.parametrize("p", PERTURBATIONS, ids=ids)
def test_the_chain_itself_has_the_variance_of_gaussian_data(p: sg.Perturbation) -> None:
    """To 1.5 % in 50 steps down to sigma/alpha of 0.01, where that of ancestral sampling is off by more than 5 %."""
    grid = sg.GivenLambdas(tuple(np.linspace(-3.5, 4.5, 50).tolist()))
    for std in (1.0, 0.3):
        data = sg.GaussianMixture([1.0], [[0.0]], [[[std**2]]]).model(p)
        middle, ancestral = (law_of(make(grid=grid), data, 1, 50)[1][0, 0] / std**2 for make in (Middle, sg.Ancestral))
        assert middle == pytest.approx(1, abs=0.015)
        assert ancestral < 0.95


@pytest.mark.parametrize("p", [sg.VP(), sg.NCSN(levels=150)], ids=ids)
def test_the_law_is_the_posterior_where_guidance_is_not(p: sg.Perturbation) -> None:
    """1000 systems: distance to the posterior, over that of 1000 exact draws, and the weights of its modes."""
    y, n = torch.tensor([0.05]), 1000
    operator = Mask([True, False, False])
    exact = MIXTURE.condition(operator, y, 0.3)
    posterior = Posterior(MIXTURE.model(p), operator, y, 0.3)
    truth = exact.sample(n, 1)
    floor = sum(sliced(exact.sample(n, 2 + i), truth) for i in range(4)) / 4
    guided = sg.Ancestral(steps=60, grid="lambda")(posterior, (n, 3), seed=1, dtype=torch.float64).x
    result = sg.TwistedSMC(steps=60)(posterior, (n, 3), seed=1, dtype=torch.float64)

    def weights_off(x: Tensor) -> float:
        nearest = torch.cdist(x, exact.means).argmin(1)  # modes lie six deviations apart
        return float(0.5 * (nearest.bincount(minlength=3) / n - exact.weights).abs().sum())

    assert sliced(guided, truth) > 2.5 * floor
    assert weights_off(guided) > 0.1
    assert sliced(result.x, truth) < 1.5 * floor
    assert weights_off(result.x) < 0.05
    assert float((result.log_evidence - exact.log_evidence).abs()) < 0.05


@pytest.mark.parametrize("noise", [1e-3, 1e-4])
def test_noise_of_a_thousandth_is_met(noise: float) -> None:
    y = torch.tensor([0.05])
    posterior = Posterior(MIXTURE.model(sg.VP()), Mask([True, False, False]), y, noise)
    result = sg.TwistedSMC(particles=8)(posterior, (300, 3), seed=1, dtype=torch.float64)
    residual = (result.x[:, 0] - y) / noise
    assert float(residual.square().mean()) == pytest.approx(1, abs=0.3)  # +-0.08 for 300 draws
    assert abs(float(residual.mean())) < 0.3


class Small(torch.nn.Module):
    """A network whose rounding cannot depend on the batch."""

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        return torch.sin(3 * x + (c_noise if label is None else c_noise + label).to(x.dtype)[:, None]) * 0.5 + 0.3 * x


def test_a_sample_depends_on_its_own_system_alone() -> None:
    model = sg.ScoreModel(Small(), sg.VP())
    smc = sg.TwistedSMC(particles=4, steps=12, return_all=True)
    posterior = Posterior(model, Mask([True, False, True]), Y, 0.2)
    whole = smc(posterior, (9, 3), seed=7)
    assert whole.x.dtype == torch.float32
    for more, rows in (
        ({}, slice(0, 4)), ({"chunk": 1}, slice(0, 4)), ({"chunk": 4}, slice(0, 9)), ({"first": 5}, slice(5, 9)),
        ({"first": 3, "chunk": 2}, slice(3, 8)),
    ):  # fmt: skip
        part = smc(posterior, (rows.stop - rows.start, 3), seed=7, **more)
        for name in ("x", "system_log_evidence", "ess", "ancestors", "particles", "log_weights"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rows]), (name, more)
    assert not torch.equal(smc(posterior, (9, 3), seed=8).x, whole.x)
    assert bool((whole.particles == whole.x[:, None]).all(-1).any(1).all())  # x is one of them


def test_each_system_may_have_its_own_observation_and_label() -> None:
    model, ys = sg.ScoreModel(Small(), sg.VP()), torch.randn(5, 2, generator=G)
    smc, mask = sg.TwistedSMC(particles=4, steps=8), Mask([True, False, True])
    labels = torch.arange(5.0)
    whole = smc(Posterior(model, mask, sg.Rows(ys), 0.2), (5, 3), seed=7, label=labels, chunk=2)
    assert whole.log_evidence.shape == (5,)
    assert whole.log_evidence.equal(whole.system_log_evidence)
    assert math.isnan(float(whole.log_evidence_error))
    for i in range(5):
        alone = smc(Posterior(model, mask, ys[i], 0.2), (1, 3), seed=7, first=i, label=labels[i : i + 1])
        assert torch.equal(alone.x[0], whole.x[i])
        assert torch.equal(alone.system_log_evidence[0], whole.system_log_evidence[i])


def test_what_is_counted() -> None:
    calls = 0

    def network(x: Tensor, c: Tensor) -> Tensor:
        nonlocal calls
        calls += len(x)
        return 0.3 * x + c[:, None] * 0

    posterior = Posterior(sg.ScoreModel(network, sg.VP()), A, Y, 0.3)
    result = sg.TwistedSMC(particles=4, steps=10)(posterior, (6, 3), chunk=4)
    assert calls == 6 * result.nfe == 6 * 4 * 10
    reached = int(
        (posterior.base.perturbation.half_log_snr(sg.TwistedSMC(steps=10).times(posterior)) > -math.log(5)).sum()
    )
    assert result.products == 2 * 4 * reached
    assert result.ess.shape == (6, 10)
    assert result.seconds > 0
    assert result.particles is None
    assert bool(((result.ess >= 1 - 1e-9) & (result.ess <= 4 + 1e-9)).all())
    assert bool(((result.ancestors >= 1) & (result.ancestors <= 4)).all())
    by_potential = sg.TwistedSMC(particles=4, steps=10, twist="none")(posterior, (6, 3))
    assert by_potential.products == 0


def test_one_particle_is_the_guided_chain() -> None:
    posterior = Posterior(MIXTURE.model(sg.VP()), A, Y, 0.3)
    one = sg.TwistedSMC(particles=1, steps=9, grid="lambda")(posterior, (4, 3), seed=3, dtype=torch.float64)
    other = Middle(steps=9, grid="lambda")(posterior, (4, 3), seed=3, dtype=torch.float64)
    # All but the last step, in which particles leave the potential to the weights.
    levels = 9
    times = sg.TwistedSMC(steps=levels, grid="lambda").times(posterior)
    at: list[Tensor] = []
    Middle(steps=9, grid="lambda")(
        posterior, (4, 3), seed=3, dtype=torch.float64, callback=lambda k, t, x: at.append(x.clone())
    )
    last = MIXTURE.model(sg.VP())(at[levels - 1], times[-1]).denoised
    torch.testing.assert_close(one.x, last, rtol=0, atol=1e-9)
    assert float((one.x - other.x).abs().max()) < 0.1


@pytest.mark.parametrize("particles", [1, 4, 5])
def test_half_of_a_system_moves_by_the_opposite_noise(particles: int) -> None:
    """Where the model is linear and odd, so that the second half is minus the first; every one moves at random."""
    data = sg.GaussianMixture([1.0], [[0.0, 0.0]], 0.3 * torch.eye(2)[None]).model(sg.VP())
    free = Posterior(data, Matrix([[1.0, 0.0]]), torch.tensor([0.2]), 0.3, "none")
    smc = sg.TwistedSMC(particles=particles, steps=6, resample=0.0, return_all=True)
    found = smc(free, (500, 2), seed=2, dtype=torch.float64)
    x, half = found.particles, particles // 2
    assert x is not None
    torch.testing.assert_close(x[:, particles - half :], -x[:, :half], rtol=0, atol=1e-12)
    torch.testing.assert_close(x.square().mean((0, 2)), x.square().mean().expand(particles), rtol=0.25, atol=0)


def test_systems_pooled_are_weighed_by_their_evidence() -> None:
    smc = sg.TwistedSMC(particles=4, steps=12, return_all=True)
    posterior = Posterior(MIXTURE.model(sg.VP()), Mask([True, False, False]), torch.tensor([0.05]), 0.3, "pigdm")
    found = smc(posterior, (300, 3), seed=1, dtype=torch.float64)
    assert found.particles is not None
    assert found.log_weights is not None
    weights = (found.system_log_evidence[:, None] + found.log_weights).flatten().softmax(0)
    states, n = found.particles.flatten(0, 1), 100_000
    drawn = found.pooled(n, seed=3)
    # Systematic draws: each state comes n w times, rounded up or down.
    ordered = states[:, 0].sort()
    places = torch.searchsorted(ordered.values, drawn[:, 0].contiguous())
    assert float((places.bincount(minlength=len(states)) - n * weights[ordered.indices]).abs().max()) < 1
    assert torch.equal(drawn, found.pooled(n, seed=3))
    assert not torch.equal(drawn, found.pooled(n, seed=4))
    assert found.pooled().shape == (300, 3)
    alone = replace(found, particles=None, log_weights=None).pooled(50)
    assert bool((alone[:, None] == found.x).all(2).any(1).all())
    each = Posterior(MIXTURE.model(sg.VP()), Mask([True, False, False]), sg.Rows(torch.zeros(2, 1)), 0.3)
    with pytest.raises(sg.ConfigError, match="observation or condition of its own"):
        sg.TwistedSMC(particles=2, steps=3)(each, (2, 3)).pooled()
    with pytest.raises(sg.ConfigError, match="n must"):
        found.pooled(0)


def test_a_collapse_is_told() -> None:
    """An observation that the prior all but rules out, without guidance."""
    posterior = Posterior(MIXTURE.model(sg.VP()), Mask([True, False, False]), torch.tensor([4.0]), 0.05)
    with pytest.warns(sg.CollapseWarning, match="of 8 particles"):
        sg.TwistedSMC(particles=8, steps=20, twist="none", resample=0.0)(posterior, (20, 3), seed=1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: sg.TwistedSMC(particles=0), "particles"),
        (lambda: sg.TwistedSMC(resample=1.5), "resample"),
        (lambda: sg.TwistedSMC(twist="dps"), "twist"),
        (lambda: sg.TwistedSMC()(MIXTURE.model(sg.VP()), (2, 3)), "nothing is to be corrected"),
        (lambda: sg.TwistedSMC(twist="mmps")(MIXTURE.model(sg.VP()), (2, 3)), "is of a Posterior"),
        (lambda: sg.TwistedSMC()(3, (2, 3)), "ScoreModel"),
        (lambda: sg.TwistedSMC()(Posterior(MIXTURE.model(sg.VP()), A, Y, 0.3), (2,)), "shape"),
        (lambda: sg.TwistedSMC()(Posterior(MIXTURE.model(sg.VP()), A, Y, 0.3), (2, 3), seeds=1), "seed"),
    ],
)  # fmt: skip
def test_what_is_refused(make, says: str) -> None:
    with pytest.raises(sg.ConfigError, match=says):
        make()


def test_a_network_that_fails_is_named() -> None:
    broken = sg.ScoreModel(lambda x, c: torch.where(x[:, :1] > 12, math.nan, 0.3) * x, sg.VP())
    with pytest.raises(sg.NonFiniteError) as caught:
        sg.TwistedSMC(particles=4, steps=10)(Posterior(broken, A, Y, 0.3), (40, 3), seed=1)
    assert 0 < len(caught.value.indices) < 40


NONLINEAR = {
    "magnitudes": (lambda x: x[:, :2].abs(), torch.tensor([0.8, 0.5]), 0.1),
    "saturated": (lambda x: (3 * x[:, :2]).tanh(), torch.tensor([0.9, -0.2]), 0.15),
}


@pytest.mark.parametrize(
    ("name", "twist"),
    # Where tanh is flat its derivative says nothing, and particles do better without.
    [("magnitudes", "pigdm"), ("magnitudes", "mmps"), ("magnitudes", "none"), ("saturated", "none")],
)
def test_a_measurement_that_is_not_linear(name: str, twist: str) -> None:
    """Evidence, weights of modes and residual, against 200,000 weighted draws of the prior."""
    h, y, noise = NONLINEAR[name]
    likelihood = torch.distributions.Normal(y.double(), noise)
    draws = MIXTURE.sample(200_000, 9)
    weights = likelihood.log_prob(h(draws)).sum(1)
    truth = float(weights.logsumexp(0)) - math.log(len(draws))
    modes = (weights.softmax(0)[:, None] * MIXTURE.responsibilities(draws)).sum(0)
    posterior = Posterior(MIXTURE.model(sg.VP()), sg.inverse.Nonlinear(h, norm=3.0), y, noise)
    result = sg.TwistedSMC(particles=24, steps=60, twist=twist)(posterior, (500, 3), seed=1, dtype=torch.float64)
    assert float(result.log_evidence) == pytest.approx(truth, abs=0.12)
    assert (
        float((MIXTURE.responsibilities(result.x).mean(0) - modes).abs().sum()) < 0.16
    )  # two weights, 4.5 errors each
    assert (result.products > 0) == (twist != "none")
    residual = ((h(result.x) - y) / noise).square().mean()
    expected = (weights.softmax(0) * ((h(draws) - y) / noise).square().mean(1)).sum()
    assert float(residual / expected) == pytest.approx(1, abs=0.25)
