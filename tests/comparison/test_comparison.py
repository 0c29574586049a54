"""What a comparison computes, skips, keeps and repeats."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sde_gen as sg
from sde_gen.comparison.cells import parallel
from sde_gen.comparison.cells.models import law_of
from tests.comparison.helpers import Broken, Diverges, Told, files, small


def reasons(results: sg.Results) -> dict[tuple[Any, ...], tuple[str, str]]:
    return {
        (r["formulation"], r["sampler"], r["budget"]): (r["status"], r["reason"])
        for r in results.rows
        if r["status"] != "ok"
    }


# -- plans -------------------------------------------------------------------------------------------------------------


def test_one_row_for_each_cell_and_seed(tmp_path: Path) -> None:
    results = small().run(tmp_path)
    asked = {(f, s, b, seed) for f in ("VP", "VE") for s in ("DDIM", "PC") for b in (4, 9) for seed in (0, 1)}
    assert {(r["formulation"], r["sampler"], r["budget"], r["seed"]) for r in results.rows} == asked
    for row in results.rows:
        assert row["status"] == "ok"
        assert row["nfe"] <= row["budget"]
        assert row["nfe"] == (row["budget"] if row["sampler"] == "DDIM" else 2 * row["steps"])
        assert row["energy_distance"] > 0
        assert row["seconds"] > 0
    assert len(results.real) == 2
    assert results.complete


def test_what_makes_no_sense_is_a_row_that_says_why(tmp_path: Path) -> None:
    results = small(
        formulations={
            "VP": sg.VP(),
            "again": sg.Formulation(sg.VP(), parameterization=sg.VPrediction()),
            "law": sg.Formulation(sg.VE(), objective=sg.DenoisingScoreMatching(times_law="nodes")),
        },
        samplers={"nodes": sg.DDIM(grid="nodes"), "PC": sg.PredictorCorrector()},
        budgets=(1, 4),
        seeds=(0,),
    ).run(tmp_path)
    found = reasons(results)
    assert "is not a chain" in found["VP", "nodes", 4][1]
    assert "below the 2 that one step needs" in found["VP", "PC", 1][1]
    assert "differs from VP only in what is learned" in found["again", "PC", None][1]
    assert "needs a chain" in found["law", "nodes", None][1]
    assert {status for status, _ in found.values()} == {"skipped"}
    assert [r["budget"] for r in results.rows if r["status"] == "ok"] == [4]


def test_one_seed_is_one_noise_for_every_cell(tmp_path: Path) -> None:
    # A deterministic sampler on matched noise levels gives the same samples under every formulation: only if all cells
    # of a seed begin from the same noise.
    results = small(
        formulations={"VP": sg.VP(), "VE": sg.VE(), "subVP": sg.SubVP(), "DDPM": sg.DDPM()},
        samplers={"DDIM": sg.DDIM(), "2M": sg.DPMSolverPP2M()},
        budgets=(12,),
        grid="matched",
        findings=[
            {"claim": "equal", "equal": {"formulation": "VP"}, "to": {"formulation": other}, "tolerance": 1e-8}
            for other in ("VE", "subVP", "DDPM")
        ],
    ).run(tmp_path)
    drawn: dict[str, list[Any]] = {}
    for cell in results.cells:
        if cell.kind == "samples" and cell.labels["seed"] == 0:
            drawn.setdefault(cell.labels["sampler"], []).append(results.store.arrays(cell)["x"])
    for arrays in drawn.values():
        assert len(arrays) == 4
        for other in arrays[1:]:
            np.testing.assert_allclose(other, arrays[0], rtol=0, atol=1e-6)
    assert not np.allclose(drawn["DDIM"][0], drawn["2M"][0], atol=1e-3)
    assert [f["verdict"] for f in results.findings] == ["pass"] * 3
    values = {r["seed"]: r["energy_distance"] for r in results.rows if r["formulation"] == "VP"}
    assert values[0] != values[1]


def test_samplers_with_steps_of_their_own_run_once(tmp_path: Path) -> None:
    comparison = small(samplers={"own": sg.DDIM(steps=3), "ODE": sg.ProbabilityFlow(rtol=0.1, atol=0.1)}, seeds=(0,))
    results = comparison.run(tmp_path)
    assert [(r["sampler"], r["budget"]) for r in results.rows] == [("own", None), ("ODE", None)] * 2
    assert {r["nfe"] for r in results.rows if r["sampler"] == "own"} == {3}
    assert all(r["nfe"] > 5 for r in results.rows if r["sampler"] == "ODE")


def test_particles_of_an_adaptive_solver_are_those_of_small_steps(tmp_path: Path) -> None:
    end = float(sg.VP().time(torch.tensor(-math.log(0.1 * 1e-6**0.5), dtype=torch.float64)))  # as far as the tolerance
    comparison = small(
        formulations={"VP": sg.VP()}, seeds=(0,), budgets=(1200,), trajectories=True,
        samplers={"ODE": sg.ProbabilityFlow(rtol=1e-6), "fine": sg.DPMSolverPP3M(grid=sg.UniformLambda(end=end))},
    )  # fmt: skip
    results = comparison.run(tmp_path)
    ways = {c.labels["sampler"]: results.store.arrays(c) for c in results.cells if c.kind == "trace"}
    assert {name: len(way["t"]) for name, way in ways.items()} == {"ODE": 25, "fine": 25}
    np.testing.assert_allclose(ways["ODE"]["x"][-1], ways["fine"]["x"][-1], atol=1e-3)
    lam = sg.VP().half_log_snr(torch.from_numpy(ways["ODE"]["t"][:-1]))
    torch.testing.assert_close(lam[1:] - lam[:-1], (lam[1] - lam[0]).expand(23), rtol=1e-6, atol=0.0)
    near = np.abs(ways["fine"]["t"][:, None] - ways["ODE"]["t"]).argmin(0)  # even in lambda too, to a step
    apart = np.abs(ways["ODE"]["x"] - ways["fine"]["x"][near])
    assert (apart > 0.1).mean() < 2e-3, "all but the few that are fast between two times that are drawn"


def test_a_choice_by_measurement_is_made_once_and_its_calls_are_told_apart(tmp_path: Path) -> None:
    comparison = small(
        formulations={"VP": sg.VP()}, samplers={"Auto": sg.Auto(effort=0.0), "2M": sg.DPMSolverPP2M()},
        budgets=(5,), trajectories=True, orders=True,
    )  # fmt: skip
    told = Told()
    results = comparison.run(tmp_path / "cache", tell=told)
    assert told.computed.count("choice") == 1
    (choice,) = results.choices
    assert (choice["formulation"], choice["budget"], choice["nfe"]) == ("VP", 5, 5)
    assert choice["calibration_nfe"] > 100
    rows = [row for row in results.rows if row["sampler"] == "Auto"]
    assert [(row["status"], row["nfe"], row["seed"]) for row in rows] == [("ok", 5, 0), ("ok", 5, 1)]
    # What it chose is what it runs, to the last digit.
    law = law_of(comparison.dataset()).exact
    drawn = sg.Auto(nfe=5, effort=0.0)(law.model(sg.VP()), (64, 2), seed=0, dtype=torch.float64)
    cell = next(c for c in results.cells if c.kind == "samples" and c.key == rows[0]["cell"])
    np.testing.assert_array_equal(results.store.arrays(cell)["x"], drawn.x.float().numpy())
    assert {c.labels["sampler"] for c in results.cells if c.kind == "trace"} == {"Auto", "2M"}
    result, known = comparison.rerun(rows[0]["cell"], tmp_path / "cache")
    assert known is not None
    assert result["energy_distance"] == known["energy_distance"]
    assert [row["reason"][:23] for row in results.orders if row["status"] == "skipped"] == ["chooses its own steps, "]
    text = (results.report(tmp_path / "out").parent / "report.md").read_text()
    assert f"{choice['calibration_nfe']:,}" in text[text.index("## Calibration") :]


# -- faults ------------------------------------------------------------------------------------------------------------


def test_a_cell_that_fails_is_a_row_and_the_rest_goes_on(tmp_path: Path) -> None:
    comparison = small(samplers={"DDIM": sg.DDIM(), "Diverges": Diverges(), "Broken": Broken()}, seeds=(0,))
    told = Told()
    found = reasons(comparison.run(tmp_path, tell=told))
    for f in ("VP", "VE"):
        for budget in (4, 9):
            status, words = found[f, "Diverges", budget]
            assert status == "failed"
            assert "NaN or infinite at step 1" in words
    assert set(found) == {(f, s, b) for f in ("VP", "VE") for s, b in (("Diverges", 4), ("Diverges", 9), ("Broken", 9))}
    again = Told()
    assert reasons(comparison.run(tmp_path, tell=again)) == found
    # A numerical failure is a result; a fault of a program is tried again.
    assert again.computed == ["samples"] * 2


# -- parts and single cells --------------------------------------------------------------------------------------------


def test_parts_share_a_cache(tmp_path: Path) -> None:
    counts = []
    for k in (1, 2, 3):
        told = Told()
        results = small().run(tmp_path, part=(k, 3), tell=told)
        counts.append(len(told.computed))
        assert results.complete == (k == 3)
    assert counts == [6, 6, 6]
    told = Told()
    small().run(tmp_path, tell=told)
    assert not told.computed
    with pytest.raises(sg.ConfigError, match="part=4 must be between 1 and parts=3"):
        small().run(tmp_path, part=(4, 3))


def test_one_cell_again(tmp_path: Path) -> None:
    results = small().run(tmp_path)
    row = results.rows[5]
    before = files(tmp_path)
    result, known = small().rerun(row["cell"][:8], tmp_path)
    assert known is not None
    assert result["energy_distance"] == known["energy_distance"] == row["energy_distance"]
    after = files(tmp_path)
    assert [name for name in before if before[name] != after[name]] == [f"samples-{row['cell']}.json"]
    with pytest.raises(sg.ConfigError, match="no cell of this comparison, which has 18"):
        small().rerun("zzzz", tmp_path)
    with pytest.raises(sg.ConfigError, match="no cell"):
        small(num_samples=32).rerun(row["cell"], tmp_path)


def test_a_cell_has_one_thread_wherever_it_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # How a sum is split over threads changes its last digits, and `cell=` would say that it differs.
    counts, before = [], torch.get_num_threads()
    real = parallel._one
    monkeypatch.setattr(parallel, "_one", lambda *a: (counts.append(torch.get_num_threads()), real(*a))[1])
    try:
        torch.set_num_threads(2)
        small(formulations={"VP": sg.VP()}, budgets=(4,), seeds=(0,)).run(tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert counts == [1, 1, 1]


def test_processes_give_what_one_gives(tmp_path: Path) -> None:
    comparison = small(formulations={"VP": sg.VP()}, budgets=(4,))
    one, two = comparison.run(tmp_path / "a"), comparison.run(tmp_path / "b", workers=2)
    for a, b in zip(one.rows, two.rows, strict=True):
        assert a["energy_distance"] == b["energy_distance"]
        assert a["cell"] == b["cell"]


# -- tidy data ---------------------------------------------------------------------------------------------------------


def test_tables(tmp_path: Path) -> None:
    results = small(budgets=(1, 4)).run(tmp_path / "cache")
    with results.to_csv(tmp_path / "rows.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == len(results.rows)
    assert tuple(table[0]) == results.columns
    assert {row["status"] for row in table} == {"ok", "skipped"}
    stored = json.loads(results.to_json(tmp_path / "rows.json").read_text())
    assert [row["cell"] for row in stored["rows"]] == [row["cell"] or None for row in results.tidy()]
    assert stored["comparison"] == results.spec
