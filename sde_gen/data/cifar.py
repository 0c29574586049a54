"""CIFAR-10 from the files that people download: the binary version, and the Python version, of which nothing is run."""

import pickletools
import tarfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sde_gen.data.dataset import Dataset
from sde_gen.data.making import from_raw
from sde_gen.data.reading import located, sentence
from sde_gen.data.transform import Affine
from sde_gen.errors import DataError

_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_TRAIN, _TEST = tuple(f"data_batch_{k}" for k in range(1, 6)), "test_batch"
_FILES = tuple(name + end for name in (*_TRAIN, _TEST) for end in ("", ".bin"))
_PIXELS = 3 * 32 * 32
_LARGEST = 2**26  # bytes of one file; those of CIFAR-10 have 31 million


def cifar10(
    path: str | Path, *, image_size: int | None = None, random_flip: bool = False, random_crop: int | None = None
) -> Dataset:
    """CIFAR-10 (Krizhevsky 2009): 50,000 training images (3, 32, 32) and 10,000 held out, of ten classes.

    Args:
        path: `cifar-10-binary.tar.gz` or `cifar-10-python.tar.gz` as downloaded, or the folder that either unpacks to.
        image_size: another size, by Lanczos' filter; None: 32.
        random_flip: see `image_folder`.
        random_crop: see `image_folder`.

    Raises:
        MissingInputError: no such folder or archive.
        DataError: files that are missing, cut short or of another format. The Python version is a pickle, of which the
            bytes of the images and the numbers of the labels are read, and nothing is executed.
    """
    place = located(path, "path (data.path) must be a folder or a .tar.gz of CIFAR-10", folder=Path(path).is_dir())
    files = _in_folder(place) if place.is_dir() else _in_archive(place)
    missing = [name for name in (*_TRAIN, _TEST) if not {name, f"{name}.bin"} & files.keys()]
    if missing:
        raise DataError(
            f"{place}: holds no {missing[0]}, nor {missing[0]}.bin; it must be CIFAR-10 as it is downloaded"
        )
    parts = []
    for name in (*_TRAIN, _TEST):
        binary = f"{name}.bin" in files
        content = files[f"{name}.bin" if binary else name]
        parts.append((_binary if binary else _pickled)(f"{place}: {name}", content))
    images, labels = (torch.from_numpy(np.concatenate(both)) for both in zip(*parts, strict=True))
    train = sum(len(numbers) for _, numbers in parts[:-1])
    return from_raw(
        "cifar10", "image", images, labels, Affine.to_unit(0, 255, 256), 1, 0, _CLASSES, train,
        image_size=image_size, random_flip=random_flip, random_crop=random_crop,
    )  # fmt: skip


def _in_folder(place: Path) -> dict[str, bytes]:
    inside = [place, *(place / f"cifar-10-batches-{kind}" for kind in ("bin", "py"))]
    for folder in inside:
        found = {name: folder / name for name in _FILES if (folder / name).is_file()}
        if found:
            for file in found.values():
                if file.stat().st_size > _LARGEST:
                    raise DataError(f"{file}: is larger than any file of CIFAR-10; fetch it again")
            return {name: file.read_bytes() for name, file in found.items()}
    return {}


def _in_archive(place: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(place, "r:*") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name in _FILES and member.isfile() and member.size <= _LARGEST:
                    stream = archive.extractfile(member)
                    found[name] = b"" if stream is None else stream.read()
    except Exception as error:  # noqa: BLE001  # gzip, bz2 and lzma raise whatever damaged bytes lead them to
        raise DataError(f"{place}: cannot be read as an archive ({sentence(error)}); fetch it again") from None
    return found


def _binary(where: str, content: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Records of a label and its pixels."""
    if not content or len(content) % (1 + _PIXELS):
        raise DataError(
            f"{where}.bin: {len(content)} bytes are no whole number of images of {1 + _PIXELS}; fetch it again"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + _PIXELS)
    return _checked(where, rows[:, 1:], rows[:, 0].astype(np.int64))


def _pickled(where: str, content: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The longest text of the pickle, which are the pixels, and the whole numbers after the word "labels"."""
    pixels, labels, listing = b"", [], False
    try:
        for opcode, value, _ in pickletools.genops(content):
            if isinstance(value, str | bytes) and opcode.name not in ("GLOBAL", "PUT"):
                text = value.encode("latin-1") if isinstance(value, str) else value
                pixels = max(pixels, text, key=len)
                listing = text == b"labels"
            elif listing and opcode.name in ("BININT", "BININT1", "BININT2", "INT"):
                labels.append(value)
            elif opcode.name in ("APPENDS", "SETITEM", "SETITEMS") and labels:
                listing = False
    except Exception as error:  # noqa: BLE001  # as above
        raise DataError(f"{where}: cannot be read as a batch of CIFAR-10 ({sentence(error)}); fetch it again") from None
    if not pixels or len(pixels) != _PIXELS * len(labels):
        raise DataError(
            f"{where}: holds {len(pixels)} bytes of pixels and {len(labels)} labels, which do not go together"
        )
    return _checked(where, np.frombuffer(pixels, np.uint8), np.array(labels, np.int64))


def _checked(
    where: str, pixels: NDArray[np.uint8], labels: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if labels.min() < 0 or labels.max() > 9:
        raise DataError(
            f"{where}: has the label {labels.max()}, and CIFAR-10 has 0 to 9; CIFAR-100 is another data set"
        )
    return pixels.reshape(-1, 3, 32, 32).copy(), labels
