"""A comparison as plain data: what is written down, read back, given to pandas, and refused."""

import csv
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import sde_gen as sg
from sde_gen.comparison.cells.cell import Context
from sde_gen.comparison.cells.samples import RealSamples
from sde_gen.comparison.cells.store import Store
from sde_gen.comparison.description import canonical, digest
from sde_gen.comparison.study import from_spec
from sde_gen.config.objects import describe
from tests.comparison.helpers import OwnVP, small


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
    context, count = Context(data, Store(Path())), len(data.test)
    for seed in (0, 1):
        cell = RealSamples(data="", law="", draws=1, seed=seed, num_samples=count, measures=("energy_distance",),
                           keep=count)  # fmt: skip
        found, arrays = cell.compute(context, lambda: False)
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
    ({"budgets": (0,)}, r"budgets.* must be a whole number, at least 1, got 0"),
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
    *(
        ({"name": name}, "name must be that of a folder")
        for name in ("", ".", "..", "../x", "/x", "a/b", "a\\b", "x" * 201)
    ),
]


@pytest.mark.parametrize(("changes", "words"), BAD, ids=lambda v: str(v)[:40])
def test_bad_comparisons_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(sg.ConfigError, match=words):
        small(**changes).cells()


# -- as a data frame ---------------------------------------------------------------------------------------------------


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
