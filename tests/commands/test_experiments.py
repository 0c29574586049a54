"""Experiments of `python -m sde_gen.train`: each trains on a small stand-in of its data, in the same files."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from sde_gen.config import load_config
from sde_gen.config.compose import _COMPARES
from sde_gen.config.folder import config_dir
from sde_gen.training import read_checkpoint
from tests.commands.helpers import Command
from tests.data.test_cifar import written
from tests.data.test_idx import encode

#: Settings that make a step a moment's work; all others are those of the experiment.
SMALL = ("network.width=8", "network.blocks=1", "trainer.batch_size=4", "trainer.steps=3", "trainer.warmup=1",
         "trainer.preview_samples=0", "trainer.eval_every=0", "trainer.keep_best=0", "device=cpu", "run=a")  # fmt: skip


def idx_files(folder: Path) -> tuple[str, ...]:
    """Twelve training and five held-out images of 28 x 28 in four IDX files."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("t10k", 5)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(encode(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(encode(np.arange(count, dtype=np.uint8) % 10))
    return (f"data.root={folder}",)


def cifar_files(folder: Path) -> tuple[str, ...]:
    """Fifteen training and three held-out images of 32 x 32, as downloaded."""
    return (f"data.path={written(folder, 'bin', packed=True)}",)


STAND_INS = {"fashion_mnist": idx_files, **{f"cifar10_{name}": cifar_files for name in ("ddpm", "vp", "ve", "edm")}}


@pytest.mark.parametrize("experiment", sorted(STAND_INS))
def test_it_trains_and_what_it_made_can_be_sampled(experiment: str, command: Command) -> None:
    place = STAND_INS[experiment](Path("files"))
    result = command("train", f"experiment={experiment}", *place, *SMALL)
    assert result.code == 0, result.err
    config = read_checkpoint(Path("runs/a/checkpoints/step_00000003")).config
    composed = load_config("train", [f"experiment={experiment}", *place])
    for part in ("sde", "parameterization", "objective"):
        assert {key: config[part][key] for key in composed[part]} == dict(composed[part]), "as the experiment says"
    with Path("runs/a/metrics.csv").open() as stream:
        assert np.isfinite(float(list(csv.DictReader(stream))[-1]["loss"]))
    result = command(
        "sample", "run=a", "sampler=ddim", "sampler.steps=2", "num_samples=4", "out=drawn", "metrics=false"
    )
    assert result.code == 0, result.err
    assert Path("drawn/samples.png").is_file()


@pytest.mark.parametrize("file", sorted((Path(config_dir()) / "experiment").glob("*.yaml")), ids=lambda file: file.stem)
def test_what_an_experiment_says_is_what_is_composed(file: Path) -> None:
    text = file.read_text("utf-8")
    composed = load_config("compare" if _COMPARES.search(text) else "train", [f"experiment={file.stem}"])

    def differing(said: Any, got: Any, place: str) -> list[str]:
        if not isinstance(said, dict):
            return [] if said == got else [f"{place}: {said!r}, not {got!r}"]
        inner = {key: value for key, value in said.items() if key not in ("_settings_", "defaults", "hydra")}
        return [line for key, value in inner.items() for line in differing(value, got[key], f"{place}.{key}")]

    read = OmegaConf.to_container(OmegaConf.create(text))  # which knows 2e-4 as a number
    assert not differing(read, composed, file.stem)


def test_every_experiment_for_training_is_tried_here() -> None:
    files = (Path(config_dir()) / "experiment").glob("*.yaml")
    assert {file.stem for file in files if not _COMPARES.search(file.read_text("utf-8"))} == set(STAND_INS)


def test_an_experiment_of_the_other_command_is_named_as_such(command: Command) -> None:
    result = command("train", "experiment=oracle_2d")
    assert result.code == 2
    assert result.err == "error: experiment=oracle_2d is for python -m sde_gen.compare experiment=oracle_2d\n"
