"""Mixtures of models: the shares along a path, the law alone and given an observation, the evidence, refusals."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import sde_gen as sg
from sde_gen.guidance import ClassifierGuidance, Edited
from sde_gen.inverse import Matrix, Mixture, Posterior, Product, Tilted
from sde_gen.inverse.particles import middle_steps
from tests.inverse.test_particles import Middle, Small
from tests.properties.reading import law_of

F64 = torch.float64
EYE = torch.eye(2, dtype=F64)
ONE = sg.GaussianMixture([1.0], [[-0.4, 0.0]], (0.5 * EYE)[None])
TWO = sg.GaussianMixture([1.0], [[0.5, 0.3]], torch.tensor([[[0.3, 0.1], [0.1, 0.2]]]))
MODES = sg.GaussianMixture([0.6, 0.4], [[-1.0, 0.0], [1.0, 0.3]], torch.stack([0.05 * EYE, 0.08 * EYE]))
OTHERS = sg.GaussianMixture([0.3, 0.5, 0.2], [[1.0, 0.3], [0.0, -1.0], [-1.0, 1.0]],
                            torch.stack([0.02 * EYE, 0.1 * EYE, 0.03 * EYE]))  # fmt: skip
A, Y = Matrix([[1.0, 0.5]]), torch.tensor([0.4])


def mixture(p: sg.Perturbation, *laws: sg.GaussianMixture, weights: tuple[float, ...] = (0.3, 0.7)) -> Mixture:
    return Mixture([law.model(p) for law in laws], weights)


def merged(*laws: sg.GaussianMixture, weights: tuple[float, ...] = (0.3, 0.7)) -> sg.GaussianMixture:
    """The same law, written out."""
    each = [w * law.weights for w, law in zip(weights, laws, strict=True)]
    return sg.GaussianMixture(torch.cat(each), torch.cat([law.means for law in laws]),
                              torch.cat([law.covariances for law in laws]))  # fmt: skip


@pytest.mark.parametrize("guided", [False, True])
def test_a_step_by_bayes_rule(guided: bool) -> None:
    """Three steps by hand: shares, estimate and weight from the Gaussian densities of each expert's step."""
    p, laws, weights = sg.VP(), (ONE, TWO, MODES), (0.5, 0.3, 0.2)
    g = torch.Generator().manual_seed(3)
    times = torch.tensor([0.9, 0.6, 0.3, 0.1], dtype=F64)
    a, b, c = middle_steps(p, times)
    x = torch.randn(5, 2, generator=g, dtype=F64)
    levels = mixture(p, *laws, weights=weights).levels(*p.curves(times), x)
    levels.begin()
    shares = torch.tensor(weights, dtype=F64).expand(5, 3)
    for k in range(3):
        each = torch.stack([law.model(p)(x, times[k]).denoised for law in laws], 1)
        mean = (shares[..., None] * each).sum(1)
        torch.testing.assert_close(levels.twist(k, x)[0], mean, rtol=0, atol=1e-12)
        place = torch.tensor([0, 2, 2, 1, 4])
        u = torch.rand(5, generator=g, dtype=F64)
        gain = b[k] / c[k]
        moved = levels.branch(u, float(gain), place)
        x, each, mean, shares = x[place], each[place], mean[place], shares[place]
        chosen = torch.stack([u < shares[:, 0], u < shares[:, :2].sum(1), torch.ones(5)], 1).int().argmax(1)
        torch.testing.assert_close(moved, gain * (each[range(5), chosen] - mean), rtol=0, atol=1e-12)
        push = torch.randn(5, 2, generator=g, dtype=F64) if guided else torch.zeros(5, 2, dtype=F64)
        z = torch.randn(5, 2, generator=g, dtype=F64) + moved
        change = levels.weigh(z, gain * push if guided else None)
        after = a[k] * x + b[k] * (mean + push) + c[k] * z

        def joint(shift: Tensor) -> Tensor:
            centres = a[k] * x[:, None] + b[k] * (each + shift[:, None])  # noqa: B023
            log_normal = torch.distributions.Normal(centres, c[k]).log_prob(after[:, None]).sum(2)  # noqa: B023
            return shares.log() + log_normal  # noqa: B023

        wanted = joint(0 * push).logsumexp(1) - joint(push).logsumexp(1)
        torch.testing.assert_close(torch.zeros(5, dtype=F64) + change, wanted, rtol=0, atol=1e-11)
        x, shares = after, joint(0 * push).softmax(1)
        torch.testing.assert_close(levels.shares, shares, rtol=0, atol=1e-11)
    assert levels.calls == 9


def test_the_jacobian_is_that_of_the_mixture() -> None:
    """Where the experts are as probable as their weights say, beside the exact model of the written out law."""
    p, t = sg.VE(), torch.tensor([0.5], dtype=F64)
    apart = [sg.GaussianMixture([1.0], [[m, 0.2]], (0.3 * EYE)[None]) for m in (-0.7, 0.7)]
    x = torch.tensor([[0.0, 0.9], [0.0, -2.0]], dtype=F64)  # as near to one as to the other
    found = []
    for model in (mixture(p, *apart, weights=(0.5, 0.5)), merged(*apart, weights=(0.5, 0.5)).model(p)):
        levels = model.levels(*p.curves(t), x)
        if isinstance(model, Mixture):
            levels.begin()
        jacobian = torch.autograd.functional.jacobian(lambda at: levels.denoised(0, at), x)  # noqa: B023
        found += [levels.denoised(0, x), jacobian]
    torch.testing.assert_close(found[:2], found[2:], rtol=0, atol=1e-12)


def test_shares_tend_to_the_probabilities_of_the_experts() -> None:
    off = []
    for steps in (25, 400):
        result = sg.TwistedSMC(particles=1, steps=steps)(mixture(sg.VP(), ONE, TWO), (200, 2), seed=1, dtype=F64)
        off.append(float((result.experts - merged(ONE, TWO).responsibilities(result.x)).square().mean().sqrt()))
    assert off[0] < 0.1
    assert off[1] < off[0] / 4


@pytest.mark.parametrize("p", [sg.VP(), sg.FlowMatching(), sg.DDPM(steps=100)], ids=lambda p: type(p).__name__)
def test_alone_it_is_the_mixture_of_the_experts_draws_at_any_number_of_steps(p: sg.Perturbation) -> None:
    """3000 draws in 8 steps, mean and second moments within 5 standard errors of the closed form of both chains."""
    result = sg.TwistedSMC(particles=2, steps=8)(mixture(p, ONE, TWO), (3000, 2), seed=1, dtype=F64)
    assert float(result.system_log_evidence.abs().max()) == 0.0
    assert float(result.ess.min()) > 2 - 1e-12
    assert result.nfe == 2 * 8 * 2
    grid = sg.TwistedSMC(steps=8).times(ONE.model(p)).tolist()
    mean, second = np.zeros(2), np.zeros((2, 2))
    for w, law in ((0.3, ONE), (0.7, TWO)):
        m, cov, _ = law_of(Middle(grid=grid), law.model(p), 2, 2 * 8)
        mean, second = mean + w * m, second + w * (cov + np.outer(m, m))
    for values, wanted in ((result.x, mean), (result.x[:, :, None] * result.x[:, None], second)):
        error = (values.mean(0) - torch.from_numpy(wanted)).abs() / (values.std(0) / len(values) ** 0.5)
        assert float(error.max()) < 5
    assert abs(float(result.experts.mean(0)[0]) - 0.3) < 0.05


@pytest.mark.parametrize("twist", ["mmps", "pigdm", "none"])
@pytest.mark.parametrize("p", [sg.VP(), sg.VE(), sg.FlowMatching()], ids=lambda p: type(p).__name__)
def test_the_evidence_is_unbiased(p: sg.Perturbation, twist: str) -> None:
    """Within 4 standard errors of the sum of w_j p_j(y) of both chains, in closed form, in 16 steps."""
    posterior = Posterior(mixture(p, ONE, TWO), A, Y, 0.3, twist)
    a, evidence, grid = A.entries.numpy()[0], [], sg.TwistedSMC(steps=16).times(posterior).tolist()
    for w, law in ((0.3, ONE), (0.7, TWO)):
        mean, cov, _ = law_of(Middle(grid=grid), law.model(p), 2, 2 * 16)
        normal = torch.distributions.Normal(float(a @ mean), math.sqrt(float(a @ cov @ a) + 0.09))
        evidence.append(math.log(w) + float(normal.log_prob(Y.double())))
    result = sg.TwistedSMC(particles=6, grid=grid, resample=0.7)(posterior, (1000, 2), seed=5, dtype=F64)
    ratio = (result.system_log_evidence - torch.tensor(evidence).logsumexp(0)).exp()
    error = float(ratio.std() / len(ratio) ** 0.5)
    assert error < 0.04
    assert abs(float(ratio.mean()) - 1) < 4 * error
    share = (ratio * result.experts[:, 0] / ratio.mean()).mean()
    assert float(share) == pytest.approx(float(torch.tensor(evidence).softmax(0)[0]), abs=0.03)


@pytest.mark.parametrize("observed", [False, True])
def test_the_law_of_a_mixture_of_mixtures(observed: bool) -> None:
    """600 draws: energy distance to exact ones over that of exact ones, weights of all modes, and of the experts."""
    exact, target, n = merged(MODES, OTHERS), mixture(sg.VP(), MODES, OTHERS), 600
    right = torch.tensor([0.3, 0.7])
    if observed:
        parts = torch.stack([law.condition(A, Y, 0.3).log_evidence for law in (MODES, OTHERS)])
        right = (right.log() + parts).softmax(0)
        exact, target = exact.condition(A, Y, 0.3), Posterior(target, A, Y, 0.3)
    result = sg.TwistedSMC(particles=8 if observed else 1, steps=80)(target, (n, 2), seed=1, dtype=F64)
    truth = exact.sample(2000, 1)
    floor = sum(float(sg.metrics.energy_distance(exact.sample(n, 2 + i), truth)) for i in range(4)) / 4
    assert float(sg.metrics.energy_distance(result.x, truth)) < 2.5 * floor
    assert 0.5 * float((exact.responsibilities(result.x).mean(0) - exact.weights).abs().sum()) < 0.06
    assert float((result.experts.mean(0) - right).abs().max()) < 0.05
    if observed:
        assert abs(float(result.log_evidence - exact.log_evidence)) < 0.06


@pytest.mark.parametrize("method", ["mmps", "pigdm", "none"])
def test_a_model_mixed_with_itself_is_that_model(method: str) -> None:
    model = MODES.model(sg.VP())
    smc = sg.TwistedSMC(particles=6, steps=15, resample=0.9)
    one, two = (smc(Posterior(m, A, Y, 0.3, method, data_std=1.0, reach=9.0), (5, 2), seed=2, dtype=F64)
                for m in (model, Mixture([model, model], [3.0, 1.0])))  # fmt: skip
    assert float(one.ess.min()) < 5.4
    torch.testing.assert_close(two.x, one.x, rtol=0, atol=1e-9)
    torch.testing.assert_close(two.system_log_evidence, one.system_log_evidence, rtol=0, atol=1e-9)
    torch.testing.assert_close(two.experts, torch.tensor([[0.75, 0.25]], dtype=F64).expand(5, 2))
    assert one.experts is None


def test_particles_are_the_same_under_every_formulation() -> None:
    lambdas = np.linspace(-3.0, 3.0, 12).tolist()
    smc = sg.TwistedSMC(particles=4, grid=sg.GivenLambdas(tuple(lambdas)), return_all=True)
    found = []
    for p in (sg.VP(), sg.VE(), sg.FlowMatching(), sg.DDPM(steps=200)):
        target = Posterior(mixture(sg.VP(), MODES, OTHERS), A, Y, 0.3).under(p)
        result = smc(target, (4, 2), seed=3, dtype=F64)
        found.append(torch.cat([result.particles.flatten(1), result.log_weights, result.experts], 1))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-9)


def test_networks_with_labels_and_a_system_depends_on_its_index_alone() -> None:
    model = Mixture([sg.ScoreModel(Small(), sg.VP()), sg.ScoreModel(lambda x, c, label: 0.3 * x, sg.VP())], [1, 2])
    label, smc = torch.arange(5), sg.TwistedSMC(particles=4, steps=9)
    for target in (model, Posterior(model, A, Y, 0.5), Tilted(model, lambda x: -x[:, 0].square())):
        whole = smc(target, (5, 2), seed=4, label=label)
        part = smc(target, (3, 2), seed=4, first=2, label=label[2:], chunk=2)
        torch.testing.assert_close(part.x, whole.x[2:], rtol=0, atol=1e-6)
        torch.testing.assert_close(part.experts, whole.experts[2:], rtol=0, atol=1e-6)
        assert whole.nfe == 4 * 9 * 2


def test_pictures_in_single_precision() -> None:
    networks = [lambda x, c, i=i: torch.sin(x + i) for i in range(3)]
    model = Mixture([sg.ScoreModel(network, sg.VP()) for network in networks])
    result = sg.TwistedSMC(particles=3, steps=6)(model, (4, 3, 8, 8), seed=0)
    assert result.x.dtype == torch.float32
    assert result.experts.shape == (4, 3)
    torch.testing.assert_close(result.experts.sum(1), torch.ones(4, dtype=F64))


P = sg.VP()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Mixture([]), "one model or more"),
        (lambda: Mixture([ONE.model(P)], [1.0, 2.0]), "weight for each"),
        (lambda: Mixture([ONE.model(P)], [0.0]), "weight"),
        (lambda: Mixture([ONE.model(P), TWO.model(sg.VE())]), "one perturbation"),
        (lambda: Mixture([ONE.model(P), Edited(TWO.model(P), 0.5)]), "give its base"),
        (lambda: sg.log_likelihood(mixture(P, ONE, TWO), torch.zeros(1, 2)), "logsumexp"),
        (lambda: mixture(P, ONE, TWO)(torch.zeros(1, 2), 0.5), "sample it with TwistedSMC"),
        (lambda: sg.Ancestral(steps=3)(mixture(P, ONE, TWO), (2, 2)), "sample it with TwistedSMC"),
        (lambda: smc(Product([mixture(P, ONE, TWO), ONE.model(P)])), "sample it with TwistedSMC"),
        (lambda: smc(Mixture([mixture(P, ONE, TWO), ONE.model(P)])), "guide the mixture"),
        (lambda: smc(Mixture([Posterior(ONE.model(P), A, Y, 0.3), ONE.model(P)])), "guide the mixture"),
        (lambda: smc(ClassifierGuidance(mixture(P, ONE, TWO), lambda x: x[:, 0], "denoised")), "sample it with"),
        (lambda: smc(Posterior(Mixture([sg.ScoreModel(lambda x, c: x.detach(), P)]), A, Y, 0.3)), "no gradient"),
    ],
)  # fmt: skip
def test_what_is_refused(make, says: str) -> None:
    with pytest.raises(sg.ConfigError, match=says):
        make()


def smc(model: sg.ScoreModel, **told: Tensor) -> sg.Samples:
    return sg.TwistedSMC(particles=2, steps=3)(model, (2, 2), **told)
