"""Time grids against their definitions, written out in numpy in `tests/properties/curves.py`."""

import contextlib
import math
from functools import partial

import numpy as np
import pytest
import torch

import sde_gen as sg
from sde_gen.samplers.grids import as_grid
from tests.properties import curves
from tests.properties.discovery import (
    CHAINS,
    CONTINUOUS,
    DEFAULTS,
    GRIDS,
    PERTURBATIONS,
    UNNAMED_GRIDS,
    concrete_subclasses,
)  # fmt: skip

NAMES = [n for n in GRIDS | UNNAMED_GRIDS if not n.endswith("nodes")]


def ends(p: sg.Perturbation) -> tuple[float, float]:
    return p.t_sample, p.t_max


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("name", PERTURBATIONS)
def test_times_follow_the_definition(name: str, kind: str) -> None:
    p, curve = PERTURBATIONS[name], curves.CURVES[name]
    low, high = ends(p)
    assert (low, high) == (curve.t_low, curve.t_max)
    for n in (1, 2, 3, 10, 101):
        times = (GRIDS | UNNAMED_GRIDS)[kind].times(p, n, low, high)
        assert times.dtype == torch.float64
        assert times.shape == (n,)
        assert times[0] == high  # the ends exactly as asked
        if n > 1:
            assert times[-1] == low
            assert (times[1:] < times[:-1]).all()
        # Where sigma hardly changes with t, t(lambda) is known to the rounding of lambda only.
        expected = [curve.lam(t) for t in curves.grid(curve, kind, n)]
        np.testing.assert_allclose([curve.lam(t) for t in times.tolist()], expected, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(times, curves.grid(curve, kind, n), rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", NAMES)
def test_other_ends(kind: str) -> None:
    times = (GRIDS | UNNAMED_GRIDS)[kind].times(sg.VP(), 4, 0.2, 0.7)
    assert times[[0, -1]].tolist() == [0.7, 0.2]
    middle = {"uniform": 0.7 - 0.5 / 3, "quadratic": (0.7**0.5 + (0.2**0.5 - 0.7**0.5) / 3) ** 2}
    if kind in middle:
        assert times[1].item() == pytest.approx(middle[kind], rel=1e-14)


def test_karras_exponent() -> None:
    """On EDM's own process a grid uniform in t is Karras's of the same rho; rho = 1 is uniform in sigma/alpha."""
    for rho in (1.0, 3.0, 7.0):
        p = sg.EDM(rho=rho)
        torch.testing.assert_close(
            sg.KarrasRho(rho).times(p, 9, 0.0, 1.0), sg.UniformTime().times(p, 9, 0.0, 1.0), rtol=1e-12, atol=1e-14
        )
    p = sg.FlowMatching()
    times = sg.KarrasRho(1.0).times(p, 5, 0.1, 0.9)
    ratio = times / (1 - times)
    torch.testing.assert_close(ratio[1:] - ratio[:-1], (ratio[-1:] - ratio[:1]).expand(4) / 4)


@pytest.mark.parametrize("length", [2, 3, 10, 37, 100, 201])
def test_chain_nodes_are_distinct_nodes_for_every_count(length: int) -> None:
    chain = sg.NCSN(levels=length)
    for n in range(1, length + 1):
        times = sg.ChainNodes().times(chain, n, chain.t_sample, chain.t_max)
        index = (times * length).round().long()
        assert torch.equal(times, chain.nodes[index - 1])
        assert len(set(index.tolist())) == n
        assert index[0] == length
        assert n == 1 or index[-1] == 1
        gaps = index[:-1] - index[1:]
        assert n == 1 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)  # even
    with pytest.raises(sg.ConfigError, match=f"{length + 1} times asked of {length} nodes"):
        sg.ChainNodes().times(chain, length + 1, chain.t_sample, chain.t_max)


@pytest.mark.parametrize("chain", [sg.DDPM(100), sg.DDPM(37, schedule="cosine"), sg.NCSN(levels=20)], ids=str)
def test_chain_nodes_even_in_lambda(chain: sg.Perturbation) -> None:
    """Distinct nodes between the ends for every count; where they are far apart, the nearest to even lambdas."""
    lam = chain.half_log_snr(chain.nodes)
    for n in range(1, chain.length + 1):
        times = sg.ChainNodes("lambda").times(chain, n, chain.t_sample, chain.t_max)
        index = (times * chain.length).round().long()
        assert torch.equal(times, chain.nodes[index - 1])
        assert index[0] == chain.length
        assert n == 1 or (index[-1] == 1 and (index[:-1] > index[1:]).all())
    n = 6
    index = (sg.ChainNodes("lambda").times(chain, n, chain.t_sample, chain.t_max) * chain.length).round().long()
    want = torch.linspace(float(lam[-1]), float(lam[0]), n, dtype=torch.float64)
    assert torch.equal(index - 1, (lam[None] - want[:, None]).abs().argmin(1))
    with pytest.raises(sg.ConfigError, match=f"{chain.length + 1} times asked"):
        sg.ChainNodes("lambda").times(chain, chain.length + 1, chain.t_sample, chain.t_max)


def test_what_chain_nodes_takes() -> None:
    with pytest.raises(sg.ConfigError, match="ChainNodes: even_in must be one of"):
        sg.ChainNodes("sigma")


def test_chain_nodes_within_other_ends() -> None:
    chain = sg.NCSN(levels=10)
    assert sg.ChainNodes().times(chain, 4, 0.3, 0.9).tolist() == pytest.approx([0.9, 0.7, 0.5, 0.3])
    assert sg.ChainNodes().times(chain, 9, 0.0, 0.9).tolist() == pytest.approx([k / 10 for k in range(9, 0, -1)])
    with pytest.raises(sg.ConfigError, match="8 times asked of 7 nodes"):
        sg.ChainNodes().times(chain, 8, 0.3, 0.9)


def test_single_node_chain() -> None:
    chain = sg.DDPM(steps=1, schedule="cosine")
    assert sg.ChainNodes().times(chain, 1, chain.t_sample, chain.t_max).tolist() == [1.0]
    assert sg.Ancestral().times(sg.GaussianMixture([1.0], [[0.0]], [[[1.0]]]).model(chain)).tolist() == [1.0]


def test_given_lists() -> None:
    times = sg.GivenTimes((0.9, 0.25, 0.0))
    assert times.length == 3
    assert times.times(sg.VE(), 3, 0.5, 0.6).tolist() == [0.9, 0.25, 0.0]  # as given, whatever the model's range
    assert times.times(sg.VE(), 3, 0.5, 0.6).dtype == torch.float64
    lams = sg.GivenLambdas((-2.0, 0.5, 3.0))
    assert lams.length == 3
    assert lams.values == (-2.0, 0.5, 3.0)
    for name in CONTINUOUS:
        got = lams.times(PERTURBATIONS[name], 3, 0.0, 1.0)
        np.testing.assert_allclose([curves.CURVES[name].lam(t) for t in got.tolist()], lams.values, rtol=1e-11)
    for grid in (g for g in GRIDS.values()):
        assert grid.length is None


def test_what_grid_takes() -> None:
    assert as_grid("karras") == sg.KarrasRho()
    assert as_grid(torch.tensor([0.5, 0.25])) == sg.GivenTimes((0.5, 0.25))
    assert as_grid((0.5, 0.25)) == sg.GivenTimes((0.5, 0.25))
    grid = sg.KarrasRho(3.0)
    assert as_grid(grid) is grid
    assert sg.DDIM(grid=[0.5, 0.25]).grid == sg.GivenTimes((0.5, 0.25))
    assert hash(sg.DDIM(grid=[0.5, 0.25])) == hash(sg.DDIM(grid=(0.5, 0.25)))


def model(p: sg.Perturbation) -> sg.ScoreModel:
    return sg.GaussianMixture([1.0], [[0.0]], [[[1.0]]]).model(p)


@pytest.mark.parametrize("kind", sorted(concrete_subclasses(sg.GridSampler) - {sg.Fitted, sg.FittedSteps}, key=str))
def test_default_grids_and_step_counts(kind: type) -> None:
    assert kind.__name__ in DEFAULTS, f"say in DEFAULTS how many steps {kind.__name__} takes, and on which grid"
    n, grid, own = DEFAULTS[kind.__name__]  # own: all nodes of a chain
    extra = kind.__name__ != "AnnealedLangevin"
    if kind is sg.Restart:  # without intervals: with them it visits more
        kind = partial(sg.Restart, intervals=())
    p, all_grids = sg.VP(), GRIDS | UNNAMED_GRIDS
    assert torch.equal(kind().times(model(p)), all_grids[grid].times(p, n, *ends(p)))
    assert torch.equal(kind(denoise=False).times(model(p)), all_grids[grid].times(p, n + extra, *ends(p)))
    assert len(kind(steps=7).times(model(p))) == 7
    assert len(kind(steps=7, denoise=False).times(model(p))) == 7 + extra
    for length in (40, 1500):
        chain = sg.NCSN(levels=length)
        for denoise in (True, False):
            times = kind(denoise=denoise).times(model(chain))
            count = length if own else min(n + (not denoise), length)
            even_in = "lambda" if grid == "lambda" else "nodes"
            expected = sg.ChainNodes(even_in).times(chain, count, 1 / length, 1.0)
            assert torch.equal(times, expected), (length, denoise)
    ddpm = sg.DDPM()  # whose nodes are far from even in lambda
    expected = sg.ChainNodes(even_in).times(ddpm, 30, 1e-3, 1.0)
    assert torch.equal(kind(steps=30).times(model(ddpm)), expected)


def test_predictor_corrector_takes_its_predictor_s_grid() -> None:
    p = sg.VP()
    for predictor, grid in (
        (sg.Heun(), "karras"),
        (sg.DPMSolverPP2M(), "lambda"),
        (sg.DDIM(), "uniform"),
        (None, "uniform"),
    ):
        times = sg.PredictorCorrector(predictor=predictor, steps=9).times(model(p))
        assert torch.equal(times, GRIDS[grid].times(p, 9, *ends(p)))


def test_probability_flow_visits_the_ends() -> None:
    assert sg.ProbabilityFlow().times(model(sg.VP())).tolist() == [1.0, 1e-3]
    assert sg.ProbabilityFlow().times(model(sg.FlowMatching())).tolist() == [0.999, 1e-3]


@pytest.mark.parametrize("name", CHAINS)
def test_chain_times_hit_the_nodes_of_their_table(name: str) -> None:
    p, curve = PERTURBATIONS[name], curves.CURVES[name]
    for t, lam in zip(p.nodes.tolist(), curve.lams, strict=True):
        assert math.isclose(curve.lam(t), lam, rel_tol=1e-12, abs_tol=1e-13)


@pytest.mark.parametrize("beta", [1e3, 1e6, 1e12])
@pytest.mark.parametrize("rule", [sg.ExponentialSDE, sg.SDEDPMSolverPP, sg.StochasticHeun, sg.DDIM, sg.Heun, sg.UniPC])
def test_extreme_processes_end_in_an_answer_or_in_one_of_our_errors(rule: type, beta: float) -> None:
    model = sg.ScoreModel(lambda x, c: 0.1 * x, sg.VP(beta_max=beta))
    for grid in (None, "lambda", "karras", "quadratic", sg.ArctanLambda(width=0.01)):
        with contextlib.suppress(sg.SDEGenError):
            assert rule(steps=2, grid=grid)(model, (3, 2)).x.isfinite().all()


@pytest.mark.parametrize("kind", [sg.UniformTime, sg.UniformLambda, sg.KarrasRho, sg.ArctanLambda, sg.Quadratic])
@pytest.mark.parametrize("p", [sg.VP(), sg.VE(), sg.FlowMatching()], ids=str)
def test_a_grid_ends_where_it_is_told(kind: type[sg.TimeGrid], p: sg.Perturbation) -> None:
    """The same times as between those two ends, in samplers and likelihoods; a network no lower than it was trained."""
    given, oracle = kind(end=1e-4), sg.GaussianMixture([1.0], [[0.0]], [[[1.0]]]).model(p)
    times = sg.DDIM(steps=5, grid=given).times(oracle)
    assert times.tolist() == kind().times(p, 5, 1e-4, p.t_max).tolist()
    assert times[-1] == 1e-4
    ll = [sg.log_likelihood(oracle, torch.ones(1, 1), steps=40, **kw).log_prob
          for kw in ({"grid": given}, {"grid": kind(), "t_min": 1e-4})]  # fmt: skip
    assert torch.equal(*ll)
    trained = sg.VE(sigma_min=0.1, sigma_max=10.0)
    low = sg.DDIM(steps=5, grid=kind(end=0.0)).times(sg.ScoreModel(lambda x, t: x, trained).under(sg.EDM()))[-1]
    assert float(sg.EDM().sigma(low)) == pytest.approx(float(trained.sigma(trained.t_min)), rel=1e-9)


def test_a_chain_s_grid_ends_at_a_node() -> None:
    p = sg.DDPM(steps=100)
    oracle = sg.GaussianMixture([1.0], [[0.0]], [[[1.0]]]).model(p)
    for even_in in ("nodes", "lambda"):
        assert sg.DDIM(steps=5, grid=sg.ChainNodes(even_in, end=0.3)).times(oracle)[-1] == p.nodes[29]
    with pytest.raises(sg.ConfigError, match="end must be"):
        sg.ChainNodes(end=1.5)
