"""Grids and solvers fitted to a model, and the choice between them."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import sde_gen as sg
from sde_gen.conditions import Condition
from sde_gen.tuning.fitted import expand
from sde_gen.tuning.grid import placed
from sde_gen.tuning.reference import bend, calibrate
from sde_gen.tuning.search import decide, rules, usual

LAW = sg.GaussianMixture([0.6, 0.4], [[0.8], [-0.7]], [[[0.02]], [[0.1]]])
QUICK = {"count": 64, "effort": 0.2}


class Net(torch.nn.Module):
    """A smooth network that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.calls = 0

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        self.calls += 1
        shift = self.shift if label is None else self.shift * label[:, None]
        return torch.tanh(2 * x + shift) * torch.sigmoid(c_noise.to(x.dtype))[:, None]


def net() -> sg.ScoreModel:
    return sg.ScoreModel(Net(), sg.VP(), sg.DataPrediction())


@pytest.mark.parametrize("p", [sg.VP(), sg.VE(), sg.SubVP(), sg.FlowMatching()], ids=str)
@pytest.mark.parametrize(
    "rule",
    [sg.AdamsBashforth(prediction=v) for v in ("data", "noise", "velocity")]
    + [sg.UniPC(order=3), sg.UniPC(order=2, prediction="velocity"), sg.PLMS(), sg.DPMSolverPP2M(exact=False)],
    ids=repr,
)
def test_every_rule_is_a_combination_of_its_estimates(rule: sg.GridSampler, p: sg.Perturbation) -> None:
    """The same samples from the rule itself and from its expansion in the state and the estimates."""
    lambdas = torch.tensor([-3.5, -2.0, -1.2, 0.3, 0.5, 2.0, 3.0], dtype=torch.float64)
    of_state, weights = expand(p, rule, lambdas)
    rows = [row[: k + 1] for k, row in enumerate(weights.tolist())]
    fitted = sg.Fitted(
        lambdas=lambdas.tolist(), of_state=of_state.tolist(), of_estimates=rows, prediction=rule.interpolates
    )
    t = p.time(lambdas[0])
    start = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None] * float(p.sigma(t))
    given = type(rule)(**{k: getattr(rule, k) for k in ("order", "prediction", "exact") if k in vars(rule)},
                       grid=sg.GivenLambdas(tuple(lambdas.tolist())))  # fmt: skip
    one, two = (s(LAW.model(p), start=start) for s in (given, fitted))
    torch.testing.assert_close(one.x, two.x, rtol=1e-9, atol=1e-9)
    assert one.nfe == two.nfe == 7


def test_a_fitted_solver_is_the_same_under_every_formulation() -> None:
    sampler = sg.Fitted(
        lambdas=(-3.0, 0.0, 2.0), of_state=(0.8, 0.2, 0.1), of_estimates=((0.3,), (0.1, 0.7), (1, 0, 0.1))
    )
    y, answers = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None], []
    for p in (sg.VP(), sg.VE(), sg.EDM(), sg.SubVP(), sg.FlowMatching()):
        t = p.time(-3.0)
        size = float((p.alpha(t) ** 2 + p.sigma(t) ** 2) ** 0.5)
        answers.append(sampler(LAW.model(p), start=y * size).x)
    for other in answers[1:]:
        torch.testing.assert_close(other, answers[0], rtol=0, atol=1e-10)


def test_times_of_an_exponential_density_are_karras_times() -> None:
    lam = np.linspace(-5.0, 4.0, 400)
    got = np.array(placed(lam, np.exp(-lam / 7), 12, 4.0))
    ends = np.exp(np.array([5.0, -4.0]) / 7)
    np.testing.assert_allclose(got, -7 * np.log(np.linspace(*ends, 12)), atol=2e-4)


def test_density_of_local_errors() -> None:
    """For N(0, c^2), u = s z and D = alpha c^2 z/s with s = sqrt(alpha^2 c^2 + sigma^2): in closed form."""
    lam, c = np.linspace(-5.0, 6.0, 400), 0.4
    a2 = 1 / (1 + np.exp(-2 * lam))
    z = np.array([0.5, -1.0, 2.0])
    size = np.sqrt(a2 * c**2 + 1 - a2)
    first = bend(torch.from_numpy((size[:, None] * z)[:, :, None]), lam)[0]

    def d(v: np.ndarray) -> np.ndarray:
        return c**2 / np.sqrt(c**2 + np.exp(-2 * v))

    exact = np.sqrt(a2) * (d(lam + 1e-4) - d(lam - 1e-4)) / 2e-4 * math.sqrt((z**2).mean())
    np.testing.assert_allclose(first[20:-20], exact[20:-20], atol=0.02 * exact.max())


def test_reference_is_the_flow() -> None:
    """One Gaussian: the sample is the start, scaled by c/sqrt(alpha^2 c^2 + sigma^2)."""
    law, p = sg.GaussianMixture([1.0], [[0.0]], [[[0.16]]]), sg.VP()
    c = calibrate(law.model(p), (1,), Condition({}), 0, 32, 5)
    a, s = float(p.alpha(1.0)), float(p.sigma(1.0))
    torch.testing.assert_close(c.sample, c.start * 0.4 / math.sqrt(0.16 * a**2 + s**2), rtol=0, atol=5e-6)


def test_a_fitted_grid_is_better_on_new_starts_and_kept(tmp_path: Path) -> None:
    model, rule = LAW.model(sg.VP()), sg.DPMSolverPP3M()
    grid = sg.fit_grid(model, 8, rule, shape=(1,), count=64, tries=30, folder=tmp_path)
    assert grid == sg.fit_grid(model, 8, rule, shape=(1,), count=64, tries=30)
    assert len(list(tmp_path.glob("grid-*.json"))) == 1
    start = torch.randn(300, 1, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    fine = sg.AdamsBashforth(order=4, grid=sg.GivenLambdas(np.linspace(-5.0249, 6.9, 600)))(model, start=start).x
    assert len(grid.values) == 8
    fitted = float((sg.DPMSolverPP3M(grid=grid)(model, start=start).x - fine).square().mean())
    others = [float((sg.DPMSolverPP3M(steps=8, grid=g)(model, start=start).x - fine).square().mean())
              for g in ("lambda", "karras", "quadratic", "uniform")]  # fmt: skip
    assert fitted < 0.5 * min(others), (fitted, others)


@pytest.mark.parametrize("nfe", [1, 2, 4, 30])
def test_auto_makes_as_many_calls_as_it_says(nfe: int) -> None:
    model = net()
    auto = sg.Auto(nfe=nfe, count=16, effort=0.05)
    choice = auto.choose(model, (2,))
    assert choice.calibration_nfe > 400
    assert choice.nfe == nfe
    model.network.calls = 0
    result = auto(model, (5, 2), seed=3)
    assert result.nfe == model.network.calls == nfe
    assert torch.equal(result.x, choice.sampler(model, (5, 2), seed=3).x)


def test_auto_is_deterministic_and_kept(tmp_path: Path) -> None:
    one = sg.Auto(nfe=5, count=32, effort=0.05, folder=str(tmp_path))
    first, second = net(), net()
    a = one.choose(first, (2,))
    calls = second.network.calls
    b = one.choose(second, (2,))  # the same content: read from the folder
    assert second.network.calls == calls
    assert a.sampler == b.sampler
    assert a.error == b.error
    assert sg.Auto(nfe=5, count=32, effort=0.05).choose(net(), (2,)).sampler == a.sampler
    assert one.choose(first, (2,)) is a
    with torch.no_grad():
        first.network.shift += 0.5
    assert one.choose(first, (2,)) is not a  # other weights
    assert len(list(tmp_path.glob("auto-*.json"))) == 2


def test_auto_is_at_least_as_good_as_fixed_choices() -> None:
    """On starts it has not had; here it is far below every one of them."""
    model = LAW.model(sg.VP())
    start = torch.randn(400, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    fine = sg.AdamsBashforth(order=4, grid=sg.GivenLambdas(np.linspace(-5.0249, 6.9, 600)))(model, start=start).x

    def error(sampler: sg.Sampler) -> float:
        return float((sampler(model, start=start).x - fine).square().mean().sqrt())

    for nfe in (5,):
        fixed = [error(make(steps=nfe, grid=grid)) for grid in ("lambda", "karras", "quadratic", "uniform")
                 for make in (sg.DDIM, sg.DPMSolverPP2M, sg.DPMSolverPP3M, sg.UniPC, sg.DEIS, sg.PLMS)]  # fmt: skip
        assert error(sg.Auto(nfe=nfe, **QUICK)) < 0.8 * min(fixed)


@pytest.mark.parametrize("nfe", [1, 2, 3, 4, 5, 16, 17, 40])
def test_every_rule_that_is_tried_makes_the_calls_of_the_budget(nfe: int) -> None:
    model, start = LAW.model(sg.VP()), torch.zeros(2, 1, dtype=torch.float64)
    tried = {**rules(nfe), **({"usual": usual(nfe)} if nfe > 2 else {})}
    for name, (rule, times) in tried.items():
        grid = sg.GivenLambdas(tuple(torch.linspace(-4, 4, times, dtype=torch.float64).tolist()))
        assert replace(rule, grid=grid)(model, start=start).nfe == nfe, name
    if nfe > 2:
        assert usual(nfe)[0].order == (3 if nfe <= 16 else 4)


def test_noise_does_not_decide() -> None:
    """What beats the usual rule by a tenth and by two standard errors is taken, the best of it."""
    usual, n = "the usual rule on its own grid", 400
    each = torch.linspace(0.5, 1.5, n, dtype=torch.float64)
    one_flip = each.clone()
    one_flip[7] = 1000.0
    assert decide({usual: one_flip, "a": each}) == usual  # one row says nothing
    many = each.clone()
    many[::20] = 1000.0
    assert decide({usual: many, "a": each}) == "a"
    assert decide({usual: each, "a": 0.9 * each}) == usual  # clear, but not by a tenth of the root
    assert decide({usual: each, "a": 0.8 * each, "b": 0.5 * each, "c": 2 * each}) == "b"
    assert decide({"a": 0.8 * each, "b": 0.7 * each}) == "b"
    assert decide({usual: each * torch.inf, "a": each}) == "a"
    assert decide({usual: each, "a": each * torch.inf}) == usual


def test_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LAW.model(sg.VP())
    choice = sg.Auto(tolerance=0.05, count=64, effort=0.05).choose(model, (1,))
    assert choice.error <= 0.05
    assert choice.nfe <= 14
    monkeypatch.setattr("sde_gen.tuning.auto.BUDGETS", (5, 7))
    with pytest.raises(sg.SolverError, match=r"tolerance=1e-300 is not reached within 7 network calls"):
        sg.Auto(tolerance=1e-300, count=8, effort=0.05).choose(model, (1,))


def test_conditions_do_not_decide_unasked() -> None:
    model, label = net(), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    auto = sg.Auto(nfe=3, count=8, effort=0.05)
    with pytest.raises(sg.ConfigError, match="the condition 'label' has a row for each sample"):
        auto(model, (3, 2), condition={"label": label})
    choice = auto.choose(model, (2,), condition={"label": label})
    result = auto(model, (3, 2), condition={"label": label}, dtype=torch.float64)
    assert torch.equal(result.x, choice.sampler(model, (3, 2), condition={"label": label}, dtype=torch.float64).x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sg.Auto(nfe=0), "nfe must be a whole number, at least 1"),
        (lambda: sg.Auto(nfe=5, tolerance=0.1), "give nfe or tolerance, not both"),
        (lambda: sg.Auto(tolerance=0.0), "tolerance must be a"),
        (lambda: sg.Auto(count=3), "count must be a whole number"),
        (lambda: sg.Auto(effort=-1), "effort must be a"),
        (lambda: sg.Fitted(), "expected N lambdas"),
        (lambda: sg.Fitted(lambdas=(0.0, 1.0), of_state=(1.0, 1.0), of_estimates=((1.0, 1.0), (1.0,))), "expected N"),
        (lambda: sg.Fitted(lambdas=(0.0,), of_state=(1.0,), of_estimates=((1.0,),), steps=3), "neither steps"),
        (lambda: sg.fit_grid(LAW.model(sg.VP()), 0, shape=(1,)), "steps must be a whole number"),
        (lambda: sg.fit_grid(LAW.model(sg.VP()), 5, sg.EulerMaruyama(), shape=(1,)), "must be deterministic"),
    ],
)
def test_bad_arguments(make: object, message: str) -> None:
    with pytest.raises(sg.ConfigError, match=message):
        make()
