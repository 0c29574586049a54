"""Precision and recall where both can be counted."""

import numpy as np
import pytest
import torch

from sde_gen import metrics
from sde_gen.errors import ConfigError, DataError


def _line(*values: float) -> torch.Tensor:
    return torch.tensor(values).reshape(-1, 1)


def test_precision_and_recall_on_a_line() -> None:
    real = _line(0, 1, 2, 3, 10)  # with k = 1 the balls are 1 wide, that of 10 is 7 wide
    samples = _line(0.5, 1.5, -1.01, 17, 17.01)
    # 0.5 and 1.5 lie in balls of real points, 17 on the edge of one; -1.01 and 17.01 in none.
    # The balls of the samples: 0.5 and 1.5 reach 1; -1.01 reaches 1.51; 17 and 17.01 reach 0.01. Only 10 is not in one,
    # and 3, which is 1.5 from the nearest.
    found = metrics.precision_recall(samples, real, k=1)
    assert found.precision == pytest.approx(3 / 5)
    assert found.recall == pytest.approx(3 / 5)


def test_the_third_neighbour_is_the_default_and_a_point_is_not_its_own() -> None:
    real = _line(0, 1, 2, 4)  # third neighbours: 4, 3, 2, 4 away
    assert metrics.precision_recall(_line(8, 8.01, -4, -4.01), real).precision == pytest.approx(2 / 4)


def test_a_collapsed_sampler_is_precise_and_recalls_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    real = torch.randn(200, 2, generator=g)
    found = metrics.precision_recall(1e-3 * torch.randn(100, 2, generator=g), real)
    assert found.precision == 1.0
    assert found.recall < 0.1
    spread = metrics.precision_recall(10 * torch.randn(100, 2, generator=g), real)
    assert spread.precision < 0.2
    assert spread.recall > 0.8


def test_blocks_do_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(50, 3), torch.randn(60, 3)
    whole = metrics.precision_recall(x, y)
    monkeypatch.setattr("sde_gen.metrics.jackknife._BLOCK", 100)
    assert metrics.precision_recall(x, y) == whole


def test_bad_arguments() -> None:
    x = torch.rand(3, 2)
    with pytest.raises(DataError, match="at least 4"):
        metrics.precision_recall(x, torch.rand(9, 2))
    with pytest.raises(ConfigError, match=r"k must be .* at least 1, got 0"):
        metrics.precision_recall(x, x, k=0)


def test_density_and_coverage_by_hand() -> None:
    """Real points 0, 1, 3, 7 with the balls to their nearest neighbours: radii 1, 1, 2, 4."""
    real = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    samples = torch.tensor([[0.5], [1.5], [20.0]])
    found = metrics.density_coverage(samples, real, k=1)
    # 0.5 lies in the balls of 0 and 1; 1.5 in those of 1 and 3; 20 in none.
    assert found.density == pytest.approx(4 / 3)
    assert found.coverage == 3 / 4
    assert found.density_error == pytest.approx(np.std([2, 2, 0], ddof=1) / 3**0.5)
    two = metrics.density_coverage(samples, real, k=2)
    # Radii 3, 2, 3, 6: 0.5 lies in those of 0, 1 and 3; 1.5 in those of all four.
    assert (two.density, two.coverage) == (pytest.approx(7 / 6), 1.0)


def test_density_of_a_set_against_itself_and_of_an_outlier() -> None:
    g = torch.Generator().manual_seed(0)
    real = torch.randn(300, 2, generator=g)
    # Of a set itself each ball holds its centre and k neighbours, the k-th on its rim.
    own = metrics.density_coverage(real, real, k=4)
    assert (own.density, own.coverage) == (pytest.approx(5 / 4), 1.0)
    spoilt = torch.cat([real, torch.tensor([[50.0, 0.0]])])  # whose ball holds everything
    far = torch.randn(300, 2, generator=g) + torch.tensor([25.0, 0.0])
    assert metrics.precision_recall(far, spoilt, k=5).precision == 1.0
    assert metrics.density_coverage(far, spoilt, k=5).density == pytest.approx(1 / 5)
    assert metrics.density_coverage(far, spoilt, k=5).coverage == pytest.approx(1 / 301)
    with pytest.raises(DataError, match="at least 6 points"):
        metrics.density_coverage(real[:5], real)
    with pytest.raises(ConfigError, match="k"):
        metrics.density_coverage(real, real, k=0)
