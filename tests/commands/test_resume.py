"""Going on with a run by `resume=RUN`: its own settings, those of the command on top, and what may not change."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sde_gen.training import read_checkpoint
from tests.commands.helpers import TINY, Command

FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")


def _tensors(run: str, step: int) -> list[dict[str, list[float]]]:
    folder = Path("runs") / run / f"checkpoints/step_{step:08d}"
    return [{k: v.flatten().tolist() for k, v in load_file(folder / file).items()} for file in FILES]


def test_resume_needs_nothing_but_the_name_and_equals_one_run(command: Command) -> None:
    settings = (*TINY, "trainer.schedule=constant", "seed=5", "sde=subvp", "trainer.batch_size=6")
    assert command("train", *settings, "run=whole", "trainer.steps=8").code == 0
    assert command("train", *settings, "run=parts").code == 0
    result = command("train", "resume=parts", "trainer.steps=8", "device=cpu")
    assert result.code == 0, result.err
    assert "continued from step 4" in result.out
    assert "changed: trainer.steps was 4, is 8" in result.out
    assert _tensors("parts", 8) == _tensors("whole", 8)
    assert read_checkpoint(Path("runs/parts/checkpoints/step_00000008")).config["sde"]["_target_"] == "sde_gen.SubVP"
    assert sorted(p.name for p in Path("runs").iterdir()) == ["parts", "whole"]


@pytest.mark.parametrize("place", ["runs/tiny", "./runs/tiny", "runs/tiny/checkpoints"])
def test_resume_takes_a_folder_too(trained: Command, place: str) -> None:
    result = trained("train", f"resume={place}", "trainer.steps=5", "device=cpu")
    assert result.code == 0, result.err
    assert Path("runs/tiny/checkpoints/step_00000005").is_dir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sde=ve", "sde._target_ was sde_gen.VP, is sde_gen.VE"),
        ("sde.beta_max=10", "sde.beta_max was 20.0, is 10"),
        ("seed=1", "seed was 0, is 1"),
        ("trainer.batch_size=9", "trainer.batch_size was 8, is 9"),
        ("network.hidden=12", "network.hidden was 8, is 12"),
        ("objective=edm", "objective.weighting was simple, is edm"),
        ("data.n=65", "data.n was 64, is 65"),
    ],
)
def test_what_matters_may_not_change(trained: Command, change: str, message: str) -> None:
    override = ("network=mlp",) if change.startswith("network.") else ()
    override += ("data=mixture",) if change.startswith("data.") else ()
    result = trained("train", "resume=tiny", *override, change, "trainer.steps=8", "device=cpu")
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert [p.name for p in Path("runs/tiny/checkpoints").iterdir()] == ["step_00000004"]


def test_there_is_nothing_to_resume(command: Command) -> None:
    assert command("train", "resume=none").code == 66
    assert command("train", "resume=a", "run=b").code == 2
    assert command("train", "resume=../x/../").code == 66
    assert command("train", "timeout=0").code == 2
    assert not Path("runs").exists()


def test_data_may_move_but_not_change(command: Command) -> None:
    first = Path("x.csv")
    first.write_text("a,b\n" + "".join(f"{i},{i * i % 7}\n" for i in range(40)))
    train = [word for word in TINY if not word.startswith("data")]
    assert command("train", *train, "data=csv_file", "data.path=x.csv", "run=m").code == 0
    first.rename("y.csv")
    moved = ("resume=m", "data=csv_file", "data.path=y.csv", "device=cpu")
    result = command("train", *moved, "trainer.steps=6")
    assert result.code == 0, result.err
    Path("y.csv").write_text("a,b\n" + "".join(f"{i},{i % 7}\n" for i in range(40)))
    result = command("train", *moved, "trainer.steps=8")
    assert result.code == 65
    assert "was trained on other data" in result.err


def test_data_that_changed_is_refused(trained: Command) -> None:
    folder = Path("runs/tiny/checkpoints/step_00000004")
    state = json.loads((folder / "state.json").read_text())
    state["data"]["fingerprint"] = "0" * 64
    config = read_checkpoint(folder).config
    tensors = {name: load_file(folder / f"{name}.safetensors") for name in ("model", "ema", "optimizer")}
    shutil.rmtree(folder)
    from sde_gen.training import save_checkpoint

    save_checkpoint(folder.parent, 4, tensors, config, state)
    result = trained("train", "resume=tiny", "trainer.steps=8", "device=cpu")
    assert result.code == 65
    assert "was trained on other data" in result.err


def test_a_stored_configuration_is_data(trained: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a class that is not on the list, nor an interpolation, gets from a checkpoint into a program."""
    from sde_gen.training import save_checkpoint

    folder = Path("runs/tiny/checkpoints/step_00000004")
    good = read_checkpoint(folder)
    tensors = {name: good.tensors(name) for name in ("model", "ema", "optimizer")}
    monkeypatch.setenv("SECRET", "made")
    evil = [
        {"sde": {"_target_": "os.mkdir", "path": "owned"}},
        {"network": {"_target_": "builtins.eval", "_args_": ["__import__('os').mkdir('owned')"]}},
        {"data": {"_target_": "subprocess.run", "args": ["mkdir", "owned"]}},
        {"objective": {"_target_": "sde_gen.errors.os.mkdir", "path": "owned"}},
        {"sde": {"_target_": "sde_gen.VP", "beta_max": "${oc.env:SECRET}"}},
        {"data": {"_target_": "sde_gen.data.array_file", "path": "${oc.env:SECRET}"}},
        {"parameterization": {"_target_": "sde_gen.config.objects.import_module", "name": "os"}},
        {"network": {**good.config["network"], "_partial_": True}},
    ]
    for k, change in enumerate(evil):
        shutil.rmtree(folder)
        save_checkpoint(folder.parent, 4, tensors, {**good.config, **change}, good.state)
        for arguments in (("train", "resume=tiny", "trainer.steps=5"), ("sample", "run=tiny", "sampler=ddim")):
            result = trained(*arguments, "device=cpu")
            if result.code == 0:  # sampling needs neither data nor objective
                assert arguments[0] == "sample"
                assert set(change) <= {"data", "objective"}, (k, result.out)
            else:
                assert result.code in (2, 65), (k, result.err)
            assert "made" not in result.out + result.err
    assert not Path("owned").exists()
