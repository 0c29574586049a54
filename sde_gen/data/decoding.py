"""Encoded images to bytes of one size: what is refused, how they are turned, coloured and scaled."""

import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sde_gen.checks import integer
from sde_gen.data.reading import sentence
from sde_gen.data.resizing import LARGEST
from sde_gen.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff")
#: Pictures of other kinds, which are refused: to pass them over in silence would be to lose them.
UNREAD = (".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".psd", ".ppm", ".pgm", ".tga")
_NAMED = 10  # images that cannot be read, at most, before the others are not even tried
# Whose header tells how the camera was held: TIFF is turned by Pillow itself, and a PNG would be decoded to find it.
_ROTATED = ("JPEG", "WEBP")
MAX_PIXELS = 2**26  # 8192 x 8192; a file that claims more is refused before it is decoded
MAX_BYTES = 2**28  # of one encoded image: as many as its pixels would take in four channels


@dataclass(frozen=True)
class Encoded:
    """An encoded image: a name for messages, and a function that opens it."""

    name: str
    open: Callable[[], IO[bytes]]

    def content(self) -> bytes:
        """Its bytes.

        Raises:
            DataError: it cannot be read, or has more bytes than any image would.
        """
        try:
            with self.open() as file:
                content = file.read(MAX_BYTES + 1)
        except DataError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever a reader of archives or tables raises
            raise DataError(f"{self.name}: the image cannot be read ({sentence(error)})") from None
        if len(content) > MAX_BYTES:
            raise DataError(f"{self.name}: has more than {MAX_BYTES} bytes, which no image here does; remove it")
        return content


class Images(ABC):
    """Many encoded images, of which each is named and opened when it is asked for."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def __getitem__(self, index: int) -> Encoded:
        """One of them."""

    def __iter__(self) -> Iterator[Encoded]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True)
class Decoder:
    """Encoded images as (C, H, W) uint8, all of one size.

    Args:
        channels: 1 (grey) or 3 (colour).
        height, width: of the images.
        image_size: what they are scaled and cropped to, or None.
    """

    channels: int
    height: int
    width: int
    image_size: int | None

    @classmethod
    def of(
        cls,
        images: Sequence[Encoded] | Images,
        image_size: int | None,
        channels: int | None,
    ) -> "Decoder":
        """What decodes `images`, whose sizes and colours are looked at, but not their pixels.

        Args:
            images: all of them.
            image_size: see `image_folder`.
            channels: see `image_folder`.

        Raises:
            DataError: one that is no image, images of mixed sizes, none at all.  ConfigError: a bad argument.
        """
        if image_size is not None:
            image_size = integer("images", "image_size", image_size, high=LARGEST)
        if channels not in (None, 1, 3) or isinstance(channels, bool):
            raise ConfigError(f"channels must be 1 (grey), 3 (colour) or empty, got {channels!r}")
        first: tuple[str, tuple[int, int]] | None = None
        colour = False
        for image, (size, is_colour) in _each(images, _header):
            colour = colour or is_colour
            if first is None:
                first = image.name, size
            elif image_size is None and size != first[1]:
                raise DataError(
                    f"images of mixed sizes: {first[0]} is {_by(first[1])} and {image.name} is {_by(size)}; "
                    "set image_size (data.image_size) to scale and crop them all"
                )
        if first is None:
            raise DataError("no images to load")
        width, height = first[1] if image_size is None else (image_size, image_size)
        return cls(channels or (3 if colour else 1), height, width, image_size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width

    def __call__(self, images: Sequence[Encoded] | Images) -> Tensor:
        """Images as (N, C, H, W) uint8.

        Raises:
            DataError: one that cannot be decoded, or is no longer what it was.
        """
        out = np.empty((len(images), *self.shape), np.uint8)
        found = _each(images, lambda opened: _pixels(opened, self.image_size, self.channels))
        for place, (image, pixels) in zip(out, found, strict=True):
            if pixels.shape != place.shape:
                raise DataError(f"{image.name}: was changed while it was read; run again when it is complete")
            place[...] = pixels
        return torch.from_numpy(out)


def _each(images: Sequence[Encoded] | Images, read: Callable[["Image"], T]) -> Iterator[tuple[Encoded, T]]:
    """Each image with `read` of it; of those that cannot be read, several are named at once, after the others."""
    failed: list[tuple[str, DataError]] = []
    for image in images:
        try:
            found = _guarded(image, read)
        except DataError as error:
            failed.append((image.name, error))
            if len(failed) == _NAMED:
                break
            continue
        yield image, found
    if failed:
        others = ", ".join(name for name, _ in failed[1:])
        raise DataError(f"{failed[0][1]}; so too {others}" if others else str(failed[0][1]))


def _guarded(source: Encoded, read: Callable[["Image"], T]) -> T:
    """`read(image)`, where whatever Pillow raises for a bad file becomes a DataError that names it."""
    from PIL import Image

    try:
        with _quiet(), source.open() as file:
            head = file.read(25)
            file.seek(0)
            if head.startswith(b"\x89PNG") and head[24:] == b"\x10":  # of colour Pillow would drop 8 bits in silence
                raise ValueError("it has 16 bits a channel: convert it to 8, or store the pixels as .npy")
            with Image.open(file, formats=FORMATS) as image:
                bits = getattr(image, "tag_v2", {}).get(258, 8)  # of TIFF, one number or one for each channel
                if image.mode[0] in "IF" or max(bits if isinstance(bits, tuple) else (bits,)) > 8:
                    raise ValueError("it has more than 8 bits a channel: convert it to 8, or store the pixels as .npy")
                if (frames := getattr(image, "n_frames", 1)) > 1:
                    raise ValueError(f"it holds {frames} pictures: store each in a file of its own")
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(f"{source.name}: {_by(image.size)} pixels are more than the limit of {MAX_PIXELS}")
                return read(image)
    except DataError:
        raise
    except Image.UnidentifiedImageError:
        raise DataError(f"{source.name}: not a {', '.join(FORMATS)} image, or broken; replace or remove it") from None
    except Exception as error:  # noqa: BLE001  # Pillow raises whatever damaged bytes lead it to
        raise DataError(
            f"{source.name}: the image cannot be decoded ({sentence(error)}); replace or remove it"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings, where the checks here refuse; filters belong to the process, so of one thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _header(image: "Image") -> tuple[tuple[int, int], bool]:
    """Size as shown, and whether the image has colour; from the header alone."""
    width, height = image.size
    if image.format in _ROTATED and image.getexif().get(0x0112, 1) in (5, 6, 7, 8):
        width, height = height, width
    return (width, height), image.mode not in ("1", "L", "LA", "La")


def _pixels(image: "Image", image_size: int | None, channels: int) -> NDArray[np.uint8]:
    """(C, H, W) uint8: rotated as stored, on white, scaled and cropped where asked."""
    from PIL import Image, ImageOps

    if image.format in _ROTATED:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "La", "RGBa", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if image_size is not None:
        image = ImageOps.fit(image, (image_size, image_size), method=Image.Resampling.LANCZOS)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
