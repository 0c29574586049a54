"""Data sets that stay on the disk: images and arrays of which each batch is read and decoded when it is wanted."""

import hashlib
import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sde_gen.checks import integer
from sde_gen.data.archives import data_offset
from sde_gen.data.decoding import Decoder, Images
from sde_gen.data.resizing import resized
from sde_gen.data.source import Source
from sde_gen.data.transform import Affine
from sde_gen.errors import DataError

_IN_MEMORY = 2**32  # bytes in float32 up to which a data set is held in memory if nobody says otherwise
_PIECE = 2**24


def streams(stream: bool | None, shape: tuple[int, ...]) -> bool:
    """Whether samples (N, *shape) are streamed: as `stream` says, None: where they would take more than 4 GiB."""
    return 4 * math.prod(shape) > _IN_MEMORY if stream is None else stream


class Pictures(Source):
    """Encoded images, each decoded when it is wanted.

    Args:
        images: all of them.
        decoder: see `Decoder.of`.
        labels: see `Source`.
        workers: see `Source`.

    Raises:
        DataError: one that cannot be read: all are, once, for the digest.
    """

    def __init__(self, images: Images, decoder: Decoder, labels: Tensor | None, workers: int) -> None:
        self._images, self._decoder, self.labels = images, decoder, labels
        self.workers = integer("data", "workers", workers, low=0, high=256)
        self.shape = decoder.shape
        digest = hashlib.sha256(repr(decoder).encode())
        for image in images:
            content = image.content()
            digest.update(len(content).to_bytes(8, "little") + content)
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        """See `Source`."""
        return len(self._images)

    def read(self, rows: Tensor) -> Tensor:
        """See `Source.read`."""
        return PIXELS.forward(self._decoder([self._images[row] for row in rows.tolist()]))


PIXELS = Affine.to_unit(0, 255, 256)


class Place(NamedTuple):
    """Where the samples of an array lie in a file, one after the other."""

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of a sample."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    def rows(self, indices: NDArray[np.int64]) -> NDArray:
        """Samples, (B, *shape[1:]); nothing of the file stays in memory.

        Raises:
            DataError: the file is shorter than it was.
        """
        out = bytearray()
        with self.file.open("rb") as file:
            for index in indices.tolist():
                out += os.pread(file.fileno(), self.row_bytes, self.offset + index * self.row_bytes)
        if len(out) != len(indices) * self.row_bytes:
            raise DataError(f"{self.file}: is shorter than its header says; fetch it again")
        return np.frombuffer(out, self.dtype).reshape(len(indices), *self.shape[1:])

    def pieces(self) -> Iterator[NDArray]:
        """All samples in their order, some at a time."""
        size = max(1, _PIECE // max(1, self.row_bytes))
        for first in range(0, self.shape[0], size):
            yield self.rows(np.arange(first, min(first + size, self.shape[0])))


def place_of(path: Path, key: str | None) -> Place | None:
    """Where the array of a `.npy`, or the array `key` ("x" by default) of a `.npz`, lies; None: not in one piece.

    Raises:
        OSError, ValueError, zipfile.BadZipFile: it is none.
    """
    start, size = 0, path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
        info = members.get(f"{key or 'x'}.npy")
        if info is None or info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            return None
        start, size = data_offset(path, info.header_offset), info.file_size
    with path.open("rb") as file:
        file.seek(start)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        place = Place(path, file.tell(), shape, dtype)
    whole = place.offset - start + dtype.itemsize * math.prod(shape) == size
    return None if fortran or dtype.kind not in "biuf" or not shape or not whole else place


class Rows(Source):
    """Images in an array on the disk.

    Args:
        place: of the array.
        axes: how its samples' dimensions become (C, H, W): the order of them for `transpose`, () adds the channel.
        transform: to the model's scale, with bounds.
        labels: see `Source`.
        workers: see `Source`.
        image_size: see `array_file`.

    Raises:
        DataError: values that are not finite or outside the bounds: all are read, once, for the digest.
    """

    def __init__(
        self, place: Place, axes: tuple[int, ...], transform: Affine, labels: Tensor | None, workers: int,
        image_size: int | None,
    ) -> None:  # fmt: skip
        self._place, self._axes, self.transform, self.labels = place, axes, transform, labels
        self._size, self.workers = image_size, integer("data", "workers", workers, low=0, high=256)
        digest = hashlib.sha256(repr((axes, image_size)).encode())
        first, low, high = 0, transform.low, transform.high
        for piece in place.pieces():
            digest.update(piece.data.cast("B"))
            if place.dtype != np.uint8 and low is not None and high is not None:
                bad = ~((piece >= low) & (piece <= high))  # NaN is outside too
                if bad.any():
                    index = np.unravel_index(int(bad.argmax()), bad.shape)
                    raise DataError(
                        f"{place.file}: the value {piece[index]} of sample {first + int(index[0])} is outside "
                        f"[low, high] = [{low:g}, {high:g}]"
                    )
            first += len(piece)
        self.digest = digest.hexdigest()
        self.shape = tuple(self._raw(np.arange(1)).shape[1:])

    def __len__(self) -> int:
        """See `Source`."""
        return self._place.shape[0]

    def read(self, rows: Tensor) -> Tensor:
        """See `Source.read`."""
        return self.transform.forward(self._raw(rows.numpy())).to(torch.float32)

    def _raw(self, indices: NDArray[np.int64]) -> Tensor:
        array = self._place.rows(indices)
        array = array.transpose(0, *self._axes) if self._axes else array[:, None]
        raw = torch.from_numpy(np.array(array, np.uint8 if array.dtype == np.uint8 else np.float64, order="C"))
        return raw if self._size is None else resized(str(self._place.file), raw, self._size, self.transform)
