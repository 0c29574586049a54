"""Guidance of exact scores: what it is, what law it aims at, and that particles reach it."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sde_gen as sg
from sde_gen.guidance import Autoguidance, ClassifierFree, ClassifierGuidance, Edited

F64 = torch.float64
ANGLES = torch.arange(8, dtype=F64) * math.pi / 4
MIXTURE = sg.GaussianMixture(
    [0.125] * 8, 1.5 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1), [[[0.15, 0.0], [0.0, 0.15]]] * 8,
    labels=[0, 0, 1, 1, 0, 2, 2, 2],
)  # fmt: skip
PERTURBATIONS = [sg.VP(), sg.VE(), sg.EDM(), sg.FlowMatching(), sg.Cosine(), sg.DDPM(steps=200), sg.NCSN(levels=150)]
AXIS = torch.linspace(-6, 6, 401, dtype=F64)
GRID = torch.cartesian_prod(AXIS, AXIS)
CELL = float(AXIS[1] - AXIS[0]) ** 2


def class_of_state(z: Tensor, half_log_snr: Tensor, label: Tensor) -> Tensor:
    """log p(c | x_t) - log p(c), of a state as a network is given it."""
    p = sg.VP()
    model, t = MIXTURE.model(p), p.time(half_log_snr)
    return model.log_prob(z * p.size(t)[:, None], t, label) - model.log_prob(z * p.size(t)[:, None], t)


def states(p: sg.Perturbation) -> tuple[Tensor, Tensor]:
    t = torch.linspace(0.1, 0.9, 6, dtype=F64)
    return torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=F64) * p.size(t)[:, None], t


@pytest.mark.parametrize("p", PERTURBATIONS, ids=lambda p: type(p).__name__)
def test_bayes_rule_by_the_exact_classifier_is_the_conditional_model(p: sg.Perturbation) -> None:
    label = torch.tensor([0, 1, 2, 0, 1, 2])
    guided = ClassifierGuidance(MIXTURE.model(p), class_of_state, condition=("label",))
    x, t = states(p)
    found, wanted = guided(x, t, label=label), MIXTURE.model(p)(x, t, label=label)
    torch.testing.assert_close(found.denoised, wanted.denoised, rtol=1e-8, atol=1e-8)
    free = ClassifierFree(MIXTURE.model(p), 3.0)(x, t, label=label).score
    thrice = ClassifierGuidance(MIXTURE.model(p), class_of_state, scale=3.0, condition=("label",))
    torch.testing.assert_close(thrice(x, t, label=label).score, free, rtol=1e-7, atol=1e-7)


def test_autoguidance_by_the_marginal_is_classifier_free_guidance() -> None:
    p = sg.VE()
    x, t = states(p)
    two = Autoguidance(MIXTURE.of_class(1).model(p), MIXTURE.model(p), 2.0)(x, t).score
    torch.testing.assert_close(ClassifierFree(MIXTURE.model(p), 2.0)(x, t, label=1).score, two, rtol=1e-9, atol=1e-9)


# -- particles ---------------------------------------------------------------------------------------------------------


def evidence(w: float) -> float:
    """log of the integral of p(x|c)^w p(x)^(1-w), by quadrature."""
    log_density = w * MIXTURE.of_class(0).log_prob(GRID) + (1 - w) * MIXTURE.log_prob(GRID)
    return float(log_density.logsumexp(0)) + math.log(CELL)


def test_scale_1_needs_no_correction() -> None:
    guided, label = ClassifierFree(MIXTURE.model(sg.VP()), 1.0), torch.zeros(4, dtype=torch.int64)
    result = sg.TwistedSMC(particles=4, steps=10)(guided, (4, 2), dtype=F64, label=label)
    assert float(result.system_log_evidence.abs().max()) < 1e-12
    assert float(result.ess.min()) > 4 - 1e-9


@pytest.mark.parametrize("memory", ["double", "single"])
def test_particles_are_the_same_under_every_formulation(memory: str) -> None:
    lambdas = torch.linspace(-3.5, 3.0, 12, dtype=F64)
    found = []
    for p in (sg.VP(), sg.VE(), sg.FlowMatching(), sg.EDM()):
        guided = ClassifierFree(MIXTURE.model(sg.VP()), 2.0, memory=memory).under(p)
        sampler = sg.TwistedSMC(particles=8, grid=p.time(lambdas).tolist(), return_all=True)
        result = sampler(guided, (3, 2), seed=4, dtype=F64, label=torch.tensor([0, 1, 2]))
        found.append(torch.cat([result.particles.flatten(1), result.log_weights], 1))
        assert result.nfe == 8 * 2 * len(lambdas)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("guided", [
    lambda m: ClassifierFree(m, 2.0, (0.2, 2.0)), lambda m: ClassifierFree(m, 2.0, rescale=0.7),
    lambda m: ClassifierFree(m, lambda noise: 2.0), lambda m: Edited(ClassifierFree(m, 2.0), 0.3),
])  # fmt: skip
def test_what_aims_at_no_law_is_refused(guided: Callable[[sg.ScoreModel], sg.ScoreModel]) -> None:
    with pytest.raises(sg.ConfigError, match="particles"):
        sg.TwistedSMC(particles=4, steps=5)(guided(MIXTURE.model(sg.VP())), (2, 2), label=torch.tensor([0, 1]))


def test_a_system_depends_on_its_index_alone() -> None:
    guided, label = ClassifierFree(MIXTURE.model(sg.VP()), 2.0), torch.tensor([0, 1, 2, 0, 1])
    sampler = sg.TwistedSMC(particles=8, steps=15)
    whole = sampler(guided, (5, 2), seed=4, dtype=F64, label=label).x
    part = sampler(guided, (3, 2), seed=4, first=2, dtype=F64, label=label[2:], chunk=2).x
    torch.testing.assert_close(part, whole[2:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("w", [0.5, 2.0])
def test_the_evidence_is_that_of_the_tilted_law(w: float) -> None:
    """Within 5 standard errors of 400 systems and what 60 steps leave, 2 %."""
    label = torch.zeros(400, dtype=torch.int64)
    result = sg.TwistedSMC(particles=8, steps=60)(ClassifierFree(MIXTURE.model(sg.VP()), w), (400, 2), dtype=F64,
                                                  label=label)  # fmt: skip
    ratio = (result.system_log_evidence - evidence(w)).exp()
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / 20 + 0.02


def test_what_is_drawn_follows_the_tilted_law() -> None:
    """Means of x and log p(c|x) within 5 standard errors of 400 draws, where plain guidance is off by 10 of 3,000."""
    w, law = 3.0, MIXTURE.tilt(0, 3.0)
    density = law.log_density(GRID).softmax(0)

    def errors(x: Tensor) -> Tensor:
        found = []
        for value, exact in ((x[:, 0], GRID[:, 0]), (x[:, 1], GRID[:, 1]), (law.log_class(x), law.log_class(GRID))):
            mean = (density * exact).sum()
            spread = (density * (exact - mean).square()).sum().sqrt()
            found.append((value.mean() - mean).abs() / spread * len(x) ** 0.5)
        return torch.stack(found)

    guided, label = ClassifierFree(MIXTURE.model(sg.VP()), w), torch.zeros(3000, dtype=torch.int64)
    x = sg.TwistedSMC(particles=32, steps=60)(guided, (400, 2), dtype=F64, label=label[:400]).x
    assert float(errors(x).max()) < 5
    plain = sg.Ancestral(steps=60, grid="karras")(guided, (3000, 2), dtype=F64, label=label).x
    assert float(errors(plain).min()) > 10


def test_a_likelihood_at_the_denoised_is_corrected_to_the_posterior() -> None:
    def likelihood(x0: Tensor) -> Tensor:
        return -2.0 * (x0[:, 0] - 0.5).square()

    wanted = float((MIXTURE.log_prob(GRID) + likelihood(GRID)).logsumexp(0)) + math.log(CELL)
    guided = ClassifierGuidance(MIXTURE.model(sg.VP()), likelihood, "denoised")
    result = sg.TwistedSMC(particles=8, steps=60)(guided, (400, 2), dtype=F64)
    ratio = (result.system_log_evidence - wanted).exp()
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / 20 + 0.02
    exact = ClassifierGuidance(MIXTURE.model(sg.VP()), class_of_state, condition=("label",))
    result = sg.TwistedSMC(particles=8, steps=60)(exact, (50, 2), dtype=F64, label=torch.ones(50, dtype=torch.int64))
    assert abs(float(result.system_log_evidence.mean())) < 0.05


def test_a_schedule_aims_at_no_law() -> None:
    guided = ClassifierFree(MIXTURE.model(sg.VP()), lambda noise: 1 + noise.clamp(max=1))
    with pytest.raises(sg.ConfigError, match="give a number for scale"):
        sg.TwistedSMC(particles=4, steps=5)(guided, (2, 2), label=torch.zeros(2, dtype=torch.int64))


@pytest.mark.slow
@pytest.mark.parametrize("p", [sg.VP(), sg.VE()], ids=["VP", "VE"])
def test_64_particles_draw_as_well_as_exact_draws_do(p: sg.Perturbation) -> None:
    """Sliced Wasserstein distance of 256 draws to as many exact ones: at most 1.5 of that of two exact sets."""
    law, n = MIXTURE.tilt(0, 2.0), 256

    def apart(sets: list[Tensor], seed: int) -> float:
        return sum(sg.metrics.sliced_wasserstein(x, law.sample(n, seed + i)) for i, x in enumerate(sets)) / len(sets)

    guided, label = ClassifierFree(MIXTURE.model(p), 2.0), torch.zeros(n, dtype=torch.int64)
    floor = apart([law.sample(n, 1000 + i) for i in range(40)], 2000)
    sampler = sg.TwistedSMC(particles=64, steps=100)
    found = apart([sampler(guided, (n, 2), seed=i, dtype=F64, label=label).x for i in range(4)], 50)
    assert found < 1.5 * floor
