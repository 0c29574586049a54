"""What the raw output of a network means: an ideal network gives the exact answer back, under every perturbation."""

import math

import pytest
import torch

import sde_gen as sg
from sde_gen.parameterizations import half_log_snr
from tests.perturbations.cases import ALL, DEFAULTS, concrete

F64 = torch.float64
CLASSES = concrete(sg.Parameterization)


def edm_target(x0, eps, alpha, sigma, sd=0.5):
    """Table 1 of Karras et al. for y = x/alpha at noise level s = sigma/alpha."""
    s = sigma / alpha
    y = x0 + s * eps
    return (x0 - sd**2 / (s**2 + sd**2) * y) / (s * sd / torch.sqrt(s**2 + sd**2))


#: The ideal raw output for x = alpha x0 + sigma eps.
IDEAL = {
    "NoisePrediction": (sg.NoisePrediction(), lambda x0, eps, a, s: eps),
    "ScorePrediction": (sg.ScorePrediction(), lambda x0, eps, a, s: -eps),
    "DataPrediction": (sg.DataPrediction(), lambda x0, eps, a, s: x0),
    "VPrediction": (sg.VPrediction(), lambda x0, eps, a, s: (a * eps - s * x0) / torch.sqrt(a**2 + s**2)),
    "EDMPreconditioning": (sg.EDMPreconditioning(), edm_target),
    "VelocityPrediction": (sg.VelocityPrediction(), lambda x0, eps, a, s: eps - x0),
}
EACH = [IDEAL[cls.__name__] for cls in CLASSES if cls.__name__ in IDEAL]
IDS = [type(case[0]).__name__ for case in EACH]


def test_every_parameterization_is_covered():
    assert {cls.__name__ for cls in CLASSES} == set(IDEAL), "a new parameterization needs its ideal output here"


def times(p):
    return torch.tensor([p.t_min or 1e-6, 0.02, 0.1, 0.3, 0.6, 0.9, p.t_max], dtype=F64)


def ideal_prediction(p, parameterization, target, dtype):
    t = times(p)
    gen = torch.Generator().manual_seed(3)
    x0, eps = (torch.randn(len(t), 4, generator=gen, dtype=F64) for _ in range(2))
    alpha, sigma = p.alpha(t)[:, None], p.sigma(t)[:, None]
    x, raw = alpha * x0 + sigma * eps, target(x0, eps, alpha, sigma).to(dtype)
    calls = []
    model = sg.ScoreModel(lambda *args: calls.append(args) or raw, p, parameterization)
    return model(x.to(dtype), t), x0, eps, alpha, sigma, x, calls


@pytest.mark.parametrize("p", ALL, ids=str)
@pytest.mark.parametrize(("parameterization", "target"), EACH, ids=IDS)
@pytest.mark.parametrize(("dtype", "unit"), [(F64, 2**-53), (torch.float32, 2**-24), (torch.bfloat16, 2**-9)], ids=str)
@pytest.mark.filterwarnings("ignore::sde_gen.BetweenNodesWarning")
def test_an_ideal_network_gives_the_exact_answer(p, parameterization, target, dtype, unit):
    """To a few roundings of the largest term of the sum that forms each quantity.

    x0hat = (x - sigma eps)/alpha from a noise prediction has terms of size |x|/alpha; eps = (x - alpha x0)/sigma from a
    data prediction terms of size |x|/sigma. No formula can do better in the dtype of the state.
    """
    out, x0, eps, alpha, sigma, x, _ = ideal_prediction(p, parameterization, target, dtype)
    size = x.abs() + alpha * x0.abs() + sigma * eps.abs()
    root = torch.sqrt(alpha**2 + sigma**2)
    # v = alpha eps - sigma x0 is formed from (x, F) with coefficients of size root/alpha or root/sigma.
    bounds = {
        "denoised": (x0, size / alpha),
        "noise": (eps, size / sigma),
        "score": (-eps / sigma, size / sigma**2),
        "v": (alpha * eps - sigma * x0, size * root**2 / torch.minimum(alpha, sigma) / torch.maximum(alpha, sigma)),
    }
    for name, (want, terms) in bounds.items():
        got = getattr(out, name)
        assert got.dtype == dtype
        assert got.shape == x0.shape
        wrong = (got.double() - want).abs() / (unit * (terms * 2 + want.abs()))
        assert float(wrong.max()) < 4, (name, float(wrong.max()))


@pytest.mark.parametrize("p", DEFAULTS, ids=str)
@pytest.mark.parametrize(("parameterization", "target"), EACH, ids=IDS)
@pytest.mark.filterwarnings("ignore::sde_gen.BetweenNodesWarning")
def test_conversions_in_the_middle_to_1e_12(p, parameterization, target):
    out, x0, eps, alpha, sigma, _, _ = ideal_prediction(p, parameterization, target, F64)
    middle = ((alpha > 0.05) & (sigma > 0.05) & (sigma < 20)).flatten()
    assert int(middle.sum()) >= 2
    for got, want in (
        (out.denoised, x0),
        (out.noise, eps),
        (out.score, -eps / sigma),
        (out.v, alpha * eps - sigma * x0),
    ):
        torch.testing.assert_close(got[middle], want[middle], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("p", DEFAULTS, ids=str)
@pytest.mark.parametrize(("parameterization", "target"), EACH, ids=IDS)
@pytest.mark.filterwarnings("ignore::sde_gen.BetweenNodesWarning")
def test_the_network_is_called_once_with_a_scaled_state_and_lambda(p, parameterization, target):
    out, _, _, alpha, sigma, x, calls = ideal_prediction(p, parameterization, target, F64)
    for _ in range(2):
        _ = out.denoised, out.noise, out.score, out.v
    assert len(calls) == 1
    scaled, noise = calls[0]
    sd = parameterization.sigma_data if isinstance(parameterization, sg.EDMPreconditioning) else 1.0
    root = torch.sqrt((alpha * sd) ** 2 + sigma**2)
    lam = p.half_log_snr(times(p))
    want = -lam / 4 if isinstance(parameterization, sg.EDMPreconditioning) else lam
    if isinstance(parameterization, sg.VelocityPrediction):  # the states of straight paths, and t
        root, want = alpha + sigma, (sigma / (alpha + sigma)).flatten()
    torch.testing.assert_close(scaled, x / root, rtol=1e-13, atol=0)
    assert noise.dtype == torch.float32
    torch.testing.assert_close(noise, want.float(), rtol=2e-6, atol=2e-6)
    assert out.denoised is out.denoised


@pytest.mark.parametrize(("parameterization", "target"), EACH, ids=IDS)
@pytest.mark.parametrize("k", [1e-3, 0.7, 50.0])
def test_coefficients_are_homogeneous(parameterization, target, k):
    """(alpha, sigma, x) -> k (alpha, sigma, x) leaves the network's input and the answer as they are."""
    alpha = torch.tensor([1.0, 0.8, 0.3, 0.02, 1e-3], dtype=F64)
    sigma = torch.tensor([1e-3, 0.6, 0.9, 3.0, 1.0], dtype=F64)
    a, b = parameterization.coefficients(alpha, sigma), parameterization.coefficients(k * alpha, k * sigma)
    for name, power in (("skip", -1), ("out", 0), ("input", -1), ("noise", 0)):
        torch.testing.assert_close(getattr(b, name), k**power * getattr(a, name), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("sd", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("p", DEFAULTS, ids=str)
def test_edm_preconditioning_has_unit_variances(p, sd):
    """For data of standard deviation sd the network's input and its target have variance 1 (Karras et al., B.6)."""
    alpha, sigma = p.alpha(times(p)), p.sigma(times(p))
    c = sg.EDMPreconditioning(sd).coefficients(alpha, sigma)
    one = torch.ones_like(alpha)
    torch.testing.assert_close(c.input**2 * ((alpha * sd) ** 2 + sigma**2), one, rtol=1e-12, atol=0)
    # The target (x0 - c_skip x)/c_out has variance ((1 - c_skip alpha)^2 sd^2 + (c_skip sigma)^2)/c_out^2; 1 - c_skip
    # alpha is written out, since it cancels at small sigma.
    rest = sigma**2 / (sigma**2 + (alpha * sd) ** 2)
    variance = (rest * sd) ** 2 + (c.skip * sigma) ** 2
    torch.testing.assert_close(variance / c.out**2, one, rtol=1e-12, atol=0)
    # c_skip is the one that makes c_out, the amplification of the network's errors, least: B.6 eq. 131.
    for shift in (-1e-3, 1e-3):
        other = c.skip + shift / alpha
        assert bool((((1 - other * alpha) * sd) ** 2 + (other * sigma) ** 2 > variance).all())


def test_edm_against_table_1():
    sigma = torch.tensor([0.002, 0.1, 0.5, 7.0, 80.0], dtype=F64)
    c = sg.EDMPreconditioning(0.5).coefficients(torch.ones_like(sigma), sigma)
    torch.testing.assert_close(c.skip, 0.25 / (sigma**2 + 0.25), rtol=1e-14, atol=0)
    torch.testing.assert_close(c.out, sigma * 0.5 / torch.sqrt(0.25 + sigma**2), rtol=1e-14, atol=0)
    torch.testing.assert_close(c.input, 1 / torch.sqrt(sigma**2 + 0.25), rtol=1e-14, atol=0)
    torch.testing.assert_close(c.noise, 0.25 * sigma.log(), rtol=1e-14, atol=0)


def test_v_is_that_of_its_paper_under_variance_preserving_processes():
    p = sg.VP()
    c = sg.VPrediction().coefficients(p.alpha(0.4), p.sigma(0.4))
    assert float(c.skip) == pytest.approx(float(p.alpha(0.4)), rel=1e-14)
    assert float(c.out) == pytest.approx(-float(p.sigma(0.4)), rel=1e-14)
    assert float(c.input) == pytest.approx(1.0, rel=1e-14)


@pytest.mark.parametrize(("parameterization", "target"), EACH, ids=IDS)
def test_end_points(parameterization, target):
    """Clean data is its own estimate; at alpha = 0 a prediction of the data (or of v, or EDM's F) still has one."""
    network = lambda x, c: torch.full_like(x, 0.25)  # noqa: E731
    model = sg.ScoreModel(network, sg.FlowMatching(), parameterization)
    x = torch.tensor([[0.3, -2.0]], dtype=F64)
    start = model(x, 0.0).denoised
    assert bool((start == (x if not isinstance(parameterization, sg.DataPrediction) else 0.25)).all())
    end = model(x, 1.0).denoised
    assert bool((end.abs() < 1e9).all()) == isinstance(
        parameterization, sg.DataPrediction | sg.VPrediction | sg.EDMPreconditioning | sg.VelocityPrediction
    )
    assert bool((model(x, 0.0).score.abs() > 1e100).all())


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("parameterization", [each for each, _ in EACH], ids=IDS)
def test_at_the_ends_nothing_is_nan_and_what_is_predicted_is_what_was_predicted(parameterization, dtype):
    told = {
        sg.NoisePrediction: ("noise", 1.0),
        sg.ScorePrediction: ("noise", -1.0),
        sg.DataPrediction: ("denoised", 1.0),
    }
    for value in (0.25, 0.0):
        model = sg.ScoreModel(lambda x, c, value=value: torch.full_like(x, value), sg.FlowMatching(), parameterization)
        x = torch.tensor([[0.3, -2.0], [0.0, value]], dtype=dtype)
        for t in (0.0, 1.0, torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.5])):
            out = model(x, t)
            for name in ("noise", "score", "v"):
                assert not bool(getattr(out, name).isnan().any()), (name, t)
            if (known := told.get(type(parameterization))) is not None:
                torch.testing.assert_close(getattr(out, known[0]), torch.full_like(x, known[1] * value))


def test_lambda_at_the_ends():
    zero, one = torch.zeros((), dtype=F64), torch.ones((), dtype=F64)
    assert float(half_log_snr(one, zero)) == math.inf
    assert float(half_log_snr(zero, one)) == -math.inf


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), True, "0.5"])
def test_refused(value):
    with pytest.raises(sg.ConfigError, match=r"EDMPreconditioning: sigma_data must be .*\(0, inf\), got"):
        sg.EDMPreconditioning(value)


def test_values():
    assert sg.NoisePrediction() == sg.NoisePrediction()
    assert sg.EDMPreconditioning(0.5) != sg.EDMPreconditioning(0.6)
    assert len({case[0] for case in EACH}) == len(EACH)
    with pytest.raises(TypeError):
        sg.Parameterization()
    with pytest.raises(TypeError):
        sg.EDMPreconditioning(sigma=0.5)
