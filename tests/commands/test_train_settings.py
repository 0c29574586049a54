"""Settings of training on the command line: what is asked for is what is used, stored and gone on with."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from sde_gen.training import read_metrics
from tests.commands.helpers import TINY, Command

OWN = """
import torch

class Down(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, factor=1.0):
        super().__init__(params, {"lr": lr, "factor": factor})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["steps"] = self.state[p].get("steps", 0) + 1
                p.sub_(p.grad, alpha=group["lr"] * group["factor"])
"""


def _names(run: str) -> set[str]:
    from safetensors.torch import load_file

    (folder,) = sorted(Path("runs", run, "checkpoints").glob("step_*"))[-1:]
    return {name.partition(".")[0] for name in load_file(folder / "optimizer.safetensors")}


def test_an_optimiser_by_name_and_by_target(command: Command) -> None:
    chosen = ("trainer.optimizer=adamw", "trainer.weight_decay=0.1", "trainer.schedule=inverse-sqrt")
    assert command("train", *TINY, *chosen, "run=a", "trainer.decay_after=2").code == 0
    assert _names("a") == {"step", "exp_avg", "exp_avg_sq"}
    result = command("train", *TINY, "run=b", "trainer.optimizer={_target_:torch.optim.RMSprop,alpha:0.5}")
    assert result.code == 0, result.err
    assert _names("b") == {"step", "square_avg"}
    assert command("train", "resume=b", "trainer.steps=6", "device=cpu").code == 0
    result = command("train", "resume=b", "trainer.optimizer=adam", "device=cpu")
    assert result.code == 2
    assert "trainer.optimizer was" in result.err
    result = command("train", *TINY, "trainer.optimizer=lion")
    assert result.code == 2
    assert "optimizer must be one of" in result.err


def test_an_optimiser_of_ones_own_needs_trust(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("own_down.py").write_text(OWN, "utf-8")
    own = (*TINY, "trainer.optimizer={_target_:own_down.Down,factor:2.0}", "run=mine")
    refused = command("train", *own)
    assert refused.code == 2
    assert "add trust=[own_down]" in refused.err
    assert command("train", *own, "trust=[own_down]").code == 0
    assert _names("mine") == {"steps"}
    stored = json.loads(Path("runs/mine/checkpoints/step_00000004/config.json").read_text("utf-8"))
    assert stored["trainer"]["optimizer"] == {"_target_": "own_down.Down", "factor": 2.0}
    again = command("train", "resume=mine", "trainer.steps=6", "device=cpu")
    assert "trust=[own_down]" in again.err, "what a checkpoint names is not imported unasked"
    assert command("train", "resume=mine", "trainer.steps=6", "trust=[own_down]", "device=cpu").code == 0


def test_a_run_of_before_the_setting_goes_on(command: Command) -> None:
    from sde_gen.config.prepare import differences

    assert command("train", *TINY, "run=old").code == 0
    stored = json.loads(Path("runs/old/checkpoints/step_00000004/config.json").read_text("utf-8"))
    older = {**stored, "trainer": {k: v for k, v in stored["trainer"].items() if k not in ("optimizer", "decay_after")}}
    assert differences(older, stored) == []
    younger = {"_target_": "sde_gen.UNet", "width": 8, "token_size": 0}
    assert differences({"network": {"_target_": "sde_gen.UNet", "width": 8}}, {"network": younger}) == []
    found = differences(
        {"network": {"_target_": "sde_gen.UNet", "width": 8}}, {"network": {**younger, "token_size": 3}}
    )
    assert [str(change) for change in found] == ["network.token_size was 0, is 3"]
    (changed,) = differences(older, {**stored, "trainer": {**stored["trainer"], "optimizer": "sgd"}})
    assert (changed.name, changed.old, changed.new) == ("trainer.optimizer", "adam", "sgd")


def test_an_average_is_chosen_after_training(command: Command) -> None:
    settings = ("trainer.steps=24", "trainer.posthoc_every=1", "trainer.ema=[0.5,0.3]", "trainer.log_every=8")
    assert command("train", *TINY, *settings, "run=a").code == 0
    assert len(list(Path("runs/a/checkpoints/averages").glob("step_*"))) == 24
    drawn = ("run=a", "num_samples=8", "sampler=ddim", "sampler.steps=4", "metrics=false", "device=cpu")
    values = {}
    for weights in ("ema", "0.5", "0.3", "0.05", "0.12", "model"):
        result = command("sample", *drawn, f"weights={weights}", f"out=w{weights}")
        assert result.code == 0, result.err
        values[weights] = np.load(f"w{weights}/samples.npz")["x"]
        report = json.loads(Path(f"w{weights}/report.json").read_text("utf-8"))
        assert str(report["weights"]) == weights
    assert np.array_equal(values["ema"], values["0.5"]), "the first of the list"
    distinct = [values[name] for name in values if name != "ema"]
    assert all(not np.array_equal(a, b) for i, a in enumerate(distinct) for b in distinct[:i])
    result = command("sample", *drawn, "weights=0.4", "out=none")
    assert result.code == 2
    assert "relative length must be" in result.err


def test_losses_by_level_and_a_learned_weighting(command: Command) -> None:
    settings = (*TINY, "objective=edm", "trainer.learned_weighting=true", "run=a")
    assert command("train", *settings).code == 0
    rows = read_metrics(Path("runs/a/levels.csv"), None)
    assert [row["step"] for row in rows] == [2, 4]
    assert all(len(row) > 3 for row in rows)
    assert Path("runs/a/levels.png").is_file()
    learned = read_metrics(Path("runs/a/weighting.csv"), None)
    assert [row["step"] for row in learned] == [2, 4]
    assert set(rows[0]) <= set(learned[0])
    assert 0 < max(abs(u) for name, u in learned[1].items() if name != "step") < 0.1
    (means,) = [row["loss"] for row in read_metrics(Path("runs/a/metrics.csv")) if row["step"] == 4]
    assert min(list(rows[1].values())[1:]) <= means <= max(list(rows[1].values())[1:])
    assert command("train", "resume=a", "trainer.steps=6", "device=cpu").code == 0
    assert [row["step"] for row in read_metrics(Path("runs/a/levels.csv"), None)] == [2, 4, 6]
    assert "trainer.learned_weighting was" in command("train", "resume=a", "trainer.learned_weighting=false").err
