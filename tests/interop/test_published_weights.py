"""Files of published networks become runs of the package's own networks, without anybody's code."""

from pathlib import Path

import pytest
import torch

import sde_gen as sg
from sde_gen.errors import CheckpointError, ConfigError
from sde_gen.jobs.importing import run
from sde_gen.jobs.training import run as train
from tests.networks.references import inputs, reference

DDPMPP = ("sde=vp", "network=ddpmpp", "network.width=16", "network.multipliers=[1,2,2]", "network.blocks=2",
          "network.attention=[1]", "network.embedding=ddpm", "data_shape=[3,16,16]")  # fmt: skip
DIT = ("sde=ddpm", "network=dit", "network.width=32", "network.depth=2", "network.heads=4",
       "network.learned_variance=true", "network.embedding=adm", "data_shape=[3,8,8]")  # fmt: skip


def imported(origin: str, *arguments: str) -> None:
    run(sg.load_config("import_weights", [f"from={origin}:w.pt", "run=a", *arguments]))


def test_score_sde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given, said = reference("song_ddpmpp")
    averages = [0.5 * tensor for tensor in given.values()]
    torch.save({"model": {f"module.{k}": v for k, v in given.items()}, "ema": {"shadow_params": averages}}, "w.pt")
    imported("score_sde", *DDPMPP)
    x, number, _ = inputs("song_ddpmpp")
    network = sg.load("runs/a", weights="model").network
    assert isinstance(network, sg.networks.DDPMpp)
    torch.testing.assert_close(network(x, number), said, rtol=1e-5, atol=1e-5)
    half = sg.load("runs/a")
    torch.testing.assert_close(half.network.stem.weight, 0.5 * network.stem.weight)
    t = number / 999
    prediction = sg.load("runs/a", weights="model")(x * half.perturbation.alpha(t)[:, None, None, None], t)
    assert prediction.noise.shape == x.shape
    torch.save({"model": given, "ema": {"shadow_params": averages[1:]}}, "w.pt")
    with pytest.raises(CheckpointError, match="averages in a row do not fit"):
        imported("score_sde", *DDPMPP)


def test_dit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given, said = reference("dit_labels")
    torch.save({"ema": given}, "w.pt")
    imported("dit", *DIT)
    x, index, label = inputs("dit_labels")
    torch.testing.assert_close(sg.load("runs/a").network(x, index, label), said, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match=r"what to train on is not known.*; add data=NAME"):
        train(sg.load_config("train", ["resume=a"]))
    with pytest.raises(ConfigError, match=r"told its noise level by other features; say network\.embedding=adm"):
        imported("dit", *(a for a in DIT if "embedding" not in a))
