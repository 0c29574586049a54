"""Images from a folder of PNG, JPEG, WebP, BMP and TIFF files."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sde_gen.checks import integer
from sde_gen.data.dataset import Dataset
from sde_gen.data.labels import order_of
from sde_gen.data.making import from_raw
from sde_gen.data.reading import located, sentence
from sde_gen.data.transform import Affine
from sde_gen.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
# Whose header tells how the camera was held: TIFF is turned by Pillow itself, and a PNG would be decoded to find it.
_ROTATED = ("JPEG", "WEBP")
MAX_PIXELS = 2**26  # 8192 x 8192; a file that claims more is refused before it is decoded


def image_folder(
    path: str | Path,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    random_flip: bool = False,
    random_crop: int | None = None,
    held_out: int | float = 0.1,
    seed: int = 0,
) -> Dataset:
    """The images of a folder, or of its sub-folders, which then are the classes; all held in memory.

    PNG, JPEG, WebP, BMP and TIFF, of 8 bits a channel. Files are taken in the order of their names; class folders too,
    those that are numbers by their value. The rotation that a camera stored is applied; transparent pixels are laid on
    white.

    Args:
        path: folder with images, or with one sub-folder of images for each class.
        image_size: scale the shorter side to this, by Lanczos' filter (antialiased), and cut out the central square;
            None: keep the size, which then must be the same for all.
        channels: 1 (grey) or 3 (colour); None: 1 where all images are grey, else 3.
        random_flip: exchange left and right of a training image with probability 1/2, anew each time it is used.
        random_crop: side of a square window that is cut out of a training image at a place drawn anew each time, and of
            a held-out one in the middle: image_size=40 random_crop=32; None: no window.
        held_out: fraction in (0, 1), or number of samples, to hold out.
        seed: picks the held-out samples.

    Raises:
        MissingInputError: no such folder.
        DataError: no images in it, a file that cannot be decoded, has 16 bits a channel or several pictures, mixed
            sizes, a pipe or a link to nothing among the images; the file is named.
        ConfigError: another argument outside its range.
    """
    folder = located(path, "path (data.path) must be a folder of images", folder=True)
    files, labels, classes = _list(folder)
    sources = [Source(str(file), partial(file.open, "rb")) for file in files]
    raw = load_images(sources, image_size=image_size, channels=channels)
    transform, augment = Affine.to_unit(0, 255, 256), {"random_flip": random_flip, "random_crop": random_crop}
    return from_raw(folder.name, "image", raw, labels, transform, held_out, seed, classes, **augment)


@dataclass(frozen=True)
class Source:
    """An encoded image: a name for messages, and a function that opens it."""

    name: str
    open: Callable[[], IO[bytes]]


def _list(folder: Path) -> tuple[list[Path], Tensor | None, tuple[str, ...]]:
    """The image files of a folder, their labels, and the names of the classes."""
    files = _images(folder)
    folders = [f for f in _visible(folder) if f.is_dir()]
    folders.sort(key=lambda f: order_of(f.name))
    members = [_images(f) for f in folders]
    if files and any(members):
        raise DataError(
            f"{folder}: has images both directly ({files[0].name}) and in sub-folders "
            f"({folders[[bool(m) for m in members].index(True)].name}/); keep one of the two"
        )
    if files:
        return files, None, ()
    if not any(members):
        raise DataError(f"{folder}: no images found; it must hold {', '.join(SUFFIXES)} files, or sub-folders of them")
    for name, inside in zip(folders, members, strict=True):
        if not inside:
            raise DataError(f"{name}: no images in this class folder; fill it or remove it")
    labels = [label for label, inside in enumerate(members) for _ in inside]
    return [file for inside in members for file in inside], torch.tensor(labels), tuple(f.name for f in folders)


def _images(folder: Path) -> list[Path]:
    files = sorted(f for f in _visible(folder) if f.suffix.lower() in SUFFIXES and not f.is_dir())
    return [located(file, "images must be files; remove it") for file in files]


def _visible(folder: Path) -> list[Path]:
    try:
        return [f for f in folder.iterdir() if not f.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({sentence(error)})") from None


def load_images(sources: Sequence[Source], *, image_size: int | None, channels: int | None) -> Tensor:
    """Decode images into one (N, C, H, W) uint8 tensor; sizes and colours are checked before the first is decoded."""
    if image_size is not None:
        image_size = integer("images", "image_size", image_size, high=2**14)
    if channels not in (None, 1, 3) or isinstance(channels, bool):
        raise ConfigError(f"channels must be 1 (grey), 3 (colour) or empty, got {channels!r}")
    first: tuple[str, tuple[int, int]] | None = None
    colour = False
    for source in sources:
        size, is_colour = _guarded(source, _header)
        colour = colour or is_colour
        if first is None:
            first = source.name, size
        elif image_size is None and size != first[1]:
            raise DataError(
                f"images of mixed sizes: {first[0]} is {_by(first[1])} and {source.name} is {_by(size)}; "
                "set image_size (data.image_size) to scale and crop them all"
            )
    if first is None:
        raise DataError("no images to load")
    width, height = first[1] if image_size is None else (image_size, image_size)
    channels = channels or (3 if colour else 1)
    out = np.empty((len(sources), channels, height, width), np.uint8)
    for index, source in enumerate(sources):
        pixels = _guarded(source, lambda image: _pixels(image, image_size, channels))
        if pixels.shape != out.shape[1:]:
            raise DataError(f"{source.name}: was changed while it was read; run again when it is complete")
        out[index] = pixels
    return torch.from_numpy(out)


def _guarded(source: Source, read: Callable[["Image"], T]) -> T:
    """`read(image)`, where whatever Pillow raises for a bad file becomes a DataError that names it."""
    from PIL import Image

    try:
        with warnings.catch_warnings(), source.open() as file:
            warnings.simplefilter("ignore")  # Pillow warns where the checks here refuse
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
