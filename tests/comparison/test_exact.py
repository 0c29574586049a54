"""Orders of convergence: fitted where the answer is known, and found wrong where they are wrong."""

from dataclasses import dataclass

import pytest
import torch

import sde_gen as sg
from sde_gen.comparison.cells.exact import UnitNoise, Window, fitted_order, reference, window
from sde_gen.samplers.grid_sampler import Run, Step

CASES = [
    (sg.DDIM(), "strong", 1.0),
    (sg.Heun(), "strong", 2.0),
    (sg.DPMSolverPP2M(), "strong", 2.0),
    (sg.Ancestral(), "weak", 1.0),
    (sg.ReverseDiffusion(), "weak", 1.0),
]


@pytest.mark.parametrize("p", [sg.VP(), sg.VE(sigma_max=6.0), sg.NCSN()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(("sampler", "kind", "order"), CASES, ids=lambda v: type(v).__name__)
def test_fitted_orders(sampler: sg.Sampler, kind: str, order: float, p: sg.Perturbation) -> None:
    found = fitted_order(sampler, p)
    assert found["error_kind"] == kind
    assert found["claimed"] == order
    assert abs(found["fitted"] - order) < 0.1
    assert found["standard_error"] < 0.05
    assert found["errors"] == sorted(found["errors"], reverse=True)


@dataclass(frozen=True)
class WrongHeun(sg.Heun):
    """Heun with a slip of a thousandth in each step, which it takes for second order."""

    def stepper(self, run: Run) -> Step:
        step, n = super().stepper(run), len(run.times) - 1
        return lambda k, x, memory: (step(k, x, memory)[0] * (1 + 1e-3 / n), None)


def test_a_wrong_rule_is_found_out() -> None:
    assert fitted_order(WrongHeun(), sg.VP())["fitted"] < 1.0


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (sg.PredictorCorrector(), "claims no order"),
        (sg.ProbabilityFlow(), "chooses its own steps"),
        (sg.Auto(), "chooses its own steps"),
    ],
    ids=["PC", "adaptive", "auto"],
)
def test_samplers_without_an_order_say_why(sampler: sg.Sampler, words: str) -> None:
    with pytest.raises(sg.ConfigError, match=words):
        fitted_order(sampler, sg.VP())


def test_the_window_is_cut_to_the_process() -> None:
    assert window(sg.VP()) == (-3.0, 2.5)
    low, high = window(sg.VE(sigma_max=6.0))
    assert low == pytest.approx(-(torch.tensor(6.0).log().item()))
    assert high == 2.5
    with pytest.raises(sg.ConfigError, match="hardly any"):
        fitted_order(sg.DDIM(), sg.VE(sigma_min=15.0, sigma_max=50.0))


def test_the_exact_flow_agrees_with_the_adaptive_solver() -> None:
    # The same ODE by another solver, in other variables.
    from sde_gen.comparison.cells.exact import _COVARIANCES, _MEANS, _STARTS, _WEIGHTS

    p = sg.VP()
    model = Window(sg.GaussianMixture(_WEIGHTS, _MEANS, _COVARIANCES), p)
    first, last = model.times_within()[::-1]
    start = torch.tensor(_STARTS, dtype=torch.float64) * float(p.sigma(first))
    x = sg.ProbabilityFlow(rtol=1e-10, atol=1e-10, denoise=False)(model, start=start).x
    torch.testing.assert_close(x / float(p.alpha(last)), reference(*window(p)), rtol=0, atol=1e-8)


def test_unit_noises_read_off_the_exact_variance() -> None:
    # x + 2 z1, then half of it + 3 z2: variance 0.25 (v + 4) + 9.
    noise = UnitNoise()

    def rule(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * (x + 2 * noise(x, 0, 0)) + 3 * noise(x, 1, 0)

    start = torch.zeros(4, 1, dtype=torch.float64)
    start[1] = 1.5
    x = rule(start)
    assert noise.drawn == 2
    assert float((x[1:] - x[0]).square().sum()) == pytest.approx(0.25 * (1.5**2 + 4) + 9, rel=1e-14)
