"""Flipped bits are found, and nothing that lies in a run's files is ever executed."""

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sde_gen.errors import SDEGenError
from sde_gen.sample import main as sample
from sde_gen.train import main as train
from sde_gen.training import newest_checkpoint, read_checkpoint, read_metrics
from sde_gen.training.checkpoint import MANIFEST
from tests.commands.helpers import TINY

FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "config.json", "state.json", MANIFEST)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that a command has made."""
    folder = tmp_path_factory.mktemp("made")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert train([*TINY, "run=a", "trainer.checkpoint_every=2"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", "s3cr3t")
    return tmp_path / "runs/a"


def _find(path: Path, good: dict[str, bytes], place: int) -> bool:
    """Whether a checkpoint with bit `place` of all its files together flipped is refused."""
    for name, content in good.items():
        if place < 8 * len(content):
            damaged = bytearray(content)
            damaged[place // 8] ^= 1 << (place % 8)
            (path / name).write_bytes(damaged)
            try:
                read_checkpoint(path)
            except SDEGenError:
                return True
            finally:
                (path / name).write_bytes(content)
            return False
        place -= 8 * len(content)
    raise AssertionError("beyond the last bit")


def test_200_flipped_bits_are_200_found(run: Path) -> None:
    path = run / "checkpoints/step_00000004"
    good = {name: (path / name).read_bytes() for name in FILES}
    total = 8 * sum(len(content) for content in good.values())
    places = torch.randint(total, (200,), generator=torch.Generator().manual_seed(2)).tolist()
    assert sum(_find(path, good, place) for place in places) == 200
    assert read_checkpoint(path).step == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", [MANIFEST, "config.json", "state.json"])
def test_every_bit_of_the_small_files(run: Path, name: str) -> None:
    path = run / "checkpoints/step_00000004"
    good = {name: (path / name).read_bytes()}
    missed = [place for place in range(8 * len(good[name])) if not _find(path, good, place)]
    assert missed == []


class _Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, ("owned",))


YAML = b"!!python/object/apply:os.mkdir [owned]\n"
TARGET = json.dumps({"_target_": "os.mkdir", "path": "owned", "step": 4}).encode()
INTERPOLATED = json.dumps({"step": 4, "sde": {"_target_": "sde_gen.VP", "beta_max": "${oc.env:SECRET}"}}).encode()
KINDS = {"pickle": pickle.dumps(_Payload()), "yaml": YAML, "target": TARGET, "interpolation": INTERPOLATED}


def _put(path: Path, name: str, content: bytes) -> None:
    """`content` as a file of the checkpoint, with a manifest that vouches for it."""
    (path / name).write_bytes(content)
    if name != MANIFEST:
        manifest = json.loads((path / MANIFEST).read_text())
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        (path / MANIFEST).write_text(json.dumps(manifest))


def _use(capsys: pytest.CaptureFixture[str], everything: bool = False) -> None:
    """Resume (and sample): whatever comes of it, nothing runs, nothing leaks, and no traceback is shown."""
    quick = ("sampler=ddim", "sampler.steps=1", "num_samples=2")
    codes = [train(["resume=a", "trainer.steps=5", "device=cpu", "trainer.preview_samples=0"])]
    if everything:
        codes += [
            train([*TINY, "run=a", "trainer.steps=6", "trainer.checkpoint_every=2"]),
            sample(["run=a", *quick]),
            sample(["checkpoint=runs/a/checkpoints/step_00000004", *quick]),
        ]
    out, err = capsys.readouterr()
    assert set(codes) <= {0, 2, 65, 66}
    assert "Traceback" not in out + err
    assert "s3cr3t" not in out + err
    assert not Path("owned").exists()


@pytest.mark.parametrize("everything", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*FILES, "../../config.yaml", "../../metrics.csv", "../../.lock"])
def test_payloads_in_every_kind_of_file(
    run: Path, capsys: pytest.CaptureFixture[str], kind: str, name: str, everything: bool
) -> None:
    path = run / "checkpoints/step_00000004"
    if name.startswith("../"):
        (path / name).resolve().write_bytes(KINDS[kind])
        if name.endswith("csv"):
            with pytest.raises(SDEGenError):
                read_metrics(run / "metrics.csv")
    else:
        _put(path, name, KINDS[kind])
        assert newest_checkpoint(run / "checkpoints")[0] is not None, "an older one is there"
    if everything or (kind, name) in (("pickle", "ema.safetensors"), ("target", "config.json")):
        _use(capsys, everything)
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    "name", ["../config.yaml", "/etc/passwd", "..", ".", "", "a/../b", "model.safetensors/..", "config.json\n", "CON"]
)
def test_a_manifest_names_files_of_its_own_folder_only(run: Path, name: str) -> None:
    path = run / "checkpoints/step_00000004"
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"][name] = {"sha256": "0" * 64, "bytes": 0}
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(SDEGenError, match="not a file of a checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", FILES)
def test_links_are_not_followed(run: Path, name: str) -> None:
    path = run / "checkpoints/step_00000004"
    elsewhere = run.parent / "elsewhere"
    shutil.move(path / name, elsewhere)
    (path / name).symlink_to(elsewhere)
    with pytest.raises(SDEGenError):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "entry", [None, 5, [], {"files": []}, {"format": 1, "files": {"config.json": None}}, {"format": 1, "files": {}}]
)
def test_manifests_of_other_shapes(run: Path, entry: Any) -> None:
    path = run / "checkpoints/step_00000004"
    (path / MANIFEST).write_text(json.dumps(entry))
    with pytest.raises(SDEGenError):
        read_checkpoint(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{"step": True}, {"step": -1}, {"step": "4"}, {"data": 5}, {"data": {"shape": "x"}}, {"skipped": "many"},
     {"metrics": 5}, {"seconds": []}, {"held_out_loss": "best"}, {"ema_updates": {}}],
    ids=str,
)  # fmt: skip
def test_states_of_other_shapes(run: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]) -> None:
    path = run / "checkpoints/step_00000004"
    state = json.loads((path / "state.json").read_text())
    _put(path, "state.json", json.dumps({**state, **change}).encode())
    _use(capsys, everything=True)
