"""How far down the probability-flow ODE is taken: as far as its tolerances ask, and no lower than a network knows."""

import math

import pytest
import torch
from torch import Tensor

import sde_gen as sg

#: 2-D, eight modes of different sizes.
LAW = sg.GaussianMixture(
    [1.0, 2.0, 1.5, 0.7, 1.2, 0.8, 1.1, 0.9],
    [[1.6 * math.cos(k), 1.6 * math.sin(1.3 * k)] for k in range(8)],
    [[[0.05**2 * (1 + k), 0.0], [0.0, 0.3**2 / (1 + k)]] for k in range(8)],
)
EVERYWHERE = [sg.VP(), sg.SubVP(), sg.VE(), sg.EDM(), sg.Cosine(), sg.FlowMatching(), sg.DDPM(), sg.NCSN()]


def starts(p: sg.Perturbation, half_log_snr: float = -3.5) -> tuple[Tensor, Tensor]:
    """64 states of one size at the same level of any process, and their time."""
    z = torch.randn(64, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    t = p.time(torch.tensor(half_log_snr, dtype=torch.float64))
    return z * float(p.size(t)), t


def truth() -> Tensor:
    """To sigma/alpha = e^-19, at the least tolerance."""
    x, t = starts(sg.VP())

    class From(sg.Oracle):
        def times_within(self, t_low: float | None = None) -> tuple[float, float]:
            return 1e-8, float(t)

    return sg.ProbabilityFlow(rtol=1e-12, max_nfe=100_000)(From(LAW, sg.VP()), start=x).x


@pytest.mark.parametrize("p", EVERYWHERE, ids=str)
def test_it_ends_on_the_flow_at_no_noise(p: sg.Perturbation) -> None:
    """Under every formulation, those included whose own least noise (0.01 for VE, 0.002 for EDM) is far above it."""
    x, t = starts(p)

    class From(sg.Oracle):
        def times_within(self, t_low: float | None = None) -> tuple[float, float]:
            return super().times_within(t_low)[0], float(t)

    model, true = From(LAW, p), truth()
    for tol, bar in ((1e-5, 1e-3), (1e-8, 1e-7)):
        error = (sg.ProbabilityFlow(rtol=tol)(model, start=x).x - true).square().mean().sqrt()
        assert float(error) < bar


def test_a_gaussian_keeps_its_law_to_the_tolerance() -> None:
    """x0 = c z in closed form, where a sample denoised at t = 1e-3 is off by rho^2/(2 c)."""
    c, p = 0.05, sg.VP()
    model = sg.GaussianMixture([1.0], [[0.0]], [[[c**2]]]).model(p)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    a, s = float(p.alpha(1.0)), float(p.sigma(1.0))
    exact = x * c / math.sqrt(a**2 * c**2 + s**2)
    for tol in (1e-6, 1e-8):
        torch.testing.assert_close(sg.ProbabilityFlow(rtol=tol)(model, start=x).x, exact, rtol=0, atol=10 * tol)
    rk4 = sg.ProbabilityFlow(method="rk4", steps=400)(model, start=x).x  # has no tolerance, and ends where it did
    assert 1e-5 < float((rk4 - exact).abs().max()) < 1e-2


@pytest.mark.parametrize("trained", [sg.VP(), sg.VE(), sg.EDM(0.01, 50.0), sg.DDPM(steps=200)], ids=str)
@pytest.mark.parametrize("used", [None, sg.VP()], ids=str)
@pytest.mark.filterwarnings("ignore::sde_gen.errors.BetweenNodesWarning")
def test_a_network_is_asked_no_lower_than_it_was_trained(
    trained: sg.Perturbation, used: sg.Perturbation | None
) -> None:
    asked: list[float] = []

    class Model(sg.ScoreModel):
        def levels(self, alpha: Tensor, sigma: Tensor, like: Tensor, condition: object = None) -> object:
            asked.append(float((alpha.log() - sigma.log()).max()))
            return super().levels(alpha, sigma, like, condition)  # type: ignore[arg-type]

    model = Model(lambda x, t: 0.5 * x, trained)
    if used is not None:
        model.perturbation = used
    deepest = float(trained.half_log_snr(trained.t_min))
    if used is not None:
        deepest = min(deepest, float(used.half_log_snr(used.t_min)))
    sg.ProbabilityFlow(rtol=1e-9)(model, (2, 2), dtype=torch.float64)
    assert max(asked) == pytest.approx(deepest, rel=1e-9)
    asked.clear()
    low = float(model.perturbation.half_log_snr(model.times_within()[0]))
    sg.ProbabilityFlow(rtol=0.1, atol=0.1)(model, (2, 2), dtype=torch.float64)  # the usual end is deep enough
    assert max(asked) == pytest.approx(max(low, min(deepest, math.log(10 / 0.1**0.5))), rel=1e-9)


def test_atol_follows_a_small_rtol() -> None:
    assert sg.ProbabilityFlow(rtol=1e-8) == sg.ProbabilityFlow(rtol=1e-8, atol=1e-8)
    assert sg.ProbabilityFlow(rtol=1e-2).atol == 1e-5
