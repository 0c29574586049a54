"""Checks of arguments, and the errors with their exit codes."""

import copy
import math
import pickle

import pytest

import sde_gen as sg
from sde_gen import checks as check
from sde_gen import errors
from sde_gen.errors import ConfigError

INF = math.inf


@pytest.mark.parametrize(
    ("value", "limits"),
    [
        (1, {}),
        (-2.5, {}),
        (0.0, {"low": 0.0}),
        (1.0, {"high": 1.0}),
        (1e-300, {"low": 0.0, "open_low": True}),
        (0.999, {"high": 1.0, "open_high": True}),
    ],
)
def test_numbers_that_pass(value, limits):
    got = check.number("Here", "x", value, **limits)
    assert got == value
    assert type(got) is float


@pytest.mark.parametrize(
    ("value", "limits", "allowed"),
    [
        (-1e-9, {"low": 0.0}, "[0, inf)"),
        (0.0, {"low": 0.0, "open_low": True}, "(0, inf)"),
        (1.0, {"low": 0.0, "high": 1.0, "open_high": True}, "[0, 1)"),
        (1.1, {"low": 0.0, "high": 1.0}, "[0, 1]"),
        (math.nan, {}, "(-inf, inf)"),
        (INF, {}, "(-inf, inf)"),
        (-INF, {"high": 2.5, "open_low": True}, "(-inf, 2.5]"),
    ],
)
def test_numbers_out_of_range(value, limits, allowed):
    with pytest.raises(ConfigError) as info:
        check.number("Here", "x", value, **limits)
    assert str(info.value) == f"Here: x must be a finite number in {allowed}, got {value!r}"


@pytest.mark.parametrize("value", [True, False, "1", None, 1j, [1.0]])
def test_what_is_not_a_number(value):
    with pytest.raises(ConfigError) as info:
        check.number("Here", "x", value, low=0.0)
    assert str(info.value) == f"Here: x must be a number in [0, inf), got {value!r}"


def test_integers():
    assert check.integer("Here", "n", 1) == 1
    assert check.integer("Here", "n", 0, low=0) == 0
    assert check.integer("Here", "n", 5, low=2, high=5) == 5
    for value, limits, allowed in (
        (0, {}, "at least 1"),
        (6, {"low": 2, "high": 5}, "between 2 and 5"),
        (1, {"low": 2, "high": 5}, "between 2 and 5"),
        (1.0, {}, "at least 1"),
        (True, {}, "at least 1"),
        ("1", {}, "at least 1"),
        (None, {}, "at least 1"),
    ):
        with pytest.raises(ConfigError) as info:
            check.integer("Here", "n", value, **limits)
        assert str(info.value) == f"Here: n must be a whole number, {allowed}, got {value!r}"


def test_choices():
    assert check.choice("Here", "kind", "b", ["a", "b"]) == "b"
    with pytest.raises(ConfigError) as info:
        check.choice("Here", "kind", "likelihod", ("simple", "likelihood"))
    assert str(info.value) == (
        "Here: kind must be one of 'simple', 'likelihood', got 'likelihod'; did you mean 'likelihood'?"
    )
    for value in ("zzz", 3, None, ["a"]):
        with pytest.raises(ConfigError) as info:
            check.choice("Here", "kind", value, ("apple", "pear"))
        assert str(info.value) == f"Here: kind must be one of 'apple', 'pear', got {value!r}"


CODES = {
    "SDEGenError": (70, Exception),
    "ConfigError": (2, ValueError),
    "DataError": (65, ValueError),
    "CheckpointError": (65, Exception),
    "MissingInputError": (66, FileNotFoundError),
    "OutputError": (73, OSError),
    "WriteError": (74, OSError),
    "SolverError": (70, RuntimeError),
    "NonFiniteError": (70, ArithmeticError),
}


def test_every_error_has_its_exit_code():
    declared = {n for n in errors.__all__ if issubclass(getattr(errors, n), Exception)}
    declared -= {"BetweenNodesWarning", "CollapseWarning", "LateStartWarning", "PrecisionWarning", "UncompiledWarning"}
    assert declared == set(CODES)
    for name, (code, base) in CODES.items():
        cls = getattr(sg, name)
        assert cls is getattr(errors, name)
        assert cls.exit_code == code
        assert issubclass(cls, sg.SDEGenError)
        assert issubclass(cls, base)
    assert issubclass(sg.BetweenNodesWarning, UserWarning)
    assert issubclass(sg.PrecisionWarning, UserWarning)


@pytest.mark.parametrize("name", sorted(set(CODES) - {"NonFiniteError"}))
def test_messages_survive_a_process_boundary(name):
    error = getattr(sg, name)("what, where, what to do")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301
        assert type(other) is type(error)
        assert str(other) == str(error) == "what, where, what to do"


def test_non_finite_error():
    error = sg.NonFiniteError(3, 0.123456789, [4, 5])
    assert (error.step, error.t, error.indices) == (3, 0.123456789, (4, 5))
    assert str(error) == (
        "the state became NaN or infinite at step 3 (t = 0.123457) for samples [4, 5]; "
        "check the network's output there, or use more steps"
    )
    assert "for samples" not in str(sg.NonFiniteError(0, 1.0, []))
    assert "for samples [0, 1, 2, 3, 4, 5, 6, 7, ...]" in str(sg.NonFiniteError(0, 1.0, range(9)))
    assert "for samples [0, 1, 2, 3, 4, 5, 6, 7];" in str(sg.NonFiniteError(0, 1.0, range(8)))
    assert str(sg.NonFiniteError(0, 1.0, [], "loss")).startswith("the loss became")
    other = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (other.step, other.t, other.indices, str(other)) == (3, 0.123456789, (4, 5), str(error))


def test_non_finite_error_keeps_its_message_across_processes():
    error = sg.NonFiniteError(3, 0.5, [1], "slope")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301
