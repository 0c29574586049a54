"""The loss of one sample: its weight, its draws, its refusals. Minima and laws: properties/test_training_target.py."""

import dataclasses

import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import Normal, kl_divergence

import sde_gen as sg
from sde_gen.objectives import WEIGHTINGS
from tests.perturbations.cases import DEFAULTS

F64 = torch.float64


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.6, dtype=F64))

    def forward(self, x, c_noise, label=None):
        out = torch.tanh(self.scale * x)
        return out if label is None else out + label.reshape(-1, *[1] * (x.ndim - 1))


def by_definition(weighting, p, out, x0, noise, t, gamma, sd):
    """The papers' losses, each in its own terms, mean over the dimensions."""
    alpha, sigma, g = (c.reshape(-1, 1, 1) for c in (p.alpha(t), p.sigma(t), p.diffusion(t)))
    of_score, of_data = (out.score + noise / sigma) ** 2, (out.denoised - x0) ** 2
    snr, s = (alpha / sigma) ** 2, sigma / alpha
    each = {
        "simple": (out.noise - noise) ** 2,
        "score": sigma**2 * of_score,
        "likelihood": g**2 * of_score,
        "snr": snr * of_data,
        "min-snr": snr.clamp_max(gamma) * of_data,
        "edm": (s**2 + sd**2) / (s * sd) ** 2 * of_data,
        "vlb": bound_by_definition(p, out, x0, t) if p.is_chain else g**2 / 2 * of_score,
    }
    return each[weighting].mean((1, 2))


def bound_by_definition(p, out, x0, t):
    """K times the KL of the two Gaussians of a step, by torch.distributions; the density of the decoder at node 1."""
    each = []
    for i, node in enumerate(t):
        before = node - 1 / p.length
        if float(node) <= 1 / p.length + 1e-12:
            rho = p.sigma(node) / p.alpha(node)
            each.append(-Normal(out.denoised[i], rho).log_prob(x0[i]))
        else:
            of_x, of_data, std = p.posterior(before, node)
            x = p.alpha(node) * out.denoised[i] + p.sigma(node) * out.noise[i]
            pair = (Normal(of_x * x + of_data * d[i], std) for d in (x0, out.denoised))
            each.append(kl_divergence(*pair))
    return p.length * torch.stack(each)


#: "hybrid" needs a learned variance: tests/test_learned_variance.py.
PLAIN = [w for w in WEIGHTINGS if w != "hybrid"]


@pytest.mark.parametrize("p", DEFAULTS, ids=str)
@pytest.mark.parametrize("weighting", PLAIN)
def test_weights_against_the_papers(p, weighting):
    model = sg.ScoreModel(Net(), p, sg.VPrediction())
    objective = sg.DenoisingScoreMatching(weighting, "uniform", gamma=3.0, sigma_data=0.7)
    t = p.nodes[:: p.length // 6] if p.is_chain else torch.tensor([0.01, 0.1, 0.3, 0.6, 0.95], dtype=F64)
    x0, noise = torch.randn(len(t), 2, 3, dtype=F64), torch.randn(len(t), 2, 3, dtype=F64)
    loss = objective(model, x0, t=t, noise=noise)
    out = model(p.perturb(x0, t, noise), t)
    torch.testing.assert_close(loss, by_definition(weighting, p, out, x0, noise, t, 3.0, 0.7), rtol=1e-8, atol=1e-12)
    assert loss.shape == (len(t),)
    assert loss.requires_grad


@pytest.mark.parametrize("p", DEFAULTS, ids=str)
def test_importance_weight_is_the_mean_weight(p):
    """w(t) over its own density is one number: the mean of w under the uniform law."""
    model = sg.ScoreModel(Net(), p)
    objective = sg.DenoisingScoreMatching("likelihood")
    t = torch.tensor([p.t_min, 0.5, 1.0], dtype=F64)
    weight = objective.weight(model, t)
    if p.is_chain:
        want = ((p.diffusion(p.nodes) / p.sigma(p.nodes)) ** 2).mean()
    else:  # int -2 lambda' dt
        want = 2 * (p.half_log_snr(p.t_min) - p.half_log_snr(p.t_max)) / (p.t_max - p.t_min)
    torch.testing.assert_close(weight, want.expand(3).double(), rtol=1e-12, atol=0)


def test_law_for():
    vp, chain = (sg.ScoreModel(Net(), p) for p in (sg.VP(), sg.DDPM()))
    auto = {w: sg.DenoisingScoreMatching(w) for w in PLAIN}
    assert {w: o.law_for(vp) for w, o in auto.items()} == {
        "simple": "stratified",
        "score": "stratified",
        "likelihood": "importance",
        "snr": "stratified",
        "min-snr": "stratified",
        "edm": "log-normal",
        "vlb": "importance",
    }
    weighted = ("likelihood", "vlb")
    assert {o.law_for(chain) for w, o in auto.items() if w not in weighted} == {"nodes"}
    assert {auto[w].law_for(chain) for w in weighted} == {"importance"}
    learned = sg.ScoreModel(sg.MLP(2, learned_variance=True), sg.DDPM())
    assert sg.DenoisingScoreMatching("hybrid").law_for(learned) == "nodes"
    for refused in (sg.DenoisingScoreMatching("hybrid"), sg.DenoisingScoreMatching("vlb", variance="learned")):
        with pytest.raises(sg.ConfigError, match="needs a network with a learned variance"):
            refused.law_for(chain)
    with pytest.raises(sg.ConfigError, match=r"'hybrid' learns the variance of a chain's steps, .* VP\("):
        sg.DenoisingScoreMatching("hybrid").law_for(vp)
    assert sg.DenoisingScoreMatching("edm", "uniform").law_for(vp) == "uniform"
    for call in (lambda o: o.law_for(vp), lambda o: o.times(vp, 3), lambda o: o(vp, torch.zeros(2, 2))):
        with pytest.raises(sg.ConfigError, match=r"times_law='nodes' needs a chain .* but the perturbation is VP\("):
            call(sg.DenoisingScoreMatching("simple", "nodes"))


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("law", ["nodes", "importance"])
def test_vlb_with_a_fixed_variance_is_a_weighted_error_and_a_constant(variance, law):
    p = sg.DDPM(40)
    model, objective = sg.ScoreModel(Net(), p), sg.DenoisingScoreMatching("vlb", law, variance=variance)
    x0, noise = torch.randn(2, 40, 3, dtype=F64)
    loss = objective(model, x0, t=p.nodes, noise=noise)
    error = (model(p.perturb(x0, p.nodes, noise), p.nodes).noise - noise).square().mean(1)
    want = objective.weight(model, p.nodes) * error + objective.constant(model, p.nodes)
    torch.testing.assert_close(loss, want, rtol=1e-9, atol=1e-12)
    assert bool((objective.constant(model, p.nodes)[1:] != 0).all()) == (variance == "large")


def test_per_sample_losses_do_not_mix_samples():
    model = sg.ScoreModel(Net(), sg.VP())
    objective = sg.DenoisingScoreMatching()
    x0, noise, t = torch.randn(6, 3), torch.randn(6, 3), torch.linspace(0.1, 0.9, 6, dtype=F64)
    loss = objective(model, x0, t=t, noise=noise)
    assert (loss.shape, loss.dtype) == ((6,), torch.float32)
    for i in range(6):
        torch.testing.assert_close(objective(model, x0[i : i + 1], t=t[i : i + 1], noise=noise[i : i + 1])[0], loss[i])
    moved = x0.clone()
    moved[2] += 1
    changed = objective(model, moved, t=t, noise=noise) != loss
    assert changed.tolist() == [False, False, True, False, False, False]


def test_one_generator_decides_every_draw():
    model = sg.ScoreModel(Net(), sg.VP())
    objective = sg.DenoisingScoreMatching("simple", "uniform", label_dropout=0.5, num_classes=9)
    condition = {"label": torch.arange(16)}
    gen = lambda seed: torch.Generator().manual_seed(seed)  # noqa: E731
    x0 = torch.randn(16, 2)
    a = objective(model, x0, condition, generator=gen(1))
    torch.manual_seed(123)
    assert torch.equal(objective(model, x0, condition, generator=gen(1)), a)
    assert not torch.equal(objective(model, x0, condition, generator=gen(2)), a)
    state = torch.get_rng_state()
    objective(model, x0, condition, generator=gen(1))
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not touched
    torch.manual_seed(5)
    b = objective(model, x0, condition)
    assert not torch.equal(objective(model, x0, condition), b)  # it is the default, and moves on
    torch.manual_seed(5)
    assert torch.equal(objective(model, x0, condition), b)
    assert torch.equal(objective.times(model, 5, generator=gen(3)), objective.times(model, 5, generator=gen(3)))
    assert objective.times(model, 5, device="meta").device.type == "meta"


def test_noise_and_times_that_are_drawn():
    seen = []
    model = sg.ScoreModel(lambda x, c: seen.append((x, c)) or torch.zeros_like(x), sg.VP())
    objective = sg.DenoisingScoreMatching("simple", "uniform")
    x0 = torch.zeros(4000, 4)
    loss = objective(model, x0, generator=torch.Generator().manual_seed(1))
    # F = 0: the loss is |eps|^2/4, a chi-square of 4 degrees; Kolmogorov-Smirnov at a false alarm of 1e-6.
    assert stats.kstest(4 * loss.numpy(), stats.chi2(4).cdf).pvalue > 1e-6
    assert len(seen) == 1
    assert bool((seen[0][1].diff() != 0).any())


def test_label_dropout():
    """Rate within 5.5 standard deviations of 0.3 over 20,000 labels (false alarm 4e-8); what is kept stays in place."""
    seen = []
    model = sg.ScoreModel(lambda x, c, label, other: seen.append((label, other)) or x, sg.VP())
    label = torch.randint(7, (20_000,), generator=torch.Generator().manual_seed(0))
    condition = {"label": label, "other": "kept"}
    given = dict(condition)
    objective = sg.DenoisingScoreMatching(label_dropout=0.3, num_classes=7)
    objective(model, torch.zeros(20_000, 1), condition, generator=torch.Generator().manual_seed(2))
    got, other = seen[0]
    dropped = got == 7
    assert other == "kept"
    assert torch.equal(got[~dropped], label[~dropped])
    assert got.dtype == torch.int64
    assert abs(float(dropped.double().mean()) - 0.3) < 5.5 * (0.3 * 0.7 / 20_000) ** 0.5
    assert condition == given
    assert condition["label"] is label
    sg.DenoisingScoreMatching(label_dropout=1.0, num_classes=7)(model, torch.zeros(20_000, 1), condition)
    assert set(seen[1][0].tolist()) == {7}
    sg.DenoisingScoreMatching(num_classes=7)(model, torch.zeros(20_000, 1), condition)
    assert torch.equal(seen[2][0], label)


def test_label_dropout_needs_labels():
    model = sg.ScoreModel(Net(), sg.VP())
    with pytest.raises(sg.ConfigError, match="label_dropout needs condition="):
        sg.DenoisingScoreMatching(label_dropout=0.1, num_classes=2)(model, torch.zeros(2, 2))
    with pytest.raises(sg.ConfigError, match=r"label_dropout=0.1 needs num_classes >= 1"):
        sg.DenoisingScoreMatching(label_dropout=0.1)


def test_condition_dropout_is_one_draw_for_all_that_is_told():
    """Rate within 5.5 standard deviations of 0.3 over 20,000 samples (false alarm 4e-8)."""
    seen, n = [], 20_000
    model = sg.ScoreModel(lambda x, c, label, vector, tokens, other: seen.append((label, vector, tokens)) or x, sg.VP())
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(7, (n,), generator=generator)
    vector, tokens = torch.rand(n, 2, generator=generator) + 1, torch.rand(n, 3, 2, generator=generator) + 1
    told = {"label": label, "vector": vector, "tokens": tokens, "other": torch.ones(n)}

    def dropped(**options):
        objective = sg.DenoisingScoreMatching(num_classes=7, **options)
        objective(model, torch.zeros(n, 1), told, generator=torch.Generator().manual_seed(2))
        return seen[-1]

    one, two, three = dropped(condition_dropout=0.3)
    gone = one == 7
    assert abs(float(gone.double().mean()) - 0.3) < 5.5 * (0.3 * 0.7 / n) ** 0.5
    assert torch.equal(two, torch.where(gone[:, None], 0, vector))
    assert torch.equal(three, torch.where(gone[:, None, None], 0, tokens))
    assert torch.equal(one[~gone], label[~gone])
    both = dropped(condition_dropout=0.1, label_dropout=0.3)
    assert torch.equal(both[0], one)  # of one and the same draw
    assert bool(((both[1] == 0).all(1) <= gone).all())
    assert torch.equal(dropped(label_dropout=0.3)[1], vector)


def test_condition_dropout_needs_something_to_drop():
    model = sg.ScoreModel(Net(), sg.VP())
    objective = sg.DenoisingScoreMatching(condition_dropout=0.1)
    with pytest.raises(sg.ConfigError, match="condition_dropout needs a condition 'label', 'vector', 'tokens'"):
        objective(model, torch.zeros(2, 2))
    labelled = sg.ScoreModel(sg.MLP(2, hidden=8, layers=1, num_classes=2), sg.VP())
    with pytest.raises(sg.ConfigError, match="condition_dropout of labels needs num_classes >= 1"):
        objective(labelled, torch.zeros(2, 2), label=torch.zeros(2, dtype=torch.int64))


def test_gradients_are_those_of_the_mean_squared_error():
    model = sg.ScoreModel(Net(), sg.VP())
    x0, noise, t = torch.randn(8, 3, dtype=F64), torch.randn(8, 3, dtype=F64), torch.full((8,), 0.4, dtype=F64)
    sg.DenoisingScoreMatching()(model, x0, t=t, noise=noise).mean().backward()
    scale = model.network.scale
    with torch.no_grad():
        x = sg.VP().perturb(x0, t, noise)
        raw = torch.tanh(scale * x)
        want = (2 * (raw - noise) * (1 - raw**2) * x).mean()
    assert float(scale.grad) == pytest.approx(float(want), rel=1e-11)


REFUSED = [
    ({"weighting": "simpel"}, "weighting must be one of .*did you mean 'simple'"),
    ({"times_law": "gaussian"}, "times_law must be one of 'auto'"),
    ({"gamma": 0.0}, r"gamma must be a finite number in \(0, inf\), got 0.0"),
    ({"sigma_data": -1.0}, "sigma_data must be"),
    ({"log_mean": float("nan")}, "log_mean must be"),
    ({"log_std": 0.0}, "log_std must be"),
    ({"label_dropout": 1.1, "num_classes": 2}, r"label_dropout must be a finite number in \[0, 1\], got 1.1"),
    ({"num_classes": -1}, "num_classes must be"),
    ({"num_classes": 2.0}, "num_classes must be"),
    (
        {"weighting": "simple", "times_law": "importance"},
        "importance sampling of weighting='likelihood' and 'vlb', got .*'simple'",
    ),
    ({"variance": "smal"}, "variance must be one of 'auto', .*did you mean 'small'"),
    ({"vlb_weight": 0.0}, r"vlb_weight must be a finite number in \(0, inf\), got 0.0"),
    ({"levels": 1}, "levels must be a whole number, at least 2, got 1"),
    ({"weighting": "hybrid", "variance": "small"}, "'hybrid' trains a learned variance, got variance='small'"),
]


@pytest.mark.parametrize(("kwargs", "match"), REFUSED, ids=str)
def test_refused_parameters(kwargs, match):
    with pytest.raises(sg.ConfigError, match=f"DenoisingScoreMatching: .*{match}"):
        sg.DenoisingScoreMatching(**kwargs)


def test_refused_data():
    model, objective = sg.ScoreModel(Net(), sg.VP()), sg.DenoisingScoreMatching()
    for x0 in (torch.zeros(3), torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 2, dtype=torch.bool)):
        with pytest.raises(sg.ConfigError, match=r"x0 must be a floating tensor of shape \(B, \*shape\), got"):
            objective(model, x0)
    with pytest.raises(sg.ConfigError, match="noise must be shaped like x0"):
        objective(model, torch.zeros(3, 2), noise=torch.zeros(3))
    with pytest.raises(sg.ConfigError, match="t must have shape"):
        objective(model, torch.zeros(3, 2), t=torch.full((2,), 0.3))
    for batch in (0, -1, 2.0, True):
        with pytest.raises(sg.ConfigError, match="batch must be a whole number"):
            objective.times(model, batch)
    with pytest.raises(sg.ConfigError, match="'times' is no argument of this call"):
        objective(model, torch.zeros(3, 2), times=3)


def test_values():
    assert sg.DenoisingScoreMatching() == sg.DenoisingScoreMatching("simple", "auto")
    assert hash(sg.DenoisingScoreMatching("edm")) != hash(sg.DenoisingScoreMatching("snr"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        sg.DenoisingScoreMatching().gamma = 1.0
    assert (sg.DenoisingScoreMatching().gamma, sg.DenoisingScoreMatching().sigma_data) == (5.0, 0.5)
    assert (sg.DenoisingScoreMatching().log_mean, sg.DenoisingScoreMatching().log_std) == (-1.2, 1.2)
