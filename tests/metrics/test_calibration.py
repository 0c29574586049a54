"""Calibration of draws: closed forms, and errors of each kind that must be seen."""

import math

import pytest
import torch
from scipy.stats import norm

from sde_gen.errors import ConfigError, DataError
from sde_gen.metrics import calibration, ranks


def problem(
    draws: int, n: int, width: float = 1.0, shift: float = 0.0, d: int = 3
) -> tuple[torch.Tensor, torch.Tensor]:
    """y = x + noise with x and noise standard normal: the posterior is N(y/2, 1/2)."""
    g = torch.Generator().manual_seed(7)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    y = x + torch.randn(n, d, generator=g, dtype=torch.float64)
    noise = torch.randn(draws, n, d, generator=g, dtype=torch.float64)
    return y / 2 + shift + width * math.sqrt(0.5) * noise, x


def test_the_score_is_that_of_a_normal_law() -> None:
    truth = torch.tensor([[0.3], [-1.2], [4.0]], dtype=torch.float64)
    quantiles = torch.tensor(norm.ppf((torch.arange(4000) + 0.5) / 4000))[:, None, None].expand(4000, 3, 1)
    z = truth[:, 0].numpy()
    exact = z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / math.sqrt(math.pi)
    assert calibration(quantiles, truth).crps == pytest.approx(exact.mean(), abs=1e-3)
    two = torch.tensor([[[1.0]], [[4.0]]])
    assert calibration(two, torch.tensor([[2.0]])).crps == pytest.approx((1 + 2) / 2 - 3 / 2)


def test_exact_posteriors_are_calibrated() -> None:
    # 4000 truths: a region's part has a standard error of 0.005; five of them are 0.025.
    found = calibration(*problem(99, 4000))
    for region in found.coverage:
        assert region.nominal == pytest.approx(region.level, abs=0.011)
        assert region.standard_error is not None
        assert abs(region.found - region.nominal) < 5 * region.standard_error < 0.03
    assert min(found.p_values) > 1e-6
    # E|N(0, s)| = s sqrt(2/pi); the score of the exact law is half of the distance of two of its draws.
    assert found.crps == pytest.approx(math.sqrt(1 / math.pi) * math.sqrt(0.5), rel=0.02)


@pytest.mark.parametrize(("width", "shift"), [(0.8, 0.0), (1.25, 0.0), (1.0, 0.2)])
def test_wrong_widths_and_biases_are_seen(width: float, shift: float) -> None:
    right, wrong = calibration(*problem(99, 4000)), calibration(*problem(99, 4000, width, shift))
    assert wrong.crps > right.crps
    assert max(wrong.p_values) < 1e-4
    region = wrong.coverage[-1]
    assert (region.found > region.nominal) == (width > 1)


def test_ranks_count_what_lies_below() -> None:
    draws = torch.tensor([[1.0], [2.0], [2.0], [3.0]])
    for value, rank in ((0.0, 0), (1.5, 1), (2.0, 2), (9.0, 4)):
        assert ranks(draws, torch.tensor([value])).item() == rank


def test_any_shape_and_few_truths() -> None:
    draws, truth = problem(20, 6, d=8)
    whole = calibration(draws, truth)
    assert calibration(draws.reshape(20, 6, 2, 4), truth.reshape(6, 2, 4)) == whole
    assert whole.to_dict()["draws"] == 20
    one = calibration(draws[:, :1], truth[:1])
    assert one.crps_error is None
    assert one.p_values == ()


def test_bad_input() -> None:
    draws, truth = problem(5, 4)
    for wrong in (draws[0], draws[:1], draws[:, :2]):
        with pytest.raises(DataError, match="draws must be"):
            calibration(wrong, truth)
    with pytest.raises(DataError, match="NaN"):
        calibration(draws * math.nan, truth)
    for level in (0.0, 1.0, 2.0):
        with pytest.raises(ConfigError, match="levels must be"):
            calibration(draws, truth, levels=[level])
