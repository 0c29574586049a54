"""Checkpoints: published whole or not at all, damage found, nothing executed."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from sde_gen.errors import CheckpointError, MissingInputError, OutputError
from sde_gen.files import remove_leftovers
from sde_gen.training import newest_checkpoint, read_checkpoint, save_checkpoint
from sde_gen.training.checkpoint import MANIFEST, checkpoint_folders


def _save(folder: Path, step: int, keep_last: int = 3) -> Path:
    shared = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "model": {"w": shared, "tied": shared, "turned": shared.T},
        "ema": {"w": shared + 1},
        "optimizer": {"step.w": torch.tensor(float(step))},
    }
    return save_checkpoint(folder, step, tensors, {"sde": {"_target_": "sde_gen.VP"}}, {"seconds": 1.5}, keep_last)


def test_round_trip(tmp_path: Path) -> None:
    path = _save(tmp_path, 7)
    assert path.name == "step_00000007"
    checkpoint = read_checkpoint(path)
    assert checkpoint.step == 7
    assert checkpoint.config == {"sde": {"_target_": "sde_gen.VP"}}
    assert torch.equal(checkpoint.tensors("model")["turned"], torch.arange(6.0).reshape(2, 3).T)
    assert torch.equal(checkpoint.tensors("ema")["w"], torch.arange(6.0).reshape(2, 3) + 1)
    assert sorted(os.listdir(tmp_path)) == ["step_00000007"]
    modes = {p.stat().st_mode & 0o777 for p in path.iterdir()}
    assert len(modes) == 1, "all files are as readable as the others"


def test_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        _save(tmp_path, step, keep_last=2)
    assert [p.name for p in checkpoint_folders(tmp_path)] == ["step_00000005", "step_00000004"]
    assert sorted(os.listdir(tmp_path)) == ["step_00000004", "step_00000005"]
    _save(tmp_path, 6, keep_last=0)
    assert len(checkpoint_folders(tmp_path)) == 3


def test_damaged_checkpoints_of_later_steps_take_nobodys_place(tmp_path: Path) -> None:
    for step in (1, 5, 6):
        _save(tmp_path, step)
    for step in (5, 6):
        (tmp_path / f"step_{step:08d}" / "model.safetensors").write_bytes(b"")
    found, _ = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1
    _save(tmp_path, 2, keep_last=1)  # a run that went on from there
    found, skipped = newest_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, len(skipped)) == (2, 2)
    assert [p.name for p in checkpoint_folders(tmp_path)][2:] == ["step_00000002"]


@pytest.mark.parametrize(
    "file", ["model.safetensors", "ema.safetensors", "optimizer.safetensors", "config.json", "state.json", MANIFEST]
)
def test_every_flipped_bit_is_found_and_an_older_checkpoint_taken(tmp_path: Path, file: str) -> None:
    _save(tmp_path, 1)
    path = _save(tmp_path, 2)
    good = (path / file).read_bytes()
    generator = torch.Generator().manual_seed(len(good))
    for place in torch.randint(8 * len(good), (40,), generator=generator).tolist():
        damaged = bytearray(good)
        damaged[place // 8] ^= 1 << (place % 8)
        (path / file).write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read_checkpoint(path)
    found, skipped = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1
    assert len(skipped) == 1
    assert "step_00000002" in skipped[0]


def test_a_missing_or_shortened_file_is_found(tmp_path: Path) -> None:
    path = _save(tmp_path, 1)
    content = (path / "ema.safetensors").read_bytes()
    (path / "ema.safetensors").write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="SHA-256"):
        read_checkpoint(path)
    (path / "ema.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks ema\.safetensors"):
        read_checkpoint(path)
    (path / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        read_checkpoint(path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError):
        read_checkpoint(tmp_path / "none")
    assert newest_checkpoint(tmp_path / "none") == (None, [])


def test_a_sound_checkpoint_of_the_same_step_is_never_modified_a_damaged_one_is_moved(tmp_path: Path) -> None:
    path = _save(tmp_path, 3)
    stamp = (path / MANIFEST).stat().st_mtime_ns
    _save(tmp_path, 3)
    assert (path / MANIFEST).stat().st_mtime_ns == stamp
    (path / "config.json").write_text("{}")
    _save(tmp_path, 3)
    assert read_checkpoint(path).step == 3
    assert sum(p.name.startswith("damaged-") for p in tmp_path.iterdir()) == 1
    assert [p.name for p in checkpoint_folders(tmp_path)] == ["step_00000003"]


def test_a_failed_save_leaves_the_others_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sde_gen.training.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        _save(tmp_path, 2)
    assert caught.value.exit_code == 74  # type: ignore[attr-defined]
    assert os.listdir(tmp_path) == ["step_00000001"]
    assert read_checkpoint(tmp_path / "step_00000001").step == 1


def test_what_a_killed_save_left_is_not_read_and_can_be_removed(tmp_path: Path) -> None:
    path = _save(tmp_path, 1)
    shutil.copytree(path, tmp_path / ".tmp-step_00000009-abcd")
    assert [p.name for p in checkpoint_folders(tmp_path)] == ["step_00000001"]
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["step_00000001"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot create") as caught:
        _save(tmp_path / "file" / "checkpoints", 1)
    assert caught.value.exit_code == 73


class _Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, ("owned",))


def test_a_manifest_cannot_name_other_files_and_pickles_do_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = _save(tmp_path / "c", 1)
    manifest = json.loads((path / MANIFEST).read_text())
    for name in ("../../etc/passwd", "model.pt", "model.safetensors/../x.json"):
        changed = {**manifest, "files": {**manifest["files"], name: {"sha256": "0", "bytes": 0}}}
        (path / MANIFEST).write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match="not a file of a checkpoint"):
            read_checkpoint(path)
    for name in ("model.safetensors", "state.json", "config.json", MANIFEST):
        shutil.rmtree(path)
        _save(tmp_path / "c", 1)
        content = pickle.dumps(_Payload())
        (path / name).write_bytes(content)
        if name != MANIFEST:
            entry = {"sha256": __import__("hashlib").sha256(content).hexdigest(), "bytes": len(content)}
            (path / MANIFEST).write_text(json.dumps({**manifest, "files": {**manifest["files"], name: entry}}))
        with pytest.raises(CheckpointError):
            read_checkpoint(path).tensors("model")
    assert not Path("owned").exists()
