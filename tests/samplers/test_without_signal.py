"""Where no signal is left at t = 1, rules that are finite there start there, if the network has an answer to it."""

from itertools import pairwise

import pytest
import torch

import sde_gen as sg
from tests.properties import discovery

F64 = torch.float64
FLOW = sg.FlowMatching()
ZERO = sg.Table.zero_terminal_snr(sg.DDPM(200))
MEAN, STD = 0.7, 0.4


def velocity(x, t):
    """The exact velocity of straight paths from N(MEAN, STD^2) to noise."""
    t = t.to(x)[:, None]
    a, variance = 1 - t, ((1 - t) * STD) ** 2 + t**2
    data = MEAN + a * STD**2 / variance * (x - a * MEAN)
    noise = t / variance * (x - a * MEAN)
    return noise - data


def v(x, index):
    """The exact v of a chain without terminal signal, from the index of its nodes."""
    a, s = (c.to(x)[:, None] for c in ZERO.curves((index.double() + 1) / ZERO.length))
    variance = (a * STD) ** 2 + s**2
    data, noise = MEAN + a * STD**2 / variance * (x - a * MEAN), s / variance * (x - a * MEAN)
    return a * noise - s * data


velocity.noise_dtype = v.noise_dtype = F64
STRAIGHT = sg.ScoreModel(velocity, FLOW, sg.VelocityPrediction())
SPENT = sg.ScoreModel(v, ZERO, sg.VPrediction(sg.Convention(ZERO, "index")))


def test_ddim_on_straight_paths_is_eulers_method_from_pure_noise():
    x = start = torch.randn(7, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    times = torch.linspace(1, FLOW.t_sample, 11, dtype=F64)
    for t, s in pairwise(times):
        x = x + (s - t) * velocity(x, t.expand(7))
    got = sg.DDIM(steps=10, denoise=False)(STRAIGHT, start=start)
    torch.testing.assert_close(got.x, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("model", [STRAIGHT, SPENT], ids=["flow", "zero terminal SNR"])
@pytest.mark.parametrize("sampler", [
    sg.DDIM(100), sg.Ancestral(200), sg.Ancestral(200, variance="large"), sg.ExponentialSDE(200),
    sg.SDEDPMSolverPP(100), sg.StochasticHeun(50), sg.PredictorCorrector(100, predictor=sg.DDIM(), corrector=None),
], ids=str)  # fmt: skip
def test_samples_that_begin_at_pure_noise_have_the_law_of_the_data(sampler, model):
    assert float(sampler.times(model)[0]) == 1.0
    x = sampler(model, (10_000, 1), seed=1, dtype=F64).x
    # Standard errors are 0.004; the rest is the error of the steps.
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(x.std()) == pytest.approx(STD, rel=0.07)


@pytest.mark.filterwarnings("ignore::sde_gen.BetweenNodesWarning")
def test_others_and_networks_without_an_answer_begin_before():
    first = lambda model, sampler: float(sampler.times(model)[0])  # noqa: E731
    for sampler in (
        sg.Heun(18),
        sg.EulerMaruyama(50),
        sg.DPMSolverPP2M(20),
        sg.ReverseDiffusion(50),
        sg.ProbabilityFlow(),
    ):
        assert first(STRAIGHT, sampler) == 0.999
        assert first(SPENT, sampler) == 0.995
        for model in (STRAIGHT, SPENT):
            assert bool(sampler(model, (2, 1), dtype=F64).x.isfinite().all())
    assert len(sg.ReverseDiffusion().times(SPENT)) == 199
    assert len(sg.Ancestral().times(SPENT)) == 200
    network = lambda x, c: torch.zeros_like(x)  # noqa: E731
    for parameterization in (
        sg.NoisePrediction(), sg.VPrediction(), sg.EDMPreconditioning(), sg.NoisePrediction(sg.Convention(FLOW, "t")),
    ):  # fmt: skip
        assert first(sg.ScoreModel(network, FLOW, parameterization), sg.DDIM()) == 0.999
    for grid in ("lambda", "karras"):
        assert first(STRAIGHT, sg.DDIM(20, grid=grid)) == 0.999
    assert first(SPENT, sg.DDIM(20, grid="lambda-nodes")) == 0.995
    assert first(sg.GaussianMixture([1.0], [[0.0]], [[[1.0]]]).model(FLOW), sg.DDIM()) == 0.999
    # Under a process that never loses all signal, and one trained on such a process.
    assert first(STRAIGHT.under(sg.VP()), sg.DDIM()) == 1.0 == sg.VP().t_max
    trained = sg.ScoreModel(network, sg.VP(), sg.VPrediction(sg.Convention(sg.VP(), "t"))).under(FLOW)
    assert first(trained, sg.DDIM()) < 0.999


def test_every_claim_is_true():
    """Rules that claim to be finite are, and so are those that do not, from where they begin."""
    for name, case in discovery.SAMPLERS.items():
        sampler = case.make(steps=6, grid="uniform")
        x = sampler(STRAIGHT, (3, 1), dtype=F64)
        assert bool(x.x.isfinite().all()), name
        assert (float(sampler.times(STRAIGHT)[0]) == 1.0) == sampler.is_finite_without_signal, name
