"""Log-likelihoods against exact densities, and everything they must not depend on."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

import sde_gen as sg
from sde_gen.data.transform import Affine
from tests.properties.discovery import PERTURBATIONS
from tests.test_oracles import mixture

F64 = torch.float64


def gaussian(dim: int, seed: int = 0) -> sg.GaussianMixture:
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(dim, dim, generator=g, dtype=F64) / dim**0.5
    mean = 0.3 * torch.randn(1, dim, generator=g, dtype=F64)
    return sg.GaussianMixture([1.0], mean, (root @ root.T + 0.05 * torch.eye(dim, dtype=F64))[None])


def error(ll: sg.Likelihood, law: sg.GaussianMixture, x: torch.Tensor) -> torch.Tensor:
    """Error per dimension once the two known terms are taken off."""
    return (ll.log_prob - ll.prior_mismatch - ll.truncation - law.log_prob(x)) / x.shape[1]


@pytest.mark.parametrize("steps", [None, 98])
@pytest.mark.parametrize("p", PERTURBATIONS.values(), ids=PERTURBATIONS)
@pytest.mark.parametrize("dim", [2, 64])
def test_exact_density_of_mixtures(p: sg.Perturbation, dim: int, steps: int | None) -> None:
    law = mixture(dim, components=3, seed=dim)
    x = law.sample(24 if dim == 2 else 2, seed=1)
    ll = sg.log_likelihood(law.model(p), x, divergence="exact", steps=steps)
    errors = error(ll, law, x).abs()
    # A grid follows no single sample: there the mean is held to the bar.
    assert (errors.max() if steps is None else errors.mean()) < 1e-4
    assert torch.equal(ll.standard_error, torch.zeros(len(x), dtype=F64))


def test_the_known_terms_of_a_gaussian() -> None:
    """N(0.7, 0.25) under VP: mismatch and truncation in closed form, and log_prob is the sum of the three."""
    p, x = sg.VP(), torch.linspace(-1, 2, 9, dtype=F64)[:, None]
    law = sg.GaussianMixture([1.0], [[0.7]], [[[0.25]]])
    for t_min in (1e-5, 1e-3):
        ll = sg.log_likelihood(law.model(p), x, rtol=1e-9, atol=1e-9, t_min=t_min)
        end, start = (
            (float(p.alpha(t)), float(p.sigma(t)))
            for t in (torch.tensor(1.0, dtype=F64), torch.tensor(t_min, dtype=F64))
        )
        z, prior = ll.latent[:, 0].numpy(), stats.norm(0, end[1])
        at_end = stats.norm(0.7 * end[0], math.sqrt(0.25 * end[0] ** 2 + end[1] ** 2))
        # The flow of a Gaussian keeps the standardised value.
        smooth = stats.norm(0.7, math.sqrt(0.25 + (start[1] / start[0]) ** 2))
        standard = (x[:, 0].numpy() - 0.7) / smooth.std()
        np.testing.assert_allclose((z - at_end.mean()) / at_end.std(), standard, atol=1e-7)
        np.testing.assert_allclose(ll.prior_mismatch, prior.logpdf(z) - at_end.logpdf(z), atol=1e-7)
        exact = stats.norm(0.7, 0.5).logpdf(x[:, 0].numpy())
        np.testing.assert_allclose(ll.truncation, smooth.logpdf(x[:, 0].numpy()) - exact, atol=1e-9)
        np.testing.assert_allclose(ll.log_prob, exact + (ll.prior_mismatch + ll.truncation).numpy(), atol=1e-6)


@pytest.mark.parametrize(("probe", "factor"), [("rademacher", 1.0), ("gaussian", 1.0)])
def test_error_of_one_fixed_probe_has_its_variance(probe: str, factor: float) -> None:
    """For a Gaussian the Jacobian J(lambda) is the same everywhere, so with S its integral the error of a held
    probe is v^T S v - tr S, of variance 2 (|S|^2 - |diag S|^2) for signs and 2 |S|^2 for normals."""
    law, p, dim = gaussian(4), sg.VP(), 4
    n = 4000
    x = law.sample(1, seed=2).expand(n, dim).clone()
    kw = {"rtol": 1e-3, "atol": 1e-3, "steps": 30, "order": 4}
    exact = sg.log_likelihood(law.model(p), x[:1], divergence="exact", **kw)
    ll = sg.log_likelihood(law.model(p), x, divergence="hutchinson", probe=probe, seed=3, **kw)
    # S by the same quadrature would be circular: integrate the closed form.
    begin, end = float(p.half_log_snr(p.t_min)), float(p.half_log_snr(1.0))
    lam = torch.linspace(begin, end, 40_001, dtype=F64)
    values, vectors = torch.linalg.eigh(law.covariances[0])
    a2 = torch.sigmoid(2 * lam)[:, None]
    rates = a2 * values / (a2 * values + 1 - a2) - a2
    s = vectors @ torch.diag(torch.trapezoid(rates, lam, dim=0)) @ vectors.T
    variance = 2 * float(s.square().sum() - (s.diagonal().square().sum() if probe == "rademacher" else 0.0))
    errors = (ll.log_prob - exact.log_prob).numpy()
    assert ll.standard_error.isnan().all()
    # 5 standard errors of mean and variance: false alarms below 1e-6 (kurtosis of v^T S v bounded by 15).
    assert abs(errors.mean()) < 5 * math.sqrt(variance / n)
    assert abs(errors.var() / variance - 1) < 5 * math.sqrt(14 / n)


@pytest.mark.parametrize(
    ("kw", "groups"),
    [({"probes": 8}, 8), ({"probes": 8, "probe": "gaussian"}, 8), ({"probes": 16, "steps": 20, "probe": "walsh"}, 8)],
)
def test_standard_errors_are_calibrated(kw: dict, groups: int) -> None:
    """The error over its standard error is Student's t up to the non-normality of a quadratic form."""
    law, p = gaussian(6, seed=1), sg.VP()
    x = law.sample(1, seed=2).expand(1000, 6).clone()
    common = {"rtol": 1e-3, "atol": 1e-3, "order": 4}
    exact = sg.log_likelihood(law.model(p), x[:1], divergence="exact", **common, steps=kw.get("steps"))
    ll = sg.log_likelihood(law.model(p), x, divergence="hutchinson", seed=5, **common, **kw)
    score = ((ll.log_prob - exact.log_prob) / ll.standard_error).abs().numpy()
    for width in (1.0, 2.0):
        expected = 1 - 2 * stats.t.sf(width, groups - 1)
        # 5 binomial deviations, and 0.05 for the non-normality.
        assert abs((score < width).mean() - expected) < 5 * math.sqrt(expected * (1 - expected) / 1000) + 0.05


def test_walsh_probes_beat_fresh_and_fixed_ones() -> None:
    law = mixture(16, components=3, seed=4)
    x = law.sample(48, seed=1)
    model = law.model(sg.VP())
    exact = sg.log_likelihood(model, x, divergence="exact", steps=64).log_prob
    rms = {}
    for probe in ("rademacher", "fresh", "walsh"):
        ll = sg.log_likelihood(model, x, divergence="hutchinson", probes=4, steps=64, probe=probe)
        rms[probe] = float((ll.log_prob - exact).square().mean().sqrt())
    assert rms["walsh"] < 0.3 * rms["fresh"] < 0.1 * rms["rademacher"]


class Net(torch.nn.Module):
    """A small smooth network, with a count of its calls."""

    def __init__(self, dim: int = 3, dtype: torch.dtype = F64) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.a = torch.nn.Parameter(torch.randn(dim, 16, generator=g, dtype=dtype) / dim**0.5)
        self.b = torch.nn.Parameter(torch.randn(16, dim, generator=g, dtype=dtype) / 4)
        self.calls = 0

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        self.calls += 1
        shift = 0.0 if label is None else label[:, None].to(x.dtype)
        return torch.tanh(x @ self.a + c_noise[:, None].to(x.dtype) / 8 + shift) @ self.b + 0.5 * x


@pytest.mark.parametrize("parameterization", [sg.NoisePrediction(), sg.EDMPreconditioning(), sg.VPrediction()])
def test_one_network_under_every_formulation(parameterization: sg.Parameterization) -> None:
    """On one interval of lambda the density does not depend on the formulation."""
    model, x = sg.ScoreModel(Net(), sg.VP(), parameterization), torch.randn(5, 3, dtype=F64)
    common = (4.0, -3.5)
    answers = []
    for p in (sg.VP(), sg.SubVP(), sg.VE(), sg.EDM(), sg.FlowMatching()):
        times = {"t_min": float(p.time(common[0])), "t_max": float(p.time(common[1]))}
        kinds = ({}, {"steps": 60}, {"divergence": "hutchinson", "probes": 2, "steps": 60, "seed": 9})
        answers += [sg.log_likelihood(model.under(p), x, **times, **kw).log_prob for kw in kinds]
    for i, answer in enumerate(answers):
        torch.testing.assert_close(answer, answers[i % 3], rtol=0, atol=1e-9)
    assert (answers[0] - answers[1]).abs().max() < 1e-2  # two solvers


def test_one_network_call_a_right_hand_side() -> None:
    net = Net()
    model, x = sg.ScoreModel(net, sg.VP()), torch.randn(1, 3, dtype=F64)
    for kw in ({}, {"divergence": "hutchinson", "probes": 5}, {"steps": 40}, {"steps": 40, "divergence": "hutchinson"}):
        net.calls = 0
        ll = sg.log_likelihood(model, x, **kw)
        assert net.calls == ll.nfe == int(ll.nfe_per_sample[0])
        assert ll.nfe == kw.get("steps", ll.nfe)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    "kw", [{}, {"divergence": "hutchinson", "probes": 3}, {"divergence": "hutchinson", "probes": 4, "steps": 20}]
)
def test_sample_i_depends_on_nothing_but_itself(kw: dict) -> None:
    model = sg.ScoreModel(Net(), sg.VP())
    x, label = torch.randn(70, 3, dtype=F64), torch.randint(0, 3, (70,))
    whole = sg.log_likelihood(model, x, condition={"label": label}, seed=2**63 + 5, **kw)
    again = sg.log_likelihood(model, x, condition={"label": label}, seed=2**63 + 5, chunk=17, **kw)
    part = sg.log_likelihood(
        model, x[66:68], condition={"label": label[66:68]}, seed=2**63 + 5, first=66, rtol=1e-5, **kw
    )
    for name in ("log_prob", "standard_error"):
        a, b, c = (getattr(v, name) for v in (whole, again, part))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
        torch.testing.assert_close(a[66:68], c, rtol=0, atol=1e-9)
    assert torch.equal(whole.nfe_per_sample, again.nfe_per_sample)
    if "divergence" in kw:
        for seed in (2**63 + 4, 5):
            other = sg.log_likelihood(model, x, condition={"label": label}, seed=seed, **kw)
            assert not torch.allclose(other.log_prob, whole.log_prob, atol=1e-6)


class Poisoned(Net):
    """NaN for samples whose first coordinate is large."""

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x, c_noise) + torch.where(x[:, :1] > 50, torch.nan, 0.0)


@pytest.mark.parametrize("steps", [None, 20])
def test_a_failed_sample_is_named_and_the_others_kept(steps: int | None) -> None:
    model = sg.ScoreModel(Poisoned(), sg.VP())
    x = torch.randn(5, 3, dtype=F64)
    healthy = sg.log_likelihood(model, x, steps=steps)
    x[3, 0] = 1e3
    ll = sg.log_likelihood(model, x, steps=steps, first=10)
    assert set(ll.failed) == {13}
    failure = ll.failed[13]
    assert isinstance(failure, sg.NonFiniteError)
    assert (failure.indices, failure.step, failure.t) == ((13,), 0, pytest.approx(1e-5, rel=1e-6))
    kept = torch.tensor([0, 1, 2, 4])
    # Up to rounding: once it has failed, a sample leaves the batch, and the size of a batch may decide how it rounds.
    torch.testing.assert_close(ll.log_prob[kept], healthy.log_prob[kept], rtol=1e-12, atol=0.0)
    assert ll.log_prob[3].isnan()
    assert math.isfinite(ll.mean()[0])
    with pytest.raises(sg.NonFiniteError, match=r"samples \[0\]"):
        sg.log_likelihood(model, x[3:4], steps=steps)


def test_a_budget_that_runs_out() -> None:
    model = mixture(2).model(sg.VP())
    with pytest.raises(sg.SolverError, match="max_nfe=20"):
        sg.log_likelihood(model, torch.zeros(2, 2, dtype=F64), max_nfe=20)
    with pytest.raises(sg.ConfigError, match="max_nfe=20"):
        sg.log_likelihood(model, torch.zeros(2, 2, dtype=F64), max_nfe=20, steps=21)


def test_bits_per_dim_comes_from_the_transform() -> None:
    """Gaussian raw data with levels 4 apart: the cell's probability is its width times the density."""
    transform = Affine.to_unit(0, 64, 17)
    raw_mean, raw_std = 30.0, 9.0
    law = sg.GaussianMixture([1.0], [[(raw_mean - 32) / 32] * 2], (np.eye(2) * (raw_std / 32) ** 2)[None])
    raw = torch.tensor([[30.0, 40.0], [20.0, 33.0]], dtype=F64)
    x = transform.forward(raw)
    ll = sg.log_likelihood(law.model(sg.SubVP()), x, transform=transform, rtol=1e-8, atol=1e-8)
    known = ll.prior_mismatch + ll.truncation
    density = stats.norm(raw_mean, raw_std).logpdf(raw.numpy()).sum(1) + 2 * math.log(4)
    np.testing.assert_allclose(ll.bits_per_dim, -(density + known.numpy()) / (2 * math.log(2)), atol=1e-5)
    mean, spread = ll.mean_bits_per_dim()
    assert mean == pytest.approx(float(ll.bits_per_dim.mean()))
    assert spread == pytest.approx(float(ll.bits_per_dim.std()) / math.sqrt(2))
    plain = sg.log_likelihood(law.model(sg.SubVP()), x)
    torch.testing.assert_close(plain.bits_per_dim, -plain.log_prob / (2 * math.log(2)))


def test_dequantise_spreads_each_level_over_its_cell() -> None:
    transform = Affine.to_unit(0, 16, 17)
    x = transform.forward(torch.randint(0, 17, (500, 1, 4, 4)).to(F64))
    spread = transform.dequantise(x, seed=3)
    offset = (transform.inverse(spread) - transform.inverse(x)).flatten()
    assert stats.kstest(offset.numpy(), stats.uniform(-0.5, 1.0).cdf).pvalue > 1e-6
    assert torch.equal(transform.quantise(spread), transform.inverse(x))
    torch.testing.assert_close(transform.dequantise(x[7:9], seed=3, first=7), spread[7:9], rtol=0, atol=0)
    assert not torch.equal(transform.dequantise(x, seed=4), spread)
    with pytest.raises(sg.DataError, match="no levels"):
        Affine().dequantise(x)


def test_images_float32_and_a_real_network() -> None:
    """A U-Net in float32: both solvers agree with float64, and probes with the exact trace on the same grid."""
    torch.manual_seed(0)
    net = sg.UNet(1, width=8, multipliers=(1,), blocks=1, attention=())
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    model, x = sg.ScoreModel(net, sg.VP(), sg.EDMPreconditioning()), torch.randn(2, 1, 3, 3)
    wide = sg.ScoreModel(net.double(), sg.VP(), sg.EDMPreconditioning())
    reference = sg.log_likelihood(wide, x.double(), divergence="exact", rtol=1e-6, atol=1e-6).log_prob
    net.float()
    for kw in ({}, {"steps": 98}):
        ll = sg.log_likelihood(model, x, divergence="exact", **kw)
        assert ll.log_prob.dtype == F64
        assert ll.latent.dtype == torch.float32
        torch.testing.assert_close(ll.log_prob, reference, rtol=0, atol=9 * 1e-4)
    exact = sg.log_likelihood(model, x, divergence="exact", steps=32)
    many = sg.log_likelihood(model, x, divergence="hutchinson", probes=16, steps=32)
    assert ((many.log_prob - exact.log_prob).abs() < 8 * many.standard_error + 1e-4).all()  # t with 7 dof: 1e-4 each


BAD = [
    ({"divergence": "exakt"}, "did you mean 'exact'"),
    ({"probe": "walsh"}, "set steps="),
    ({"probes": 0}, "probes must be"),
    ({"rtol": 0.0}, "rtol must be"),
    ({"steps": 1}, "steps must be"),
    ({"grid": "lambda"}, "needs steps="),
    ({"t_min": 0.5, "t_max": 0.4}, "must lie below"),
    ({"seed": -1}, "seed must be"),
    ({"first": -1}, "first must be"),
]


@pytest.mark.parametrize(("kw", "message"), BAD)
def test_bad_arguments(kw: dict, message: str) -> None:
    if kw.get("probe") == "walsh":
        kw = {**kw, "divergence": "hutchinson"}
    with pytest.raises(sg.ConfigError, match=message):
        sg.log_likelihood(mixture(2).model(sg.VP()), torch.zeros(3, 2, dtype=F64), **kw)


def test_bad_data() -> None:
    model, transform = mixture(2).model(sg.VP()), Affine.to_unit(0, 255, 256)
    x = torch.zeros(3, 2, dtype=F64)
    with pytest.raises(sg.ConfigError, match="floating tensor"):
        sg.log_likelihood(model, torch.zeros(3, 2, dtype=torch.long))
    with pytest.raises(sg.ConfigError, match=r"must have shape \(B, 2\)"):
        sg.log_likelihood(model, torch.zeros(3, 4, dtype=F64))
    with pytest.raises(sg.DataError, match="sample 1 of x is NaN"):
        sg.log_likelihood(model, torch.where(torch.arange(3)[:, None] == 1, math.nan, x))
    with pytest.raises(sg.DataError, match=r"sample 2 has raw values from 127.5 to 1.275e\+04"):
        sg.log_likelihood(model, torch.tensor([[0, 0], [1, 1], [0, 99.0]], dtype=F64), transform=transform)
    with pytest.warns(sg.PrecisionWarning, match="below the rounding of torch.float32"):
        sg.log_likelihood(model, x.float(), rtol=1e-9, atol=1e-9, max_nfe=100_000)


def test_a_network_of_a_chain_says_that_it_interpolates() -> None:
    model = sg.ScoreModel(Net(), sg.DDPM(steps=100))
    with pytest.warns(sg.BetweenNodesWarning, match="interpolates in lambda"):
        sg.log_likelihood(model, torch.zeros(1, 3, dtype=F64))


def test_training_mode_comes_back_and_inference_mode_is_no_hindrance() -> None:
    model = sg.ScoreModel(Net(), sg.VP()).train()
    with torch.inference_mode():
        x = torch.zeros(2, 3, dtype=F64)
        inside = sg.log_likelihood(model, x).log_prob
    assert model.training
    with warnings.catch_warnings(), torch.no_grad():
        torch.testing.assert_close(sg.log_likelihood(model, x.clone()).log_prob, inside, rtol=0, atol=0)
