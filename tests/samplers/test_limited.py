"""The limited multistep rule: its terms, its limits, its order."""

import math
from itertools import pairwise

import pytest
import torch

import sde_gen as sg
from sde_gen.samplers.limited import limited

LAW = sg.GaussianMixture([0.5, 0.3, 0.2], [[1.0, 0.3], [-0.8, 0.9], [-0.2, -1.1]],
                         [[[0.25, 0.1], [0.1, 0.2]], [[0.1, -0.03], [-0.03, 0.3]],
                          [[0.4, 0.0], [0.0, 0.12]]])  # fmt: skip
START = torch.randn(40, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
PERTURBATIONS = (sg.VP(), sg.VE(), sg.FlowMatching(), sg.DDPM())


def run(sampler: sg.Sampler, p: sg.Perturbation, **given: object) -> torch.Tensor:
    model = LAW.model(p)
    return sampler(model, start=START * float(p.sigma(model.times_within()[1])), **given).x


@pytest.mark.parametrize("p", PERTURBATIONS, ids=str)
@pytest.mark.parametrize(("order", "n"), [(2, 9), (3, 9), (3, 2)])
def test_without_limits_it_is_the_rule_of_its_highest_order(p: sg.Perturbation, order: int, n: int) -> None:
    whole = run(sg.UniPC(order=order, prediction="velocity", steps=n), p)
    for least in range(2, order + 1):
        given = run(sg.LimitedUniPC(order=order, least=least, limit=1e12, steps=n), p)
        torch.testing.assert_close(given, whole, rtol=0, atol=1e-9)


def test_terms_are_limited_by_the_one_before() -> None:
    """By the formula, on numbers: |T| = 5, 13 and 1 with limit 1/2, and of a sample a thousand times larger."""
    known = [torch.tensor([[3.0, 4.0], [3000.0, 4000.0]], dtype=torch.float64),
             torch.tensor([[5.0, 12.0], [5000.0, 12000.0]], dtype=torch.float64),
             torch.tensor([[0.3, 0.4], [300.0, 400.0]], dtype=torch.float64)]  # fmt: skip
    given = list(zip(known, (1.0, 1.0, -2.0), strict=True))
    first, second, third = (factor * term * (1 if phi is None else phi) for term, factor, phi in limited(given, 0.5))
    share = 1 / math.sqrt(1 + (13 / 2.5) ** 2)
    last = 1 / math.sqrt(1 + (1 / (0.5 * 13 * share)) ** 2)
    torch.testing.assert_close(first, known[0])
    torch.testing.assert_close(second, share * known[1])
    torch.testing.assert_close(third, last * -2 * known[2])


def test_a_sample_that_does_not_move_is_no_division_by_zero() -> None:
    _, (zeros, _, phi) = limited([(torch.zeros(3, 2), 1.0), (torch.zeros(3, 2), 2.0)], 0.25)
    assert bool((zeros * phi == 0).all())
    _, (ones, _, phi) = limited([(torch.zeros(3, 2), 1.0), (torch.ones(3, 2), 1.0)], 0.25)
    assert bool((ones * phi == 0).all())  # nothing before it: nothing of it
    assert len(list(limited([(torch.ones(3, 2), 0.0), (torch.ones(3, 2), 1.0)], 0.25))) == 1


@pytest.mark.parametrize(("least", "order"), [(2, 4), (3, 5)])
def test_the_order_is_that_of_the_highest_term(least: int, order: int) -> None:
    p = sg.VP()
    ends = [float(p.time(lam)) for lam in (-3.0, 2.5)]
    model = LAW.model(p)
    start = START * float(p.sigma(ends[0]))

    def state(sampler: type, n: int, **given: object) -> torch.Tensor:
        grid = sg.UniformLambda().times(p, n + 1, ends[1], ends[0]).tolist()
        return sampler(grid=grid, denoise=False, **given)(model, start=start).x

    truth = state(sg.AdamsBashforth, 4000, order=4, prediction="velocity")
    errors = [float((state(sg.LimitedUniPC, n, least=least, order=order) - truth).norm()) for n in (80, 160, 320)]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes[-1] > order - 0.5


def test_a_sample_depends_on_itself_alone() -> None:
    together = run(sg.LimitedUniPC(steps=7), sg.VP())
    assert torch.equal(together, run(sg.LimitedUniPC(steps=7), sg.VP(), chunk=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1, 3])
def test_a_sample_is_the_same_to_the_last_bit_in_batches_of_all_sizes(dtype: torch.dtype, size: int) -> None:
    """With a network that works on each number alone; products of matrices round otherwise where they are wider."""
    model = sg.ScoreModel(lambda x, c_noise: torch.tanh(2 * x), sg.VP(), sg.DataPrediction())
    start = torch.randn(211, size, generator=torch.Generator().manual_seed(2), dtype=dtype)
    fitted = sg.Fitted(lambdas=(-4, -1, 0, 1, 2), of_state=(0.9, 0.8, 0.7, 0.6, -0.1),
                       of_estimates=((0.1,), (0.3, -0.1), (0.2, 0.3, 0.1), (0.3, 0.1, 0.2, 0.1), (1.0,)))  # fmt: skip
    steps = sg.FittedSteps(lambdas=(-4, -1, 0, 1, 2), of_terms=[(0.1, 1.0, 0.9, 1.1)] * 4)
    for sampler in (sg.LimitedUniPC(steps=7), sg.LimitedUniPC(steps=7, least=3, order=5), fitted, steps):
        together = sampler(model, start=start).x
        for chunk in (1, 5, 16, 64, 200):
            assert torch.equal(together, sampler(model, start=start, chunk=chunk).x), (sampler, chunk)


def test_arguments() -> None:
    with pytest.raises(sg.ConfigError, match="least is at most order, got 4 and 3"):
        sg.LimitedUniPC(order=3, least=4)
    with pytest.raises(sg.ConfigError, match="order"):
        sg.LimitedUniPC(order=6)
    with pytest.raises(sg.ConfigError, match="limit"):
        sg.LimitedUniPC(limit=0.0)
