"""Data of one's own that a command is given in a file: pictures, arrays and masks."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sde_gen.data.decoding import SUFFIXES, Decoder, Encoded
from sde_gen.data.reading import located
from sde_gen.data.transform import Affine
from sde_gen.errors import DataError


def read_samples(path: str, setting: str, transform: Affine, shape: tuple[int, ...]) -> Tensor:
    """The samples of a file on the model's scale, (N, *shape), float32.

    A picture, whose 8 bits span the range of the data; or an array of raw data in .npy or .npz (x, or the only one).

    Raises:
        MissingInputError: no such file.
        DataError: it cannot be read, or holds something else.
    """
    place = _place(path, setting)
    if place.suffix.lower() in SUFFIXES and transform.low is not None and transform.high is not None:
        raw = transform.low + _pixels(place, setting, shape) * (transform.high - transform.low)
    else:
        raw = torch.from_numpy(_array(place, setting)).to(torch.float64)
    raw = raw.reshape(1, *shape) if tuple(raw.shape) in (shape, shape[1:] if shape[0] == 1 else shape) else raw
    if tuple(raw.shape[1:]) != shape or not len(raw):
        raise DataError(f"{setting}={path} holds {tuple(raw.shape)}, and what is wanted has shape {shape}")
    if not bool(raw.isfinite().all()):
        raise DataError(f"{setting}={path} holds NaN or infinity")
    return transform.forward(raw).to(torch.float32)


def read_mask(path: str, setting: str, shape: tuple[int, ...]) -> Tensor:
    """A mask for samples of this shape, truth values: the pixels of a picture that are rather white, or what is not 0.

    Raises:
        MissingInputError: no such file.
        DataError: it cannot be read, or has another size.
    """
    place = _place(path, setting)
    if place.suffix.lower() in SUFFIXES:
        seen = _pixels(place, setting, (1, *shape[1:]))[0, 0] > 0.5
    else:
        seen = torch.from_numpy(_array(place, setting)) != 0
    if tuple(seen.shape) not in (shape, (1, *shape[1:]), shape[1:]) or not bool(seen.any()):
        raise DataError(f"{setting}={path} must hold a mask of shape {shape[1:]} that sees something, got "
                        f"{tuple(seen.shape)}")  # fmt: skip
    return seen.expand(shape)


def read_numbers(path: str, setting: str, shape: tuple[int | None, ...]) -> Tensor:
    """The numbers of a .npy or .npz file, float64; None in `shape` is any size.

    Raises:
        MissingInputError: no such file.
        DataError: it cannot be read, has another shape, or NaN or infinite values.
    """
    found = torch.from_numpy(_array(_place(path, setting), setting)).to(torch.float64)
    if found.ndim != len(shape) or any(b not in (a, None) for a, b in zip(found.shape, shape, strict=True)):
        wanted = ", ".join("m" if size is None else str(size) for size in shape)
        raise DataError(f"{setting}={path} holds {tuple(found.shape)}, and what is wanted has shape ({wanted})")
    if not bool(found.isfinite().all()):
        raise DataError(f"{setting}={path} holds NaN or infinity")
    return found


def _place(path: str, setting: str) -> Path:
    return located(path, f"{setting} must be a picture, or a .npy or .npz file")


def _pixels(place: Path, setting: str, shape: tuple[int, ...]) -> Tensor:
    """The picture in a file, (1, C, H, W), from 0 to 1, float64."""
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise DataError(f"{setting}={place} is a picture, and what is wanted has shape {shape}; give a .npy file")
    images = [Encoded(str(place), lambda: place.open("rb"))]
    return Decoder.of(images, None, shape[0])(images).to(torch.float64) / 255


def _array(place: Path, setting: str) -> np.ndarray:
    try:
        loaded = np.load(place, allow_pickle=False)
        if not isinstance(loaded, np.ndarray):
            with loaded:
                names = loaded.files
                if "x" not in names and len(names) != 1:
                    raise DataError(f"{setting}={place} holds {', '.join(names)}, and no x")
                loaded = loaded["x" if "x" in names else names[0]]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        raise DataError(f"{setting}={place} is no picture, and no .npy or .npz file of numbers") from None
    if loaded.dtype.kind not in "fiub":
        raise DataError(f"{setting}={place} holds {loaded.dtype}, and not numbers")
    return loaded
