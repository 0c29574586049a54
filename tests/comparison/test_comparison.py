"""What a comparison computes, skips, keeps and repeats."""

import csv
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sde_gen as sg
from sde_gen.comparison import parallel
from sde_gen.comparison.comparison import from_spec
from sde_gen.comparison.compute import Context, compute, law_of
from sde_gen.comparison.describe import canonical, describe, digest
from sde_gen.comparison.store import Cell
from tests.comparison.helpers import Broken, Diverges, OwnVP, Told, files, small


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
    real = parallel.compute
    monkeypatch.setattr(parallel, "compute", lambda *a: (counts.append(torch.get_num_threads()), real(*a))[1])
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


def frames() -> sg.Comparison:
    """With a skipped row, and a sampler that takes no budget."""
    return small(
        samplers={"PC": sg.PredictorCorrector(), "own": sg.DDIM(steps=3)}, budgets=(1, 4), seeds=(0,)
    )  # fmt: skip


def test_without_pandas_there_is_no_data_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(sg.MissingInputError, match="pip install pandas"):
        frames().run(tmp_path).to_dataframe()


def test_what_pandas_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Frame:
        def __init__(self, rows: list[dict[str, Any]], columns: list[str]) -> None:
            self.rows, self.columns = rows, columns

        def astype(self, types: dict[str, str]) -> tuple["Frame", dict[str, str]]:
            return self, types

    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=Frame))
    results = frames().run(tmp_path)
    frame, kinds = results.to_dataframe()
    assert frame.rows == results.tidy()
    assert frame.columns == list(results.columns)
    assert {name for name, kind in kinds.items() if kind == "Int64"} == {"budget", "seed", "steps", "nfe"}
    for name in results.columns:
        numbers = [row[name] for row in results.tidy() if row[name] is not None]
        assert name in kinds or all(isinstance(value, str) for value in numbers), name


def test_a_data_frame_of_pandas(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    results = frames().run(tmp_path)
    frame = results.to_dataframe()
    assert len(frame) == len(results.rows) == 6
    assert list(frame.columns) == list(results.columns)
    assert frame.set_index(["formulation", "sampler", "budget"]).nfe[("VP", "PC", 4)].item() == 4
    assert frame.budget.isna().sum() == 2
    assert frame.energy_distance.dtype == frame.nll.dtype == "float64"
    assert frame.groupby("sampler").nfe.max().to_dict() == {"PC": 4, "own": 3}
    # The file holds the same.
    read = pd.read_csv(
        results.to_csv(tmp_path / "rows.csv"), dtype={name: frame[name].dtype for name in ("seed", "nfe")}
    )
    for name in ("formulation", "seed", "nfe", "energy_distance", "cell"):
        assert read[name].isna().tolist() == frame[name].isna().tolist()
        assert read[name].dropna().tolist() == frame[name].dropna().tolist()


# -- data and descriptions ---------------------------------------------------------------------------------------------


def test_data_may_be_a_law(tmp_path: Path) -> None:
    law = sg.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [[[0.1, 0.0], [0.0, 0.1]]] * 2)
    results = small(data=law, samplers={"2M": sg.DPMSolverPP2M()}, budgets=(20,), likelihood=16).run(tmp_path)
    # The ODE's likelihood of an exact model is that of the law, but for the ends of the process: VE's narrow prior.
    for row in results.likelihoods:
        assert row["nll"] == pytest.approx(row["nll_exact"], abs=0.02 if row["formulation"] == "VE" else 2e-3)
    assert results.rows[0]["nll"] == results.likelihoods[0]["nll"]


def test_real_samples_are_never_the_held_out_ones() -> None:
    law = sg.GaussianMixture([1.0], [[0.0, 0.0]], [[[1.0, 0.0], [0.0, 1.0]]])
    data = small(data=law).dataset()
    context = Context(data, Path(), "cpu")
    for seed in (0, 1):
        config = {
            "seed": seed,
            "num_samples": len(data.test),
            "measures": ["energy_distance"],
            "keep": len(data.test),
            "draws": 1,
        }
        found, arrays = compute(Cell("real", config), context)
        assert found["energy_distance"] > 0
        assert not {tuple(x) for x in arrays["x"]} & {tuple(x) for x in data.test.numpy()}


def test_a_description_makes_the_same_comparison() -> None:
    comparison = small(samplers={"PC": sg.PredictorCorrector(predictor=sg.DDIM(), corrector=sg.Langevin(snr=0.05))})
    again = from_spec(json.loads(json.dumps(comparison.spec)))
    assert again.spec == comparison.spec
    assert [cell.key for cell in again.cells()] == [cell.key for cell in comparison.cells()]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seads": [1]}, r"spec\.seads is not a setting \(did you mean seeds\?\)"),
        ({"seeds": 5}, r"spec\.seeds=5 must be a list"),
        ({"num_samples": "many"}, r"spec\.num_samples='many' must be a whole number"),
    ],
)
def test_a_description_that_is_none_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(sg.ConfigError, match=words):
        from_spec({**small().spec, **change})


@pytest.mark.parametrize("form", ["object", "formulation", "group"])
def test_objects_of_ones_own_need_no_other_trust(form: str, tmp_path: Path) -> None:
    forms = {"object": OwnVP(), "formulation": sg.Formulation(OwnVP()), "group": {"perturbation": OwnVP()}}
    comparison = small(formulations={"own": forms[form]}, samplers={"DDIM": sg.DDIM()}, seeds=(0,), budgets=(4,))
    assert comparison.trusted == (OwnVP.__module__,)
    results = comparison.run(tmp_path / "cache")
    assert {row["status"] for row in results.rows} == {"ok"}
    results.report(tmp_path / "out")
    with (tmp_path / "out" / "rows.csv").open(newline="") as stream:
        command = next(csv.DictReader(stream))["command"]
    assert f"cache={tmp_path / 'cache'} 'trust=[{OwnVP.__module__}]' cell=" in command


def test_equal_descriptions_have_one_digest() -> None:
    assert digest({"a": 1, "b": 2.0}) == digest({"b": 2, "a": 1.0})
    assert digest({"a": 1}) != digest({"a": 1.5})
    assert canonical([True, None, "x"]) == '[true,null,"x"]'
    assert describe(sg.VE(sigma_max=3.0), "p") == {"_target_": "sde_gen.VE", "sigma_min": 0.01, "sigma_max": 3.0}
    with pytest.raises(sg.ConfigError, match="cannot be written down"):
        describe({"a": object()}, "where")


BAD = [
    ({"mode": "orcale"}, "did you mean 'oracle'"),
    ({"grid": "same"}, "grid must be one of"),
    ({"formulations": {}}, "at least one"),
    ({"formulations": {"VP": "vp"}}, "must be a Formulation"),
    ({"formulations": {"VP": {"perturbation": {"_target_": "os.system"}}}}, "not one of sde_gen's own classes"),
    ({"formulations": {"VP": {"perturbation": sg.VP(), "sampelrs": []}}}, "did you mean 'samplers'"),
    ({"formulations": {"VP": sg.Formulation(sg.VP(), samplers=["DDMI"])}}, "did you mean 'DDIM'"),
    ({"samplers": {}}, "at least one"),
    ({"samplers": {"x": None}}, r"samplers\.x must be a sampler, got None"),
    ({"samplers": {"x": sg.VP()}}, r"samplers\.x must be a sampler, got VP\("),
    ({"samplers": {"x": 5}}, r"samplers\.x must be a group with a _target_, got 5"),
    ({"formulations": {"x": {"_target_": "sde_gen.DDIM"}}}, r"formulations\.x\.perturbation must be a perturbation"),
    ({"formulations": {"x": sg.Formulation(sg.VP(), sg.VP())}}, r"x\.parameterization must be a parameterization"),
    ({"formulations": {"x": sg.Formulation(sg.VP(), objective=sg.VP())}}, r"formulations\.x\.objective must be an"),
    ({"budgets": (0,)}, "budgets must be a whole number, at least 1"),
    ({"budgets": (4, 4)}, "must be different"),
    ({"seeds": ()}, "at least one seed"),
    ({"seeds": (-1,)}, "seed must be"),
    ({"measures": ()}, "at least one distance"),
    ({"measures": ("energy_distanse",)}, "did you mean 'energy_distance'"),
    ({"num_samples": 1}, "num_samples"),
    ({"likelihood": -1}, "likelihood"),
    ({"checkpoint": "somewhere"}, "is for mode='shared'"),
    ({"shared_from": "V"}, "shared_from must be one of"),
    ({"findings": [{"better": {}}]}, "needs a claim"),
]


@pytest.mark.parametrize(("changes", "words"), BAD, ids=lambda v: str(v)[:40])
def test_bad_comparisons_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(sg.ConfigError, match=words):
        small(**changes).cells()
