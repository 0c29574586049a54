"""Images within zip and tar files, read where they lie: nothing of an archive is ever written to the disk."""

import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from sys import intern
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sde_gen.data.decoding import MAX_BYTES, SUFFIXES, UNREAD, Encoded, Images
from sde_gen.data.reading import sentence
from sde_gen.errors import ConfigError, DataError

ARCHIVES = (".zip", ".tar")
_SQUEEZED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".7z", ".rar")
_STORED, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
_LOCAL_HEADER = 30  # bytes, before the name and an extra field whose lengths end it


class _Member(NamedTuple):
    name: str
    offset: int
    """Of the bytes in a tar file, of the header before them in a zip file."""
    packed: int
    """Bytes in the archive."""
    size: int
    """Bytes of the image."""
    method: int
    """-1: in a tar file, else how a zip file packs it."""
    check: int
    """CRC-32 in a zip file."""


def is_archive(path: Path) -> bool:
    """Whether a file is an archive by its name.

    Raises:
        ConfigError: it is one whose members cannot be read one by one.
    """
    if path.name.lower().endswith(_SQUEEZED):
        raise ConfigError(
            f"{path}: images are read from .zip and from plain .tar files, not from archives that are compressed as a "
            "whole; decompress it to .tar, or unpack it"
        )
    return path.suffix.lower() in ARCHIVES


class Members(Images):
    """The images in some archives, archive by archive and in the order of their names; a few bytes for each.

    Directories above all images are passed over; one directory for each class may remain (`folders`). Hidden members
    and all that are no images by their names are ignored. Beside images in a tar file may stand their classes, as
    WebDataset has them: `0001.cls` for `0001.png` (`labels`).

    Args:
        archives: .zip and .tar files.

    Attributes:
        folders: of each image, the name of its directory, "" where they lie in none.
        labels: of each image, the text of its `.cls`, or None where there are no such members.

    Raises:
        DataError: a damaged archive, an encrypted one, or an image in it that is a link, is too large, leads out of
            the archive or is there twice.
    """

    def __init__(self, archives: Sequence[Path]) -> None:
        self._archives = list(archives)
        rows, names, above, classes = [], [], [], []
        for number, archive in enumerate(self._archives):
            members, texts = _listed(archive)
            rows.append(np.array([(number, *member[1:]) for member in members], np.int64).reshape(-1, 6))
            names.append(np.array([m.name.encode("utf-8", "surrogateescape") for m in members], dtype=np.bytes_))
            above += [intern(posixpath.dirname(member.name)) for member in members]
            classes += [texts.get(_key(member.name)) for member in members]
        self._rows, self._names = np.concatenate(rows), np.concatenate(names)
        self.folders = _folders(self._archives, above)
        self.labels: NDArray[np.str_] | None = None
        if any(text is not None for text in classes):
            if None in classes:
                lacking = self[classes.index(None)].name
                raise DataError(f"{lacking} has no .cls beside it, and others have; add it, or remove the others")
            self.labels = np.array(classes)

    def __len__(self) -> int:
        """See `Images`."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Encoded:
        """See `Images`."""
        number, *place = (int(n) for n in self._rows[index])
        archive = self._archives[number]
        name = bytes(self._names[index]).decode("utf-8", "replace")
        return Encoded(f"{archive}: {name}", partial(_open, archive, *place))

    def sorted_by(self, keys: NDArray[np.int64]) -> None:
        """Put the images in the order of `keys`, those of one key as they are."""
        order = np.argsort(keys, kind="stable")
        self._rows, self._names = self._rows[order], self._names[order]


def _listed(archive: Path) -> tuple[list[_Member], dict[str, str]]:
    """The images of an archive by name, and the texts of its `.cls` members."""
    texts: dict[str, str] = {}
    try:
        found = list(_of_zip(archive) if archive.suffix.lower() == ".zip" else _of_tar(archive, texts))
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001  # both modules raise whatever damaged bytes lead them to
        raise DataError(f"{archive}: cannot be read as an archive ({sentence(error)}); fetch it again") from None
    found.sort()
    for one, two in pairwise(found):
        if one.name == two.name:
            raise DataError(f"{archive}: holds {one.name} twice; make the archive anew")
    return found, texts


def _of_zip(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if info.is_dir() or not (name := _image_name(archive, info.filename)):
                continue
            if info.flag_bits & 1:
                raise DataError(f"{archive}: is encrypted; decrypt it first")
            if stat.S_ISLNK(info.external_attr >> 16):
                raise DataError(f"{archive}: {name} is a link; put the image itself into the archive")
            if info.compress_type not in (_STORED, _DEFLATED):
                raise DataError(
                    f"{archive}: {name} is packed by method {info.compress_type}; use deflate, as zip does by itself"
                )
            _check_size(archive, name, max(info.file_size, info.compress_size))
            place = info.header_offset, info.compress_size, info.file_size
            yield _Member(name, *place, info.compress_type, info.CRC)


def _of_tar(archive: Path, texts: dict[str, str]) -> Iterator[_Member]:
    length = archive.stat().st_size
    with tarfile.open(archive, "r:") as file:
        for info in file:
            file.members = []  # pyright: ignore[reportAttributeAccessIssue]  # it would grow with the archive
            name = info.name.removeprefix("./")
            if info.isreg() and name.endswith(".cls") and info.size < MAX_BYTES:
                content = file.extractfile(info)
                texts[_key(name)] = content.read().decode("utf-8", "replace").strip() if content else ""
            if info.isdir() or not (name := _image_name(archive, info.name)):
                continue
            if not info.isreg() or info.issparse():
                raise DataError(f"{archive}: {name} is a link or no plain file; put the image itself into the archive")
            _check_size(archive, name, info.size)
            if info.offset_data + info.size > length:
                raise DataError(f"{archive}: is cut short within {name}; fetch it again")
            yield _Member(name, info.offset_data, info.size, info.size, -1, 0)


def _image_name(archive: Path, name: str) -> str:
    """The name of an image, "" for all that is none.

    Raises:
        DataError: an image that leads out of the archive, or of a kind that is not read.
    """
    name = name.removeprefix("./")
    parts = name.split("/")
    if not name.lower().endswith((*SUFFIXES, *UNREAD)):
        return ""
    if name.startswith("/") or ".." in parts or ":" in parts[0]:
        raise DataError(f"{archive}: {name!r} leads out of the archive; make the archive anew")
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return ""
    if name.lower().endswith(UNREAD):
        raise DataError(f"{archive}: {name} cannot be read, but {', '.join(SUFFIXES)} can; convert or remove it")
    return name


def _check_size(archive: Path, name: str, size: int) -> None:
    if size > MAX_BYTES:
        raise DataError(f"{archive}: {name} has {size} bytes, more than the limit of {MAX_BYTES} for one image")


def _key(name: str) -> str:
    """What members of one sample share: all up to the first dot of the last part, as WebDataset has it."""
    folder, _, last = name.rpartition("/")
    return f"{folder}/{last.partition('.')[0]}"


def _folders(archives: Sequence[Path], above: list[str]) -> list[str]:
    """What remains of the directories of all images when those above all of them are taken off."""
    if len(set(above)) <= 1:
        return [""] * len(above)
    common = posixpath.commonpath([f"/{folder}" for folder in set(above)]).strip("/")
    rest = {folder: folder[len(common) :].strip("/") for folder in set(above)}
    where = f"{archives[0]}" + (f" and {len(archives) - 1} more" if len(archives) > 1 else "")
    if "" in rest.values():
        inner = min(filter(None, rest.values()))
        raise DataError(f"{where}: has images both directly and in the folder {inner}/; keep one of the two")
    for folder in sorted(rest.values()):
        if "/" in folder:
            raise DataError(f"{where}: has folders within folders ({folder}); one level of them is one class each")
    return [rest[folder] for folder in above]


def _open(archive: Path, offset: int, packed: int, size: int, method: int, check: int) -> BytesIO:
    """The bytes of an image, never more than its archive said that it has."""
    offset = offset if method < 0 else data_offset(archive, offset)
    with archive.open("rb") as file:
        file.seek(offset)
        content = file.read(packed)
    if method == _DEFLATED:
        content = zlib.decompressobj(-15).decompress(content, size + 1)
    if len(content) != size or (method >= 0 and zlib.crc32(content) != check):
        raise ValueError("the archive was changed, or is damaged here")
    return BytesIO(content)


def data_offset(archive: Path, header_offset: int) -> int:
    """Where the bytes of a member of a zip file begin.

    Raises:
        ValueError: there is no member there.
    """
    with archive.open("rb") as file:
        file.seek(header_offset)
        head = file.read(_LOCAL_HEADER)
    if head[:4] != b"PK\x03\x04" or len(head) < _LOCAL_HEADER:
        raise ValueError("the archive was changed, or is damaged here")
    return header_offset + _LOCAL_HEADER + sum(struct.unpack("<HH", head[26:]))
