"""What the page on extending shows works as it stands, and what it builds is as good as what is built in."""

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import sde_gen as sg

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    """The names that the page's examples define, run in turn as one module."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    module = types.ModuleType("shown_in_extending")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile("\n".join(blocks), str(PAGE), "exec"), module.__dict__)  # noqa: S102 - the page is ours
    return module.__dict__


def test_the_curve_is_all_that_is_asked(shown: dict[str, Any]) -> None:
    p = shown["Cubic"](beta_min=0.1, beta_max=20.0)
    t = torch.tensor([0.05, 0.3, 0.8], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(p.alpha(t).log().sum(), t)
    torch.testing.assert_close(p.drift(t.detach()), slope, rtol=1e-10, atol=0.0)
    # variance-preserving: g^2 = -2 f
    torch.testing.assert_close(p.diffusion(t.detach()).square(), -2 * slope, rtol=1e-10, atol=0.0)
    assert sg.DDIM(steps=5)(sg.GaussianMixture([1.0], [[0.0]], [[[1.0]]]).model(p), (3, 1), seed=0).x.shape == (3, 1)


def test_the_step_is_all_that_is_asked(shown: dict[str, Any]) -> None:
    """A Gaussian's denoiser is affine: without noise both rules agree, and each unit of noise has half its effect."""
    sampler, ancestral = shown["HalfAncestral"](steps=20), sg.Ancestral(steps=20)
    exact = sg.GaussianMixture([1.0], [[0.5]], [[[0.2]]]).model(sg.VP())
    start = torch.full((1, 1), 0.3, dtype=torch.float64)

    def ends(rule: sg.Sampler, at: int | None) -> torch.Tensor:
        def one(like: torch.Tensor, step: int, draw: int) -> torch.Tensor:
            return torch.full_like(like, float(step == at))

        return rule(exact, start=start, noise=one).x

    without = ends(sampler, None)
    torch.testing.assert_close(without, ends(ancestral, None), rtol=0.0, atol=1e-12)
    for step in (0, 5, 12):
        full = ends(ancestral, step) - without
        assert full.abs() > 1e-9
        torch.testing.assert_close(ends(sampler, step) - without, 0.5 * full, rtol=1e-6, atol=1e-14)
    drawn, again = sampler(exact, (100, 1), seed=0).x, sampler(exact, (20, 1), seed=0).x
    torch.testing.assert_close(drawn[:20], again, rtol=0.0, atol=1e-6)


def test_what_it_predicts_is_all_that_is_asked(shown: dict[str, Any]) -> None:
    network, p = shown["Tiny"](), sg.VP()
    x, t = torch.randn(4, 2), torch.full((4,), 0.5)
    once = sg.ScoreModel(network, p, sg.NoisePrediction())(x, t).noise
    twice = sg.ScoreModel(network, p, shown["HalfNoise"]())(x, t).noise
    torch.testing.assert_close(twice, 2 * once, rtol=1e-4, atol=1e-5)
