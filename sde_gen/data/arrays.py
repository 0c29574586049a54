"""Arrays from `.npy` and `.npz` files, and vectors from CSV files."""

import csv
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sde_gen.data.base import Dataset, class_labels, from_raw
from sde_gen.data.transform import Affine
from sde_gen.errors import ConfigError, DataError, MissingInputError

LAYOUTS = ("NHWC", "NCHW")


def array_file(
    path: str | Path,
    *,
    key: str | None = None,
    label_key: str | None = None,
    layout: str | None = None,
    low: float | None = None,
    high: float | None = None,
    held_out: int | float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Vectors (N, D), or images (N, H, W), (N, H, W, C) or (N, C, H, W), from a `.npy` or `.npz` file.

    Nothing in the file is executed: arrays of Python objects are refused.

    Args:
        path: the file.
        key: name of the samples in a `.npz`; None: "x", or the only array that is not the labels.
        label_key: name of the labels in a `.npz`, (N,) whole numbers or strings; None: "y" where there is one.
        layout: "NHWC" or "NCHW" for images with channels; None: where 1 or 3 channels make it plain.
        low: raw value that becomes -1. None: for images 0 (whole bytes), or 0 or -1 (floats within [0, 1] or [-1, 1]);
            vectors are standardised.
        high: raw value that becomes 1; goes with `low`.
        held_out: fraction in (0, 1), or number of samples, to hold out.
        seed: picks the held-out samples.

    Raises:
        MissingInputError: no such file.
        DataError: a damaged file, NaN or infinite values (the first is named), a shape or type that is not data.
        ConfigError: a key that is not there, a layout that is not plain, other arguments outside their range.
    """
    file = Path(path).expanduser()
    samples, labels = _load(file, key, label_key)
    name = file.stem
    if samples.dtype.kind not in "biuf":
        raise DataError(f"{file}: samples must be numbers, got an array of {samples.dtype}")
    if samples.ndim not in (2, 3, 4) or 0 in samples.shape:
        raise DataError(
            f"{file}: samples must be vectors (N, D) or images (N, H, W), (N, H, W, C), (N, C, H, W), not empty, "
            f"got shape {samples.shape}"
        )
    _refuse_non_finite(str(file), samples)
    kind = "vector" if samples.ndim == 2 else "image"
    transform = _transform(str(file), samples, kind, low, high)
    if kind == "image":
        samples = _channels_first(str(file), samples, layout)
    elif layout is not None:
        raise ConfigError(f"{file}: layout is for images, but the samples are vectors of shape {samples.shape}")
    classes, numbers = 0, None
    if labels is not None:
        if labels.shape != samples.shape[:1]:
            raise DataError(f"{file}: {len(samples)} samples need as many labels, got shape {labels.shape}")
        numbers, classes = class_labels(str(file), labels)
    if not (kind == "image" and samples.dtype == np.uint8):  # torch lacks some of numpy's types; float64 holds all
        samples = samples.astype(np.float64)
    raw = torch.from_numpy(np.ascontiguousarray(samples))
    return from_raw(name, kind, raw, numbers, transform, held_out, seed, classes)


def csv_file(
    path: str | Path,
    *,
    label: str | int | None = None,
    header: bool | None = None,
    delimiter: str = ",",
    held_out: int | float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Vectors from a CSV file in UTF-8: one sample a line, numbers only, but for the labels; standardised.

    Args:
        path: the file.
        label: column of the class labels (any text): its name in the header, or its 0-based place; None: no labels.
        header: whether the first line names the columns; None: it does where none of its fields is a number.
        delimiter: the character between the fields; \\t or tab for the tab.
        held_out: fraction in (0, 1), or number of samples, to hold out.
        seed: picks the held-out samples.

    Raises:
        MissingInputError: no such file.
        DataError: a field that is not a finite number, a line of another length (each is named), no lines.
        ConfigError: a label column that is not there, other arguments outside their range.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise MissingInputError(f"{file}: no such file; path (data.path) must be a CSV file")
    delimiter = "\t" if delimiter in ("\\t", "tab") else delimiter  # as it can be typed on a command line
    if len(delimiter) != 1:
        raise ConfigError(f"delimiter must be one character, got {delimiter!r}")
    lines = _lines(file, delimiter)
    if not lines:
        raise DataError(f"{file}: holds no data")
    width = len(lines[0][1])
    place = label % width if isinstance(label, int) and -width <= label < width else None
    if header is None:
        fields = [field for column, field in enumerate(lines[0][1]) if column != place]
        header = isinstance(label, str) or not any(_is_number(field) for field in fields)
    names = [field.strip() for field in lines.pop(0)[1]] if header else [f"#{column}" for column in range(width)]
    if isinstance(label, str) and label in names:
        place = names.index(label)
    if label is not None and place is None:
        raise ConfigError(f"{file}: no column {label!r} for the labels; the columns are {', '.join(names)}")
    if not lines:
        raise DataError(f"{file}: holds a header, but no data")
    rows, labels = [], []
    for number, fields in lines:
        if len(fields) != width:
            raise DataError(f"{file}, line {number}: has {len(fields)} columns, but the first line has {width}")
        row = []
        for column, field in enumerate(fields):
            if column == place:
                labels.append(field.strip())
            elif not _is_number(field) or not np.isfinite(float(field)):
                raise DataError(
                    f"{file}, line {number}, column {column + 1} ({names[column]}): {field!r} is not a finite number"
                )
            else:
                row.append(float(field))
        rows.append(row)
    if not rows[0]:
        raise DataError(f"{file}: the labels are its only column; there must be at least one column of numbers")
    numbers, classes = (None, 0) if place is None else class_labels(str(file), _whole_or_text(labels))
    return from_raw(
        file.stem, "vector", torch.tensor(rows, dtype=torch.float64), numbers, None, held_out, seed, classes
    )


def _load(file: Path, key: str | None, label_key: str | None) -> tuple[NDArray, NDArray | None]:
    if not file.is_file():
        raise MissingInputError(f"{file}: no such file; path (data.path) must be a .npy or .npz file")
    try:
        with file.open("rb") as stream:  # numpy leaves a file open that it opened and could not read
            return _pick(file, np.load(stream, allow_pickle=False), key, label_key)
    except ConfigError:
        raise
    except (ValueError, OSError, EOFError, KeyError, MemoryError, SyntaxError, zipfile.BadZipFile, zlib.error) as error:
        detail = " ".join(str(error).split())
        raise DataError(f"{file}: cannot be read as .npy or .npz without pickle ({detail})") from None


def _pick(
    file: Path, loaded: NDArray | np.lib.npyio.NpzFile, key: str | None, label_key: str | None
) -> tuple[NDArray, NDArray | None]:
    """The samples and the labels among the arrays of a file."""
    if isinstance(loaded, np.ndarray):
        if key is not None or label_key is not None:
            raise ConfigError(f"{file}: key and label_key are for .npz files, and this one holds a single array")
        return loaded, None
    with loaded:
        names = list(loaded.files)
        if label_key is None and "y" in names and key != "y":
            label_key = "y"
        others = [name for name in names if name != label_key]
        if key is None:
            key = "x" if "x" in others else others[0] if len(others) == 1 else None
        for wanted, option in ((key, "key"), (label_key, "label_key")):
            if (wanted is None and option == "key") or (wanted is not None and wanted not in names):
                raise ConfigError(
                    f"{file}: {option} must name one of its arrays, {', '.join(names) or 'but it has none'}; "
                    f"got {wanted!r}"
                )
        return loaded[str(key)], None if label_key is None else loaded[label_key]


def _refuse_non_finite(where: str, samples: NDArray) -> None:
    if samples.dtype.kind != "f":
        return
    bad = ~np.isfinite(samples)
    if bad.any():
        index = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), samples.shape))
        raise DataError(
            f"{where}: the value at index {list(index)} is {samples[index]}; remove or repair sample {index[0]}"
        )


def _transform(where: str, samples: NDArray, kind: str, low: float | None, high: float | None) -> Affine | None:
    """The transform, None for vectors to be standardised; refuses values outside [low, high]."""
    if (low is None) != (high is None):
        raise ConfigError(f"{where}: low and high go together, got low={low}, high={high}")
    smallest, largest = samples.min(), samples.max()
    if low is None or high is None:
        if kind == "vector":
            return None
        if samples.dtype == np.uint8:
            low, high = 0, 255
        elif samples.dtype == np.bool_:
            low, high = 0, 1
        elif samples.dtype.kind == "f" and smallest >= -1 and largest <= 1:
            low, high = (0, 1) if smallest >= 0 else (-1, 1)
        else:
            raise ConfigError(
                f"{where}: the range of {samples.dtype} images with values in [{smallest}, {largest}] is not plain; "
                "set low and high (data.low, data.high) to the raw values of black and white"
            )
    for option, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise ConfigError(f"{where}: {option} must be a finite number, got {value!r}")
    if low >= high:
        raise ConfigError(f"{where}: low must be below high, got low={low}, high={high}")
    if smallest < low or largest > high:
        raise DataError(f"{where}: values lie in [{smallest}, {largest}], outside [low, high] = [{low}, {high}]")
    whole = samples.dtype.kind in "biu" and float(low).is_integer() and float(high).is_integer()
    return Affine.to_unit(low, high, int(high - low) + 1 if whole and kind == "image" else None)


def _channels_first(where: str, samples: NDArray, layout: str | None) -> NDArray:
    if layout is not None and layout not in LAYOUTS:
        raise ConfigError(f"{where}: layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if samples.ndim == 3:
        return samples[:, None]
    if layout is None:
        last, second = samples.shape[3] in (1, 3), samples.shape[1] in (1, 3)
        if last == second:
            raise ConfigError(
                f"{where}: images of shape {samples.shape} may be NHWC or NCHW; set layout (data.layout) to one"
            )
        layout = "NHWC" if last else "NCHW"
    return samples.transpose(0, 3, 1, 2) if layout == "NHWC" else samples


def _lines(file: Path, delimiter: str) -> list[tuple[int, list[str]]]:
    """(line number, fields) of the lines that are not blank."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, delimiter=delimiter)
            return [(reader.line_num, row) for row in reader if any(field.strip() for field in row)]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise DataError(f"{file}: cannot be read as CSV in UTF-8 ({error})") from None


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return "_" not in field  # Python reads 1_000 as a number; no other program does


def _whole_or_text(values: list[str]) -> NDArray:
    try:
        return np.array([int(value) for value in values])
    except (ValueError, OverflowError):
        return np.array(values)
