"""Loggers of other people's: what they are sent, by stand-ins; and the real ones, offline, where they are installed."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sde_gen.training import read_metrics
from tests.commands.helpers import TINY, Command


class _Run:
    """W&B's and trackio's runs, as far as they are used."""

    def __init__(self, **given: Any) -> None:
        self.given, self.rows, self.ended = given, [], False

    def log(self, row: dict[str, float], step: int) -> None:
        self.rows.append((step, row))

    def finish(self) -> None:
        self.ended = True


class _Client:
    """MLflow's, as far as it is used."""

    runs: dict[str, dict[str, Any]]

    def __init__(self, place: str) -> None:
        self.place = place

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return name

    def search_runs(self, experiments: list[str], wanted: str) -> list[Any]:
        ids = [i for i, run in self.runs.items() if wanted == f"tags.sde_gen = '{run['tags']['sde_gen']}'"]
        return [SimpleNamespace(info=SimpleNamespace(run_id=i)) for i in ids]

    def create_run(self, experiment: str, run_name: str, tags: dict[str, str]) -> Any:
        name = f"{len(self.runs)}"
        self.runs[name] = {"experiment": experiment, "name": run_name, "tags": tags, "params": {}, "rows": []}
        return SimpleNamespace(info=SimpleNamespace(run_id=name))

    def log_param(self, run: str, name: str, value: Any) -> None:
        self.runs[run]["params"][name] = value

    def log_metric(self, run: str, name: str, value: float, step: int) -> None:
        self.runs[run]["rows"].append((step, name, value))

    def set_terminated(self, run: str) -> None:
        self.runs[run]["ended"] = True


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    runs: list[_Run] = []

    def init(**given: Any) -> _Run:
        runs.append(_Run(**given))
        return runs[-1]

    monkeypatch.setattr(_Client, "runs", {}, raising=False)
    modules = {"wandb": SimpleNamespace(init=init), "trackio": SimpleNamespace(init=init),
               "mlflow": SimpleNamespace(MlflowClient=_Client)}  # fmt: skip
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in modules else real(name))
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return {"runs": runs, "mlflow": _Client.runs}


def _rows(run: str) -> list[tuple[int, dict[str, float]]]:
    rows = read_metrics(Path("runs", run, "metrics.csv"))
    return [(int(row["step"]), {k: v for k, v in row.items() if k != "step"}) for row in rows]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_rows_and_settings_are_sent(command: Command, stand_ins: dict[str, Any], name: str) -> None:
    assert command("train", *TINY, f"logger={name}", "run=a", "logger.project=mine").code == 0
    (run,) = stand_ins["runs"]
    assert run.ended
    assert run.given["project"] == "mine"
    assert run.given["config"]["trainer"]["steps"] == 4
    assert run.given["resume"] == "allow"
    if name == "wandb":
        assert run.given["mode"] == "offline"
        assert run.given["name"] == "a"
    metrics = [(step, row) for step, row in run.rows if "loss" in row]
    assert metrics == _rows("a")
    tables = [{key.partition("/")[0] for key in row} for _, row in run.rows if "loss" not in row]
    assert tables == [{"loss_at"}, {"grad_norm_of"}] * 2

    assert command("train", "resume=a", "trainer.steps=6", f"logger={name}", "device=cpu").code == 0
    again = stand_ins["runs"][1]
    key = "id" if name == "wandb" else "name"
    assert again.given[key] == run.given[key], "it goes on there"
    assert {step for step, _ in again.rows} == {6}


def test_mlflow_is_sent_rows_and_flat_settings(command: Command, stand_ins: dict[str, Any]) -> None:
    assert command("train", *TINY, "logger=mlflow", "run=a").code == 0
    assert command("train", "resume=a", "trainer.steps=6", "logger=mlflow", "device=cpu").code == 0
    (run,) = stand_ins["mlflow"].values()
    assert run["experiment"] == "sde_gen"
    assert run["name"] == "a"
    assert run["ended"]
    assert run["params"]["trainer.batch_size"] == 8
    losses = [(step, value) for step, key, value in run["rows"] if key == "loss"]
    assert losses == [(step, row["loss"]) for step, row in _rows("a")]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio", "mlflow"])
def test_one_that_is_missing_is_said(command: Command, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = command("train", *TINY, f"logger={name}", "run=a")
    assert result.code == 2
    assert result.err.strip() == f"error: logger={name} needs {name}; run pip install 'sde_gen[{name}]', or logger=csv"
    assert not Path("runs").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_the_real_one_offline(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which trackio reads when it is imported
    module = pytest.importorskip(name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for arguments in ((*TINY, "run=a"), ("resume=a", "trainer.steps=6", "device=cpu")):
        result = command("train", *arguments, f"logger={name}")
        assert result.code == 0, result.err
    if name == "wandb":
        assert len(list(Path("runs/a/wandb").glob("offline-run-*/*.wandb"))) == 2
    elif name == "mlflow":
        client = module.MlflowClient(f"sqlite:///{Path('runs/a/mlflow.db').resolve()}")
        (run,) = client.search_runs([client.get_experiment_by_name("sde_gen").experiment_id])
        history = client.get_metric_history(run.info.run_id, "loss")
        assert [(m.step, m.value) for m in history] == [(step, row["loss"]) for step, row in _rows("a")]
    else:
        assert list((tmp_path / "trackio").rglob("*.db"))
