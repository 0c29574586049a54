"""Writing files so that a reader never sees half of one: temporary name, flush to disk, one rename.

Who writes a temporary holds its lock, so that anybody can tell what a killed process has left, and remove it.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sde_gen.errors import OutputError, WriteError

try:
    import fcntl
except ImportError:  # not a POSIX system: no advisory locks there, and nothing is taken for a leftover
    fcntl = None

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG}
# Names that nobody else gives; the second kind is that of older versions.
_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{8}-.+|\.tmp-(old-)?step_.+|\.probe-[0-9a-f]{8}", re.DOTALL)


@contextmanager
def writing(path: Path, what: str = "file") -> Iterator[None]:
    """Turn an `OSError` inside the block into one sentence that names `path`.

    Raises:
        WriteError: the disk is full, or failed (exit code 74).  OutputError: anything else (73).
    """
    try:
        yield
    except (OutputError, WriteError):
        raise
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in _FULL:
            raise WriteError(f"could not finish writing {what} {path}: {why}; free some space and run again") from error
        raise OutputError(f"cannot create {what} {path}: {why}; choose a folder that can be written") from error


def make_folder(path: Path, what: str = "folder") -> Path:
    """Create `path` and its parents, and find out now, not after the work, whether it can be written.

    What killed processes have left there is removed.
    """
    with writing(path, what):
        new = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in new:  # or the folder, and all that is flushed into it, may be gone when the power comes back
            fsync_folder(folder.parent)
        probe = path / f".probe-{secrets.token_hex(4)}"
        probe.touch(exist_ok=False)
        probe.unlink(missing_ok=True)
        remove_leftovers(path)
    return path


# -- temporaries ---------------------------------------------------------------------------------------------------


def temporary_name(path: Path) -> Path:
    """A new name beside `path`. It ends like it, because Pillow and matplotlib choose the format by the ending."""
    return path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")


@contextmanager
def held(temporary: Path, folder: bool = False) -> Iterator[None]:
    """Make the file or folder `temporary`, and hold it, so that nobody takes it for a leftover."""
    if folder:
        temporary.mkdir()
    if fcntl is None:
        yield
        return
    descriptor = os.open(temporary, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with suppress(OSError):  # some file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporaries in `folder` that nobody holds: who wrote them was killed before the end."""
    if fcntl is None or not folder.is_dir():
        return
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name) is None:
            continue
        with suppress(OSError):  # held, gone, not ours to delete, a link, or a file system without locks
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
            finally:
                os.close(descriptor)


@contextmanager
def locked(
    folder: Path, advice: str = "wait for it to end, or choose another one", *, wait: bool = False
) -> Iterator[None]:
    """Hold `folder` for this process alone. The system drops the lock when the process ends, however it ends.

    With `wait`, another process that has it is waited for.

    Raises:
        OutputError: another process has it; `advice` says what to do then.
    """
    with writing(folder / ".lock", "the lock file"):
        stream = (folder / ".lock").open("a+")
    with stream:
        try:
            if fcntl is not None:
                fcntl.flock(stream, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(f"{folder} is in use by another process; {advice}") from error
        yield


# -- reading and writing -------------------------------------------------------------------------------------------


def read_text(path: Path, most: int = 2**24, errors: str = "strict") -> str:
    """A file's text in UTF-8, without a mark of the byte order.

    Raises:
        OSError: it cannot be read, is longer than `most` bytes, or is a pipe or device, which might never end.
        UnicodeDecodeError: it is no such text, unless `errors` is "replace".
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if found.st_size > most:
        raise OSError(errno.EFBIG, f"more than {most} bytes", str(path))
    return path.read_text(encoding="utf-8-sig", errors=errors)


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
    """Call `write(temporary)`, which fills a file that is there, and rename it to `path` in one step."""
    temporary = temporary_name(path)
    with writing(path, what):
        try:
            with held(temporary):
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
