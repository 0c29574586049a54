"""On the same noise levels, formulations are a change of variables: x/alpha is the same under each, to 1e-10.

The levels are multiples of 1/4, exact in float32, so that the c_noise = lambda given to a network in float32 is the
same number whichever curves it was computed from.
"""

import itertools
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

import sde_gen as sg
from tests.properties.discovery import PERTURBATIONS, SAMPLERS, Case

LEVELS = tuple(np.arange(-3.25, 3.5, 0.25).tolist())
UNEVEN = (-3.0, -2.75, -1.0, -0.25, 0.5, 0.75, 2.5, 3.25)
PAIRS = list(itertools.permutations(PERTURBATIONS, 2))
MIXTURE = sg.GaussianMixture(
    [0.6, 0.4],
    [[0.5, -0.4, 0.1], [-0.7, 0.3, 0.2]],
    np.array([np.diag([0.3, 0.2, 0.5]), np.diag([0.1, 0.4, 0.2])]),
)


class Net(torch.nn.Module):
    """A small smooth random network in float64."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.a = torch.nn.Parameter(torch.randn(4, 16, generator=g, dtype=torch.float64))
        self.b = torch.nn.Parameter(torch.randn(16, 3, generator=g, dtype=torch.float64) / 4)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return torch.tanh(torch.cat([x, c_noise.double()[:, None] / 4], 1) @ self.a) @ self.b


class KeyedNoise:
    """Fixed normal numbers for each (step, draw)."""

    def __call__(self, like: Tensor, step: int, draw: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * (step + 2) + draw)
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)


START = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def answer(sampler: sg.Sampler, model: sg.ScoreModel, high: float, low: float, denoised: bool) -> np.ndarray:
    """y = x/alpha at the end, from the same y at the start."""
    p = model.perturbation
    start = START * float(p.sigma(p.time(high)))
    x = sampler(model, start=start, noise=KeyedNoise()).x.numpy()
    return x if denoised else x / float(p.alpha(p.time(low)))


def spread(case: Case, make_model: object, levels: tuple[float, ...], denoise: bool) -> float:
    """Largest difference between the answers under all perturbations."""
    sampler = case.make(grid=sg.GivenLambdas(levels), denoise=denoise)
    answers = [answer(sampler, make_model(p), levels[0], levels[-1], denoise) for p in PERTURBATIONS.values()]
    return max(float(np.abs(a - answers[0]).max()) for a in answers)


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_oracle_under_every_formulation(sampler: str, denoise: bool) -> None:
    """All agree with the first, so every ordered pair agrees; those not claimed to be invariant are seen to differ, so
    that the list of exceptions cannot grow unnoticed."""
    case = SAMPLERS[sampler]
    for levels in (LEVELS, UNEVEN):
        difference = spread(case, MIXTURE.model, levels, denoise)
        if case.invariant:
            assert difference < 1e-10
        else:
            assert difference > 1e-3


def test_what_is_not_invariant() -> None:
    """Euler steps in t, polynomials in t, kernels that mix x and score by a(s, t), and step sizes with a(s, t) in them
    are not; every other deterministic sampler is."""
    expected = {"EulerMaruyama", "EulerMaruyama(eta=0)", "EulerMaruyama(eta=0.5)", "ReverseDiffusion",
                "Ancestral(large)", "DEIS"}  # fmt: skip
    alone = {n for n, c in SAMPLERS.items() if not c.invariant and c.predictor is None and not n.startswith("PC")}
    assert alone == expected
    deterministic = {n for n, c in SAMPLERS.items() if not c.stochastic and not c.invariant}
    assert deterministic == {"EulerMaruyama(eta=0)", "PC(EulerMaruyama(eta=0), 0)", "DEIS"}


@pytest.mark.parametrize(("trained", "used"), PAIRS, ids=["-".join(p) for p in PAIRS])
def test_network_under_every_ordered_pair(trained: str, used: str) -> None:
    """`under()` is the exact change of variables, for every parameterization."""
    a, b = PERTURBATIONS[trained], PERTURBATIONS[used]
    parameterizations = [sg.NoisePrediction(), sg.DataPrediction(), sg.VPrediction(), sg.ScorePrediction(),
                         sg.EDMPreconditioning()]  # fmt: skip
    samplers = [
        sg.DDIM(grid=sg.GivenLambdas(LEVELS)),
        sg.Heun(grid=sg.GivenLambdas(UNEVEN), denoise=False),
        sg.DPMSolverPP2M(grid=sg.GivenLambdas(UNEVEN), denoise=False),
        sg.Ancestral(grid=sg.GivenLambdas(LEVELS)),
        sg.DDIM(eta=0.4, grid=sg.GivenLambdas(LEVELS), denoise=False),
        sg.AnnealedLangevin(steps_per_level=1, grid=sg.GivenLambdas(UNEVEN)),
    ]
    which = PAIRS.index((trained, used))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sg.BetweenNodesWarning)
        for i, sampler in enumerate(samplers):
            model = sg.ScoreModel(Net(), a, parameterizations[(which + i) % 5])
            levels = sampler.grid.values
            one = answer(sampler, model, levels[0], levels[-1], sampler.denoise)
            two = answer(sampler, model.under(b), levels[0], levels[-1], sampler.denoise)
            np.testing.assert_allclose(two, one, rtol=0, atol=1e-10, err_msg=f"{sampler} {model.parameterization}")


@pytest.mark.parametrize("make", [sg.DDIM, sg.Heun, sg.DPMSolverPP2M, sg.Ancestral])
@pytest.mark.parametrize("grid", ["lambda", "karras"])
def test_grids_in_lambda_visit_the_same_levels(grid: str, make: type) -> None:
    """`UniformLambda` and `KarrasRho` depend on the two end levels alone: give every process the same ends."""

    class Ends(sg.Oracle):
        def times_within(self, t_low: float | None = None) -> tuple[float, float]:
            return float(self.perturbation.time(3.0)), float(self.perturbation.time(-3.0))

    sampler = make(steps=9, grid=grid, denoise=False)
    answers = [answer(sampler, Ends(MIXTURE, p), -3.0, 3.0, False) for p in PERTURBATIONS.values()]
    for other in answers[1:]:
        np.testing.assert_allclose(other, answers[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "sampler",
    [sg.ProbabilityFlow(method="rk4", steps=7), sg.ProbabilityFlow(), sg.ProbabilityFlow(denoise=False),
     sg.ProbabilityFlow(method="DOP853")],
    ids=["rk4", "dopri5", "dopri5-no-denoise", "DOP853"],
)  # fmt: skip
def test_probability_flow_under_every_formulation(sampler: sg.ProbabilityFlow) -> None:
    """The same steps are chosen too, since the adaptive solvers see one equation in (lambda, u)."""

    class Ends(sg.Oracle):
        def times_within(self, t_low: float | None = None) -> tuple[float, float]:
            return float(self.perturbation.time(3.0)), float(self.perturbation.time(-3.0))

    answers = [answer(sampler, Ends(MIXTURE, p), -3.0, 3.0, sampler.denoise) for p in PERTURBATIONS.values()]
    for other in answers[1:]:
        np.testing.assert_allclose(other, answers[0], rtol=0, atol=1e-10)


def test_a_network_is_asked_within_the_levels_it_was_trained_on() -> None:
    """Under a wider process the times are cut to the trained levels; the oracle, which knows all, is not."""
    trained = sg.VE(sigma_min=0.1, sigma_max=10.0)
    model = sg.ScoreModel(Net(), trained).under(sg.EDM())
    low, high = model.times_within()
    assert float(sg.EDM().sigma(high)) == pytest.approx(10.0, rel=1e-9)
    assert float(sg.EDM().sigma(low)) == pytest.approx(float(trained.sigma(trained.t_min)), rel=1e-9)
    times = sg.Heun(steps=5).times(model)
    assert times[0] == high
    assert times[-1] == low
    assert sg.Heun(steps=5).times(MIXTURE.model(sg.EDM())).tolist()[::4] == [1.0, 0.0]
    same = sg.ScoreModel(Net(), trained)
    assert same.times_within() == (trained.t_sample, trained.t_max)
