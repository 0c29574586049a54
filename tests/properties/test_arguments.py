"""Bad arguments of samplers, grids, correctors and calls are refused with a message that says what is allowed."""

import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import sde_gen as sg
from tests.properties.discovery import concrete_subclasses

BAD: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    *[(c, {"steps": v}, "steps must be a whole number, at least 1") for c in (
        sg.EulerMaruyama, sg.ReverseDiffusion, sg.Ancestral, sg.DDIM, sg.Heun, sg.DPMSolverPP2M, sg.AnnealedLangevin,
        sg.PredictorCorrector) for v in (0, -3, 2.5, math.nan, "10", True)],
    *[(c, {"denoise": v}, "denoise must be True or False") for c in (
        sg.EulerMaruyama, sg.DDIM, sg.PredictorCorrector, sg.ProbabilityFlow) for v in (1, None, "yes")],
    *[(sg.EulerMaruyama, {"eta": v}, "eta must be a") for v in (-0.1, math.nan, math.inf, "1", None, True)],
    *[(sg.DDIM, {"eta": v}, "eta must be a") for v in (-0.1, 1.1, math.nan, "1")],
    *[(c, {"eta": v}, "eta must be a") for c in (sg.ExponentialSDE, sg.StochasticHeun, sg.SDEDPMSolverPP,
      sg.AdaptiveSDE) for v in (-0.1, math.nan, math.inf, "1", None, True)],
    *[(c, {"eta": 0.0}, "eta must be a") for c in (sg.SDEDPMSolverPP, sg.AdaptiveSDE)],
    *[(sg.SDEDPMSolverPP, {"solver_order": v}, "solver_order must be a whole number, between 1 and 3")
      for v in (0, 4, 2.0, "2", True)],
    *[(sg.EDMChurn, {k: v}, f"{k} must be a") for k in ("s_churn", "s_tmin", "s_tmax", "s_noise")
      for v in (-1.0, math.nan, "1", None)],
    (sg.EDMChurn, {"s_noise": 0.0}, "s_noise must be a"),
    (sg.EDMChurn, {"s_tmin": 3.0, "s_tmax": 2.0}, r"s_tmin=3.0 must not be above s_tmax=2.0"),
    *[(sg.Restart, {"rule": v}, "rule must be a deterministic fixed-step sampler") for v in (sg.Ancestral(),
      sg.ProbabilityFlow(), sg.Restart(), sg.PredictorCorrector(), "heun", None)],
    *[(sg.Restart, {"rule": v}, "set steps and grid on the Restart") for v in (
      sg.Heun(steps=3), sg.DDIM(grid="lambda"))],
    *[(sg.Restart, {"intervals": v}, r"intervals must be a list of \(low, high, repeats, steps\)")
      for v in ("x", 3, None)],
    *[(sg.Restart, {"intervals": [v]}, r"each interval must be \(low, high, repeats, steps\)")
      for v in ((1, 2), "abcd", 1)],
    *[(sg.Restart, {"intervals": [v]}, "low end") for v in ((0, 1, 1, 1), (-1, 1, 1, 1), (math.nan, 1, 1, 1))],
    *[(sg.Restart, {"intervals": [v]}, "high end") for v in ((1, 1, 1, 1), (1, 0.5, 1, 1), (1, math.inf, 1, 1))],
    *[(sg.Restart, {"intervals": [(0.1, 1, v, 1)]}, "repeats of an interval") for v in (0, 1.5, None)],
    *[(sg.Restart, {"intervals": [(0.1, 1, 1, v)]}, "steps of an interval") for v in (0, 1.5, "2")],
    (sg.PredictorCorrector, {"predictor": sg.Restart()}, "predictor must be a sampler with a step rule"),
    *[(sg.AdaptiveSDE, {k: v}, f"{k} must be a") for k in ("rtol", "atol", "max_step") for v in (0.0, -1.0, math.nan)],
    *[(sg.AdaptiveSDE, {"max_nfe": v}, "max_nfe must be a whole number") for v in (0, 1.5, None)],
    (sg.AdaptiveSDE, {"denoise": 1}, "denoise must be True or False"),
    *[(sg.ArctanLambda, {"width": v}, "width must be a") for v in (0.0, -1.0, math.nan, "3")],
    *[(sg.ArctanLambda, {"centre": v}, "centre must be a") for v in (math.inf, math.nan, "0")],
    (sg.Ancestral, {"variance": "smal"}, "did you mean 'small'"),
    (sg.Ancestral, {"variance": None}, "variance must be one of 'small', 'large'"),
    *[(sg.DPMSolverPP2M, {"exact": v}, "exact must be True or False") for v in (1, "no", None)],
    *[(sg.Langevin, {"snr": v}, "snr must be a") for v in (0, -1, math.nan, math.inf, "x", True)],
    *[(sg.Langevin, {"steps": v}, "steps must be a whole number") for v in (0, -1, 1.5, None)],
    (sg.Langevin, {"step": "fix"}, "did you mean 'fixed'"),
    (sg.Langevin, {"norm": "global"}, "norm must be one of 'sample', 'batch'"),
    *[(sg.Langevin, {"cap": v}, "cap must be a") for v in (0, -1.0, math.nan, "1")],
    *[(sg.AnnealedLangevin, {"snr": v}, "snr must be a") for v in (0, 1, 1.5, -1, math.nan)],
    *[(sg.AnnealedLangevin, {"steps_per_level": v}, "steps_per_level must be a whole number") for v in (0, 1.5)],
    *[(sg.AnnealedLangevin, {"step_size": v}, "step_size must be a") for v in (0, -1.0, math.nan)],
    (sg.PredictorCorrector, {"predictor": None, "corrector": None}, "got neither"),
    (sg.PredictorCorrector, {"predictor": sg.Langevin()}, "predictor must be a sampler with a step rule"),
    (sg.PredictorCorrector, {"predictor": sg.PredictorCorrector()}, "predictor must be"),
    (sg.PredictorCorrector, {"predictor": sg.AnnealedLangevin()}, "predictor must be"),
    (sg.PredictorCorrector, {"predictor": sg.ProbabilityFlow()}, "predictor must be"),
    (sg.PredictorCorrector, {"predictor": "ddim"}, "got 'ddim'"),
    (sg.PredictorCorrector, {"predictor": sg.DDIM(steps=5)}, "set steps and grid on the PredictorCorrector"),
    (sg.PredictorCorrector, {"predictor": sg.DDIM(grid="lambda")}, "set steps and grid on the PredictorCorrector"),
    (sg.PredictorCorrector, {"corrector": sg.DDIM()}, "corrector must be a Corrector"),
    (sg.PredictorCorrector, {"corrector": 0.16}, "corrector must be a Corrector"),
    (sg.ProbabilityFlow, {"method": "dopri6"}, "did you mean 'dopri"),
    (sg.ProbabilityFlow, {"method": "rk4"}, "steps .* must be a whole number"),
    (sg.ProbabilityFlow, {"method": "rk4", "steps": 0}, "at least 1"),
    (sg.ProbabilityFlow, {"steps": 10}, "chooses its own steps; set rtol and atol"),
    *[(sg.ProbabilityFlow, {k: v}, f"{k} must be a") for k in ("rtol", "atol") for v in (0.0, -1.0, math.nan, "1e-5")],
    *[(sg.ProbabilityFlow, {"max_nfe": v}, "max_nfe must be a whole number") for v in (0, 1.5, None)],
    *[(sg.KarrasRho, {"rho": v}, "rho must be a") for v in (0.5, 0, -7, math.nan, "7")],
    *[(sg.DDIM, {"grid": v}, "grid") for v in ("unifrm", 5, {"a": 1}, 0.5)],
    (sg.DDIM, {"grid": "unifrm"}, "did you mean 'uniform'"),
    (sg.DDIM, {"grid": [0.9, 0.5], "steps": 2}, "not both; this grid has 2 times"),
    *[(sg.DDIM, {"grid": v}, "strictly descending times") for v in ([0.5, 0.5], [0.1, 0.9], [], [0.9, math.nan])],
    *[(sg.GivenTimes, {"values": v}, r"must lie in \[0, 1\]") for v in ((1.1, 0.5), (0.5, -0.1), (2.0,), (-1.0,))],
    *[(sg.GivenLambdas, {"values": v}, "strictly ascending half log-SNRs") for v in ((1.0, 0.0), (0.0, 0.0), (),
      (math.nan,))],
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "kwargs", "message"), BAD, ids=[f"{m.__name__}-{'-'.join(k)}-{i}" for i, (m, k, _) in enumerate(BAD)]
)
def test_bad_arguments_are_refused(make: Callable[..., Any], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(sg.ConfigError, match=message):
        make(**kwargs)


ALL_CLASSES = sorted(
    concrete_subclasses(sg.Sampler) | concrete_subclasses(sg.TimeGrid) | concrete_subclasses(sg.Corrector),
    key=lambda c: c.__name__,
)


@pytest.mark.parametrize("kind", ALL_CLASSES, ids=lambda c: c.__name__)
def test_a_misspelt_argument_is_refused(kind: type) -> None:
    with pytest.raises(TypeError, match="stesp"):
        kind(stesp=3)


@pytest.mark.parametrize("kind", ALL_CLASSES, ids=lambda c: c.__name__)
def test_samplers_grids_and_correctors_are_values(kind: type) -> None:
    """Frozen, equal by content, hashable and printable; and they can be sent to another process."""
    needed: dict[type, dict[str, Any]] = {
        sg.GivenTimes: {"values": (0.9, 0.5)},
        sg.GivenLambdas: {"values": (0.0, 0.5)},
        sg.Fitted: {"lambdas": (0.0,), "of_state": (0.5,), "of_estimates": ((1.0,),)},
        sg.FittedSteps: {"lambdas": (0.0, 1.0), "of_terms": ((0.0, 1.0),)},
    }

    def make() -> Any:
        return kind(**needed.get(kind, {}))

    one, two = make(), make()
    assert one == two
    assert hash(one) == hash(two)
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301
    assert repr(one).startswith(kind.__name__)
    with pytest.raises(AttributeError):
        one.steps = 3


DOMAIN = [
    (sg.EulerMaruyama(grid=[1.0, 0.5]), sg.FlowMatching(), r"its step from t = 1 .*FlowMatching.*\[1e-05, 0.999\]"),
    (sg.EulerMaruyama(grid=[1.0, 0.5]), sg.Cosine(), r"its step from t = 1 .*Cosine"),
    (sg.Heun(grid=[1.0, 0.5]), sg.FlowMatching(), "its step from t = 1 "),
    (sg.ReverseDiffusion(grid=[0.5, 0.0], denoise=False), sg.VP(), None),
    (sg.DDIM(grid=[0.5, 0.1, 0.0]), sg.VP(), None),
    (sg.Heun(grid=[0.5, 0.1, 0.0]), sg.VP(), None),
    (sg.DPMSolverPP2M(grid=[0.5, 0.1, 0.0]), sg.VP(), None),
    (sg.EulerMaruyama(grid=[0.5, 0.1, 0.0]), sg.VP(), None),
    (sg.Ancestral(grid=[0.5, 0.1, 0.0]), sg.VP(), None),
    *[
        (s, sg.VP(), None)
        for s in (
            sg.ExponentialSDE(grid=[0.5, 0.1, 0.0]),
            *(sg.SDEDPMSolverPP(solver_order=o, grid=[0.5, 0.4, 0.3, 0.0]) for o in (1, 2, 3)),
            sg.StochasticHeun(grid=[0.5, 0.1, 0.0]),
            sg.EDMChurn(grid=[0.5, 0.1, 0.0]),
            sg.Restart(grid=[0.5, 0.1, 0.0]),
        )
    ],
    (sg.EDMChurn(grid=[1.0, 0.5]), sg.FlowMatching(), "its step from t = 1 "),
    (sg.AnnealedLangevin(grid=[0.5, 0.0]), sg.VP(), "its last level needs noise"),
    (sg.AnnealedLangevin(step_size=1.0), sg.NCSN(), "diverges; it must be below 2: lower step_size"),
    (sg.DDIM(grid="nodes"), sg.VP(), "is not a chain; use"),
    (sg.DDIM(grid="nodes", steps=201), sg.DDPM(steps=200), "201 times asked of 200 nodes"),
    (sg.DDIM(grid=[0.5], denoise=False), sg.VP(), "at least two with denoise=False"),
    (sg.DDIM(grid=sg.GivenLambdas((-3.0, 6.0))), sg.VE(), r"half log-SNR 6 never occurs; it lies in \[-3.9"),
]


@pytest.mark.parametrize(("sampler", "p", "message"), DOMAIN, ids=[f"{type(s).__name__}-{p}" for s, p, _ in DOMAIN])
@pytest.mark.filterwarnings("ignore::sde_gen.errors.LateStartWarning")
def test_grids_that_leave_the_domain(sampler: sg.Sampler, p: sg.Perturbation, message: str | None) -> None:
    """An error that names the time, or, where the limit at sigma = 0 exists, a finite answer."""
    model = sg.GaussianMixture([1.0], [[0.4, -0.2]], [[[0.5, 0.1], [0.1, 0.3]]]).model(p)
    if message is None:
        result = sampler(model, (3, 2), dtype=torch.float64)
        assert result.x.isfinite().all()
        lands = sg.DDIM | sg.Heun | sg.DPMSolverPP2M | sg.Ancestral | sg.ExponentialSDE | sg.SDEDPMSolverPP
        if isinstance(sampler, lands):  # the last step lands on x0hat
            t, s = sampler.grid.values[-2:]
            before = replace(sampler, grid=sampler.grid.values[:-1], denoise=False)(
                model, (3, 2), dtype=torch.float64
            ).x
            torch.testing.assert_close(result.x, model(before, t).denoised, rtol=0, atol=1e-12)
            assert s == 0
    else:
        with pytest.raises(sg.ConfigError, match=message):
            sampler(model, (3, 2))


MODEL = sg.GaussianMixture([1.0], [[0.4, -0.2]], [[[0.5, 0.1], [0.1, 0.3]]]).model(sg.VP())
CALLS: list[tuple[dict[str, Any], str]] = [
    ({}, "give either shape=.* or start="),
    ({"shape": (2, 2), "start": torch.zeros(2, 2)}, "give either shape=.* or start="),
    *[({"shape": v}, "shape must be") for v in ((3,), (), (2, -1), (2.0, 2), (True, 2), ("2", 2))],
    ({"start": torch.zeros(3)}, "start must be a floating tensor of shape"),
    ({"start": torch.zeros(3, 2, dtype=torch.long)}, "start must be a floating tensor"),
    ({"shape": (2, 2), "dtype": torch.int64}, "dtype must be floating"),
    *[({"shape": (2, 2), "chunk": v}, "chunk must be a whole number") for v in (0, -1, 1.5)],
    *[({"shape": (2, 2), "first": v}, "first must be a whole number") for v in (-1, 0.5)],
    ({"shape": (4, 2), "noise": lambda like, step, draw: torch.zeros(like.shape), "chunk": 2}, "starting_at"),
    (
        {"shape": (4, 2), "noise": lambda like, step, draw: torch.zeros(like.shape), "deterministic": True},
        "starting_at",
    ),
    ({"shape": (4, 3)}, r"must have shape \(B, 2\), got \(4, 3\)"),
    ({"shape": (4, 2), "condition": {"label": 1}}, "an oracle takes no condition, got 'label'"),
]


@pytest.mark.parametrize(("kwargs", "message"), CALLS, ids=[f"{i}-{'-'.join(k)}" for i, (k, _) in enumerate(CALLS)])
def test_bad_calls_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(sg.ConfigError, match=message):
        sg.DDIM(steps=2)(MODEL, **kwargs)


def test_more_bad_calls() -> None:
    with pytest.raises(sg.ConfigError, match="model must be a ScoreModel, got VP"):
        sg.DDIM(steps=2)(sg.VP(), (2, 2))
    with pytest.raises(sg.ConfigError, match="has no network"):
        sg.DDIM(steps=2)(sg.ScoreModel(None, sg.VP()), (2, 2))
    with pytest.raises(sg.ConfigError, match="sede"):
        sg.DDIM(steps=2)(MODEL, (2, 2), sede=3)
    with pytest.raises(TypeError):
        sg.DDIM(steps=2)(MODEL, (2, 2), None, 3)
    for empty in (sg.DDIM(steps=2), sg.ProbabilityFlow()):
        result = empty(MODEL, (0, 2))
        assert result.x.shape == (0, 2)
        assert result.nfe == 0
