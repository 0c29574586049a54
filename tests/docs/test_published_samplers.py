"""The published samplers that the library is measured against are those of their papers: laws on a Gaussian."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

import sde_gen as sg
from sde_gen.inverse import Mask, Posterior

STD, MEAN, Y, NOISE, ETA = 0.7, 0.4, 1.1, 0.3, 0.85


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("posterior_published")


def law_of_ddrm(rho: list[float], seen: bool) -> tuple[float, float]:
    """Mean and variance of one number, from equations 7 and 8 of the paper, of data N(MEAN, STD^2)."""
    mean, var = 0.0, rho[0] ** 2
    if seen and rho[0] > NOISE:
        mean, var = Y, rho[0] ** 2 - NOISE**2
    for now, after in zip(rho, [*rho[1:], 0.0], strict=True):
        share = STD**2 / (STD**2 + now**2)  # the denoised estimate is MEAN + share (x - MEAN)
        denoised, of_x = MEAN + share * (mean - MEAN), share
        if after == 0.0:
            return denoised, of_x**2 * var
        kept, fresh = (1 - ETA**2) ** 0.5 * after, (ETA * after) ** 2
        if not seen:
            mean, of_x = denoised + kept * (mean - denoised) / now, share + kept * (1 - share) / now
        elif after < NOISE:
            mean, of_x = denoised + kept * (Y - denoised) / NOISE, share * (1 - kept / NOISE)
        else:
            mean, of_x, fresh = Y, 0.0, after**2 - NOISE**2
        var = of_x**2 * var + fresh
    raise RuntimeError("no levels")


def test_ddrm_has_the_law_of_its_equations(published: ModuleType) -> None:
    """Mean and standard deviation of 20,000 draws within five standard errors, of a number seen and of one not seen."""
    n = 20_000
    law = sg.GaussianMixture([1.0], [[MEAN, MEAN]], STD**2 * torch.eye(2)[None])
    posterior = Posterior(law.model(sg.VP()), Mask([True, False]), torch.tensor([Y]), NOISE)
    chain = published.Chain(posterior, (1, 2), 0, 100)
    rho = (chain.sigma / chain.alpha).tolist()
    assert rho[-1] < NOISE < rho[0]
    x = published.ddrm(posterior, (n, 2), seed=1).x
    for i, seen in enumerate((True, False)):
        mean, var = law_of_ddrm(rho, seen)
        assert float(x[:, i].mean()) == pytest.approx(mean, abs=5 * (var / n) ** 0.5)
        assert float(x[:, i].var()) == pytest.approx(var, rel=5 * (2 / n) ** 0.5)


def test_each_row_may_have_an_observation_of_its_own(published: ModuleType) -> None:
    law = sg.GaussianMixture([1.0], [[MEAN, MEAN]], STD**2 * torch.eye(2)[None]).model(sg.VP())
    ys = torch.tensor([[-1.0], [1.0]]).repeat(200, 1)
    posterior = Posterior(law, Mask([True, False]), sg.Rows(ys), 0.05)
    for name, method in published.METHODS.items():
        if "DPS" not in name and "RePaint" not in name:
            x = method(posterior, (400, 2), seed=1).x
            assert float((x[:, :1] - ys).square().mean()) < 0.05, name
