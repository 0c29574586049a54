"""The rule without calibration, and calibration within a number of calls."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sde_gen as sg
from sde_gen.tuning.uncalibrated import uncalibrated

LAW = sg.GaussianMixture([0.6, 0.4], [[0.8], [-0.7]], [[[0.02]], [[0.1]]])
PERTURBATIONS = (sg.VP(), sg.SubVP(), sg.VE(), sg.Cosine(), sg.EDM(), sg.EDM(0.05, 80.0), sg.FlowMatching(),
                 sg.DDPM(), sg.DDPM(50, schedule="cosine"), sg.NCSN(0.01, 50.0, 232))  # fmt: skip


class Net(torch.nn.Module):
    """A smooth network that counts its calls, the rows of the largest, and the noise levels it is asked at."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.calls = self.rows = 0
        self.noise: set[float] = set()

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        self.calls, self.rows = self.calls + 1, max(self.rows, len(x))
        self.noise.update(c_noise.tolist())
        return torch.tanh(2 * x + self.shift) * torch.sigmoid(c_noise.to(x.dtype))[:, None]


def start_of(model: sg.ScoreModel) -> Tensor:
    """64 quantiles of the prior."""
    p, high = model.perturbation, model.times_within()[1]
    u = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    return torch.special.ndtri(u)[:, None] * float(p.sigma(high))


def error(sampler: sg.Sampler, model: sg.ScoreModel, truth: Tensor) -> float:
    return float((sampler(model, start=start_of(model)).x - truth).square().mean().sqrt())


@pytest.mark.parametrize("p", PERTURBATIONS, ids=str)
def test_no_calibration_under_every_formulation(p: sg.Perturbation) -> None:
    """As many calls as asked, errors that fall, and far less of them than with the usual rules to t_sample."""
    model = LAW.model(p)
    truth, found = sg.ProbabilityFlow(rtol=1e-8)(model, start=start_of(model)).x, []
    for nfe in (*range(1, 9), 15, 16, 20, 50, 100):
        auto = sg.Auto(nfe=nfe, calls=0)
        result = auto(model, start=start_of(model))
        assert result.nfe == nfe
        assert torch.equal(result.x, auto.choose(model, (1,)).sampler(model, start=start_of(model)).x)
        found.append(error(auto, model, truth))
    floor = 0.01 if p == sg.EDM(0.05, 80.0) else 5e-4 if isinstance(p, sg.VE) else 2e-5
    assert found[-1] < floor
    assert found[7] < 0.03  # 8 calls
    if floor < 1e-4:
        assert found[9] < 0.6 * error(sg.UniPC(steps=16), model, truth)


@pytest.mark.parametrize("p", [sg.VP(), sg.EDM(), sg.NCSN(0.01, 200.0, 300)], ids=str)
def test_calibration_judges_the_samples_that_are_drawn(p: sg.Perturbation) -> None:
    """From the noise of the rule's own first level, which for few calls is less than that of the fine solution's."""
    model = sg.ScoreModel(Net(), p, sg.DataPrediction())
    told = dict(sg.Auto(nfe=4, seconds=1e-9).choose(model, (2,)).tried)["uncalibrated"]  # no trial but of the rule
    fine, rule = (uncalibrated(model, n, (2,))(model, (64, 2), seed=0, dtype=torch.float64).x for n in (60, 4))
    assert told == pytest.approx(float((rule - fine).square().mean().sqrt()), rel=1e-9)


@pytest.mark.parametrize("p", [sg.DDPM(), sg.NCSN(0.01, 50.0, 232)], ids=str)
def test_a_network_trained_on_a_chain_is_asked_at_its_nodes(p: sg.Chain) -> None:
    model = sg.ScoreModel(Net(), p, sg.DataPrediction())
    nodes = model.parameterization.coefficients(*p.curves(p.nodes)).noise
    for nfe in (3, 10, 50):
        for other in (p, sg.VP()):
            model.network.noise.clear()
            sg.Auto(nfe=nfe, calls=0)(model.under(other), (4, 2))
            asked = torch.tensor(sorted(model.network.noise), dtype=torch.float64)
            assert float((asked[:, None] - nodes).abs().min(1).values.max()) < 1e-3 * float(nodes.diff().abs().max())
            assert len(asked) == nfe


@pytest.mark.parametrize("p", PERTURBATIONS[1:], ids=str)
def test_a_network_begins_with_noise_of_the_right_size_under_every_formulation(p: sg.Perturbation) -> None:
    """With few calls a network is not asked at the most noise: what it begins with is smaller where sigma has grown."""
    network = Net()
    trained = sg.ScoreModel(network, sg.EDM(0.002, 1000.0), sg.EDMPreconditioning(0.7))
    model = trained.under(p)
    x = torch.randn(6, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = sg.SeededNoise(3)
    for auto in (sg.Auto(nfe=6, calls=0), sg.Auto(nfe=6, calls=150)):
        first = auto.choose(model, (1,)).sampler.times(model)[0]
        for samples in (auto(model, (6, 1), noise=noise, dtype=torch.float64).x,
                        auto(model, start=noise(x, -1, 0) * float(p.sigma(model.times_within()[1]))).x):  # fmt: skip
            own = auto.choose(model, (1,)).sampler(model, start=noise(x, -1, 0) * float(p.sigma(first))).x
            torch.testing.assert_close(samples, own, rtol=0, atol=1e-9)


@pytest.mark.parametrize("nfe", [3, 10, 20, 60])
def test_calibration_stays_within_its_calls(nfe: int) -> None:
    for calls in (0, 30, 150, 300):
        model = sg.ScoreModel(Net(), sg.VP(), sg.DataPrediction())
        choice = sg.Auto(nfe=nfe, calls=calls).choose(model, (2,))
        assert model.network.calls == choice.calibration_nfe <= calls
        assert model.network.rows <= 64
        assert choice.nfe == choice.sampler(model, (3, 2)).nfe == nfe
        if calls < 40:
            assert choice.sampler == uncalibrated(model, nfe, (2,))
            assert math.isnan(choice.error)


@pytest.mark.parametrize("p", [sg.VP(), sg.VE(), sg.EDM(0.05, 80.0), sg.DDPM()], ids=str)
def test_calibration_pays_on_other_starts(p: sg.Perturbation) -> None:
    model = LAW.model(p)
    truth = sg.ProbabilityFlow(rtol=1e-8)(model, start=start_of(model)).x
    ratios = [error(sg.Auto(nfe=n), model, truth) / error(sg.Auto(nfe=n, calls=0), model, truth) for n in (4, 6, 8)]
    assert max(ratios) < 1.1
    assert math.prod(ratios) < 0.75**3


def test_fitted_steps_are_the_rule_where_their_weights_are_its() -> None:
    """And Euler's method in the angle, u + (theta_s - theta_t) v, with theta = arctan(e^-lambda), without its terms."""
    lambdas = (-3.9, -1.0, 0.5, 2.5)
    theta = [math.atan(math.exp(-v)) for v in lambdas]
    weights = [s - t for t, s in pairwise(theta)]
    euler = sg.FittedSteps(lambdas=lambdas, of_terms=[(w, 0.0, 0.0, 0.0) for w in weights])
    whole = sg.FittedSteps(lambdas=lambdas, of_terms=[(0.0, 1.0, 1.0, 1.0)] * 3)
    rule = sg.LimitedUniPC(grid=sg.GivenLambdas(lambdas))
    for p in (sg.VP(), sg.VE(), sg.FlowMatching()):
        model = LAW.model(p)
        start = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None] * float(p.sigma(p.time(lambdas[0])))
        u, denoised = start / float(p.size(p.time(lambdas[0]))), start
        for k in range(4):
            alpha, sigma = math.cos(theta[k]), math.sin(theta[k])
            denoised = LAW.denoise(u, torch.tensor(alpha).double(), torch.tensor(sigma).double())
            if k < 3:
                u = u + weights[k] * (alpha * u - denoised) / sigma
        torch.testing.assert_close(euler(model, start=start).x, denoised, rtol=0, atol=1e-7)
        torch.testing.assert_close(whole(model, start=start).x, rule(model, start=start).x, rtol=0, atol=1e-10)


def test_a_choice_is_kept(tmp_path: Path) -> None:
    auto = sg.Auto(nfe=4, calls=80, folder=str(tmp_path))
    first, second = (sg.ScoreModel(Net(), sg.VP(), sg.DataPrediction()) for _ in range(2))
    one = auto.choose(first, (2,))
    two = auto.choose(second, (2,))
    assert second.network.calls == 0
    assert one.sampler == two.sampler


@pytest.mark.parametrize("nfe", [10, 40])
def test_a_guided_network_is_one_and_its_calls_count(nfe: int) -> None:
    """Two networks: asked within the levels of their training, and no more often than the budget, but for the probe."""
    net, other = Net(), Net()
    strong, weak = (sg.ScoreModel(n, sg.VP(), sg.DataPrediction()) for n in (net, other))
    guided = sg.guidance.Autoguidance(strong, weak, scale=2.0)
    assert sg.Auto(nfe=nfe, calls=0).choose(guided, (2,)).sampler == uncalibrated(strong, nfe, (2,))
    choice = sg.Auto(nfe=nfe).choose(guided, (2,))
    assert net.calls + other.calls - 2 == choice.calibration_nfe <= 300


def test_one_fine_solution_serves_other_numbers_of_calls(caplog: pytest.LogCaptureFixture) -> None:
    """With fewer calls made, and the choice that a model without it makes; changed weights are solved anew."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 2).double()

    def network(x: Tensor, c_noise: Tensor) -> Tensor:
        return torch.tanh(layer(x)) * torch.sigmoid(c_noise.to(x.dtype))[:, None]

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return network(x, c_noise)

    used, fresh = (sg.ScoreModel(Plain(), sg.VP(), sg.DataPrediction()) for _ in range(2))
    with caplog.at_level("INFO", logger="sde_gen"):
        first = sg.Auto(nfe=5).choose(used, (2,))
    assert "at most 300 network calls, of 64 samples" in caplog.text
    later, alone = sg.Auto(nfe=8).choose(used, (2,)), sg.Auto(nfe=8).choose(fresh, (2,))
    assert later.sampler == alone.sampler
    assert later.calibration_nfe == alone.calibration_nfe - 120 < first.calibration_nfe
    with torch.no_grad():
        layer.weight.mul_(1.5)
    assert sg.Auto(nfe=8, seed=0, calls=299).choose(used, (2,)).calibration_nfe > later.calibration_nfe + 100


def test_arguments() -> None:
    for given in ({"effort": 0.1}, {"count": 8}, {"tolerance": 0.1, "nfe": None}):
        with pytest.raises(sg.ConfigError, match=r"calls and seconds are of the quick calibration"):
            sg.Auto(calls=10, **{"nfe": 5, **given})
    with pytest.raises(sg.ConfigError, match="expected N lambdas"):
        sg.FittedSteps(lambdas=(0.0, 1.0), of_terms=((1.0,),))
    with pytest.raises(sg.ConfigError, match="give neither"):
        sg.FittedSteps(lambdas=(0.0, 1.0), of_terms=((0.0, 1.0),), denoise=False)
    quick = sg.Auto(nfe=5, seconds=1e-9).choose(LAW.model(sg.VP()), (1,))
    assert quick.calibration_nfe == 65  # the fine solution and the rule it is compared with
