r"""Gaussian closure: the exact law of every fixed-step sampler's output, to 1e-9.

For Gaussian data the score is affine, so a sampler's output is an affine function of its draws. One batched call reads
the function off: the first row is fed zeros for every draw, and each further row a single unit entry of a single draw.
Mean and covariance are compared with the recursions of `recursions.py`, which share no code with the package.
"""

import numpy as np
import pytest

import sde_gen as sg
from tests.properties import curves, recursions
from tests.properties.discovery import (
    ALL_GRIDS,
    BRIEF,
    CHAINS,
    CONTINUOUS,
    GRIDS,
    PERTURBATIONS,
    SAMPLERS,
    UNNAMED_GRIDS,
    Case,
    gaussian,
    oracle,
)
from tests.properties.reading import law_of

DIM = 4
MEAN, COV = gaussian(DIM)
COUNTS = (1, 2, 7, 100)


def check_law(sampler: sg.GridSampler, name: str, case: Case, times: list[float], denoise: bool) -> None:
    q = recursions.Problem(MEAN, COV, curves.CURVES[name])
    expected = recursions.run(q, times, case, denoise)
    mean, cov, _ = law_of(sampler, oracle(MEAN, COV, PERTURBATIONS[name]), DIM, q.drawn)
    what = f"{sampler} under {PERTURBATIONS[name]} at {len(times)} times"
    # Relative to the size of the law itself, which an unstable coarse step makes large.
    spread = max(1.0, float(np.abs(expected.covariance).max()))
    size = max(1.0, float(np.abs(expected.m).max()))
    if case.order is not None and case.order > 3:  # cubics on long steps: large states and weights, which cancel
        spread, size = 10 * max(spread, q.largest), 10 * max(size, q.largest**0.5)
    np.testing.assert_allclose(mean, expected.m, rtol=0, atol=1e-9 * size, err_msg=what)
    np.testing.assert_allclose(cov, expected.covariance, rtol=0, atol=1e-9 * spread, err_msg=what)


def number_of_times(case: Case, n: int, denoise: bool) -> int:
    return n if denoise or case.rule in ("annealed", "consistent") else n + 1


@pytest.mark.parametrize(
    ("sampler", "name"), [(s, name) for s, c in SAMPLERS.items() for name in (BRIEF if c.brief else PERTURBATIONS)]
)
def test_law_on_the_default_grid(sampler: str, name: str) -> None:
    case, curve = SAMPLERS[sampler], curves.CURVES[name]
    runs = [(n, denoise) for n in COUNTS for denoise in (True, False)]
    if case.rule == "corrected" and sampler not in LONG_PC:
        # Its parts are tested at 100 alone, and the way they are joined at 1, 2 and 7.
        runs = [(1, True), (2, False), (7, True), (7, False)] if case.corrector_steps else [(7, True)]
    for n, denoise in runs:
        kind = case.nodes if name in CHAINS else case.default
        times = curves.grid(curve, kind, number_of_times(case, n, denoise))
        check_law(case.make(steps=n, denoise=denoise), name, case, times, denoise)


LONG_PC = {"PC(ReverseDiffusion, 2)", "PC(Ancestral(small), 1)", "PC(None, 1)", "PC(DPMSolverPP2M, 1)"}


@pytest.mark.parametrize(
    ("sampler", "kind"),
    [
        (name, kind)
        for name, c in SAMPLERS.items()
        for kind in (*c.grids, *(UNNAMED_GRIDS if c.grids == ALL_GRIDS else ()))
    ],
)
def test_law_on_every_grid(sampler: str, kind: str) -> None:
    case = SAMPLERS[sampler]
    names = CHAINS if kind == "nodes" else list(PERTURBATIONS)
    if case.brief:
        names = [name for name in names if name in BRIEF]
    if case.rule == "corrected":  # the predictor alone is tested under all of them
        names = [name for name in names if name in ("SubVP", "NCSN")]
    for name in names:
        for n, denoise in ((7, True), (5, False)):
            times = curves.grid(curves.CURVES[name], kind, number_of_times(case, n, denoise))
            check_law(
                case.make(steps=n, denoise=denoise, grid=(GRIDS | UNNAMED_GRIDS)[kind]), name, case, times, denoise
            )


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("sampler", ["ReverseDiffusion", "Ancestral(small)", "Ancestral(large)", "DDIM(eta=1)"])
def test_law_on_all_nodes_of_a_chain(sampler: str, name: str) -> None:
    case, curve = SAMPLERS[sampler], curves.CURVES[name]
    given = None if case.make().uses_chain_nodes else curve.nodes
    check_law(case.make(steps=given), name, case, curves.grid(curve, "nodes", curve.nodes), True)


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("sampler", [name for name, c in SAMPLERS.items() if c.predictor is None and not c.brief])
def test_law_on_a_given_list_of_times(sampler: str, name: str) -> None:
    """An uneven list; the multistep rules use the ratio of neighbouring steps."""
    case = SAMPLERS[sampler]
    times = [0.9, 0.75, 0.74, 0.5, 0.2, 0.15, 0.1]
    for denoise in (True, False):
        check_law(case.make(grid=times, denoise=denoise), name, case, times, denoise)


def test_the_readings_depend_on_every_draw() -> None:
    """The method itself: a map with a draw left out, or used twice, has another covariance."""
    model = oracle(MEAN, COV, PERTURBATIONS["VP"])
    sampler = sg.PredictorCorrector(corrector=sg.Langevin(step="fixed", snr=0.1), steps=4)
    _, cov, linear = law_of(sampler, model, DIM, DIM * (1 + 4 + 3))
    assert (np.abs(linear).max(0) > 1e-6).all()
    np.testing.assert_allclose(cov, sum(np.outer(c, c) for c in linear.T), atol=1e-12)
