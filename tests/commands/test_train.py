"""`python -m sde_gen.train`: folders, resumption, sweeps, what it writes."""

import csv
import json
import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from safetensors.torch import load_file

from sde_gen.config import load_model
from sde_gen.data import Affine
from sde_gen.training import RunDirectory, read_checkpoint, read_metrics
from tests.commands.helpers import TINY, Command
from tests.data.test_archives import CLASSES, packed

IMAGES = ("network=unet", "network.width=8", "network.multipliers=[1]", "network.attention=[]", "network.blocks=1")


def test_what_a_run_holds(command: Command) -> None:
    result = command("train", "data=digits", *IMAGES, *TINY[6:9], "trainer.preview_samples=4", "run=a", "device=cpu")
    assert result.code == 0, result.err
    assert result.err == ""
    run = Path("runs/a")
    names = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    folder = "checkpoints/step_00000004/"
    stored = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "config.json", "state.json")
    assert names == {
        ".lock",
        "config.yaml",
        "metrics.csv",
        "loss.png",
        "levels.csv",
        "levels.png",
        "gradients.csv",
        "gradients.png",
        "training.html",
        "samples/step_00000004.png",
        *(folder + name for name in (*stored, "manifest.json")),
    }
    config = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    checkpoint = read_checkpoint(run / folder)
    assert config == checkpoint.config
    assert checkpoint.config["network"]["channels"] == 1, "the network's configuration needs the data no more"
    assert Affine.from_dict(checkpoint.state["data"]["transform"]) == Affine.to_unit(0, 16, 17)
    assert checkpoint.state["data"]["shape"] == [1, 8, 8]
    with (run / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows] == ["2", "4"]
    assert float(rows[-1]["held_out_loss"]) > 0
    blocks = read_metrics(run / "gradients.csv", None)
    assert [row["step"] for row in blocks] == [2, 4]
    assert blocks[0]["stem"] > 0
    assert "next: python -m sde_gen.sample run=a" in result.out
    weights = load_file(run / folder / "ema.safetensors")
    model = load_model(run)
    assert all((tensor == weights[name]).all() for name, tensor in model.network.state_dict().items())


def test_the_same_run_is_continued_and_equals_one_in_one_piece(command: Command) -> None:
    constant = (*TINY, "trainer.schedule=constant", "seed=5")
    assert command("train", *constant, "run=whole", "trainer.steps=8").code == 0
    assert command("train", *constant, "run=parts").code == 0
    result = command("train", *constant, "run=parts", "trainer.steps=8")
    assert result.code == 0
    assert "continued from step 4" in result.out
    parts = [Path("runs") / name / "checkpoints/step_00000008" for name in ("whole", "parts")]
    for file in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert (parts[0] / file).read_bytes() == (parts[1] / file).read_bytes()
    steps = [line.split(",")[0] for line in Path("runs/parts/metrics.csv").read_text().splitlines()]
    assert steps == ["step", "2", "4", "6", "8"]
    again = command("train", *constant, "run=parts", "trainer.steps=8")
    assert again.code == 0, "a run at its end is no error"


def test_without_a_name_each_run_has_a_folder_of_its_own(command: Command) -> None:
    for _ in range(2):
        assert command("train", *TINY, "sde=subvp").code == 0
    runs = os.listdir("runs")
    assert len(runs) == 2
    assert all("subvp_mixture" in name for name in runs)


def test_a_sweep_makes_one_folder_for_each_job(command: Command) -> None:
    result = command("train", "--multirun", *TINY, "run=s", "sde=vp,ddpm", "trainer.steps=1")
    assert result.code == 0, result.err
    runs = sorted(path.name for path in Path("runs").iterdir() if not path.name.startswith("."))
    assert runs == ["s_0", "s_1"]
    kinds = [read_checkpoint(Path("runs") / run / "checkpoints/step_00000001").config["sde"] for run in runs]
    assert [kind["_target_"] for kind in kinds] == ["sde_gen.VP", "sde_gen.DDPM"]
    assert {path.name for path in Path().iterdir()} == {"runs"}, "Hydra leaves nothing elsewhere"


def test_a_sweep_over_names_uses_them(command: Command) -> None:
    result = command("train", "-m", *TINY, "run=x,y", "trainer.steps=1")
    assert result.code == 0, result.err
    assert sorted(path.name for path in Path("runs").iterdir() if not path.name.startswith(".")) == ["x", "y"]


def test_a_sweep_goes_on_after_a_job_that_fails_and_says_so(command: Command) -> None:
    result = command("train", "-m", *TINY, "run=s", "sde=vp,ddpm", "trainer.steps=0,1")
    assert result.code == 2
    assert "error: trainer: steps must be a whole number, at least 1, got 0" in result.err
    assert "Traceback" not in result.err
    done = [path.name for path in Path("runs").iterdir() if path.name.startswith("s_")]
    assert len(done) == 2, "the two jobs with steps"


def test_class_conditional_training_and_sampling(command: Command) -> None:
    result = command(
        "train", *TINY, "run=c", "class_conditional=true", "objective.label_dropout=0.2", "trainer.preview_samples=2"
    )
    assert result.code == 0, result.err
    state = json.loads(Path("runs/c/checkpoints/step_00000004/config.json").read_text())
    assert state["network"]["num_classes"] == 16
    quick = ("sampler=ddim", "sampler.steps=2", "num_samples=5", "metrics=false")
    for label in ("3", "cycle", "null"):
        result = command("sample", *quick, f"label={label}", f"out=l{label}")
        assert result.code == 0, result.err
    result = command("sample", "label=16")
    assert result.code == 2
    assert "(16 in all), got 16" in result.err


def test_a_configuration_folder_and_a_network_of_ones_own(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("my_network_xyz.py").write_text(
        "from torch import nn\n\n\nclass Tiny(nn.Module):\n"
        "    def __init__(self, width: int = 4):\n        super().__init__()\n"
        "        self.layers = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, 2))\n\n"
        "    def forward(self, x, c_noise):\n        import torch\n\n"
        "        return self.layers(torch.cat([x, c_noise[:, None]], 1))\n"
    )
    Path("mine/network").mkdir(parents=True)
    Path("mine/network/tiny.yaml").write_text("_target_: my_network_xyz.Tiny\nwidth: 6\n")
    monkeypatch.syspath_prepend(Path.cwd())
    arguments = (
        "--config-dir",
        "mine",
        "data=mixture",
        "data.n=64",
        "data.n_test=64",
        "network=tiny",
        *TINY[6:],
        "run=t",
    )
    refused = command("train", *arguments)
    assert refused.code == 2
    assert "add trust=[my_network_xyz]" in refused.err
    assert command("train", *arguments, "trust=[my_network_xyz]").code == 0
    steps = ("sampler=ddim", "sampler.steps=2", "num_samples=4", "out=o")
    stored = command("sample", *steps)
    assert stored.code == 65, "a checkpoint is data: it names no class that the user does not name"
    assert command("sample", *steps, "trust=[my_network_xyz]").code == 0


def test_tensorboard_is_asked_for_only_where_it_is(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = command("train", *TINY, "logger=tensorboard")
    assert result.code == 2
    assert "pip install 'sde_gen[tensorboard]'" in result.err


def test_without_matplotlib_it_trains_and_says_what_is_missing(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sde_gen.pictures.has_matplotlib", lambda: False)
    result = command("train", *TINY, "run=a", "trainer.preview_samples=4")
    assert result.code == 0, result.err
    assert "matplotlib is not installed" in result.out
    result = command("sample", "sampler=ddim", "sampler.steps=2", "out=o")
    assert result.code == 0
    assert sorted(os.listdir("o")) == ["report.json", "samples.npz"]


def test_a_run_in_use_is_73(command: Command) -> None:
    run = RunDirectory.named(Path("runs"), "a")
    with run.locked():
        result = command("train", *TINY, "run=a")
    assert result.code == 73
    assert "in use by another process" in result.err


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_settings_of_the_trainer_reach_it(command: Command, precision: str) -> None:
    settings = (f"trainer.precision={precision}", "trainer.channels_last=true", "trainer.max_seconds=60")
    result = command("train", "data=digits", *IMAGES, *TINY[6:], *settings, "trainer.steps=1", "run=a")
    assert result.code == 0, result.err
    trainer = json.loads(Path("runs/a/checkpoints/step_00000001/config.json").read_text())["trainer"]
    assert trainer["precision"] == precision
    assert trainer["channels_last"] is True


def test_images_in_an_archive_train_without_being_unpacked(command: Command) -> None:
    packed(Path("photos.zip"), CLASSES)
    place = ("data=image_folder", "data.path=photos.zip", "class_conditional=true")
    result = command("train", *place, *IMAGES, *TINY[6:], "run=a")
    assert result.code == 0, result.err
    assert "cat (" in result.out
    assert {path.name for path in Path().iterdir()} == {"photos.zip", "runs"}
    result = command("train", "data=image_folder", "data.path=photos.tar.gz")
    assert result.code == 2
    assert "decompress it to .tar" in result.err


def test_where_nothing_compiles_a_run_says_so_and_goes_on(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_args: object, **_options: object) -> None:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

    monkeypatch.setattr("torch.compile", fails)
    result = command("train", *TINY, "run=c", "trainer.compile=true")
    assert result.code == 0, result.err
    assert (result.out + result.err).count("note: trainer.compile=true: torch cannot compile here (InvalidCxx") == 1
    assert "install a C++ compiler, or leave it out" in result.out + result.err
    result = command("train", *TINY, "run=c", "trainer.compile=false", "trainer.steps=6")  # goes on without it
    assert result.code == 0, result.err
