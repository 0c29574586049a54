"""What is made of the likelihoods of single samples."""

import math

import pytest
import torch

from sde_gen.data import Affine, Mixture
from sde_gen.errors import SolverError
from sde_gen.evaluation import held_out_likelihood, likelihood
from sde_gen.evaluation.likelihood import Values
from tests.evaluation.helpers import constant_model


def _solver(monkeypatch: pytest.MonkeyPatch, values: Values, asked: list | None = None) -> None:
    def solver(*arguments):
        if asked is not None:
            asked.append(arguments)
        return values

    monkeypatch.setattr(likelihood, "_ode", solver)
    monkeypatch.setattr(likelihood, "_bound", solver)


def test_means_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    log_prob, bits = torch.tensor([-1.0, -2.0, -6.0]), torch.tensor([1.0, 2.0, 3.0])
    _solver(monkeypatch, Values(log_prob, bits, torch.tensor([0.3, 0.4, 0.0]), torch.tensor([10, 20, 60])))
    found = held_out_likelihood("ode", constant_model(), torch.zeros(3, 2), Affine())
    assert (found.nll, found.bits_per_dim, found.n, found.nfe) == (3.0, 2.0, 3, 30.0)
    assert found.nll_error == pytest.approx(math.sqrt(7.0 / 3))
    assert found.bits_per_dim_error == pytest.approx(math.sqrt(1.0 / 3))
    assert found.probe_error == pytest.approx(0.5 / 3)
    assert found.exact_nll is None
    assert found.failed == {}


def test_samples_that_fail_are_named_and_the_others_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    nan = math.nan
    values = Values(
        torch.tensor([nan, -1.0, -3.0, math.inf]), torch.tensor([nan, 1.0, 3.0, 1.0]), torch.full((4,), nan),
        torch.tensor([900, 10, 20, 30]), {0: "out of budget"},
    )  # fmt: skip
    _solver(monkeypatch, values)
    found = held_out_likelihood(
        "ode", constant_model(), torch.zeros(4, 2), Affine(), indices=torch.tensor([5, 7, 8, 11])
    )
    assert (found.nll, found.n, found.nfe) == (2.0, 2, 15.0)
    assert found.failed == {5: "out of budget", 11: "its log-density is NaN or infinite"}
    assert found.indices.tolist() == [7, 8]
    assert found.log_prob.tolist() == [-1.0, -3.0]
    assert found.probe_error is None, "one probe tells nothing of its spread"
    assert found.to_dict()["failed"] == {"5": "out of budget", "11": "its log-density is NaN or infinite"}


def test_no_sample_left_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _solver(monkeypatch, Values(torch.full((2,), math.nan), torch.zeros(2), failed={0: "out of budget"}))
    with pytest.raises(SolverError, match="none of the 2 held-out samples has a likelihood: out of budget"):
        held_out_likelihood("ode", constant_model(), torch.zeros(2, 2), Affine())


def test_the_exact_law_gives_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    _solver(monkeypatch, Values(torch.tensor([0.0, math.nan]), torch.tensor([0.0, 0.0])))
    law = Mixture(torch.ones(1).double(), torch.zeros(1, 2).double(), torch.eye(2).double()[None])
    found = held_out_likelihood("vlb", constant_model(), torch.tensor([[1.0, 0.0], [9.0, 9.0]]), Affine(), law=law)
    assert found.exact_nll == pytest.approx(math.log(2 * math.pi) + 0.5)
