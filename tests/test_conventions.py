"""How other people's networks are called: formulas written out, scales that change nothing, and what is stored."""

import json
import math

import pytest
import torch

import sde_gen as sg
from sde_gen.config.objects import build, describe
from tests.perturbations.cases import ALL, CHAINS

F64 = torch.float64
VP, FLOW, EDM = sg.VP(), sg.FlowMatching(), sg.EDM()
DDPM, VE, NCSN = sg.DDPM(100), sg.VE(), sg.NCSN(levels=30)


def levels(p, n=40):
    """(alpha, sigma) of a process at times inside, and lambda."""
    t = torch.linspace(max(p.t_min, 1e-3), min(p.t_max, 0.99), n, dtype=F64)
    return *p.curves(t), t


def network_of(p, predicts, x0, eps, t):
    """What an ideal network, trained on p, says of its own states, from the paper's definition alone."""
    a, s = p.curves(t)
    if predicts == "velocity":
        h = 1e-6
        (a1, s1), (a0, s0) = p.curves(t + h), p.curves(t - h)
        return (a1 - a0) / (2 * h) * x0 + (s1 - s0) / (2 * h) * eps
    return {"noise": eps, "data": x0, "score": -eps / s, "v": a * eps - s * x0}[predicts]


def of(predicts, convention):
    made = {
        "noise": sg.NoisePrediction,
        "data": sg.DataPrediction,
        "v": sg.VPrediction,
        "velocity": sg.VelocityPrediction,
    }
    return sg.ScorePrediction(convention, of="score") if predicts == "score" else made[predicts](convention)


@pytest.mark.parametrize("predicts", ["noise", "data", "score", "v", "velocity"])
@pytest.mark.parametrize("p", [VP, sg.SubVP(), FLOW, sg.Cosine(), VE, EDM], ids=str)
@pytest.mark.parametrize("scale", [1.0, 3.7])
def test_states_of_any_formulation_are_shown_as_those_of_the_process(p, predicts, scale):
    """x = k (alpha_p x0 + sigma_p eps) for any k: the network sees x/k, is told t, and x0 comes out."""
    a, s, t = levels(p)
    t, a, s = t[1:-1], a[1:-1], s[1:-1]
    x0, eps = 0.7, -1.3
    raw = network_of(p, predicts, x0, eps, t)
    c = of(predicts, sg.Convention(p, "t", scale=999.0, offset=0.5)).coefficients(scale * a, scale * s)
    x = scale * (a * x0 + s * eps)
    torch.testing.assert_close(c.input, torch.full_like(a, 1 / scale), rtol=1e-12, atol=0)
    torch.testing.assert_close(c.noise, 999 * t + 0.5, rtol=1e-9, atol=1e-9)
    terms = (c.skip * x).abs() + (c.out * raw).abs()
    wrong = (c.skip * x + c.out * raw - x0).abs() / terms
    assert float(wrong.max()) < (1e-12 if predicts != "velocity" else 1e-8)


def test_formulas():
    """Six conventions against the formulas of the programs that have them, to 1e-12."""
    a, s = (c[:-6] for c in levels(VP)[:2])  # within the levels of each
    same = lambda got, want: torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)  # noqa: E731
    # Flow matching: states (x0 + r eps)/(1 + r) with r = sigma/alpha, F = eps - x0, x0 = x_p - t F.
    c, r = sg.VelocityPrediction().coefficients(a, s), s / a
    same(c.input, 1 / (a + s))
    same(c.noise, r / (1 + r))
    same(c.skip, 1 / (a + s))
    same(c.out, -r / (1 + r))
    # SiT: time from noise to data, and the velocity the other way.
    c = sg.VelocityPrediction(sg.Convention(FLOW, "t", scale=-1.0, offset=1.0), sign=-1).coefficients(a, s)
    same(c.noise, 1 / (1 + r))
    same(c.out, r / (1 + r))
    # score_sde's VE: the score of x0 + r eps, told r.
    c = sg.ScorePrediction(sg.Convention(VE, "sigma"), of="score").coefficients(a, s)
    same(c.input, 1 / a)
    same(c.noise, r)
    same(c.out, r**2)
    same(c.skip, 1 / a)
    # EDM's VE preconditioning is told log(sigma/2).
    c = sg.NoisePrediction(sg.Convention(EDM, "log_sigma", offset=-math.log(2))).coefficients(a, s)
    same(c.noise, (r / 2).log())
    # k-diffusion's VDenoiser: c_skip 1/(r^2+1), c_out -r/sqrt(r^2+1), c_in 1/sqrt(r^2+1), told 2/pi atan r.
    c = sg.VPrediction(sg.Convention(time="atan", scale=2 / math.pi)).coefficients(torch.ones_like(r), r)
    same(c.skip, 1 / (r**2 + 1))
    same(c.out, -r / (r**2 + 1).sqrt())
    same(c.input, 1 / (r**2 + 1).sqrt())
    same(c.noise, 2 / math.pi * torch.atan(r))
    # A network under EDM's preconditioning that is told sigma itself, and says the opposite.
    c = sg.EDMPreconditioning(0.5, sg.Convention(EDM, "sigma"), sign=-1).coefficients(torch.ones_like(r), r)
    same(c.noise, r)
    same(c.out, -0.5 * r / (r**2 + 0.25).sqrt())
    # Discrete VP: sigma_k and x_k of the chain at index k.
    a, s = DDPM.curves(DDPM.nodes)
    c = sg.VPrediction(sg.Convention(DDPM, "index")).coefficients(5 * a, 5 * s)
    same(c.noise, torch.arange(100, dtype=F64))
    same(c.skip, a / 5)
    same(c.out, -s)


@pytest.mark.parametrize("p", CHAINS, ids=str)
@pytest.mark.parametrize("rounded", [False, True])
def test_every_index_comes_back_exactly(p, rounded):
    k = torch.arange(p.length, dtype=F64)
    a, s = (c.clamp_min(1e-150) for c in p.curves(p.nodes))
    told = sg.Convention(p, "index", rounded=rounded).frame(a, s).noise
    assert torch.equal(told.float(), k.float())
    # As a model asks, whatever the dtype of the time that it is asked at.
    seen = []
    network = lambda x, c: seen.append(c) or torch.zeros_like(x)  # noqa: E731
    model = sg.ScoreModel(network, p, sg.NoisePrediction(sg.Convention(p, "index")))
    _ = model(torch.zeros(p.length, 2), p.nodes).denoised
    assert torch.equal(seen[0], k.float())


def test_between_nodes_and_beyond_the_ends():
    told = lambda t, **more: sg.Convention(NCSN, "index", **more).frame(*NCSN.curves(t)).noise.item()  # noqa: E731
    assert told(10.25 / 30) == pytest.approx(9.25, abs=1e-9)
    assert told(10.75 / 30, rounded=True) == 10.0
    assert told(0.2 / 30) == 0.0
    # The descending index of papers.
    assert told(1.0, scale=-1.0, offset=29.0) == 0.0
    # More noise than the process has: its last time, and states whose ratio is still the one asked.
    seen = sg.Convention(VP, "t", scale=999.0).frame(torch.tensor(1e-4, dtype=F64), torch.tensor(1.0, dtype=F64))
    assert float(seen.noise) == 999.0
    assert float(seen.alpha / seen.sigma) == pytest.approx(1e-4, rel=1e-12)
    clean = sg.Convention(VE, "t").frame(torch.tensor(1.0, dtype=F64), torch.tensor(0.0, dtype=F64))
    assert float(clean.noise) == 0.0
    # Without any signal: straight paths have a velocity there.
    c = sg.VelocityPrediction().coefficients(torch.tensor(0.0, dtype=F64), torch.tensor(2.0, dtype=F64))
    assert [float(v) for v in c] == pytest.approx([0.5, -1.0, 0.5, 1.0], rel=1e-12)


@pytest.mark.parametrize("parameterization", [
    sg.NoisePrediction(sg.Convention(VP, "t", 999.0)), sg.VPrediction(sg.Convention(DDPM, "index")),
    sg.VelocityPrediction(), sg.ScorePrediction(sg.Convention(VE, "sigma"), of="score"),
], ids=str)  # fmt: skip
@pytest.mark.filterwarnings("ignore::sde_gen.BetweenNodesWarning")
def test_other_formulations_on_one_grid_give_one_answer(parameterization):
    """DDIM on the same noise levels under every formulation, from one start."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 8, dtype=F64), torch.nn.Tanh(), torch.nn.Linear(8, 2, dtype=F64))

    def network(x, c):
        return net(torch.cat([x, 0.01 * c.to(x)[:, None]], 1))

    torch.manual_seed(0)
    grid, noise = sg.GivenLambdas((-3.0, -1.0, 0.5, 2.0)), torch.randn(5, 2, dtype=F64)
    found = []
    for p in (VP, VE, FLOW, EDM):
        model = sg.ScoreModel(network, VP, parameterization).under(p)
        start = noise * float(p.sigma(p.time(-3.0)))
        found.append(sg.DDIM(grid=grid)(model, start=start).x)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("p", ALL, ids=str)
def test_slopes(p):
    t = torch.linspace(0.05, 0.95, 7, dtype=F64) + 1e-3 / (p.length if p.is_chain else 1)
    h = 1e-7 / (p.length if p.is_chain else 1)
    for got, name in zip(p.slopes(t), ("alpha", "sigma"), strict=True):
        want = (getattr(p, name)(t + h) - getattr(p, name)(t - h)) / (2 * h)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6 * max(1.0, p.prior_std))
    assert all(bool(v.isfinite().all()) for v in p.slopes(torch.tensor([0.0, 1.0], dtype=F64)))


@pytest.mark.parametrize("parameterization", [
    sg.NoisePrediction(), sg.NoisePrediction(sg.Convention(sg.DDPM(50, "cosine"), "index", rounded=True)),
    sg.ScorePrediction(sg.Convention(sg.NCSN(sigmas=(0.1, 0.5, 2.0)), "index", -1.0, 2.0), of="score"),
    sg.EDMPreconditioning(0.6, sg.Convention(EDM, "sigma"), -1), sg.VelocityPrediction(),
    sg.DataPrediction(sg.Convention(sg.Table.zero_terminal_snr(sg.DDPM(50)), "index")),
    sg.VPrediction(sg.Convention(time="atan", scale=0.5)),
], ids=str)  # fmt: skip
def test_stored_and_built_again(parameterization):
    node = json.loads(json.dumps(describe(parameterization, "parameterization")))
    again = build(node, where="parameterization", stored=True)
    assert again == parameterization
    assert hash(again) == hash(parameterization)


def test_a_model_is_saved_with_its_convention(tmp_path):
    model = sg.ScoreModel(sg.networks.MLP(2), FLOW, sg.VelocityPrediction(sg.Convention(FLOW, "t", scale=1000.0)))
    sg.save(model, tmp_path / "m")
    again = sg.load(tmp_path / "m")
    assert again.parameterization == model.parameterization
    x = torch.randn(3, 2)
    assert torch.equal(again(x, 0.3).denoised, model(x, 0.3).denoised)


def test_short_words():
    assert repr(sg.NoisePrediction()) == "NoisePrediction()"
    assert repr(sg.EDMPreconditioning()) == "EDMPreconditioning(sigma_data=0.5)"
    assert repr(sg.ScorePrediction(of="score")) == "ScorePrediction(of='score')"
    assert repr(sg.VelocityPrediction()) == "VelocityPrediction()"


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: sg.Convention(VP, "index"), "time='index' needs a chain such as DDPM"),
        (lambda: sg.Convention(time="t"), "time='t' needs a process"),
        (lambda: sg.Convention(VP, "tt"), "Convention: time must be one of 't', 'index'"),
        (lambda: sg.Convention("vp"), "process must be a Perturbation such as VP"),
        (lambda: sg.Convention(VP, scale=0.0), "scale must not be 0"),
        (lambda: sg.Convention(VP, scale=math.inf), "scale must be a finite number"),
        (lambda: sg.Convention(VP, offset=math.nan), "offset must be a finite number"),
        (lambda: sg.Convention(VP, rounded=1), "rounded must be True or False"),
        (lambda: sg.NoisePrediction(VP), "convention must be a Convention, such as"),
        (lambda: sg.VelocityPrediction(None), "a velocity is that of a process"),
        (lambda: sg.VelocityPrediction(sg.Convention()), "a velocity is that of a process"),
        (lambda: sg.VelocityPrediction(sign=0), "sign must be 1 or -1, got 0"),
        (lambda: sg.EDMPreconditioning(sign=2), "sign must be a whole number, between -1 and 1"),
        (lambda: sg.ScorePrediction(of="data"), "of must be one of 'noise', 'score'"),
    ],
)
def test_refused(make, match):
    with pytest.raises(sg.ConfigError, match=match):
        make()
