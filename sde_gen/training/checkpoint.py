"""Checkpoints: one folder per step, published by one rename and never changed afterwards.

    step_00001000/
        model.safetensors  ema.safetensors  optimizer.safetensors     tensors
        config.json  state.json                                       plain data
        manifest.json                                                 size and SHA-256 of each of the others

Nothing here is executed when it is read: tensors are safetensors, everything else is JSON.
"""

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sde_gen.errors import CheckpointError, MissingInputError
from sde_gen.training.files import fsync_file, fsync_folder, make_folder, sha256, writing

FORMAT = 1
MANIFEST = "manifest.json"
_JSON_FILES = ("config.json", "state.json")
_NAME = re.compile(r"step_(\d{8,})")
# A manifest may name these files and no others, so it can never point outside its own folder.
_FILE = re.compile(r"(config|state)\.json|(model|ema|optimizer)\.safetensors")
_MAX_JSON_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were found to hold what its manifest says.

    Attributes:
        path: its folder.
        config: the run's configuration as plain data.
        state: step, seconds of training, loss, data transform and so on.
    """

    path: Path
    config: dict[str, Any]
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps done when it was saved."""
        return int(self.state["step"])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of `model`, `ema` or `optimizer`, on the CPU."""
        path = self.path / f"{name}.safetensors"
        if not path.is_file():
            raise CheckpointError(f"checkpoint {self.path} holds no {path.name}; it cannot be used for this")
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); use an older checkpoint") from error


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    config: Mapping[str, Any],
    state: Mapping[str, Any],
    keep_last: int = 3,
) -> Path:
    """Write `folder/step_XXXXXXXX` and remove all but the newest `keep_last` checkpoints (0 keeps all).

    Args:
        folder: the run's `checkpoints` folder, made if it is not there.
        step: optimiser steps done.
        tensors: file stem (`model`, `ema`, `optimizer`) to named tensors.
        config, state: plain data for the two JSON files.

    Raises:
        OutputError, WriteError: nothing is published then, and older checkpoints stay as they were.
    """
    final = folder / f"step_{step:08d}"
    make_folder(folder, "the checkpoint folder")
    temporary = folder / f".tmp-{final.name}-{secrets.token_hex(4)}"
    with writing(final, "checkpoint"):
        try:
            temporary.mkdir()
            for stem, named in tensors.items():
                _save_tensors(temporary / f"{stem}.safetensors", named)
            (temporary / "config.json").write_text(_dump(config), encoding="utf-8")
            (temporary / "state.json").write_text(_dump({**state, "step": step}), encoding="utf-8")
            files = {path.name: _entry(path) for path in sorted(temporary.iterdir())}
            (temporary / MANIFEST).write_text(_dump({"format": FORMAT, "files": files}), encoding="utf-8")
            for path in temporary.iterdir():
                fsync_file(path)
            fsync_folder(temporary)
            _publish(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    fsync_folder(folder)
    if keep_last > 0:
        _prune(folder, keep_last)
    return final


def read_checkpoint(path: Path) -> Checkpoint:
    """Open one checkpoint folder after checking every file against its manifest.

    Raises:
        MissingInputError: `path` is not there.
        CheckpointError: a file is missing or its contents changed.
    """
    if not path.is_dir():
        raise MissingInputError(f"no checkpoint at {path}; give a folder that holds {MANIFEST}")
    manifest = _read_json(path / MANIFEST)
    files = manifest.get("files")
    if manifest.get("format") != FORMAT or not isinstance(files, dict):
        raise CheckpointError(f"{path / MANIFEST} is not a manifest of format {FORMAT}; use another checkpoint")
    for name in (*_JSON_FILES, "model.safetensors"):
        if name not in files:
            raise CheckpointError(f"{path / MANIFEST} does not list {name}; use another checkpoint")
    for name, entry in files.items():
        if not _FILE.fullmatch(name):
            raise CheckpointError(f"{path / MANIFEST} lists {name!r}, which is not a file of a checkpoint")
        file = path / name
        if not file.is_file() or file.is_symlink():
            raise CheckpointError(f"checkpoint {path} lacks {name}; use another checkpoint")
        if _entry(file) != entry:
            raise CheckpointError(f"{file} does not match its SHA-256 in {MANIFEST}; use another checkpoint")
    config, state = (_read_json(path / name) for name in _JSON_FILES)
    if not isinstance(state.get("step"), int):
        raise CheckpointError(f"{path / 'state.json'} names no step; use another checkpoint")
    return Checkpoint(path, config, state)


def checkpoint_folders(folder: Path) -> list[Path]:
    """The published checkpoints below `folder` (a run's `checkpoints`), newest step first."""
    if not folder.is_dir():
        return []
    found = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir())
    return [path for _, path in sorted(((int(m[1]), path) for m, path in found if m), reverse=True)]


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint below `folder` whose digests hold, and one sentence for each one passed over."""
    skipped: list[str] = []
    for path in checkpoint_folders(folder):
        try:
            return read_checkpoint(path), skipped
        except (CheckpointError, MissingInputError) as error:
            skipped.append(str(error))
    return None, skipped


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed save left behind. Only for the process that holds the run's lock."""
    if folder.is_dir():
        for path in folder.glob(".tmp-*"):
            shutil.rmtree(path, ignore_errors=True)


def _save_tensors(path: Path, named: Mapping[str, Tensor]) -> None:
    # safetensors refuses tensors that share memory or are not contiguous; a copy on the CPU is neither.
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in named.items()}, path)
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)  # safetensors makes its files readable by the owner only


def _publish(temporary: Path, final: Path) -> None:
    if final.exists():
        with suppress(CheckpointError, MissingInputError):
            read_checkpoint(final)
            shutil.rmtree(temporary)  # the same step is there and sound: it is never modified
            return
        os.rename(final, final.with_name(f"damaged-{final.name}-{secrets.token_hex(4)}"))
    os.rename(temporary, final)


def _prune(folder: Path, keep_last: int) -> None:
    for path in checkpoint_folders(folder)[keep_last:]:
        # Renamed first, so that a reader never meets a checkpoint that is half deleted.
        trash = folder / f".tmp-old-{path.name}-{secrets.token_hex(4)}"
        with suppress(OSError):
            os.rename(path, trash)
            shutil.rmtree(trash)


def _entry(path: Path) -> dict[str, Any]:
    return {"sha256": sha256(path), "bytes": path.stat().st_size}


def _dump(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise CheckpointError(f"{path} is larger than any checkpoint's JSON; use another checkpoint")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} is not a complete checkpoint: it lacks {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); use another checkpoint") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged (it is not a JSON object); use another checkpoint")
    return value


def iter_runs(root: Path) -> Iterator[Path]:
    """The folders directly below `root` that hold at least one published checkpoint."""
    if root.is_dir():
        for path in sorted(root.iterdir()):
            if checkpoint_folders(path / "checkpoints"):
                yield path
