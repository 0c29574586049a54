"""What is computed once and kept, and what is computed again: the keys of the cells, and the code they depend on."""

import json
import shutil
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sde_gen as sg
from sde_gen.comparison.cells import cell as cells
from sde_gen.comparison.cells.cell import Cell
from sde_gen.comparison.description import digest
from sde_gen.training.checkpoint import save_checkpoint
from tests.comparison.helpers import DATA, Told, small, trained


def test_nothing_is_computed_twice(tmp_path: Path) -> None:
    first, second = Told(), Told()
    a, b = small().run(tmp_path, tell=first), small().run(tmp_path, tell=second)
    assert (len(first.computed), len(first.known)) == (18, 0)
    assert (len(second.computed), len(second.known)) == (0, 18)
    assert a.tidy() == b.tidy()


def test_only_what_another_setting_changes_is_computed(tmp_path: Path) -> None:
    small().run(tmp_path)
    told = Told()
    small(formulations={"VP": sg.VP(), "VE": sg.VE(sigma_max=7.0)}).run(tmp_path, tell=told)
    assert (told.computed, len(told.known)) == (["samples"] * 8, 10)
    told = Told()
    small(data={**DATA, "seed": 1}).run(tmp_path, tell=told)
    assert not told.known


def test_results_of_another_version_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small().run(tmp_path)
    monkeypatch.setattr(cells, "code_version", lambda names: "another")
    told = Told()
    small().run(tmp_path, tell=told)
    assert not told.known


# -- keys --------------------------------------------------------------------------------------------------------------


def every_kind() -> dict[str, Cell]:
    """A cell of each kind, and of samples also one whose sampler is chosen and one without a network."""
    samplers = {"Auto": sg.Auto(effort=0.0), "DDIM": sg.DDIM()}
    found: dict[str, Cell] = {}
    for comparison in (trained(likelihood=4, trajectories=True, samplers=samplers), small(orders=True)):
        for cell in comparison.cells():
            found.setdefault(f"{cell.kind} {cell.labels.get('sampler', '')} {comparison.mode}", cell)
    assert {cell.kind for cell in found.values()} == {cls.kind for cls in kinds(Cell)}
    return found


def kinds(cls: type[Cell]) -> set[type[Cell]]:
    below = {kind for inner in cls.__subclasses__() for kind in kinds(inner)}
    return below or {cls}


def flipped(value: Any) -> list[Any]:
    """Other values of the same kind: of an object, one for each of its fields."""
    if isinstance(value, Cell):
        return [replace(value, **{f.name: other}) for f in fields(value) if f.name != "labels"
                for other in flipped(getattr(value, f.name))[:1]]  # fmt: skip
    if is_dataclass(value) and not isinstance(value, type):
        found: list[Any] = []
        for f in fields(value):
            for other in flipped(getattr(value, f.name)):
                try:
                    found.append(replace(value, **{f.name: other}))
                except sg.ConfigError:  # no such value
                    continue
        return found or [sg.VPrediction()]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value + 2]
    if isinstance(value, str):
        return [value + "x"]
    if isinstance(value, tuple | list):
        return [[*value, *value]]
    if isinstance(value, dict):
        return [{**value, "another": 1}]
    return [3]  # None


FREE = {"checkpoint_every", "keep_last", "keep_best", "async_save", "log_every", "eval_every", "eval_samples",
        "preview_every",         "preview_samples", "preview_steps"}  # fmt: skip


@pytest.mark.parametrize("name", sorted(every_kind()))
def test_everything_that_decides_a_result_is_in_its_key(name: str) -> None:
    cell = every_kind()[name]
    assert replace(cell, labels={"formulation": "another name"}).key == cell.key
    for f in fields(cell):
        if f.name == "labels":
            continue
        value = getattr(cell, f.name)
        others = flipped(value)
        assert others, f.name
        for other in others:
            changed = {n.name for n in fields(value) if getattr(value, n.name) != getattr(other, n.name)} \
                if f.name == "trainer" else set()  # fmt: skip
            same = bool(changed) and changed <= FREE
            assert (replace(cell, **{f.name: other}).key == cell.key) == same, (f.name, other)


def test_kinds_do_not_share_keys_and_code_is_part_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: cell.key for name, cell in every_kind().items()}
    monkeypatch.setattr(cells, "code_version", lambda names: "another")
    after = {name: cell.key for name, cell in every_kind().items()}
    assert not set(before.values()) & set(after.values())
    for name, cell in every_kind().items():
        monkeypatch.setattr(type(cell), "kind", "another")
        assert replace(cell).key != after[name]


# -- what changes while a process runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fresh", [True, False], ids=["another comparison", "the same comparison"])
def test_data_that_change_while_the_process_runs_are_read_again(tmp_path: Path, fresh: bool) -> None:
    path = tmp_path / "data.npy"
    rng = np.random.default_rng(0)

    def comparison() -> sg.Comparison:
        data = {"_target_": "sde_gen.data.array_file", "path": str(path)}
        return small(data=data, formulations={"VP": sg.VP()}, samplers={"DDIM": sg.DDIM()}, num_samples=16)

    def values(one: sg.Comparison, cache: str) -> tuple[list[float], str]:
        results = one.run(tmp_path / cache)
        return [row["energy_distance"] for row in (*results.rows, *results.real)], results.data.fingerprint

    np.save(path, rng.standard_normal((200, 2)).astype(np.float32))
    first = comparison()
    before = values(first, "cache")
    np.save(path, rng.exponential(size=(200, 2)).astype(np.float32))
    after = values(comparison() if fresh else first, "cache")
    assert after[1] != before[1]
    assert after == values(comparison(), "an empty cache")
    assert after[0] != before[0]


def test_weights_that_change_while_the_process_runs_are_read_again(tmp_path: Path) -> None:
    from sde_gen.training import newest_checkpoint

    one = {"samplers": {"DDIM": sg.DDIM()}, "formulations": {"VP": sg.VP()}, "seeds": (0,)}
    home = trained(**one).run(tmp_path).networks[0]["cell"]
    found, _ = newest_checkpoint(tmp_path / "models" / home / "checkpoints")
    assert found is not None

    def save(factor: float) -> str:
        shutil.rmtree(tmp_path / "given", ignore_errors=True)
        tensors = {name: found.tensors(name) for name in ("model", "ema")}
        tensors["ema"] = {name: factor * value for name, value in tensors["ema"].items()}
        return str(save_checkpoint(tmp_path / "given" / "checkpoints", found.step, tensors, found.config, found.state))

    def value(cache: str, place: str) -> float:
        return trained(mode="shared", checkpoint=place, **one).run(tmp_path / cache).rows[0]["energy_distance"]

    first = value("cache", save(1.0))
    second = value("cache", save(2.0))
    assert second != first
    assert second == value("empty", save(2.0))
    planned = trained(mode="shared", checkpoint=save(1.0), **one)
    planned.cells()
    save(3.0)
    assert {row["status"] for row in planned.run(tmp_path / "third").rows} == {"failed"}, "not what its key says"


# -- damage ------------------------------------------------------------------------------------------------------------


def test_infinite_settings_can_be_hashed(tmp_path: Path) -> None:
    results = small(samplers={"churn": sg.EDMChurn(s_tmax=float("inf"))}, seeds=(0,), budgets=(9,)).run(tmp_path)
    assert {row["status"] for row in results.rows} == {"ok"}
    assert digest({"a": float("inf")}) != digest({"a": 1e308})


def damaged(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return value[:-1] + "~" if isinstance(value, str) and value else "~"


def test_any_change_of_a_kept_result_is_found(tmp_path: Path) -> None:
    comparison = small(formulations={"VP": sg.VP()}, samplers={"DDIM": sg.DDIM()}, budgets=(4,), seeds=(0,))
    results = comparison.run(tmp_path)
    (path,) = (tmp_path / "cells").glob("samples-*.json")
    whole, packed = json.loads(path.read_text()), path.with_suffix(".npz").read_bytes()
    changes: list[str] = ["{", "", "[]", "null"]
    for part in (whole, whole["result"], whole["config"]):
        for name in list(part):
            kept = part[name]
            part[name] = damaged(kept)
            changes.append(json.dumps(whole))
            del part[name]
            changes.append(json.dumps(whole))
            part[name] = kept
    assert len(changes) > 40
    (cell,) = (cell for cell in results.cells if cell.kind == "samples")
    for text in changes:
        path.write_text(text)
        assert results.store.read(cell) is None, text
        assert results.store.arrays(cell) == {}
    path.write_text(json.dumps(whole))
    assert results.store.read(cell) == whole["result"]
    for data in (packed[:-1], *(packed[:i] + bytes([packed[i] ^ 1]) + packed[i + 1 :] for i in (0, 200))):
        path.with_suffix(".npz").write_bytes(data)
        assert results.store.read(cell) is None
        assert results.store.arrays(cell) == {}
    told = Told()
    again = comparison.run(tmp_path, tell=told)
    assert told.computed == ["samples"]
    assert again.rows[0]["energy_distance"] == results.rows[0]["energy_distance"]
    assert path.with_suffix(".npz").read_bytes() == packed
