"""Bad input: one clear sentence, the right exit code, before any work, nothing lost."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sde_gen.config.groups import choices
from tests.commands.helpers import TINY, Command

SAMPLERS = choices("sampler")

TRAIN_ERRORS = [
    (["sde=vpp"], 2, "did you mean vp?); choose one of cosine, ddpm, edm, flow, linear, ncsn, subvp, table, ve, vp"),
    (["data=digit"], 2, "did you mean digits?"),
    (["network=une"], 2, "did you mean unet?); choose one of auto, ddpmpp, dit"),
    (["objective=snrr"], 2, "choose one of edm, hybrid, likelihood, min-snr, score, simple, snr, vlb"),
    (["parameterization=w"], 2, "choose one of data, edm, noise, score, v, velocity"),
    (["trainer=x"], 2, "choose one of default"),
    (["sde.beta_mni=1"], 2, "did you mean sde.beta_min?"),
    (["trainer.stesp=1"], 2, "did you mean trainer.steps?"),
    (["+x=1"], 2, "adds a key"),
    (["+sampler@extra=ddim"], 2, "extra is not a setting"),
    (
        ["sde=null"],
        2,
        "sde=null is not a choice; choose one of cosine, ddpm, edm, flow, linear, ncsn, subvp, table, ve, vp, or leave",
    ),
    (["sde=1"], 2, "sde=1 is not a choice; choose one of cosine"),
    (["sde=true"], 2, "sde=true is not a choice; choose one of cosine"),
    (["~sde=1"], 2, "~sde=1 is not a choice; choose one of cosine"),
    (["run=null", "seed=1", "data=null"], 2, "data=null is not a choice; choose one of array_file, checkerboard"),
    (
        ["network=null"],
        2,
        "network=null is not a choice; choose one of auto, ddpmpp, dit, edm2, mlp",
    ),
    (["parameterization=null"], 2, "or leave it out for noise"),
    (["objective=null"], 2, "or leave it out for simple"),
    (["trainer=null"], 2, "or leave it out for default"),
    (["logger=null"], 2, "choose one of csv, mlflow, tensorboard, trackio, wandb, or leave it out for csv"),
    (["sampler=null"], 2, "sampler is not a setting; the groups and settings are class_conditional, data"),
    (
        ["hydra/launcher=null"],
        2,
        "hydra/launcher=null is not a choice; name one of its files, or leave it out for basic",
    ),
    (["~sde"], 2, "sde is missing; give sde=VALUE"),
    (["sde.beta_min=abc"], 2, "sde.beta_min='abc' must be a number"),
    (["sde.beta_min=-1"], 2, "beta_min"),
    (["sde.beta_min=nan"], 2, "beta_min"),
    (["sde.beta_min=21"], 2, "must not exceed"),
    (["sde=ve", "sde.sigma_min=0"], 2, "sigma_min"),
    (["sde=ve", "sde.sigma_min=60"], 2, "sigma_min"),
    (["sde=ddpm", "sde.steps=0"], 2, "steps"),
    (["sde=ddpm", "sde.steps=20"], 2, "below 1"),
    (["sde=ncsn", "sde.levels=1"], 2, "levels"),
    (["trainer.steps=0"], 2, "trainer: steps must be a whole number, at least 1, got 0"),
    (["trainer.steps=1.5"], 2, "must be a whole number"),
    (["trainer.batch_size=-4"], 2, "trainer: batch_size must be a whole number, at least 1, got -4"),
    (["trainer.learning_rate=nan"], 2, "trainer: learning_rate must be a finite number in (0, inf), got nan"),
    (["trainer.schedule=step"], 2, "one of constant, cosine"),
    (["trainer.max_seconds=-1"], 2, "trainer: max_seconds must be a number in (0, inf], got -1"),
    (["seed=-1"], 2, "seed"),
    (["seed=abc"], 2, "seed='abc' must be a whole number"),
    (["device=tpu"], 2, "use auto, cpu, cuda"),
    (["network=mlp"], 2, "use network=unet"),
    (["network=unet", "data=mixture"], 2, "use network=mlp"),
    (["objective.times_law=nodes"], 2, "needs a chain"),
    (["class_conditional=true", "data=checkerboard"], 2, "no labels"),
    (["objective.label_dropout=0.1"], 2, "num_classes"),
    (["run=a/b"], 2, "is not a run's name"),
    (["sde._target_=os.system"], 2, "not one of sde_gen's own classes"),
    (["data=image_folder"], 2, "data.path is missing; give data.path=VALUE"),
    (["data=image_folder", "data.path=none"], 66, "no such folder"),
    (["data=array_file", "data.path=none.npy"], 66, "none.npy"),
    (["data=csv_file", "data.path=none.csv"], 66, "none.csv"),
    (["data=fashion_mnist", "data.root=none"], 66, "none"),
    (["runs_dir=file/runs"], 73, "cannot create"),
]

SAMPLE_ERRORS = [
    (["sampler=pcc"], 2, "did you mean pc?); choose one of " + ", ".join(SAMPLERS)),
    (["sampler=null"], 2, ", unipc, or leave it out for uncalibrated"),
    (["sampler=pc", "sampler.steps=0"], 2, "steps must be a whole number, at least 1"),
    (["sampler=pc", "sampler.corrector.snr=-1"], 2, "snr"),
    (["sampler=ancestral", "sampler.variance=tiny"], 2, "variance"),
    (["sampler=ode", "sampler.steps=10"], 2, "chooses its own steps"),
    (["num_samples=0"], 2, "num_samples must be a whole number, at least 1, got 0"),
    (["weights=best"], 2, "one of ema, model"),
    (["run=a", "checkpoint=b"], 2, "not both"),
    (["device=cuda:99"], 2, "is not there"),
    (["run=none"], 66, "no such folder"),
    (["checkpoint=none"], 66, "no such folder"),
    (["checkpoint=empty"], 66, "no checkpoint in empty"),
    ([], 66, "train one first"),
]


def _one_sentence(err: str, message: str) -> None:
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert "Traceback" not in err


@pytest.mark.parametrize(("arguments", "code", "message"), TRAIN_ERRORS, ids=lambda v: str(v)[:40])
def test_train(command: Command, arguments: list[str], code: int, message: str) -> None:
    Path("file").write_text("")
    result = command("train", *arguments)
    _one_sentence(result.err, message)
    assert result.code == code
    assert os.listdir() == ["file"], "nothing was made"


@pytest.mark.parametrize(("arguments", "code", "message"), SAMPLE_ERRORS, ids=lambda v: str(v)[:40])
def test_sample(command: Command, arguments: list[str], code: int, message: str) -> None:
    Path("empty").mkdir()
    result = command("sample", *arguments)
    _one_sentence(result.err, message)
    assert result.code == code
    assert os.listdir() == ["empty"]


def test_a_sweep_over_what_is_no_choice(command: Command) -> None:
    result = command("train", "sde=vp,null", "--multirun")
    _one_sentence(result.err, "sde=null is not a choice; choose one of cosine")
    assert result.code == 2


EVALUATE_ERRORS = [
    (["sampler=null"], 2, "or leave it out for dpmpp2m"),
    (["features=null"], 2, "choose one of dinov2, efficientnet-lite0, inception, network, pixels, or leave"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), EVALUATE_ERRORS, ids=lambda v: str(v)[:40])
def test_evaluate(command: Command, arguments: list[str], code: int, message: str) -> None:
    result = command("evaluate", *arguments)
    _one_sentence(result.err, message)
    assert result.code == code
    assert os.listdir() == []


def _png(path: Path, size: int) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("L", (size, size), 128).save(path)


def test_image_folders_that_cannot_be_used(command: Command) -> None:
    folder = Path("pictures")
    folder.mkdir()
    arguments = ("data=image_folder", "data.path=pictures", "trainer.steps=1")
    empty = command("train", *arguments)
    _one_sentence(empty.err, "pictures")
    assert empty.code in (65, 66)
    _png(folder / "a.png", 8)
    _png(folder / "b.png", 9)
    mixed = command("train", *arguments)
    _one_sentence(mixed.err, "b.png")
    assert mixed.code == 65
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:40])
    broken = command("train", *arguments)
    _one_sentence(broken.err, "b.png")
    assert broken.code == 65
    assert not Path("runs").exists()


def test_an_array_with_nan_is_refused(command: Command) -> None:
    array = np.random.default_rng(0).normal(size=(20, 2))
    array[7, 1] = np.nan
    np.save("x.npy", array)
    result = command("train", "data=array_file", "data.path=x.npy")
    _one_sentence(result.err, "x.npy")
    assert result.code == 65
    assert not Path("runs").exists()


def test_no_cuda_here(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = command("train", "device=cuda")
    _one_sentence(result.err, "device=cuda is not there: torch sees 0 CUDA devices; use device=auto or device=cpu")
    assert result.code == 2


def test_an_output_that_cannot_be_written_is_known_before_sampling(trained: Command) -> None:
    Path("file").write_text("")
    result = trained("sample", "out=file/x", "sampler=pc", "sampler.steps=1000000")
    _one_sentence(result.err, "cannot create the output folder")
    assert result.code == 73


def test_a_changed_setting_is_shown_and_the_run_left_alone(trained: Command) -> None:
    before = sorted((p, p.stat().st_mtime_ns) for p in Path("runs/tiny").rglob("*") if p.is_file())
    result = trained("train", *TINY, "run=tiny", "sde.beta_max=10", "trainer.learning_rate=0.1", "trainer.steps=8")
    _one_sentence(result.err, "sde.beta_max was 20.0, is 10; trainer.learning_rate was 0.001, is 0.1")
    assert result.code == 2
    after = sorted((p, p.stat().st_mtime_ns) for p in Path("runs/tiny").rglob("*") if p.is_file())
    assert after == before


def test_damaged_checkpoints_are_passed_over_and_none_sound_is_an_error(trained: Command) -> None:
    assert trained("train", *TINY, "run=tiny", "trainer.steps=6").code == 0
    newest = Path("runs/tiny/checkpoints/step_00000006/ema.safetensors")
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    result = trained("sample", "run=tiny", "sampler=ddim", "sampler.steps=2", "metrics=false")
    assert result.code == 0, result.err
    assert "passed over" in result.out
    assert "step_00000004" in result.out
    older = Path("runs/tiny/checkpoints/step_00000004/state.json")
    older.write_text("{}")
    for name, arguments in (("sample", ("run=tiny",)), ("train", (*TINY, "run=tiny", "trainer.steps=8"))):
        result = trained(name, *arguments)
        assert result.code == 65
        _one_sentence(result.err, "sound")
    assert older.read_text() == "{}"


def test_labels_that_do_not_fit(trained: Command) -> None:
    result = trained("sample", "label=3")
    _one_sentence(result.err, "trained without labels")
    assert result.code == 2


def test_a_numerical_fault_is_70_and_saves_nothing(command: Command) -> None:
    result = command("train", *TINY, "run=bad", "trainer.learning_rate=1e30", "trainer.clip=null", "trainer.warmup=0")
    assert result.code == 70
    _one_sentence(result.err, "became NaN or infinite at step")
    assert not Path("runs/bad/checkpoints").exists()
