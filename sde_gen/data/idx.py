"""IDX files, the format of MNIST and Fashion-MNIST: a short header, then unsigned bytes; plain or gzipped."""

import gzip
import math
import struct
import zlib
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sde_gen.checks import integer
from sde_gen.data.dataset import Dataset
from sde_gen.data.making import from_raw
from sde_gen.data.reading import located, sentence
from sde_gen.data.transform import Affine
from sde_gen.errors import DataError, MissingInputError

DEBIAN_FOLDER = "/usr/share/datasets/fashion-mnist"  # where the Debian package dataset-fashion-mnist puts the files
_LARGEST = 2**32  # bytes; a header that promises more is a broken one
_PIECE = 2**24
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def fashion_mnist(
    root: str | Path | None = None,
    *,
    limit: int | None = None,
    image_size: int | None = None,
    random_flip: bool = False,
    random_crop: int | None = None,
) -> Dataset:
    """Fashion-MNIST, or any data in the same four IDX files, such as MNIST: images (1, 28, 28), labels 0..9.

    The files are `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
    `t10k-labels-idx1-ubyte`, each plain or with `.gz`; the t10k files are the held-out samples (60,000 and 10,000).
    The classes have their names ("Trouser") where `root` is None or names a folder "...fashion...".

    Args:
        root: folder of the files; None: the folder of the Debian package `dataset-fashion-mnist`.
        limit: use only the first samples, at most so many of each part; None: all.
        image_size: another size, by Lanczos' filter, such as 32; None: 28.
        random_flip: see `image_folder`.
        random_crop: see `image_folder`.

    Raises:
        MissingInputError: a folder or file that is not there.
        DataError: a file that is not an IDX file, is cut short, or does not fit the others.
    """
    if limit is not None:
        limit = integer("fashion_mnist", "limit", limit)
    folder = _folder(root)
    parts = {}
    for part in ("train", "t10k"):
        images_file, labels_file = (_find(folder, f"{part}-{name}-ubyte") for name in ("images-idx3", "labels-idx1"))
        images, labels = read_idx(images_file), read_idx(labels_file)
        if images.ndim != 3 or labels.ndim != 1:
            raise DataError(
                f"{images_file} and {labels_file}: images must have 3 dimensions and labels 1, "
                f"got {images.ndim} and {labels.ndim}"
            )
        if len(images) != len(labels):
            raise DataError(f"{images_file} holds {len(images)} images, but {labels_file} {len(labels)} labels")
        parts[part] = images[:limit], labels[:limit]
    if len({images.shape[1:] for images, _ in parts.values()}) > 1:
        raise DataError(f"{folder}: training and held-out images must have one shape, got "
                        + " and ".join(str(images.shape[1:]) for images, _ in parts.values()))  # fmt: skip
    images, labels = (torch.from_numpy(np.concatenate(both)) for both in zip(*parts.values(), strict=True))
    count = max(10, 1 + int(labels.max()))
    named = count == 10 and (root is None or "fashion" in folder.name.lower())
    name = "fashion_mnist" if root is None else folder.name
    return from_raw(
        name, "image", images[:, None], labels.to(torch.int64), Affine.to_unit(0, 255, 256), 1, 0,
        _FASHION if named else tuple(map(str, range(count))), len(parts["train"][0]),
        image_size=image_size, random_flip=random_flip, random_crop=random_crop,
    )  # fmt: skip


def read_idx(path: str | Path) -> NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file, gzipped or not.

    Raises:
        MissingInputError: no such file.
        DataError: another format or type, a header that promises an absurd size, too few or too many bytes.
    """
    path = located(path, "it must be an IDX file")
    try:
        with path.open("rb") as probe:
            zipped = probe.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else path.open("rb") as file:
            return _read(path, file)
    except (EOFError, zlib.error, OSError) as error:  # a bad gzip file is an OSError
        what = "cannot be read, or its gzip data is damaged or cut short"
        raise DataError(f"{path}: {what} ({sentence(error)}); fetch the file again") from None


def _read(path: Path, file: BufferedIOBase) -> NDArray[np.uint8]:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\x00\x00" or head[2] != 0x08 or not 1 <= head[3] <= 4:
        raise DataError(
            f"{path}: not an IDX file of unsigned bytes with 1 to 4 dimensions (it starts with {head.hex()})"
        )
    sizes = file.read(4 * head[3])
    if len(sizes) < 4 * head[3]:
        raise DataError(f"{path}: cut short inside its header; fetch the file again")
    shape = struct.unpack(f">{head[3]}I", sizes)
    count = math.prod(shape)
    if not 0 < count <= _LARGEST:
        raise DataError(
            f"{path}: the header gives the shape {shape}, which is empty or too large; fetch the file again"
        )
    data = bytearray()  # read piece by piece: a header that lies must not make us reserve what it promises
    while len(data) <= count and (piece := file.read(min(_PIECE, count + 1 - len(data)))):
        data += piece
    if len(data) != count:
        found = "more" if len(data) > count else f"only {len(data)}"
        raise DataError(f"{path}: the header promises {count} bytes of shape {shape}, but there are {found}")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _folder(root: str | Path | None) -> Path:
    if root is not None:
        return located(root, "root (data.root) must be the folder that holds the IDX files", folder=True)
    if not Path(DEBIAN_FOLDER).is_dir():
        raise MissingInputError(
            f"Fashion-MNIST is not in {DEBIAN_FOLDER}: run `apt-get install dataset-fashion-mnist` (Debian), "
            "or set root (data.root) to the folder that holds its IDX files"
        )
    return Path(DEBIAN_FOLDER)


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.exists():
            return candidate
    raise MissingInputError(
        f"{folder}: holds neither {name} nor {name}.gz; root (data.root) must hold the four IDX files"
    )
