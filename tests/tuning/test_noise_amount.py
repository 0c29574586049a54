"""The amount of noise, chosen by held-out data."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sde_gen as sg
from sde_gen.metrics import energy_distance
from sde_gen.samplers.flow import unit_curves
from sde_gen.tuning.noise_amount import Held, nearness, paired_gain
from tests.tuning.test_quick import PERTURBATIONS, Net

LAW = sg.GaussianMixture([0.6, 0.4], [[0.8, 0.0], [-0.7, 0.3]], [[[0.02, 0.0], [0.0, 0.02]], [[0.1, 0.0], [0.0, 0.05]]])
DATA, FRESH = LAW.sample(3000, seed=1).split([1000, 2000])


class Wrong(torch.nn.Module):
    """The exact denoised estimate, but for a smooth error where samples decide for a mode."""

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        half_log_snr = c_noise[0].double()
        exact = LAW.denoise(x.double(), *unit_curves(half_log_snr))
        return (exact - 1.5 * torch.exp(-(((half_log_snr + 1.2) / 0.7) ** 2))).to(x.dtype)


def wrong() -> sg.ScoreModel:
    return sg.ScoreModel(Wrong(), sg.VP(), sg.DataPrediction())


def test_a_network_that_errs_gains_by_noise_on_other_starts_and_other_data() -> None:
    auto = sg.Auto(nfe=8, noise="auto", data=DATA)
    choice = auto.choose(wrong(), (2,))
    assert isinstance(choice.sampler, sg.SDEDPMSolverPP)
    assert choice.gain is not None
    assert choice.calibration_nfe <= auto.most_calls == 300 + 88 * 8
    plain = sg.Auto(nfe=8).choose(wrong(), (2,))
    assert choice.error == plain.error
    one, other = (c.sampler(wrong(), (2000, 2), seed=50) for c in (plain, choice))
    assert one.nfe == other.nfe == choice.nfe == 8
    gain, error = paired_gain(one.x, other.x, FRESH)
    assert gain > 5 * error
    assert abs(gain - choice.gain[0]) < 4 * math.hypot(error, choice.gain[1])


@pytest.mark.parametrize("nfe", [8, 16])
def test_an_exact_score_takes_no_noise(nfe: int) -> None:
    """And neither does a network without data, or with calls for nothing but the deterministic choice."""
    choice = sg.Auto(nfe=nfe, noise="auto", data=DATA).choose(LAW.model(sg.VP()), (2,))
    assert choice.gain is not None
    assert choice.gain[0] <= 2 * choice.gain[1]
    assert choice.sampler == sg.Auto(nfe=nfe).choose(LAW.model(sg.VP()), (2,)).sampler


def test_without_data_or_calls_the_choice_is_the_deterministic_one() -> None:
    plain = sg.Auto(nfe=5).choose(wrong(), (2,))
    for auto in (
        sg.Auto(nfe=5, noise="auto"),
        sg.Auto(nfe=5, noise="auto", data=DATA, calls=350),
        sg.Auto(nfe=5, noise="auto", data=DATA, seconds=1e-9),
    ):
        choice = auto.choose(wrong(), (2,))
        assert not choice.sampler.is_stochastic
        assert choice.gain is None
        assert choice.calibration_nfe <= (auto.most_calls or 0)
        assert auto.seconds or choice.sampler == plain.sampler
    assert sg.Auto(nfe=5, noise="auto", data=DATA, calls=0).choose(wrong(), (2,)).calibration_nfe == 0


@pytest.mark.filterwarnings("ignore::sde_gen.BetweenNodesWarning")  # the fine solution on a chain of 50 nodes
@pytest.mark.parametrize("p", PERTURBATIONS, ids=str)
def test_every_formulation(p: sg.Perturbation) -> None:
    """Calls within what was said, and of samples what sample i is whatever the batch."""
    net = Net()
    model = sg.ScoreModel(net, p, sg.DataPrediction())
    auto = sg.Auto(nfe=3, noise="auto", data=DATA[:80], calls=366)
    choice = auto.choose(model, (2,))
    assert choice.gain is not None
    assert math.isfinite(choice.gain[1])
    assert choice.calibration_nfe <= 366
    whole = auto(model, (9, 2), seed=3)
    assert whole.nfe == 3
    part = auto(model, (2, 2), seed=3, first=5)
    torch.testing.assert_close(part.x, whole.x[5:7], rtol=0, atol=1e-6)
    again = sg.SDEDPMSolverPP(eta=1.0, grid=choice.sampler.grid)
    torch.testing.assert_close(again(model, (2, 2), seed=3, first=5).x, again(model, (9, 2), seed=3).x[5:7],
                               rtol=0, atol=1e-6)  # fmt: skip


def test_a_choice_is_kept_under_the_content_of_the_data(tmp_path: Path) -> None:
    def choose(data: Tensor) -> sg.tuning.Choice:
        return sg.Auto(nfe=4, noise="auto", data=data, calls=480, folder=str(tmp_path)).choose(wrong(), (2,))

    first = choose(DATA)
    assert choose(DATA.clone()) == first
    assert len(list(tmp_path.glob("auto-*.json"))) == 1
    choose(DATA[:500])
    assert len(list(tmp_path.glob("auto-*.json"))) == 2
    assert Held(DATA) == Held(DATA.clone()) != Held(DATA[:500])


def test_the_gain_is_a_difference_of_energy_distances() -> None:
    """Without bias: pairs of a sample with itself, which the V-statistic counts, are left out."""
    x, z, y = LAW.sample(60, seed=2), 1.1 * LAW.sample(60, seed=3), LAW.sample(50, seed=4)
    within = float(torch.pdist(y).mean())
    for points in (x, z):
        v = energy_distance(points, y) + float(torch.cdist(y, y).mean())  # 2 E|x - y| - E|x - x'|
        u = v - float(torch.pdist(points).mean()) / len(points)
        assert nearness(points, y) == pytest.approx(u, abs=1e-9)
    gain, error = paired_gain(x, z, y)
    assert gain == pytest.approx(nearness(x, y) - nearness(z, y), abs=1e-12)
    assert 0 < error < within
    assert paired_gain(x, x, y) == (pytest.approx(0.0, abs=1e-12), 0.0)


def test_the_standard_error_is_that_of_repeated_draws() -> None:
    """Of two laws that differ, on 300 pairs of sets from common starts: the spread of the gains is the error said."""
    generator = torch.Generator().manual_seed(0)
    gains, errors = [], []
    for _ in range(300):
        start, y = (torch.randn(64, 2, generator=generator, dtype=torch.float64) for _ in range(2))
        gain, error = paired_gain(1.6 * start + 0.5, start + 0.4, y)
        gains.append(gain)
        errors.append(error)
    spread, said = float(torch.tensor(gains).std()), float(torch.tensor(errors).square().mean().sqrt())
    assert said == pytest.approx(spread, rel=0.15)  # a spread of 300 is known within 4 %


def test_of_equal_laws_noise_is_rarely_chosen() -> None:
    """At two standard errors, which are then somewhat too large, in fewer than the 2.3 % of normal errors."""
    generator = torch.Generator().manual_seed(0)
    wins = 0
    for _ in range(400):
        x, z, y = (torch.randn(64, 2, generator=generator, dtype=torch.float64) for _ in range(3))
        gain, error = paired_gain(x, z, y)
        wins += gain > 2 * error
    assert wins <= 9


def test_arguments() -> None:
    for given, message in (
        ({"noise": "much"}, "noise must be one of 'auto'"),
        ({"data": DATA}, "data are what noise='auto' is judged by"),
        ({"noise": "auto", "data": DATA[:63]}, "at least 64 held-out samples"),
        ({"noise": "auto", "data": DATA.log()}, "data must be finite"),
        ({"noise": "auto", "data": "held-out"}, "data must be a floating tensor"),
        ({"noise": "auto", "effort": 1.0}, "calls, seconds and noise are of the quick calibration"),
    ):
        with pytest.raises(sg.ConfigError, match=message):
            sg.Auto(nfe=5, **given)
    with pytest.raises(sg.ConfigError, match=r"samples of shape \(2,\), and the model's are of shape \(3,\)"):
        sg.Auto(nfe=5, noise="auto", data=DATA).choose(wrong(), (3,))
    with pytest.raises(sg.ConfigError, match="must not be above"):
        sg.SDEDPMSolverPP(s_tmin=2.0, s_tmax=1.0)
