"""Where data is read from: files and folders that are looked at before they are opened."""

import stat
import zipfile
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


#: How files of other programs begin, what they are, and what makes a file of them that is read.
_FOREIGN = (
    (b"MATLAB 7.3 MAT", "a MATLAB 7.3 file, which is HDF5", "np.save('x.npy', h5py.File(FILE)['NAME'][:])"),
    (b"MATLAB 5.0 MAT", "a MATLAB file", "np.save('x.npy', scipy.io.loadmat(FILE)['NAME'])"),
    (b"\x89HDF", "an HDF5 file", "np.save('x.npy', h5py.File(FILE)['NAME'][:])"),
    (b"PAR1\x15", "a Parquet file", "pandas.read_parquet(FILE).to_csv('x.csv', index=False)"),
    (b"ARROW1\0", "a Feather file", "pandas.read_feather(FILE).to_csv('x.csv', index=False)"),
    (b"\xd0\xcf\x11\xe0", "an old workbook of Excel", "Save as, CSV UTF-8"),
    (b"\x1f\x8b", "a file packed by gzip", "gunzip FILE"),
    (b"\x89PNG", "a picture", "data=image_folder data.path=FOLDER"),
    (b"\xff\xd8\xff", "a picture", "data=image_folder data.path=FOLDER"),
    *(
        (
            b"\x80" + bytes([protocol]),
            "a pickle, which could run any code when it is read",
            "np.save('x.npy', ARRAY) where it was made",
        )
        for protocol in range(2, 6)
    ),
)


def refuse_foreign(file: Path) -> None:
    """Refuse a file of another program, by how it begins.

    Raises:
        DataError: saying what it is, and what makes a file of it that is read.
    """
    try:
        with file.open("rb") as opened:
            head = opened.read(16)
        names = zipfile.ZipFile(file).namelist() if head[:4] == b"PK\x03\x04" else []
    except (OSError, zipfile.BadZipFile):
        return  # who reads it says what is wrong with it
    found = next(((what, how) for mark, what, how in _FOREIGN if head.startswith(mark)), None)
    if "xl/workbook.xml" in names:
        found = "a workbook of Excel", "Save as, CSV UTF-8"
    if any(name.endswith("/data.pkl") for name in names):
        found = "a file of torch.save", "np.save('x.npy', torch.load(FILE, weights_only=True).numpy())"
    if found is not None:
        raise DataError(f"{file}: is {found[0]}, which is not read here; make a .npy or CSV file of it: {found[1]}")


def sentence(error: BaseException) -> str:
    """What an error says, on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
