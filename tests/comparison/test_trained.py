"""Comparisons with trained networks: trained once, continued where they stopped, shared if asked."""

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sde_gen as sg
from sde_gen.comparison.cells.cell import Cell, Context
from sde_gen.comparison.cells.store import Store
from sde_gen.config.restore import load_model
from sde_gen.training import Interrupted, Trainer, newest_checkpoint
from sde_gen.training.checkpoint import save_checkpoint
from tests.comparison.helpers import TRAINER, NotANumber, trained

pytestmark = pytest.mark.filterwarnings("ignore::sde_gen.errors.BetweenNodesWarning")


def test_each_formulation_is_trained_once_from_the_same_weights_and_order(tmp_path: Path) -> None:
    comparison = trained(likelihood=4)
    results = comparison.run(tmp_path)
    assert {row["status"] for row in results.rows} == {"ok"}
    assert [(r["formulation"], r["steps"]) for r in results.networks] == [("VP", 6), ("VE", 6)]
    assert all(row["held_out_loss"] > 0 and row["nll"] is not None for row in results.rows)
    told = []
    comparison.run(tmp_path, tell=lambda cell, result, known: told.append(known))
    assert all(told)
    for row in results.networks:  # a cached network is a run like any other
        model = load_model(tmp_path / "models" / row["cell"])
        assert type(model.perturbation).__name__ == row["formulation"]
    # Other samplers need no training.
    kinds = []
    trained(samplers={"Heun": sg.Heun()}).run(
        tmp_path, tell=lambda cell, result, known: kinds.append((cell.kind, known))
    )
    assert ("model", False) not in kinds
    assert ("samples", False) in kinds


def test_the_first_weights_are_the_same_for_all_formulations(tmp_path: Path) -> None:
    cells = [cell for cell in trained().cells() if cell.kind == "model"]
    context = Context(trained().dataset(), Store(tmp_path))
    first = []
    for cell in cells:
        stopped = iter([False])  # after one step

        slow = replace(cell, trainer=replace(cell.trainer, learning_rate=1e-12, warmup=0))
        with pytest.raises(Interrupted):
            slow.train(context, tmp_path / cell.key, lambda s=stopped: next(s, True))
        found, _ = newest_checkpoint(tmp_path / cell.key / "checkpoints")
        assert found is not None
        first.append(found.tensors("model"))
    for name in first[0]:
        torch.testing.assert_close(first[0][name], first[1][name], rtol=0, atol=1e-6)


def test_an_interrupted_training_goes_on_to_the_same_network(tmp_path: Path) -> None:
    cell = next(cell for cell in trained().cells() if cell.kind == "model")
    context = Context(trained().dataset(), Store(tmp_path))
    whole = cell.train(context, tmp_path / "a")
    calls = iter(range(100))
    with pytest.raises(Interrupted, match="stopped at step 3 of 6"):
        cell.train(context, tmp_path / "b", lambda: next(calls) >= 3)
    parts = cell.train(context, tmp_path / "b")
    assert (whole["steps"], whole["held_out_loss"]) == (parts["steps"], parts["held_out_loss"])
    again = cell.train(context, tmp_path / "b")
    assert again["held_out_loss"] == whole["held_out_loss"]


def test_one_network_under_every_formulation(tmp_path: Path) -> None:
    comparison = trained(
        mode="shared",
        formulations={"VP": sg.VP(), "VE": sg.VE(sigma_max=6.0), "v": sg.Formulation(sg.EDM(), sg.VPrediction())},
        samplers={"DDIM": sg.DDIM()},
        grid="matched",
        budgets=(6,),
        findings=[{"claim": "same", "equal": {"formulation": "VP"}, "to": {"formulation": "VE"}, "tolerance": 1e-3}],
    )
    results = comparison.run(tmp_path)
    assert [row["formulation"] for row in results.networks] == ["VP"]
    assert [f["verdict"] for f in results.findings] == ["pass"]
    skipped = [row for row in results.rows if row["status"] == "skipped"]
    assert [row["formulation"] for row in skipped] == ["v"]
    assert "another parameterization" in skipped[0]["reason"]
    # The same from the checkpoint itself.
    home = str(tmp_path / "models" / results.networks[0]["cell"])
    formulations = {"VP": sg.VP(), "VE": sg.VE(sigma_max=6.0)}
    other = trained(mode="shared", checkpoint=home, formulations=formulations, samplers={"DDIM": sg.DDIM()},
                    grid="matched", budgets=(6,)).run(tmp_path / "other")  # fmt: skip
    assert not other.networks
    for a, b in zip(results.rows, other.rows, strict=False):
        assert a["energy_distance"] == b["energy_distance"]


def test_another_networks_samples_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    # Two checkpoints that differ in nothing but their weights, as two imported networks do.
    home = trained(samplers={"DDIM": sg.DDIM()}, seeds=(0,)).run(tmp_path).networks[0]["cell"]
    first, _ = newest_checkpoint(tmp_path / "models" / home / "checkpoints")
    assert first is not None
    tensors = {name: first.tensors(name) for name in ("model", "ema")}
    tensors["ema"] = {name: 2 * value for name, value in tensors["ema"].items()}
    other = save_checkpoint(tmp_path / "other" / "checkpoints", first.step, tensors, first.config, first.state)
    keys = []
    for place in (first.path, other):
        cells = trained(mode="shared", checkpoint=str(place), seeds=(0,)).cells()
        keys.append({cell.key for cell in cells if cell.kind == "samples"})
    assert not keys[0] & keys[1]


def test_a_network_that_is_gone_or_damaged_is_trained_again(tmp_path: Path) -> None:
    comparison = trained(formulations={"VP": sg.VP()}, seeds=(0,))
    first = comparison.run(tmp_path)
    newest = tmp_path / "models" / first.networks[0]["cell"] / "checkpoints" / "step_00000006"
    for damage in (lambda: (newest / "ema.safetensors").write_bytes(b"?"), lambda: shutil.rmtree(newest.parent)):
        damage()
        told = []
        again = comparison.run(tmp_path, tell=lambda cell, result, known, told=told: told.append((cell.kind, known)))
        assert ("model", False) in told
        assert (newest / "ema.safetensors").stat().st_size > 100
        assert again.networks[0]["held_out_loss"] == first.networks[0]["held_out_loss"]
        assert {row["status"] for row in again.rows} == {"ok"}


def test_a_network_again_is_trained_from_the_beginning_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = trained(formulations={"VP": sg.VP()}, seeds=(0,))
    key = comparison.run(tmp_path).networks[0]["cell"]
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    steps, real = [], Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda self: (steps.append(self.step), real(self))[1])
    result, known = comparison.rerun(key, tmp_path)
    assert steps == [0]
    assert known is not None
    assert result["held_out_loss"] == known["held_out_loss"]
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


def test_settings_that_do_not_change_what_is_learned_train_nothing_again() -> None:
    def keys(**changes: int) -> set[str]:
        return {cell.key for cell in trained(trainer={**TRAINER, **changes}).cells()}

    first = keys()
    assert keys(keep_best=0, keep_last=2, checkpoint_every=5) == first
    assert not keys(steps=7) & first - {cell.key for cell in trained().cells() if cell.kind == "real"}


def test_an_interrupt_saves_the_network_in_training_instead_of_waiting_for_it(tmp_path: Path) -> None:
    comparison = trained(
        formulations={"VP": sg.VP()}, trainer={**TRAINER, "steps": 20_000, "checkpoint_every": 0, "log_every": 10**6}
    )

    def interrupt(cell: Cell, result: object, known: bool) -> None:
        raise KeyboardInterrupt  # as soon as a cell that needs no network is done

    with pytest.raises(KeyboardInterrupt):
        comparison.run(tmp_path, workers=2, tell=interrupt)
    key = next(cell.key for cell in comparison.cells() if cell.kind == "model")
    found, _ = newest_checkpoint(tmp_path / "models" / key / "checkpoints")
    assert found is None or 0 < found.step < 20_000  # None: it had not begun


def test_each_seed_may_train_its_own(tmp_path: Path) -> None:
    results = trained(train_each_seed=True, formulations={"VP": sg.VP()}).run(tmp_path)
    assert [(row["formulation"], row["seed"]) for row in results.networks] == [("VP", 0), ("VP", 1)]
    assert results.networks[0]["held_out_loss"] != results.networks[1]["held_out_loss"]


def test_a_network_that_cannot_be_trained_takes_its_rows_with_it_and_no_others(tmp_path: Path) -> None:
    formulations = {"VP": sg.VP(), "bad": sg.Formulation(sg.VP(), objective=NotANumber())}
    results = trained(formulations=formulations).run(tmp_path)
    bad = [row for row in results.rows if row["formulation"] == "bad"]
    assert {row["status"] for row in bad} == {"failed"}
    assert all("its network:" in row["reason"] for row in bad)
    assert {row["status"] for row in results.rows if row["formulation"] == "VP"} == {"ok"}


def test_a_network_that_does_not_fit_the_data_is_refused_at_once() -> None:
    with pytest.raises(sg.ConfigError, match="use network=mlp"):
        trained(network={"_target_": "sde_gen.networks.UNet"}).cells()


def test_a_cell_travels_to_another_process() -> None:
    comparison = trained(samplers={"Auto": sg.Auto(effort=0.0), "DDIM": sg.DDIM()}, trajectories=True)
    for cell in comparison.cells():
        other = pickle.loads(pickle.dumps(cell))  # noqa: S301 - our own bytes
        assert (other.config, other.code, other.key, other.labels) == (cell.config, cell.code, cell.key, cell.labels)
    context = Context(comparison.dataset(), Store(Path()))
    assert pickle.loads(pickle.dumps(context)).data.fingerprint == context.data.fingerprint  # noqa: S301
