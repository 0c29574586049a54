"""Arrays from `.npy` and `.npz` files: vectors, images, series and volumes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sde_gen.checks import choice, number
from sde_gen.data.dataset import Dataset
from sde_gen.data.labels import encode
from sde_gen.data.making import from_raw, streamed
from sde_gen.data.ranges import levels, stated_range, unit_range
from sde_gen.data.reading import located, refuse_foreign, sentence
from sde_gen.data.streams import Rows, place_of, streams
from sde_gen.data.transform import Affine
from sde_gen.errors import ConfigError, DataError

LAYOUTS = {3: ("NHW", "NCL", "NLC"), 4: ("NHWC", "NCHW", "NDHW"), 5: ("NCDHW", "NDHWC")}
_SHAPES = (
    "vectors (N, D), images (N, H, W), (N, H, W, C), (N, C, H, W), series (N, C, L), (N, L, C), or volumes "
    "(N, C, D, H, W), (N, D, H, W, C)"
)

#: What networks are told besides labels, and the dimensions of its arrays.
DIMENSIONS = {"vector": 2, "tokens": 3}


def array_file(
    path: str | Path,
    *,
    key: str | None = None,
    label_key: str | None = None,
    layout: str | None = None,
    low: float | None = None,
    high: float | None = None,
    image_size: int | None = None,
    random_flip: bool = False,
    random_crop: int | None = None,
    told: Sequence[str] = (),
    stream: bool | None = None,
    workers: int = 2,
    held_out: int | float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Vectors, images, series (N, C, L) or volumes (N, C, D, H, W) from `.npy` or `.npz`.

    Nothing in the file is executed: arrays of Python objects are refused.

    Args:
        path: the file.
        key: name of the samples in a `.npz`; None: "x", or the only array that is not the labels.
        label_key: name of the labels in a `.npz`, (N,) whole numbers (-1: no label) or strings; None: "y" where there
            is one.
        layout: "NHWC" or "NCHW" for images with channels, "NHW" for grey ones, "NCL" or "NLC" for series, "NCDHW",
            "NDHWC" or "NDHW" for volumes. None: where 1 or 3 channels make it plain; three dimensions are grey images,
            but series where one side is 1, or where one is at least four times the other and the values are not those
            of stored images.
        low: raw value that becomes -1. None: for images 0 (whole bytes), or 0 or -1 (floats within [0, 1] or [-1, 1],
            or bytes stored as floats); vectors, series and volumes are standardised.
        high: raw value that becomes 1; goes with `low`.
        image_size: scale the shorter side of images to this, by Lanczos' filter (antialiased), and cut out the central
            square; None: keep their size.
        random_flip: see `image_folder`.
        random_crop: see `image_folder`.
        told: "vector", "tokens" or both: arrays of a `.npz` that a network is told of the samples, (N, size) and
            (N, T, size); zeros are nothing.
        stream: whether images stay in their file and are read batch by batch, in the same order: of bytes, or of any
            numbers with `low` and `high`, which then count as continuous, in a `.npy` or an uncompressed `.npz`; None:
            where they would take more than 4 GiB of memory, and can be.
        workers: see `image_folder`.
        held_out: fraction in (0, 1), or number of samples, to hold out.
        seed: picks the held-out samples.

    Raises:
        MissingInputError: no such file.
        DataError: a damaged file, NaN or infinite values (the first is named), a shape or type that is not data.
        ConfigError: a key that is not there, a layout that is not plain, other arguments outside their range.
    """
    file = located(path, "path (data.path) must be a .npy or .npz file (many of one sample each: np.stack)")
    refuse_foreign(file)
    where, images = str(file), {"random_flip": random_flip, "random_crop": random_crop}
    conditions = conditions_of(file, told, "told")
    stream = False if conditions and stream is None else stream
    found = _streamed(file, key, label_key, stream, layout, low, high, image_size, workers)
    if found is not None:
        source, classes = found
        return streamed(file.stem, source, source.transform, held_out, seed, classes, **images)
    samples, labels = _load(file, key, label_key)
    if samples.dtype.kind not in "biuf":
        raise DataError(f"{where}: samples must be real numbers, got an array of {samples.dtype}")
    if samples.ndim not in (2, *LAYOUTS) or 0 in samples.shape:
        raise DataError(f"{where}: samples must be {_SHAPES}, not empty, got shape {samples.shape}")
    if samples.dtype.kind == "f":
        _refuse_non_finite(where, samples)
    samples, kind = _arranged(where, samples, layout)
    transform = unit_range(where, samples, kind, low, high)
    numbers, classes = None, ()
    if labels is not None:
        if labels.shape != samples.shape[:1]:
            raise DataError(f"{where}: {len(samples)} samples need as many labels, got shape {labels.shape}")
        numbers, classes = encode(where, labels)
    if not (kind == "image" and samples.dtype == np.uint8):  # torch lacks some of numpy's types; float64 holds all
        samples = samples.astype(np.float64)
    raw = torch.from_numpy(np.ascontiguousarray(samples))
    for name, value in conditions.items():
        if len(value) != len(raw):
            raise DataError(f"{where}: {len(raw)} samples need as many rows of {name}, got {len(value)}")
    return from_raw(
        file.stem, kind, raw, numbers, transform, held_out, seed, classes, image_size=image_size, told=conditions,
        **images,
    )  # fmt: skip


def conditions_of(file: Path, names: Sequence[str], option: str) -> dict[str, Tensor]:
    """What networks are told by arrays of a `.npz`, float32: "vector" (N, size), "tokens" (N, T, size).

    Raises:
        DataError: they are not there, or not finite numbers of that shape.  ConfigError: another name.
    """
    found: dict[str, Tensor] = {}
    for name in names:
        choice(str(file), option, name, tuple(DIMENSIONS))
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as loaded:
                array = np.asarray(loaded[name])
                value = torch.from_numpy(array.astype(np.float32))
        except Exception as error:  # noqa: BLE001  # as for samples
            raise DataError(f"{file}: {option} needs an array {name!r} of a .npz ({sentence(error)})") from None
        if array.dtype.kind not in "biuf" or array.ndim != DIMENSIONS[name] or 0 in array.shape:
            form = "(N, size)" if name == "vector" else "(N, T, size)"
            raise DataError(f"{file}: {name} must be numbers of shape {form}, got {array.dtype} {array.shape}")
        if not bool(value.isfinite().all()):
            raise DataError(f"{file}: {name} has values that are NaN or infinite")
        found[name] = value
    return found


def _streamed(
    file: Path, key: str | None, label_key: str | None, stream: bool | None, layout: str | None,
    low: float | None, high: float | None, image_size: int | None, workers: int,
) -> tuple[Rows, tuple[str, ...]] | None:  # fmt: skip
    """The images of a file where they lie, and the names of their classes; None: they are held in memory."""
    if stream is False:
        return None
    labels, place, where = None, None, str(file)
    try:
        with file.open("rb") as opened:
            zipped = opened.read(2) == b"PK"
            if zipped:
                opened.seek(0)
                with np.load(opened, allow_pickle=False) as loaded:
                    key, label_key = _keys(file, list(loaded.files), key, label_key)
                    labels = None if label_key is None else loaded[label_key]
        place = place_of(file, key if zipped else None)
    except ConfigError:
        raise
    except Exception:  # noqa: BLE001  # what is wrong with it says who reads it whole
        place = None
    bounded = place is not None and (place.dtype == np.uint8 or (low is not None and high is not None))
    if place is None or not bounded or len(place.shape) not in (3, 4) or not streams(stream, place.shape):
        if stream:
            raise ConfigError(
                f"{where}: stream=true reads images of bytes (or of any numbers, with low and high) from a .npy or an "
                "uncompressed .npz (np.savez); leave it out to hold all in memory"
            )
        return None
    shown, kind = _arranged(where, np.zeros((1, *place.shape[1:]), place.dtype), layout)
    if kind != "image" or 0 in place.shape:
        raise ConfigError(f"{where}: stream=true is for images, and this is a {kind} of shape {place.shape}")
    if labels is not None and labels.shape != place.shape[:1]:
        raise DataError(f"{where}: {place.shape[0]} samples need as many labels, got shape {labels.shape}")
    numbers, classes = (None, ()) if labels is None else encode(where, labels)
    ends = (0, 255) if low is None or high is None else (number(where, "low", low), number(where, "high", high))
    transform = Affine.to_unit(*ends, levels(np.zeros(0, place.dtype), *ends) if place.dtype.kind != "f" else None)
    if len(place.shape) == 3:
        axes = ()
    else:
        axes = (1, 2, 3) if shown.shape[1:] == place.shape[1:] and layout != "NHWC" else (3, 1, 2)
    return Rows(place, axes, transform, numbers, workers, image_size), classes


def _load(file: Path, key: str | None, label_key: str | None) -> tuple[NDArray, NDArray | None]:
    try:
        with file.open("rb") as stream:  # numpy leaves a file open that it opened and could not read
            samples, labels = _pick(file, np.load(stream, allow_pickle=False), key, label_key)
            for array in (samples, labels):
                if array is not None and not isinstance(array, np.ndarray):
                    raise ValueError("an entry is no array")
            return samples, labels
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001  # numpy, zipfile and zlib raise whatever damaged bytes lead them to
        why = "it begins as neither" if "contains pickled" in str(error) else sentence(error)  # numpy's guess
        table = "; a table is data=csv_file" if file.suffix.lower() in (".csv", ".tsv", ".txt") else ""
        raise DataError(f"{file}: cannot be read as .npy or .npz without pickle ({why}){table}") from None


def _pick(file: Path, loaded: Any, key: str | None, label_key: str | None) -> tuple[NDArray, NDArray | None]:
    """The samples and the labels among the arrays of a file."""
    if isinstance(loaded, np.ndarray):
        if key is not None or label_key is not None:
            raise ConfigError(f"{file}: key and label_key are for .npz files, and this one holds a single array")
        return loaded, None
    with loaded:
        key, label_key = _keys(file, list(loaded.files), key, label_key)
        return loaded[key], None if label_key is None else loaded[label_key]


def _keys(file: Path, names: list[str], key: str | None, label_key: str | None) -> tuple[str, str | None]:
    """The names of the samples and of the labels among those of the arrays in a .npz file."""
    if label_key is None and "y" in names and key != "y":
        label_key = "y"
    others = [name for name in names if name != label_key]
    if key is None:
        key = "x" if "x" in others else others[0] if len(others) == 1 else None
    for wanted, option in ((key, "key"), (label_key, "label_key")):
        if (wanted is None and option == "key") or (wanted is not None and wanted not in names):
            raise ConfigError(
                f"{file}: {option} must name one of its arrays, {', '.join(names) or 'but it has none'}; got {wanted!r}"
            )
    return str(key), label_key


def _refuse_non_finite(where: str, samples: NDArray) -> None:
    with np.errstate(over="ignore"):  # numbers wider than float64 may not fit
        bad = ~np.isfinite(samples.astype(np.float64) if samples.dtype.itemsize > 8 else samples)
    if bad.any():
        index = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), samples.shape))
        raise DataError(
            f"{where}: the value at index {list(index)} is {samples[index]}; remove or repair sample {index[0]}"
        )


def _arranged(where: str, samples: NDArray, layout: str | None) -> tuple[NDArray, str]:
    """The samples with channels first, and their kind."""
    if layout is not None and samples.ndim == 2:
        raise ConfigError(f"{where}: layout is for images, series and volumes, not for vectors {samples.shape}")
    if layout is not None:
        layout = choice(where, "layout", layout, LAYOUTS[samples.ndim])
    if samples.ndim == 2:
        return samples, "vector"
    if samples.ndim == 3:
        layout = layout or _three(samples)
        if layout == "NHW":
            return samples[:, None], "image"
        return samples if layout == "NCL" else samples.transpose(0, 2, 1), "series"
    if layout == "NDHW":
        return samples[:, None], "volume"
    if layout is None:
        last, second = samples.shape[-1] in (1, 3), samples.shape[1] in (1, 3)
        if last == second:
            raise ConfigError(
                f"{where}: samples of shape {samples.shape} may be {' or '.join(LAYOUTS[samples.ndim])}; set layout "
                "(data.layout) to one"
            )
        layout = LAYOUTS[samples.ndim][0 if last == (samples.ndim == 4) else 1]
    if samples.ndim == 5:
        return samples.transpose(0, 4, 1, 2, 3) if layout == "NDHWC" else samples, "volume"
    return samples.transpose(0, 3, 1, 2) if layout == "NHWC" else samples, "image"


def _three(samples: NDArray) -> str:
    """The layout of samples (N, A, B) that nobody stated."""
    sides = samples.shape[1:]
    stored = stated_range(samples)
    picture = samples.dtype in (np.uint8, np.bool_) or (stored is not None and levels(samples, *stored) is not None)
    if min(sides) == 1 or (max(sides) >= 4 * min(sides) and not picture):
        return "NCL" if sides[0] <= sides[1] else "NLC"
    return "NHW"
