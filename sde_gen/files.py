"""Writing files so that a reader never sees half of one: temporary name, flush to disk, one rename."""

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from sde_gen.errors import OutputError, WriteError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG}


def raise_output_error(error: OSError, path: Path, what: str) -> NoReturn:
    """Re-raise `error` as `WriteError` (disk full, input/output: exit code 74) or `OutputError` (73)."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _FULL:
        raise WriteError(f"could not finish writing {what} {path}: {reason}; free some space and run again") from error
    raise OutputError(f"cannot create {what} {path}: {reason}; choose a folder that can be written") from error


@contextmanager
def writing(path: Path, what: str = "file") -> Iterator[None]:
    """Turn an `OSError` inside the block into one sentence that names `path`."""
    try:
        yield
    except (OutputError, WriteError):
        raise
    except OSError as error:
        raise_output_error(error, path, what)


def make_folder(path: Path, what: str = "folder") -> Path:
    """Create `path` and its parents, and find out now, not after the work, whether it can be written."""
    with writing(path, what):
        new = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in new:  # or the folder, and all that is flushed into it, may be gone when the power comes back
            fsync_folder(folder.parent)
        probe = path / f".probe-{secrets.token_hex(4)}"
        probe.touch(exist_ok=False)
        probe.unlink()
    return path


def fsync_file(path: Path) -> None:
    """Ask the system to put the file (or folder) `path` on the disk before we go on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(path: Path) -> None:
    """`fsync_file` for a folder; some file systems cannot do it, and then nothing is lost by going on."""
    with suppress(OSError):
        fsync_file(path)


def publish(path: Path, write: Callable[[Path], object], what: str = "file") -> Path:
    """Call `write(temporary)` and rename the result to `path` in one step.

    The temporary name ends like `path`, because Pillow and matplotlib choose the format by the ending.
    """
    temporary = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    with writing(path, what):
        try:
            write(temporary)
            fsync_file(temporary)
            os.replace(temporary, path)
            fsync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    return path


def write_text(path: Path, text: str, what: str = "file") -> Path:
    """Write `text` as UTF-8 through `publish`."""
    return publish(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), what)


def write_json(path: Path, value: Any, what: str = "file") -> Path:
    """Write `value` as indented JSON through `publish`."""
    return write_text(path, json.dumps(value, indent=2, sort_keys=False) + "\n", what)


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
