"""Samples as PNG bytes: grids and strips of images, points in the plane. Pillow is all it takes."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sde_gen.pictures.drawing import image_grid

Array = NDArray[np.floating]
_SIDE = 240
_COLOUR = (46, 125, 205)


def grid(images: Array, columns: int) -> bytes:
    """A grid of images (N, C, H, W) on the model's scale."""
    finite = np.nan_to_num(images, nan=-1.0, posinf=1.0, neginf=-1.0)
    return png(image_grid(torch.from_numpy(np.ascontiguousarray(finite)), columns=columns))


def cloud(points: Array, half: float, side: int = _SIDE) -> bytes:
    """Points (N, 2) in the square [-half, half]^2, on a transparent ground that suits light and dark pages."""
    return png(Image.fromarray(_cloud(points, half, side)))


def clouds(sets: Sequence[Array], half: float, side: int = 150) -> bytes:
    """Sets of points side by side, with a gap."""
    gap = np.zeros((side, 8, 4), np.uint8)
    parts = [part for points in sets for part in (_cloud(points, half, side), gap)]
    return png(Image.fromarray(np.concatenate(parts[:-1], axis=1)))


def half_width(points: Array) -> float:
    """Half the side of a square around the origin that shows nearly all points."""
    return float(1.15 * np.quantile(np.abs(points), 0.999))


def png(picture: "Image.Image") -> bytes:
    """A picture as PNG."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG")  # the last tenth of the size would take most of the time
    return stream.getvalue()


def _cloud(points: Array, half: float, side: int) -> NDArray[np.uint8]:
    inside = points[np.isfinite(points).all(1) & (np.abs(points) <= half).all(1)]
    place = np.clip((inside + half) / (2 * half) * side, 0, side - 1).astype(int)
    counts = np.zeros((side, side))
    for dx in (0, 1):
        for dy in (0, 1):  # dots of two by two pixels
            np.add.at(
                counts, (np.clip(side - 1 - place[:, 1] + dy, 0, side - 1), np.clip(place[:, 0] + dx, 0, side - 1)), 1
            )
    canvas = np.empty((side, side, 4), np.uint8)
    canvas[..., :3] = _COLOUR
    # Few levels of opacity compress well.
    canvas[..., 3] = (np.round(12 * -np.expm1(-0.9 * counts)) * 255 / 12).astype(np.uint8)
    return canvas
