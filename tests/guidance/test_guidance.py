"""Guided models on networks: equal to their parts where they have to be, and models like any other."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde_gen as sg
from sde_gen.guidance import Autoguidance, ClassifierFree, ClassifierGuidance, Clipped, Thresholded

F64 = torch.float64
LABELS = torch.arange(8) % 3
PARAMETERIZATIONS = [
    sg.NoisePrediction(), sg.VPrediction(), sg.DataPrediction(), sg.ScorePrediction(), sg.EDMPreconditioning()
]  # fmt: skip


class Net(nn.Module):
    """A small smooth network with labels; label 3 is none. Everything in the dtype of its input."""

    num_classes = 3

    def __init__(self, seed: int = 0, learned_variance: bool = False) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.learned_variance = learned_variance
        width = 4 if learned_variance else 2
        self.first = nn.Parameter(torch.randn(3, 2, 8, generator=g, dtype=F64))
        self.second = nn.Parameter(0.3 * torch.randn(8, width, generator=g, dtype=F64))
        self.table = nn.Parameter(torch.randn(4, 8, generator=g, dtype=F64))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | int = 3) -> Tensor:
        h = x @ self.first[0] + c_noise.clamp(-6, 6)[:, None] / 6 + self.table[label]
        return torch.tanh(h) @ self.second


def model(
    parameterization: sg.Parameterization | None = None, p: sg.Perturbation | None = None, **net: Any
) -> sg.ScoreModel:
    return sg.ScoreModel(Net(**net), p or sg.VP(), parameterization).eval()


def draw(m: sg.ScoreModel, sampler: sg.Sampler | None = None, **named) -> sg.Samples:
    return (sampler or sg.Ancestral(steps=8))(m, (8, 2), seed=1, dtype=F64, **named)


def pull(x0: Tensor, label: Tensor | None = None) -> Tensor:
    aim = 0.5 if label is None else label[:, None]
    return -0.2 * (x0 - aim).square().sum(1)


def classifier(z: Tensor, half_log_snr: Tensor) -> Tensor:
    return -torch.sigmoid(half_log_snr) * z.square().sum(1)


#: Every wrapper, made of a model.
WRAPPERS: dict[str, Callable[[sg.ScoreModel], sg.ScoreModel]] = {
    "free": lambda m: ClassifierFree(m, 2.0),
    "free, two calls": lambda m: ClassifierFree(m, 2.0, memory="single"),
    "free, interval": lambda m: ClassifierFree(m, 3.0, (0.2, 2.0)),
    "free, rescaled": lambda m: ClassifierFree(m, 3.0, rescale=0.7),
    "free, schedule": lambda m: ClassifierFree(m, lambda noise: 1 + noise / (1 + noise)),
    "negative": lambda m: ClassifierFree(m, 2.0, null={"label": 1}),
    "auto": lambda m: Autoguidance(m, model(seed=1), 2.0),
    "auto, other parameterization": lambda m: Autoguidance(m, model(sg.DataPrediction(), sg.VE(), seed=1), 2.0),
    "state": lambda m: ClassifierGuidance(m, classifier),
    "denoised": lambda m: ClassifierGuidance(m, pull, at="denoised"),
    "clipped": lambda m: Clipped(m, -0.5, 0.7),
    "thresholded": lambda m: Thresholded(m, 0.6),
    "clipped free": lambda m: Clipped(ClassifierFree(m, 2.0)),
}


@pytest.fixture(params=WRAPPERS)
def wrap(request: pytest.FixtureRequest) -> Callable[[sg.ScoreModel], sg.ScoreModel]:
    return WRAPPERS[request.param]


# -- its parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("memory", ["double", "single"])
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=lambda p: type(p).__name__)
def test_scales_0_and_1_are_the_parts_bit_for_bit(parameterization, memory: str, learned: bool) -> None:
    m = model(parameterization, learned_variance=learned)
    for scale, told in ((0.0, {}), (1.0, {"label": LABELS})):
        for flat in (scale, lambda noise, scale=scale: scale * torch.ones_like(noise)):
            guided = ClassifierFree(m, flat, memory=memory)
            one, other = draw(m, **told), draw(guided, label=LABELS)
            assert torch.equal(one.x, other.x)
            assert one.nfe == other.nfe
            x, t = torch.randn(8, 2, dtype=F64), torch.linspace(0.1, 0.9, 8)  # a level for each sample
            found, wanted = guided(x, t, label=LABELS), m(x, t, **told)
            for name in ("denoised", "noise", "score", "v") + ("log_variance_fraction",) * (learned and scale == 1):
                assert torch.equal(getattr(found, name), getattr(wanted, name))


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=lambda p: type(p).__name__)
def test_every_quantity_is_extrapolated_alike(parameterization) -> None:
    m, x = model(parameterization), torch.randn(8, 2, dtype=F64)
    for t in (torch.tensor(0.4), torch.linspace(0.1, 0.9, 8)):
        with_label, without = m(x, t, label=LABELS), m(x, t)
        found = ClassifierFree(m, 3.0)(x, t, label=LABELS)
        for name in ("denoised", "noise", "score", "v"):
            of, to = getattr(without, name), getattr(with_label, name)
            torch.testing.assert_close(getattr(found, name), of + 3 * (to - of), rtol=1e-12, atol=1e-12)


def test_autoguidance_lies_beyond_the_good_model() -> None:
    good, x = model(), torch.randn(8, 2, dtype=F64)
    for bad in (model(seed=1), model(sg.DataPrediction(), sg.VE(), seed=1)):
        d, worse = good(x, 0.4, label=LABELS).denoised, bad.under(sg.VP())(x, 0.4, label=LABELS).denoised
        for scale in (0.0, 1.0, 2.0):
            found = Autoguidance(good, bad, scale)(x, 0.4, label=LABELS).denoised
            torch.testing.assert_close(found, worse + scale * (d - worse), rtol=1e-12, atol=1e-12)
    assert torch.equal(draw(good).x, draw(Autoguidance(good, model(seed=1), 1.0)).x)


def test_an_interval_leaves_the_condition_alone_outside_and_costs_no_second_call() -> None:
    m, x = model(), torch.randn(8, 2, dtype=F64)
    p = m.perturbation
    guided, always = ClassifierFree(m, 3.0, (0.2, 2.0)), ClassifierFree(m, 3.0)
    times = p.time(-torch.tensor([0.1, 0.3, 1.9, 2.1], dtype=F64).log())
    for t, where in zip(times, (m, always, always, m), strict=True):
        assert torch.equal(guided(x, t, label=LABELS).noise, where(x, t, label=LABELS).noise)
    each = torch.cat([times, times])  # levels of their own: both parts are asked of all
    torch.testing.assert_close(
        guided(x, each, label=LABELS).noise,
        torch.cat([where(x[i : i + 1], t, label=LABELS[i : i + 1]).noise for i, (t, where) in
                   enumerate(zip(each, (m, always, always, m) * 2, strict=True))]),
    )  # fmt: skip
    grid = [float(t) for t in times.flip(0)]
    assert sg.Ancestral(grid=grid)(guided, start=x, label=LABELS).nfe == 6
    assert sg.Ancestral(grid=grid)(always, start=x, label=LABELS).nfe == 8


def test_a_schedule_is_asked_for_sigma_over_alpha() -> None:
    m, x = model(), torch.randn(8, 2, dtype=F64)
    t = torch.tensor(0.4, dtype=F64)
    ratio = float(m.perturbation.sigma(t) / m.perturbation.alpha(t))
    found = ClassifierFree(m, lambda noise: 2 * noise)(x, t, label=LABELS).noise
    torch.testing.assert_close(found, ClassifierFree(m, 2 * ratio)(x, t, label=LABELS).noise, rtol=1e-12, atol=1e-12)


def test_rescale_gives_the_spread_back() -> None:
    m, x = model(sg.VPrediction()), torch.randn(8, 2, dtype=F64)
    aim = m(x, 0.4, label=LABELS).denoised
    plain = ClassifierFree(m, 5.0)(x, 0.4, label=LABELS).denoised
    for share in (0.3, 1.0):
        found = ClassifierFree(m, 5.0, rescale=share)(x, 0.4, label=LABELS).denoised
        factor = share * aim.std(1, correction=0) / plain.std(1, correction=0) + 1 - share
        torch.testing.assert_close(found, plain * factor[:, None], rtol=1e-10, atol=1e-10)


def test_what_stands_for_no_condition() -> None:
    m, x = model(), torch.randn(8, 2, dtype=F64)
    found = ClassifierFree(m, 2.0, null={"label": 1})(x, 0.4, label=LABELS).noise
    of, to = m(x, 0.4, label=torch.ones_like(LABELS)).noise, m(x, 0.4, label=LABELS).noise
    torch.testing.assert_close(found, 2 * to - of, rtol=1e-12, atol=1e-12)
    one = ClassifierFree(m)(x, 0.4, label=2).noise  # a number for all
    assert torch.equal(one, ClassifierFree(m, null=3)(x, 0.4, label=torch.full((8,), 2)).noise)


# -- a classifier ------------------------------------------------------------------------------------------------------


def test_a_classifier_moves_the_denoised_by_its_gradient() -> None:
    m, x, t = model(), torch.randn(8, 2, dtype=F64), torch.tensor(0.4, dtype=F64)
    p = m.perturbation
    step = p.sigma(t) ** 2 / p.alpha(t)
    at = x.clone().requires_grad_()
    lam = p.half_log_snr(t).expand(8)
    (state,) = torch.autograd.grad(classifier(at / p.size(t), lam).sum(), at)
    found = ClassifierGuidance(m, classifier, scale=2.0)(x, t, label=LABELS)
    torch.testing.assert_close(found.denoised, m(x, t, label=LABELS).denoised + 2 * step * state, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.score, m(x, t, label=LABELS).score + 2 * state, rtol=1e-10, atol=1e-10)
    at = x.clone().requires_grad_()
    (through,) = torch.autograd.grad(pull(m(at, t, label=LABELS).denoised).sum(), at)
    found = ClassifierGuidance(m, pull, at="denoised")(x, t, label=LABELS)
    torch.testing.assert_close(found.score, m(x, t, label=LABELS).score + through, rtol=1e-10, atol=1e-10)
    result = draw(ClassifierGuidance(m, pull, at="denoised"), label=LABELS)
    assert (result.nfe, result.products) == (8, 8)
    assert draw(ClassifierGuidance(m, classifier), label=LABELS).products == 0
    none = draw(ClassifierGuidance(m, pull, at="denoised", scale=0.0), label=LABELS)
    assert torch.equal(none.x, draw(m, label=LABELS).x)
    assert none.products == 0


def test_a_classifier_is_told_what_the_network_is_not() -> None:
    m = model()
    guided = ClassifierGuidance(m, lambda x0, kind: pull(x0, kind), "denoised", condition=("kind",))
    found = draw(guided, label=LABELS, kind=LABELS)
    part = sg.Ancestral(steps=8)(guided, (3, 2), seed=1, first=5, dtype=F64, label=LABELS[5:], kind=LABELS[5:]).x
    torch.testing.assert_close(found.x[5:], part, rtol=0, atol=1e-12)
    assert not torch.equal(found.x, draw(ClassifierGuidance(m, pull, "denoised"), label=LABELS).x)


# -- bounds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learned", [False, True])
def test_bounded_models_say_noise_that_follows_from_the_data(learned: bool) -> None:
    m, x = model(learned_variance=learned), 2 * torch.randn(8, 2, dtype=F64)
    p = m.perturbation
    for t in (torch.tensor(0.6, dtype=F64), torch.linspace(0.2, 0.9, 8, dtype=F64)):
        plain, found = m(x, t, label=LABELS), Clipped(m, -0.5, 0.7)(x, t, label=LABELS)
        assert bool((plain.denoised.abs() > 0.7).any())
        alpha, sigma = (c.reshape(-1, 1) for c in p.curves(t))
        torch.testing.assert_close(found.denoised, plain.denoised.clamp(-0.5, 0.7))
        torch.testing.assert_close(found.noise, (x - alpha * found.denoised) / sigma)
        if learned:
            torch.testing.assert_close(found.log_variance_fraction, plain.log_variance_fraction)
        for most in (None, 1.0, 1.3):
            s = torch.quantile(plain.denoised.abs(), 0.6, dim=1).clamp(1.0, most or 1e9)[:, None]
            found = Thresholded(m, 0.6, most)(x, t, label=LABELS).denoised
            torch.testing.assert_close(found, plain.denoised.clamp(-s, s) / s)


# -- models like any other ---------------------------------------------------------------------------------------------


def test_moved_and_guided_is_guided_and_moved(wrap) -> None:
    m = model(sg.EDMPreconditioning())
    lambdas = torch.linspace(-3, 4, 9, dtype=F64)
    found = []
    for p in (sg.VP(), sg.VE(), sg.FlowMatching(), sg.EDM()):
        for guided in (wrap(m).under(p), wrap(m.under(p))):
            t = p.time(lambdas)
            start = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=F64) * p.size(t[0])
            sampler = sg.DPMSolverPP2M(grid=t.tolist())
            found.append(sampler(guided, start=start, label=LABELS).x)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-10)


def test_a_sample_depends_on_its_index_alone(wrap) -> None:
    guided, sampler = wrap(model(sg.EDMPreconditioning())), sg.StochasticHeun(steps=5)
    whole = draw(guided, sampler, label=LABELS).x
    for rows in (slice(0, 1), slice(3, 8)):
        part = sampler(guided, (rows.stop - rows.start, 2), seed=1, first=rows.start, dtype=F64, label=LABELS[rows]).x
        torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-12)
    torch.testing.assert_close(draw(guided, sampler, label=LABELS, chunk=3).x, whole, rtol=0, atol=1e-12)


def test_a_guided_model_samples_with_every_kind_of_sampler(wrap) -> None:
    guided = wrap(model(sg.EDMPreconditioning()))
    for sampler in (sg.PredictorCorrector(steps=5), sg.ProbabilityFlow(rtol=1e-3, atol=1e-3), sg.Heun(steps=5),
                    sg.DDIM(steps=5), sg.AnnealedLangevin(steps=5)):  # fmt: skip
        result = draw(guided, sampler, label=LABELS)
        assert bool(result.x.isfinite().all())
        assert result.nfe >= 5
    assert draw(guided.under(sg.DDPM(steps=30)), sg.Ancestral(steps=20), label=LABELS).nfe >= 20


def test_no_likelihood_of_what_has_none(wrap) -> None:
    guided = wrap(model(sg.EDMPreconditioning()))
    with pytest.raises(sg.ConfigError, match="denoiser of no data"):
        sg.log_likelihood(guided, torch.zeros(2, 2), condition={"label": torch.zeros(2, dtype=torch.int64)})


def test_networks_that_cannot_be_guided_are_refused_in_one_sentence() -> None:
    without = sg.ScoreModel(sg.networks.MLP(), sg.VP())
    with pytest.raises(sg.ConfigError, match="MLP has no classes"):
        ClassifierFree(without)
    with pytest.raises(sg.ConfigError, match="does not say with num_classes"):
        ClassifierFree(sg.ScoreModel(lambda x, c_noise, label: x, sg.VP()))
    with pytest.raises(sg.ConfigError, match="strengthens the condition 'label', which is not given"):
        draw(ClassifierFree(model()))
    with pytest.raises(sg.ConfigError, match="did you mean 'label'"):
        draw(ClassifierFree(model()), lable=LABELS)
    with pytest.raises(sg.ConfigError, match="carries no gradient of its input"):
        draw(ClassifierGuidance(sg.ScoreModel(lambda x, c_noise: x.detach() * 0.5, sg.VP()), pull, "denoised"))
    with pytest.raises(sg.ConfigError, match="log_prob carries no gradient"):
        draw(ClassifierGuidance(without, lambda x0: pull(x0).detach(), "denoised"))
    with pytest.raises(sg.ConfigError, match="a number for each sample"):
        draw(ClassifierGuidance(without, lambda x0: pull(x0).sum(), "denoised"))


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda m: ClassifierFree(m, float("nan")), "scale"),
        (lambda m: ClassifierFree(m, "2"), "scale"),
        (lambda m: ClassifierFree(m, interval=(2.0, 0.2)), "interval"),
        (lambda m: ClassifierFree(m, interval=2.0), "interval"),
        (lambda m: ClassifierFree(m, rescale=1.5), "rescale"),
        (lambda m: ClassifierFree(m, memory="half"), "memory"),
        (lambda m: ClassifierFree(m, null={}), "null"),
        (lambda m: ClassifierFree(m, null=-1), "null"),
        (lambda m: ClassifierFree(m.network), "model"),
        (lambda m: Autoguidance(m, m.network), "bad"),
        (lambda m: ClassifierGuidance(m, None), "log_prob"),
        (lambda m: ClassifierGuidance(m, pull, "data"), "at"),
        (lambda m: Clipped(m, 1.0, -1.0), "low"),
        (lambda m: Thresholded(m, 0.0), "quantile"),
        (lambda m: Thresholded(m, most=0.5), "most"),
        (lambda m: ClassifierFree(m, lambda noise: noise[..., :1])(torch.zeros(2, 2), torch.ones(2), label=0), "scale"),
    ],
)
def test_bad_arguments_are_named(make, wrong: str) -> None:
    with pytest.raises(sg.ConfigError, match=wrong):
        make(model())
