"""The table, the JSON and the picture of an evaluation."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sde_gen.evaluation import Evaluation, HeldOutLikelihood, rows
from sde_gen.evaluation.outcome import COLUMNS
from sde_gen.metrics import summary
from sde_gen.pictures import evaluation_picture

pytest.importorskip("matplotlib")


def _evaluation() -> Evaluation:
    none = torch.zeros(0)
    likelihood = HeldOutLikelihood(
        kind="ode", nll=1.5, nll_error=0.1, bits_per_dim=0.7, bits_per_dim_error=0.05, probe_error=None, exact_nll=1.25,
        exact_nll_error=0.2,
        n=9, nfe=80.0, seconds=0.5, failed={3: "out of budget"}, indices=none, log_prob=none, each_bits_per_dim=none,
    )  # fmt: skip
    g = torch.Generator().manual_seed(0)
    x, y, z = (torch.randn(30, 2, generator=g) for _ in range(3))
    return Evaluation({"seed": 3}, [likelihood], summary(x, y, z, metrics=["energy_distance", "recall"]))


def test_rows_are_tidy() -> None:
    evaluation = _evaluation()
    table = rows(evaluation)
    assert [row["name"] for row in table] == ["nll_ode", "bits_per_dim_ode", "energy_distance", "recall"]
    assert all(tuple(row) == COLUMNS for row in table)
    assert table[0]["real_against_real"] == 1.25
    assert (table[3]["low"], table[3]["high"]) == evaluation.metrics[1].interval
    assert table[2]["real_standard_error"] == evaluation.metrics[0].real_standard_error


def test_files_hold_the_same_numbers(tmp_path: Path) -> None:
    evaluation = _evaluation()
    evaluation.write(tmp_path)
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["seed"] == 3
    assert report["likelihood"]["ode"]["failed"] == {"3": "out of budget"}
    with (tmp_path / "evaluation.csv").open(newline="") as stream:
        read = list(csv.DictReader(stream))
    assert [float(row["value"]) for row in read] == [1.5, 0.7, *(metric["value"] for metric in report["metrics"])]
    assert read[0]["low"] == ""


def test_lines_for_a_person() -> None:
    lines = _evaluation().lines()
    assert " ".join(lines[0].split()) == "NLL by the ODE, nats 1.5000 +- 0.1000 (real data: 1.2500 +- 0.2000)"
    assert " ".join(lines[1].split()) == "bits/dim by the ODE 0.7000 +- 0.0500"
    assert "[" in lines[3]


def test_without_an_error_there_is_no_error_bar() -> None:
    evaluation = _evaluation()
    one = replace(evaluation.likelihoods[0], nll_error=None, bits_per_dim_error=None, exact_nll_error=None)
    alone = replace(evaluation, likelihoods=[one])
    lines = [" ".join(line.split()) for line in alone.lines()]
    assert lines[:2] == ["NLL by the ODE, nats 1.5000 (real data: 1.2500)", "bits/dim by the ODE 0.7000"]
    assert alone.to_dict()["likelihood"]["ode"]["nll_error"] is None
    assert rows(alone)[0]["standard_error"] is None


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (1, 4, 4)])
def test_a_picture_of_every_kind_of_data(shape: tuple[int, ...]) -> None:
    real = torch.rand(20, *shape)
    found = summary(torch.rand(20, *shape), real, real, metrics=["energy_distance", "c2st", "precision"])
    assert evaluation_picture(torch.rand(20, *shape), real, found).size == (1000, 610)
    assert evaluation_picture(None, real, []).size[1] < 610


def test_a_picture_shows_some_of_all_classes() -> None:
    """Samples and held-out data may stand class by class, and be more than there is room for."""
    x = -torch.ones(90, 3, 4, 4)
    x[60:, 0] = 1.0  # the last class is red
    picture = np.asarray(evaluation_picture(None, x, []))
    red = (picture == (255, 0, 0)).all(-1).sum()
    black = (picture == 0).all(-1).sum()
    assert black > red > 0.2 * black, "gaps are black too"
