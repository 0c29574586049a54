"""Differences with their errors, ranks, and findings."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

import sde_gen as sg
from sde_gen.comparison.numbers import with_error
from sde_gen.comparison.ranking import difference, mean_of, ranking

REAL = {"energy_distance": 1.0}


def test_a_paired_difference_is_that_of_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.5, 3.0):
        seed_effect = 5 * rng.standard_normal(6)
        a, b = seed_effect + rng.standard_normal(6), seed_effect + shift + rng.standard_normal(6)
        found = difference(dict(enumerate(a)), dict(enumerate(b)))
        assert found is not None
        test = ttest_rel(a, b)
        interval = test.confidence_interval(0.95)
        assert found.mean == pytest.approx((a - b).mean())
        assert found.mean + found.half == pytest.approx(interval.high)
        assert found.mean - found.half == pytest.approx(interval.low)
        assert found.sign == (0 if test.pvalue > 0.05 else -1)


def test_only_common_seeds_are_paired_and_one_seed_tells_nothing() -> None:
    found = difference({0: 1.0, 1: 2.0, 2: 9.0}, {0: 1.5, 1: 2.5, 3: 0.0})
    assert found is not None
    assert (found.mean, found.n, found.sign) == (-0.5, 2, -1)
    one = difference({0: 1.0}, {0: 5.0})
    assert one is not None
    assert (one.half, one.sign) == (None, 0)
    assert difference({0: 1.0}, {1: 1.0}) is None


def test_rounding_is_no_difference() -> None:
    a = {s: 1.0 + s for s in range(4)}
    found = difference(a, {s: v * (1 + 1e-12) for s, v in a.items()})
    assert found is not None
    assert found.sign == 0


def test_ranks_are_the_range_that_the_errors_leave_open() -> None:
    wobble = {0: -0.1, 1: 0.1, 2: 0.05, 3: -0.05}
    values = {
        ("A", "x", 8): {s: 1.0 + w for s, w in wobble.items()},
        ("B", "x", 8): {s: 1.01 - w for s, w in wobble.items()},
        ("C", "x", 8): {s: 5.0 + w for s, w in wobble.items()},
    }
    first, second, third = ranking(values)
    assert [line.entry[0] for line in (first, second, third)] == ["A", "B", "C"]
    assert [(line.rank, line.last) for line in (first, second, third)] == [(1, 2), (1, 2), (3, 3)]
    assert first.behind is None
    assert second.behind is not None
    assert second.behind.sign == 0
    assert third.behind is not None
    assert third.behind.sign == 1
    assert third.behind.mean == pytest.approx(4.0)


def test_the_mean_and_its_error() -> None:
    m = mean_of([1.0, 2.0, 3.0, 4.0])
    assert (m.mean, m.n) == (2.5, 4)
    assert m.error == pytest.approx(np.std([1, 2, 3, 4], ddof=1) / 2)
    assert mean_of([2.0]).error is None


@pytest.mark.parametrize(
    ("mean", "error", "sign", "told"),
    [
        (0.0123456, 0.00123, False, "0.0123 ± 0.0012"),
        (4.4e-6, 0.0014, True, "+0.0000 ± 0.0014"),
        (-12.3, 25.0, True, "-12 ± 25"),
        (0.012344, None, False, "0.01234"),
        (0.5, 0.0, False, "0.5"),
        (0.5, float("nan"), False, "0.5"),
        (1e-12, 1e-13, False, "1e-12 ± 1e-13"),
    ],
)
def test_a_number_has_the_digits_that_its_error_leaves(mean: float, error: float, sign: bool, told: str) -> None:
    assert with_error(mean, error, sign) == told


# -- findings ----------------------------------------------------------------------------------------------------------


def rows(**values: list[float]) -> list[dict[str, Any]]:
    """Rows of formulations, seed by seed."""
    return [
        {"formulation": f, "sampler": "s", "budget": 8, "seed": i, "status": "ok", "energy_distance": v, "c2st": v}
        for f, listed in values.items()
        for i, v in enumerate(listed)
    ]


A, B = {"formulation": "A"}, {"formulation": "B"}


@pytest.mark.parametrize(
    ("finding", "values", "verdict"),
    [
        ({"better": A, "than": B}, {"A": [1, 2, 3], "B": [2, 3.1, 4]}, "pass"),
        ({"better": B, "than": A}, {"A": [1, 2, 3], "B": [2, 3.1, 4]}, "fail"),
        ({"better": A, "than": B}, {"A": [1, 2, 3], "B": [2, 1, 4]}, "tie"),
        ({"better": A, "than": B}, {"A": [1], "B": [2]}, "tie"),
        ({"better": A, "than": B}, {"A": [1, 2]}, "no data"),
        # For classifier accuracy the nearer to one half the better.
        ({"better": A, "than": B, "measure": "c2st"}, {"A": [0.4, 0.41], "B": [0.8, 0.81]}, "pass"),
        ({"equal": A, "to": B}, {"A": [1, 2], "B": [1 + 1e-9, 2]}, "pass"),
        ({"equal": A, "to": B}, {"A": [1, 2], "B": [1, 2.1]}, "fail"),
        ({"equal": A, "to": B, "tolerance": 0.1}, {"A": [1, 2], "B": [1, 2.1]}, "pass"),
        ({"below": A, "limit": 2.0}, {"A": [1.5, 2.4]}, "pass"),
        ({"below": A, "limit": 2.0}, {"A": [1.5, 2.6]}, "fail"),
        ({"below": A, "limit": 2.0}, {"B": [1.5, 2.6]}, "no data"),
    ],
)
def test_verdicts(finding: dict[str, Any], values: dict[str, list[float]], verdict: str) -> None:
    found = sg.Finding(claim="a claim", **finding).check(rows(**values), [], REAL, "energy_distance")
    assert (found["claim"], found["verdict"]) == ("a claim", verdict)


def test_what_a_selection_leaves_open_is_paired() -> None:
    # B is better at one budget and worse at the other; together, a tie.
    table = [{**row, "budget": b, "energy_distance": row["energy_distance"] * (1 if b == 8 else f)}
             for b, f in ((8, 1.0), (16, 1.0)) for row in rows(A=[1, 1, 1], B=[1, 1, 1])]  # fmt: skip
    for i, row in enumerate(table):
        row["energy_distance"] += (0.5 if row["budget"] == 8 else -0.5) * (row["formulation"] == "B") + 1e-3 * (i % 3)
    every = sg.Finding(claim="", better=A, than=B).check(table, [], REAL, "energy_distance")
    at_8 = sg.Finding(claim="", better={**A, "budget": 8}, than={**B, "budget": 8}).check(
        table, [], REAL, "energy_distance"
    )
    assert (every["verdict"], at_8["verdict"]) == ("tie", "pass")


def test_findings_about_orders() -> None:
    def order(fitted: float, error: float = 0.01) -> dict[str, Any]:
        return {
            "formulation": "A",
            "sampler": "s",
            "status": "ok",
            "fitted": fitted,
            "claimed": 2.0,
            "standard_error": error,
        }

    finding = sg.Finding(claim="", order_of={})
    assert finding.check([], [order(1.95), order(2.4)], REAL, "energy_distance")["verdict"] == "pass"
    assert finding.check([], [order(1.95), order(1.8)], REAL, "energy_distance")["verdict"] == "fail"
    assert finding.check([], [order(1.95), order(1.8, 0.1)], REAL, "energy_distance")["verdict"] == "pass"
    assert finding.check([], [{**order(1.0), "status": "skipped"}], REAL, "energy_distance")["verdict"] == "no data"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "give one of"),
        ({"better": A}, "better needs than"),
        ({"below": A}, "below needs limit"),
        ({"better": A, "than": B, "order_of": {}}, "give one of"),
        ({"better": {"sampelr": "x"}, "than": B}, "did you mean 'sampler'"),
    ],
)
def test_bad_findings_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(sg.ConfigError, match=words):
        sg.Finding(claim="a claim", **arguments)
