"""Mixtures with classes: the law of each, and what guidance towards one aims at."""

import math

import pytest
import torch

import sde_gen as sg

F64 = torch.float64
G = torch.Generator().manual_seed(0)
MEANS = 1.5 * torch.randn(5, 2, generator=G, dtype=F64)
COVARIANCES = torch.stack([torch.tensor([[0.3, 0.1 * k], [0.1 * k, 0.4]], dtype=F64) for k in range(-2, 3)])
WEIGHTS = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25], dtype=F64)
LABELS = [0, 1, 0, 2, 1]
MIXTURE = sg.GaussianMixture(WEIGHTS, MEANS, COVARIANCES, labels=LABELS)


def part(*components: int) -> sg.GaussianMixture:
    index = list(components)
    return sg.GaussianMixture(WEIGHTS[index], MEANS[index], COVARIANCES[index])


@pytest.mark.parametrize("p", [sg.VP(), sg.VE(), sg.DDPM(steps=200)], ids=lambda p: type(p).__name__)
def test_a_label_asks_for_the_law_of_its_class(p: sg.Perturbation) -> None:
    model, x = MIXTURE.model(p), torch.randn(6, 2, generator=G, dtype=F64)
    classes = [part(0, 2), part(1, 4), part(3), part(0, 1, 2, 3, 4)]  # the last label is that of none
    label = torch.tensor([0, 1, 2, 3, 1, 0])
    for t in (torch.tensor(0.3), torch.linspace(0.1, 0.9, 6)):
        each = [law.model(p)(x, t) for law in classes]
        found = model(x, t, label=label)
        for name in ("denoised", "score", "noise", "v"):
            wanted = torch.stack([getattr(each[int(c)], name)[i] for i, c in enumerate(label)])
            torch.testing.assert_close(getattr(found, name), wanted, rtol=1e-10, atol=1e-10)
        logs = torch.stack([classes[int(c)].model(p).log_prob(x, t)[i] for i, c in enumerate(label)])
        torch.testing.assert_close(model.log_prob(x, t, label), logs, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(model(x, t, label=1).denoised, each[1].denoised, rtol=1e-10, atol=1e-10)
        assert torch.equal(model(x, t).denoised, model(x, t, label=3).denoised)
    if float(p.sigma(torch.tensor(0.0))) == 0:
        torch.testing.assert_close(model(x, 0.0, label=1).score, classes[1].score(x), rtol=1e-9, atol=1e-9)


def test_a_class_that_is_sampled() -> None:
    sampler = sg.Heun(steps=12)
    label = torch.tensor([0, 1, 2, 3] * 2)
    whole = sampler(MIXTURE.model(sg.VP()), (8, 2), seed=2, dtype=F64, label=label, chunk=3).x
    for c, law in enumerate((part(0, 2), part(1, 4), part(3), MIXTURE)):
        alone = sampler(law.model(sg.VP()), (8, 2), seed=2, dtype=F64).x
        torch.testing.assert_close(whole[label == c], alone[label == c], rtol=0, atol=1e-9)


def test_the_tilted_law_is_a_mixture_at_0_and_1_and_a_density_beyond() -> None:
    x = torch.randn(6, 2, generator=G, dtype=F64)
    torch.testing.assert_close(MIXTURE.tilt(1, 0.0).log_density(x), MIXTURE.log_prob(x), rtol=1e-12, atol=1e-12)
    share = float(WEIGHTS[[1, 4]].sum())
    found = MIXTURE.tilt(1, 1.0).log_density(x)
    torch.testing.assert_close(found, part(1, 4).log_prob(x) + math.log(share), rtol=1e-12, atol=1e-12)
    for w in (0.5, 2.0, 5.0):
        found = MIXTURE.tilt([0, 2], w).log_density(x)
        of_class, share = part(0, 2, 3), float(WEIGHTS[[0, 2, 3]].sum())
        wanted = (1 - w) * MIXTURE.log_prob(x) + w * (of_class.log_prob(x) + math.log(share))
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("w", [0.0, 0.4, 1.0, 2.0, 4.0])
def test_draws_of_the_tilted_law_are_exact(w: float) -> None:
    """Their mean and second moment against quadrature: 40,000 draws, 5 standard errors (false alarm below 1e-5)."""
    law = MIXTURE.tilt(1, w)
    axis = torch.linspace(-7, 7, 561, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    weight = law.log_density(grid).softmax(0)
    x = law.sample(40_000, seed=3)
    for power in (1, 2):
        wanted, square = ((weight[:, None] * grid.pow(k)).sum(0) for k in (power, 2 * power))
        error = (square - wanted.square()).sqrt() / len(x) ** 0.5
        assert bool(((x.pow(power).mean(0) - wanted).abs() < 5 * error).all())
    assert torch.equal(law.sample(10, seed=3), law.sample(10, seed=3))
    assert not torch.equal(law.sample(10, seed=3), law.sample(10, seed=4))


def test_a_posterior_keeps_the_classes() -> None:
    after = MIXTURE.condition([[1.0, 0.5]], [0.3], 0.2)
    wanted = MIXTURE.of_class(1).condition([[1.0, 0.5]], [0.3], 0.2)
    x = torch.randn(6, 2, generator=G, dtype=F64)
    torch.testing.assert_close(after.of_class(1).log_prob(x), wanted.log_prob(x), rtol=1e-9, atol=1e-9)


def test_likelihood_of_a_class() -> None:
    x = part(1, 4).sample(5)
    found = sg.log_likelihood(MIXTURE.model(sg.VP()), x, label=torch.full((5,), 1))
    alone = sg.log_likelihood(part(1, 4).model(sg.VP()), x)
    torch.testing.assert_close(found.log_prob, alone.log_prob, rtol=1e-8, atol=1e-8)
    for name in ("prior_mismatch", "truncation"):
        one, other = getattr(found, name), getattr(alone, name)
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("ask", "wrong"),
    [
        (lambda: sg.GaussianMixture(WEIGHTS, MEANS, COVARIANCES, labels=[0, 1]), "labels must name"),
        (lambda: sg.GaussianMixture(WEIGHTS, MEANS, COVARIANCES, labels=[0, 0, 3, 1, 1]), "without a gap"),
        (lambda: sg.GaussianMixture(WEIGHTS, MEANS, COVARIANCES, labels=[0.5] * 5), "labels"),
        (lambda: MIXTURE.model(sg.VP())(torch.zeros(2, 2), 0.5, label=4), "label must be 0..2, or 3 for none"),
        (lambda: MIXTURE.model(sg.VP())(torch.zeros(2, 2), 0.5, label=torch.zeros(2)), "label must be"),
        (lambda: MIXTURE.model(sg.VP())(torch.zeros(2, 2), 0.5, kind=1), "'kind'"),
        (lambda: part(0).model(sg.VP())(torch.zeros(2, 2), 0.5, label=0), "with labels takes label"),
        (lambda: part(0).of_class(0), "have no classes"),
        (lambda: MIXTURE.tilt(3, 1.0), "labels"),
        (lambda: MIXTURE.tilt(1, -1.0), "w must be"),
        (
            lambda: sg.GaussianMixture([1.0, 1.0], [[0.0]] * 2, [[[1.0]]] * 2, [0, 1]).tilt(0, 60.0).sample(2),
            "smaller w",
        ),
    ],
)
def test_bad_arguments_are_named(ask, wrong: str) -> None:
    with pytest.raises(sg.ConfigError, match=wrong):
        ask()
