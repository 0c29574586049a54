"""The table of methods against exact posteriors: exact draws are at one, wrong ones are not."""

import math
from types import SimpleNamespace

import pytest
import torch

import sde_gen as sg
from sde_gen.inverse import Mask, Matrix, Posterior

LAW = sg.GaussianMixture(
    [0.5, 0.2, 0.3], [[1.0, 0.4, 0.0], [-0.8, 0.5, 0.3], [-0.1, -0.7, 0.2]], 0.03 * torch.eye(3).expand(3, 3, 3)
)
OPERATOR = Mask([True, False, True])


def exact(posterior: Posterior, shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> SimpleNamespace:
    x = LAW.condition(posterior.operator, posterior.y, posterior.noise_std).sample(shape[0], 1000 + seed)
    return SimpleNamespace(x=x, nfe=0, products=0)


def prior(posterior: Posterior, shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> SimpleNamespace:
    return SimpleNamespace(x=LAW.sample(shape[0], seed), nfe=0, products=0)


@pytest.mark.parametrize("noise", [0.3, torch.tensor([0.1, 0.4]), torch.tensor([[0.1, 0.02], [0.02, 0.2]])])
def test_exact_draws_are_at_one_and_the_prior_is_not(noise: float | torch.Tensor) -> None:
    methods = {"exact": exact, "prior": prior, "particles": sg.TwistedSMC(particles=8, steps=30)}
    table = sg.compare_posteriors(LAW, OPERATOR, noise, methods, observations=3, samples=400, seed=2)
    assert len(table.rows) == 9
    right, wrong, particles = table.means()
    assert 0.6 < right["distance"] < 1.4
    assert right["residual"] == pytest.approx(1, abs=0.15)
    assert right["modes"] < 0.06
    assert wrong["distance"] > 3
    assert wrong["residual"] > 2
    assert math.isnan(right["evidence"])
    assert particles["evidence"] < 0.2
    assert particles["distance"] < 2
    assert particles["nfe"] == 240
    shown = str(table)
    assert all(name in shown for name in methods)


def test_repeats_are_averaged_and_scatter_less() -> None:
    asked = []

    def counted(posterior: Posterior, shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> SimpleNamespace:
        asked.append(exact(posterior, shape, seed, dtype))
        return asked[-1]

    def measured(repeats: int, seed: int) -> dict:
        table = sg.compare_posteriors(
            LAW, OPERATOR, 0.3, {"exact": counted}, observations=1, samples=64, repeats=repeats, seed=seed
        )
        return table.rows[0]

    once, twice = measured(1, 2), measured(2, 2)
    assert torch.equal(asked[0].x, asked[1].x)
    assert not torch.equal(asked[1].x, asked[2].x)
    assert twice["distance_error"] == pytest.approx(once["distance_error"] / 2**0.5)
    assert 0.05 < once["distance_error"] < 1
    assert twice["modes_floor"] == once["modes_floor"]
    assert twice["modes"] != once["modes"]


def test_the_default_methods_are_those_of_the_library() -> None:
    table = sg.compare_posteriors(LAW, OPERATOR, 0.3, observations=1, samples=8)
    assert [row["method"] for row in table.rows][-2:] == ["particles, MMPS", "particles, MMPS, pooled"]
    assert all(math.isfinite(row["distance"]) for row in table.rows)


@pytest.mark.parametrize("arguments", [(LAW.model(sg.VP()), OPERATOR, 0.3), (LAW, torch.eye(3), 0.3)])
def test_what_is_refused(arguments: tuple) -> None:
    with pytest.raises(sg.ConfigError, match="GaussianMixture and an Operator"):
        sg.compare_posteriors(*arguments)
    with pytest.raises(sg.ConfigError, match="observations"):
        sg.compare_posteriors(LAW, Matrix(torch.eye(3)), 0.3, observations=0)
