"""Saving to and loading from a folder as the hub does; without a network."""

import json
import os
from pathlib import Path

import pytest
import torch

import sde_gen as sg
from sde_gen.data import mixture
from sde_gen.errors import CheckpointError
from sde_gen.training import Trainer, TrainerSettings

pytest.importorskip("huggingface_hub")
from sde_gen.hub import HubModel

MLP = {"_target_": "sde_gen.networks.MLP", "features": 2, "hidden": 8, "layers": 1}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = sg.ScoreModel(sg.MLP(2, hidden=8, layers=1), sg.VE(sigma_max=10.0), sg.VPrediction())
    config = {
        "network": MLP,
        "sde": {"_target_": "sde_gen.VE", "sigma_max": 10.0},
        "parameterization": {"_target_": "sde_gen.VPrediction"},
    }
    settings = TrainerSettings(steps=3, batch_size=8)
    folder = tmp_path / "run"
    Trainer(
        model, mixture(n=50, n_test=20), sg.DenoisingScoreMatching(), settings, checkpoints=folder / "checkpoints",
        config=config,
    ).train()  # fmt: skip
    return folder


def test_round_trip_through_a_folder(run: Path, tmp_path: Path) -> None:
    model = HubModel.from_run(run)
    model.save_pretrained(tmp_path / "saved")
    assert {"config.json", "model.safetensors"} <= set(os.listdir(tmp_path / "saved"))
    loaded = HubModel.from_pretrained(tmp_path / "saved")
    assert isinstance(loaded, sg.ScoreModel)
    assert not loaded.training
    assert loaded.perturbation == sg.VE(sigma_max=10.0)
    assert loaded.parameterization == sg.VPrediction()
    assert loaded.shape == (2,)
    assert loaded.transform == mixture(n=50, n_test=20).transform
    assert loaded.state_dict().keys() == model.state_dict().keys()
    x = [sg.DDIM(steps=3)(m, (5, *m.shape), seed=1).x for m in (model, loaded)]
    assert torch.equal(x[0], x[1])
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["network"] == MLP, "the configuration is plain data"


def test_trained_weights_or_averaged_ones(run: Path) -> None:
    last, averaged = HubModel.from_run(run, weights="model"), HubModel.from_run(run)
    assert not torch.equal(last.network.stem.weight, averaged.network.stem.weight)


def _saved(tmp_path: Path) -> Path:
    HubModel(MLP, {"_target_": "sde_gen.VP"}).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize(
    "change",
    [
        {"network": {"_target_": "os.mkdir", "path": "owned"}},
        {"sde": {"_target_": "subprocess.run", "args": ["mkdir", "owned"]}},
        {"sde": {"_target_": "sde_gen.VP", "beta_max": "${oc.env:HOME}"}},
        {"network": {**MLP, "hidden": {"_target_": "os.mkdir", "path": "owned"}}},
        {"network": "os.mkdir"},
        {"network": {**MLP, "hidden": "many"}},
        {"data": {"shape": "x"}},
        {"trusted": ["os"], "network": {"_target_": "os.mkdir", "path": "owned"}},
    ],
)
def test_a_configuration_is_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]) -> None:
    monkeypatch.chdir(tmp_path)
    folder = _saved(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError):
        HubModel.from_pretrained(folder)
    assert not Path("owned").exists()


def test_only_safetensors_are_read_and_all_must_fit(tmp_path: Path) -> None:
    folder = _saved(tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        HubModel.from_pretrained(folder)
    torch.save({}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="damaged"):
        HubModel.from_pretrained(folder)
    os.rename(folder / "model.safetensors", folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        HubModel.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(weights)
    config = json.loads((folder / "config.json").read_text())
    config["network"]["layers"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="do not fit"):
        HubModel.from_pretrained(folder)


def test_a_class_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_hub_network.py").write_text("from sde_gen.networks import MLP\n\n\nclass Mine(MLP):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    mine = {**MLP, "_target_": "my_hub_network.Mine"}
    with pytest.raises(CheckpointError, match="not one of"):
        HubModel(mine, {"_target_": "sde_gen.VP"})

    class Trusting(HubModel):
        trusted = ("my_hub_network",)

    Trusting(mine, {"_target_": "sde_gen.VP"}).save_pretrained(tmp_path / "saved")
    assert type(Trusting.from_pretrained(tmp_path / "saved").network).__name__ == "Mine"
    with pytest.raises(CheckpointError, match="not one of"):
        HubModel.from_pretrained(tmp_path / "saved")
