"""Where data is read from: files and folders that are looked at before they are opened."""

import stat
from pathlib import Path

from sde_gen.errors import ConfigError, DataError, MissingInputError


def located(path: str | Path, what: str, *, folder: bool | None = False) -> Path:
    """`path` (~ is the home folder), which is there and is a regular file, or a folder where that is asked for.

    A named pipe or a device is refused without opening it, because reading from it may never end.

    Args:
        path: as the user gave it.
        what: what messages ask for, such as "path (data.path) must be a CSV file".
        folder: whether a folder is wanted; None: either will do.

    Raises:
        MissingInputError: nothing there, or a folder where a file is wanted, or the other way round.
        DataError: a pipe, device or socket, or a place that may not be looked at.  ConfigError: no path at all.
    """
    try:
        place = Path(path).expanduser()
        mode = place.stat().st_mode
    except TypeError:
        raise ConfigError(f"a path must be text, got {path!r}; {what}") from None
    except PermissionError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {what}") from None
    except (OSError, RuntimeError, ValueError):  # also a name that is too long, a loop of links, an unknown ~user
        raise MissingInputError(f"{path}: no such {'folder' if folder else 'file'}; {what}") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise DataError(f"{place}: a pipe, device or socket is not data; {what}")
    if folder is not None and stat.S_ISDIR(mode) != folder:
        wrong, right = ("file", "folder") if folder else ("folder", "file")
        raise MissingInputError(f"{place}: no such {right}, it is a {wrong}; {what}")
    return place


def sentence(error: BaseException) -> str:
    """What an error says, on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
