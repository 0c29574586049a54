"""Checkpoints: one folder per step, published by one rename and never changed afterwards.

    step_00001000/
        model.safetensors  ema.safetensors  optimizer.safetensors     tensors
        averages.safetensors                                          of runs that keep more averages than one
        config.json  state.json                                       plain data
        manifest.json                                                 size and SHA-256 of each of the others

Nothing here is executed when it is read: tensors are safetensors, everything else is JSON.
"""

import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sde_gen.errors import CheckpointError, MissingInputError
from sde_gen.files import fsync_file, fsync_folder, held, make_folder, read_text, sha256, temporary_name, writing

FORMAT = 1
MANIFEST = "manifest.json"
CODEC = "codec"  # the folder, within a run, of what its latents are decoded by
_JSON_FILES = ("config.json", "state.json")
_NAME = re.compile(r"step_(\d{8,})")
# A manifest may name these files and no others, so it can never point outside its own folder.
_FILE = re.compile(r"(config|state)\.json|(model|ema|optimizer|averages|weighting)\.safetensors")


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

    @property
    def home(self) -> Path:
        """The run that it lies in, in `checkpoints` or at the top; or where it lies alone."""
        folder = self.path.parent
        return folder.parent if folder.name == "checkpoints" else folder

    @property
    def digest(self) -> str:
        """SHA-256 of its manifest, and so of everything in it."""
        return sha256(self.path / MANIFEST)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of `model`, `ema`, `optimizer` or `averages`, on the CPU."""
        path = self.path / f"{name}.safetensors"
        if not path.is_file():
            raise CheckpointError(f"checkpoint {self.path} holds no {path.name}; it cannot be used for this")
        return read_tensors(path, "use an older checkpoint")


def read_tensors(path: Path, then: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, on the CPU.

    Args:
        then: what to do where it cannot be read.

    Raises:
        CheckpointError: it is damaged, or not there.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); {then}") from error


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    config: Mapping[str, Any],
    state: Mapping[str, Any],
    keep_last: int = 3,
    keep_best: int = 0,
) -> Path:
    """Write `folder/step_XXXXXXXX`; keep the newest `keep_last` (0: all) and the best `keep_best`, remove the others.

    The best are those of the lowest `held_out_loss` in their state.

    Args:
        folder: the run's `checkpoints` folder, made if it is not there.
        step: optimiser steps done.
        tensors: file stem (`model`, `ema`, `optimizer`, `averages`) to named tensors.
        config, state: plain data for the two JSON files.

    Raises:
        OutputError, WriteError: nothing is published then, and older checkpoints stay as they were.
    """
    final = folder / f"step_{step:08d}"
    make_folder(folder, "the checkpoint folder")
    temporary = temporary_name(final)
    with writing(final, "checkpoint"):
        try:
            with held(temporary, folder=True):
                for stem, named in tensors.items():
                    save_tensors(temporary / f"{stem}.safetensors", named)
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
        _prune(folder, step, keep_last, keep_best)
    return final


def read_checkpoint(path: Path) -> Checkpoint:
    """Open one checkpoint folder after checking every file against its manifest.

    Raises:
        MissingInputError: `path` is not there.
        CheckpointError: a file is missing or its contents changed.
    """
    if not path.is_dir():
        raise MissingInputError(f"no checkpoint at {path}; give a folder that holds {MANIFEST}")
    if (path / MANIFEST).is_symlink():
        raise CheckpointError(f"{path / MANIFEST} is a link, which no checkpoint holds; use another checkpoint")
    manifest = _read_json(path / MANIFEST)
    files = manifest.get("files")
    if manifest.get("format") != FORMAT or not isinstance(files, dict):
        raise CheckpointError(f"{path / MANIFEST} is not a manifest of format {FORMAT}; use another checkpoint")
    kept_alone = "averages.safetensors" in files and "ema.safetensors" not in files
    for name in (*_JSON_FILES, *([] if kept_alone else ["model.safetensors"])):
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
    step = state.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise CheckpointError(f"{path / 'state.json'} names no step; use another checkpoint")
    named = _NAME.fullmatch(path.name)
    if named and int(named[1]) != step:
        raise CheckpointError(f"checkpoint {path} holds step {step}; it is not what its name says")
    if not isinstance(state.get("metrics", {}), dict):
        raise CheckpointError(f"the metrics in {path / 'state.json'} are not named numbers; use another checkpoint")
    if has_interpolation(config):
        raise CheckpointError(f"the configuration in {path} holds a ${{...}}, but it must be plain data; do not use it")
    return Checkpoint(path, config, state)


def has_interpolation(value: Any) -> bool:
    """Whether any text in `value` holds a "${", which a configuration that is plain data never does."""
    if isinstance(value, Mapping):
        return any(has_interpolation(v) or has_interpolation(k) for k, v in value.items())
    if isinstance(value, list | tuple):
        return any(has_interpolation(v) for v in value)
    return isinstance(value, str) and "${" in value


def checkpoint_folders(folder: Path) -> list[Path]:
    """The published checkpoints below `folder` (a run's `checkpoints`), newest step first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_step_of, reverse=True)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint below `folder` whose digests hold, and one sentence for each one passed over."""
    return _first_sound(checkpoint_folders(folder))


def best_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The sound checkpoint of the lowest held-out loss, and one sentence for each better one passed over."""
    return _first_sound(path for _, _, path in _by_loss(checkpoint_folders(folder)))


def _first_sound(folders: Iterable[Path]) -> tuple[Checkpoint | None, list[str]]:
    skipped: list[str] = []
    for path in folders:
        try:
            return read_checkpoint(path), skipped
        except (CheckpointError, MissingInputError) as error:
            skipped.append(str(error))
    return None, skipped


def _by_loss(folders: list[Path]) -> list[tuple[float, int, Path]]:
    """(held-out loss, - step, folder) of those that were measured, best first."""
    found = []
    for path in folders:
        with suppress(CheckpointError):
            state = _read_json(path / "state.json")
            loss, step = state.get("held_out_loss"), state.get("step")
            if isinstance(loss, float) and math.isfinite(loss) and isinstance(step, int):
                found.append((loss, -step, path))
    return sorted(found)


def save_tensors(path: Path, named: Mapping[str, Tensor], notes: dict[str, str] | None = None) -> None:
    """Write tensors, and `notes` as the file's metadata, in safetensors format.

    Raises:
        OSError: what the system said, such as that the disk is full.
    """
    # safetensors refuses tensors that share memory or are not contiguous.
    flat, seen = {}, set()
    for name, tensor in named.items():
        flat[name] = own = tensor.detach().cpu().contiguous()
        if own.untyped_storage().data_ptr() in seen:
            flat[name] = own.clone()
        seen.add(own.untyped_storage().data_ptr())
    path.touch()
    mode = path.stat().st_mode & 0o777
    try:
        save_file(flat, path, notes)
    except SafetensorError as error:  # its own class for what the system said, such as a full disk
        if found := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
        raise
    path.chmod(mode)  # safetensors makes its files readable by the owner only


def _publish(temporary: Path, final: Path) -> None:
    if final.exists():
        with suppress(CheckpointError, MissingInputError):
            read_checkpoint(final)
            shutil.rmtree(temporary)  # the same step is there and sound: it is never modified
            return
        os.rename(final, final.with_name(f"damaged-{final.name}-{secrets.token_hex(4)}"))
    os.rename(temporary, final)


def _prune(folder: Path, step: int, keep_last: int, keep_best: int) -> None:
    # Later steps than the one just saved are of damaged checkpoints, behind which the run took up again.
    there = [path for path in checkpoint_folders(folder) if _step_of(path) <= step]
    best = {path for _, _, path in _by_loss(there)[:keep_best]} if keep_best else set()
    for path in there[keep_last:]:
        if path in best:
            continue
        # Renamed first, so that a reader never meets a checkpoint that is half deleted.
        trash = temporary_name(path)
        with suppress(OSError):
            os.rename(path, trash)
            shutil.rmtree(trash)


def _entry(path: Path) -> dict[str, Any]:
    return {"sha256": sha256(path), "bytes": path.stat().st_size}


def _dump(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_text(path))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} is not a complete checkpoint: it lacks {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); use another checkpoint") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged (it is not a JSON object); use another checkpoint")
    return value
