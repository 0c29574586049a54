"""Grids of images, and files of pictures, by Pillow alone.

Every function that writes does it in one rename, so that a viewer never meets half a picture.
"""

import math
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.errors import DataError
from sde_gen.files import held, publish, temporary_name, writing

if TYPE_CHECKING:
    from PIL.Image import Image

_LARGEST = 4096  # pixels along one side of a picture
_WIDTH = 600  # pixels that a grid is wide at least


def image_grid(images: Tensor, columns: int | None = None, zoom: int | None = None, gap: int = 1) -> "Image":
    """A grid of images, row by row.

    Args:
        images: (N, C, H, W) on the model's scale, [-1, 1] from black to white (values outside are cut off); C of 1 is
            drawn grey, 3 as RGB, 4 as RGBA; of any other count the first channel is drawn.
        columns: images per row; about the square root of N by default.
        zoom: whole-number enlargement; by default small images are enlarged to about 48 pixels, and the grid to 600.
        gap: pixels between images, before the enlargement.

    Raises:
        DataError: not a batch of images, whole or complex numbers, or NaN values.  ConfigError: `columns` < 1.
    """
    from PIL import Image

    if images.ndim != 4 or 0 in images.shape or not images.is_floating_point():
        raise DataError(
            f"image_grid: images must be (N, C, H, W) in [-1, 1], floating-point, with at least one, got "
            f"{images.dtype} {tuple(images.shape)}; bytes are brought there by x / 127.5 - 1"
        )
    images = images.detach().float().cpu()
    if not bool(images.isfinite().all()):
        raise DataError("image_grid: the images hold NaN or infinity; a picture would hide that")
    if images.shape[1] not in (1, 3, 4):
        images = images[:, :1]
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count)) if columns is None else checks.integer("image_grid", "columns", columns)
    rows = math.ceil(count / columns)
    canvas = torch.zeros(channels, rows * (height + gap) + gap, columns * (width + gap) + gap)
    for i in range(count):
        top, left = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        canvas[:, top : top + height, left : left + width] = (images[i].clamp(-1, 1) + 1) / 2
    pixels = (canvas * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    if zoom is None:
        wanted = max(48 // max(height, width), math.ceil(_WIDTH / picture.width))
        zoom = max(1, min(wanted, _LARGEST // max(picture.size)))
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def save_image(picture: "Image", path: Path) -> Path:
    """Write a Pillow image; the format follows from the ending."""
    return publish(path, lambda temporary: picture.save(temporary), "the picture")


def save_each(images: Iterable[Tensor], folder: Path) -> Path:
    """Each image as a PNG of its own, 000000.png and so on, as tools for FID read them; a folder there is replaced.

    Args:
        images: batches as `image_grid` takes them.
        folder: of the files; it is there when all of them are.

    Raises:
        DataError: what is no image.  WriteError, OutputError: it could not be written.
    """
    temporary, count = temporary_name(folder), 0
    with writing(folder, "the pictures"):
        try:
            with held(temporary, folder=True):
                for batch in images:
                    for image in batch:
                        image_grid(image[None], 1, zoom=1, gap=0).save(temporary / f"{count:06d}.png")
                        count += 1
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return folder
