"""Which tensors of a condition have a row for each sample is said, the same way everywhere."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sde_gen as sg
from sde_gen.networks.mlp import looked_up

TABLE = torch.randn(6, 2, generator=torch.Generator().manual_seed(3))
SHIFT = torch.linspace(-1, 1, 6)
X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))


class Net(torch.nn.Module):
    """Each sample's shift, and what all share: a table that happens to have as many rows as there are samples."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.4))

    def forward(self, x: Tensor, c_noise: Tensor, shift: Tensor, table: Tensor, extra: Any = None) -> Tensor:
        assert table.shape == (6, 2)
        assert shift.shape == (len(x),)
        nested = 0.0 if extra is None else extra["deep"][0][:, None]
        return self.weight * x + 0.1 * shift[:, None] + 0.01 * table.sum(0) + nested


MODEL = sg.ScoreModel(Net(), sg.VP())
CONDITION = {"shift": SHIFT, "table": sg.Whole(TABLE), "extra": {"deep": [SHIFT * 0.3]}}
#: Of some of the samples, with what is said of them.
CALLS: dict[str, Callable[[slice, dict[str, Any]], Tensor]] = {
    "model": lambda rows, c: MODEL(X[rows], 0.3, condition=c).score,
    "sampler": lambda rows, c: sg.Ancestral(steps=3)(MODEL, (len(X[rows]), 2), seed=1, first=rows.start, condition=c).x,
    "adaptive": lambda rows, c: sg.ProbabilityFlow(rtol=1e-3, atol=1e-3)(MODEL, start=50 * X[rows], condition=c).x,
    "log_likelihood": lambda rows, c: (
        sg.log_likelihood(MODEL, X[rows], steps=6, condition=c, first=rows.start).log_prob
    ),
    "variational_bound": lambda rows, c: (
        sg.variational_bound(MODEL, X[rows], terms=3, condition=c, first=rows.start).log_prob
    ),
    "encode": lambda rows, c: sg.encode(MODEL, X[rows], rtol=1e-3, atol=1e-3, condition=c).x,
    "objective": lambda rows, c: sg.DenoisingScoreMatching()(
        MODEL, X[rows], c, t=torch.full((6,), 0.4)[rows], noise=TABLE[rows]
    ),
}


def _of(rows: slice) -> dict[str, Any]:
    return {"shift": SHIFT[rows], "table": sg.Whole(TABLE), "extra": {"deep": [SHIFT[rows] * 0.3]}}


@pytest.mark.parametrize("name", CALLS)
def test_rows_go_along_with_the_samples_and_what_is_shared_stays_whole(name: str) -> None:
    whole = CALLS[name](slice(0, 6), CONDITION)
    parts = [CALLS[name](rows, _of(rows)) for rows in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("chunk", [1, 2, 4, 6])
def test_chunks_change_nothing(chunk: int) -> None:
    whole = sg.DDIM(steps=3)(MODEL, (6, 2), seed=1, condition=CONDITION).x
    assert torch.allclose(sg.DDIM(steps=3)(MODEL, (6, 2), seed=1, condition=CONDITION, chunk=chunk).x, whole, atol=1e-6)
    padded = sg.DDIM(steps=3)(MODEL, (6, 2), seed=1, condition=CONDITION, chunk=chunk, deterministic=True).x
    assert torch.allclose(padded, whole, atol=1e-6)
    likelihood = sg.log_likelihood(MODEL, X, steps=6, condition=CONDITION, chunk=chunk).log_prob
    assert torch.allclose(likelihood, sg.log_likelihood(MODEL, X, steps=6, condition=CONDITION).log_prob, atol=1e-5)


@pytest.mark.parametrize("name", CALLS)
def test_another_number_of_rows_is_refused_not_guessed(name: str) -> None:
    with pytest.raises(sg.ConfigError, match=r"condition 'table' has 6 rows for 4 samples; .*Whole"):
        CALLS[name](slice(0, 4), {"shift": SHIFT[:4], "table": TABLE})
    with pytest.raises(sg.ConfigError, match=r"condition 'extra.deep.0' has 5 rows for 4 samples"):
        CALLS[name](slice(0, 4), {"shift": SHIFT[:4], "table": sg.Whole(TABLE), "extra": {"deep": [SHIFT[:5]]}})


def test_keywords_arrays_and_rows_are_the_same() -> None:
    expected = sg.DDIM(steps=2)(MODEL, (6, 2), condition={"shift": SHIFT, "table": sg.Whole(TABLE)}).x
    for given in (
        {"shift": SHIFT, "table": sg.Whole(TABLE)},
        {"shift": sg.Rows(SHIFT), "table": sg.Whole(TABLE.numpy())},
        {"shift": SHIFT.numpy(), "table": sg.Whole(TABLE)},
    ):
        assert torch.equal(sg.DDIM(steps=2)(MODEL, (6, 2), **given).x, expected)
        assert torch.equal(MODEL(X, 0.3, **given).score, MODEL(X, 0.3, condition=given).score)
    assert torch.equal(
        sg.log_likelihood(MODEL, X, steps=4, shift=SHIFT, table=sg.Whole(TABLE)).log_prob,
        sg.log_likelihood(MODEL, X, steps=4, condition={"shift": SHIFT, "table": sg.Whole(TABLE)}).log_prob,
    )


@pytest.mark.parametrize("network", [Net(), lambda x, c, **anything: x], ids=["named", "takes anything"])
def test_a_misspelt_argument_is_no_condition(network: Any) -> None:
    model = sg.ScoreModel(network, sg.VP())
    for call, word, meant in (
        (lambda: sg.DDIM(steps=2)(model, (2, 2), sede=3), "sede", "seed"),
        (lambda: sg.DDIM(steps=2)(model, (2, 2), conditions={}), "conditions", "condition"),
        (lambda: sg.DenoisingScoreMatching()(model, X, noises=X), "noises", "noise"),
        (lambda: sg.log_likelihood(model, X, step=3), "step", "steps"),
    ):
        with pytest.raises(sg.ConfigError, match=f"'{word}' is no argument of this call.*'{meant}'"):
            call()


def test_no_condition_is_none_that_a_network_has_to_take() -> None:
    plain = sg.ScoreModel(lambda x, c: x, sg.VP())
    assert torch.equal(sg.DDIM(steps=2)(plain, (2, 2), label=None).x, sg.DDIM(steps=2)(plain, (2, 2)).x)
    with pytest.raises(sg.ConfigError, match="'label' is no argument"):
        sg.DDIM(steps=2)(plain, (2, 2), label=1)
    told = []
    asked = sg.ScoreModel(lambda x, c, extra: told.append(extra) or x, sg.VP())
    sg.DDIM(steps=1)(asked, (2, 2), extra=None)
    assert set(told) == {None}


def test_given_twice() -> None:
    with pytest.raises(sg.ConfigError, match="'shift' is given twice"):
        sg.DDIM(steps=2)(MODEL, (6, 2), condition=CONDITION, shift=SHIFT)


def test_one_label_for_all() -> None:
    model = sg.ScoreModel(sg.MLP(features=2, hidden=8, layers=1, num_classes=3), sg.VP())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    each = sg.DDIM(steps=2)(model, (4, 2), label=torch.full((4,), 2)).x
    for one in (2, np.int64(2), torch.tensor(2), np.full(4, 2)):
        assert torch.equal(sg.DDIM(steps=2)(model, (4, 2), label=one).x, each)


def test_a_number_is_no_row() -> None:
    with pytest.raises(sg.ConfigError, match="Rows: expected a tensor with a row for each sample"):
        sg.Rows(torch.tensor(3.0))
    with pytest.raises(sg.ConfigError, match="condition must map names"):
        sg.DDIM(steps=2)(MODEL, (2, 2), condition=[1, 2])


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: sg.guidance.ClassifierFree(m, scale=2.0)])
def test_labels_out_of_range_are_refused_before_a_run(wrap, monkeypatch):
    """The network is not asked: on a GPU its table would end the process instead of saying so."""
    model = wrap(sg.ScoreModel(sg.MLP(2, hidden=8, layers=1, num_classes=3), sg.VP()))

    def asked(*_given):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.nn.functional, "embedding", asked)
    for bad, found in (([0, 4], r"0\.\.4"), ([-1, 0], r"-1\.\.0")):
        with pytest.raises(sg.ConfigError, match=rf"DDIM: labels are 0\.\.2, or 3 for no label; got {found}"):
            sg.DDIM(steps=2)(model, (2, 2), seed=0, label=torch.tensor(bad))
        if not isinstance(model, sg.guidance.ClassifierFree):
            with pytest.raises(sg.ConfigError, match=r"log_likelihood: labels are 0\.\.2"):
                sg.log_likelihood(model, torch.zeros(2, 2), label=torch.tensor(bad))
    with pytest.raises(RuntimeError, match="device-side"):
        sg.DDIM(steps=2)(model, (2, 2), seed=0, label=torch.tensor([0, 3]))


def test_labels_of_the_host_are_read_before_they_reach_another_device():
    table = torch.zeros(4, 8, device="meta")
    like = torch.zeros(2, 8, device="meta")
    assert looked_up("Net", table, torch.tensor([0, 3]), like).shape == (2, 8)
    for bad in (torch.tensor([0, 4]), 7):
        with pytest.raises(sg.ConfigError, match=r"Net: labels are 0\.\.2, or 3 for no label"):
            looked_up("Net", table, bad, like)


def test_a_trainer_refuses_labels_that_its_network_does_not_know():
    x, labels = torch.randn(20, 2), torch.arange(20) % 5
    data = sg.data.Dataset("five", "vector", x, x[:5], sg.data.Affine(), labels, labels[:5], 5)
    model = sg.ScoreModel(sg.MLP(2, hidden=8, layers=1, num_classes=3), sg.VP())
    with pytest.raises(sg.ConfigError, match=r"Trainer: labels are 0\.\.2, or 3 for no label; got 0\.\.4"):
        sg.Trainer(model, data, conditional=True)
