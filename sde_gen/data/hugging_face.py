"""Data from the Hugging Face hub, or local parquet files and image folders, through the optional library `datasets`."""

from collections.abc import Sequence
from functools import partial
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from sde_gen.data.dataset import Dataset
from sde_gen.data.decoding import Decoder, Encoded, Images
from sde_gen.data.labels import encode
from sde_gen.data.making import from_raw, streamed
from sde_gen.data.reading import located, sentence
from sde_gen.data.streams import PIXELS, Pictures, streams
from sde_gen.errors import ConfigError, DataError, MissingInputError, SDEGenError

_READERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}


def hub(
    name: str | Path,
    *,
    config: str | None = None,
    revision: str | None = None,
    split: str = "train",
    test_split: str | None = None,
    column: str | None = None,
    label_column: str | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    random_flip: bool = False,
    random_crop: int | None = None,
    stream: bool | None = None,
    workers: int = 2,
    held_out: int | float = 0.1,
    seed: int = 0,
) -> Dataset:
    """A data set that `datasets.load_dataset` reads: images (PNG or JPEG) or vectors.

    Needs the extra: `pip install sde_gen[hub]`.

    Args:
        name: a local parquet, CSV, JSON or Arrow file, a local folder of them or of images, or a name on the hub.
        config: name of the configuration, where the data set has several.
        revision: commit or tag on the hub; None: the newest.
        split: the part to train on, in the syntax of `datasets` ("train", "train[:1000]").
        test_split: the held-out part; None: taken out of `split` by `held_out` and `seed`.
        column: the images, or vectors of one length; None: the only image column, else the only column of lists, else
            all columns of numbers side by side.
        label_column: whole numbers (-1: no label) or strings; None: the only column with class names, if there is one.
        image_size: see `image_folder`.
        channels: see `image_folder`.
        random_flip: see `image_folder`.
        random_crop: see `image_folder`.
        stream: see `image_folder`.
        workers: see `image_folder`.
        held_out: fraction in (0, 1), or number of samples, to hold out.
        seed: picks the held-out samples.

    Raises:
        ConfigError: `datasets` is not installed; a column, split or configuration that is not there.
        MissingInputError: no such data set, or the hub cannot be reached.
        DataError: data that cannot be read, vectors of mixed lengths, NaN.
    """
    try:
        datasets: Any = import_module("datasets")
    except ImportError:
        raise ConfigError("data from the hub needs the library `datasets`: run `pip install sde_gen[hub]`") from None
    where = str(name)
    parts = [_load(datasets, name, config, revision, part) for part in (split, test_split) if part is not None]
    table = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    features = dict(table.features)
    label_column = _label_column(datasets, where, features, label_column)
    columns = _columns(datasets, where, features, column, label_column)
    classes, labels = (), None
    if label_column is not None:
        labels, classes = _labels(where, table[label_column][:], getattr(features[label_column], "names", None))
    test_from = None if test_split is None else len(parts[0])
    if isinstance(features[columns[0]], datasets.Image):
        encoded = table.cast_column(columns[0], datasets.Image(decode=False))
        images = Cells(where, encoded, columns[0])
        decoder, short = Decoder.of(images, image_size, channels), Path(where).name
        augment = {"random_flip": random_flip, "random_crop": random_crop}
        if streams(stream, (len(images), *decoder.shape)):
            source = Pictures(images, decoder, labels, workers)
            return streamed(short, source, PIXELS, held_out, seed, classes, test_from, **augment)
        raw = decoder(images)
        return from_raw(short, "image", raw, labels, PIXELS, held_out, seed, classes, test_from, **augment)
    if image_size is not None or channels is not None or random_flip or random_crop is not None or stream:
        raise ConfigError(
            f"{where}: image_size, channels, random_flip, random_crop and stream are for images, but column "
            f"{columns[0]!r} holds numbers"
        )
    raw = _vectors(where, table, columns)
    return from_raw(Path(where).name, "vector", raw, labels, None, held_out, seed, classes, test_from)


class Cells(Images):
    """The images in a column of a table."""

    def __init__(self, where: str, table: Any, column: str) -> None:
        self._where, self._table, self._column = where, table, column

    def __len__(self) -> int:
        """See `Images`."""
        return len(self._table)

    def __getitem__(self, index: int) -> Encoded:
        """See `Images`."""
        return Encoded(f"{self._where}, row {index}", partial(_open, self._table, self._column, index))


def _load(datasets: Any, name: str | Path, config: str | None, revision: str | None, split: str) -> Any:
    local: Path | None = None
    try:
        local = located(name, "name (data.name) must be a file, a folder or a data set on the hub", folder=None)
    except MissingInputError:
        if str(name).startswith(("/", "~", ".")) or Path(name).suffix in _READERS:
            raise MissingInputError(f"{name}: no such file, folder or data set on the hub") from None
    for inside in [] if local is None else local.rglob("*"):  # the library would open whatever lies there
        located(inside, "a folder of data must hold nothing but files; remove it", folder=None)
    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        if local is None:
            return datasets.load_dataset(str(name), config, split=split, revision=revision)
        if local.is_dir():
            return datasets.load_dataset(str(local), config, split=split)
        if local.suffix not in _READERS:
            raise ConfigError(f"{local}: a local file must end in one of {', '.join(_READERS)}; or name a folder")
        # a single file has no parts of its own: it is all "train"
        return datasets.load_dataset(_READERS[local.suffix], data_files={"train": str(local)}, split=split)
    except SDEGenError:
        raise
    except (FileNotFoundError, ConnectionError) as error:
        raise MissingInputError(
            f"{name}: no such file, folder or data set on the hub, or the hub cannot be reached ({sentence(error)})"
        ) from None
    except Exception as error:  # noqa: BLE001  # the library wraps whatever its readers raise in classes of its own
        if type(error) in (ValueError, KeyError):  # an unknown split or configuration; damaged files raise subclasses
            raise ConfigError(f"{name}, split {split!r}, config {config!r}: {sentence(error)}") from None
        raise DataError(f"{name}: cannot be read ({sentence(error)})") from None
    finally:
        if not shown:
            datasets.enable_progress_bars()


def _label_column(datasets: Any, where: str, features: dict[str, Any], label_column: str | None) -> str | None:
    if label_column is not None:
        if label_column not in features:
            raise ConfigError(f"{where}: no column {label_column!r}; the columns are {', '.join(features)}")
        return label_column
    named = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    return named[0] if len(named) == 1 else None


def _labels(where: str, values: list, names: Sequence[str] | None) -> tuple[Tensor, tuple[str, ...]]:
    """Labels and class names: those that the data set states (all of them, and in its order), else what is found."""
    empty = next((row for row, value in enumerate(values) if value is None), None)
    if empty is not None:
        raise DataError(f"{where}: row {empty} has an empty label; write -1 for a sample without a label")
    if names is None:
        return encode(where, np.array(values))
    labels = torch.tensor(values)
    return torch.where(labels < 0, len(names), labels), tuple(names)


def _columns(
    datasets: Any, where: str, features: dict[str, Any], column: str | None, label_column: str | None
) -> list[str]:
    """The columns that hold the samples: one of images or lists, or several of numbers."""
    if column is not None:
        if column not in features:
            raise ConfigError(f"{where}: no column {column!r}; the columns are {', '.join(features)}")
        return [column]
    rest = {name: feature for name, feature in features.items() if name != label_column}
    images = [name for name, feature in rest.items() if isinstance(feature, datasets.Image)]
    numbers = [name for name, feature in rest.items() if _is_number(datasets, feature)]
    lists = [name for name, feature in rest.items() if _is_list(datasets, feature)]
    for candidates in (images, lists):
        if len(candidates) > 1:
            raise ConfigError(f"{where}: columns {', '.join(candidates)} may all hold the samples; set column to one")
        if candidates:
            return candidates
    if not numbers:
        raise ConfigError(f"{where}: none of the columns {', '.join(features)} holds images or numbers")
    return numbers


def _is_number(datasets: Any, feature: Any) -> bool:
    kinds = ("int", "uint", "float", "double")
    return type(feature) is datasets.Value and str(feature.dtype).startswith(kinds)


def _is_list(datasets: Any, feature: Any) -> bool:
    inner = getattr(feature, "feature", None)
    return inner is not None and _is_number(datasets, inner)


def _vectors(where: str, table: Any, columns: list[str]) -> Tensor:
    try:
        values = [np.array(table[name][:], dtype=np.float64) for name in columns]
    except (TypeError, ValueError):
        raise DataError(f"{where}: {', '.join(columns)} must hold numbers, or lists of numbers of one length") from None
    array = values[0] if values[0].ndim == 2 and len(values) == 1 else np.stack(values, 1)
    if array.ndim != 2:
        raise DataError(f"{where}: {', '.join(columns)} must hold one vector a row, got shape {array.shape}")
    bad = ~np.isfinite(array)
    if bad.any():
        row, place = np.unravel_index(int(bad.argmax()), array.shape)
        raise DataError(f"{where}: row {row}, number {place} is missing, NaN or infinite; remove or repair that row")
    return torch.from_numpy(array)


def _open(table: Any, column: str, row: int) -> IO[bytes]:
    value = table[row][column]
    if value is None:
        raise ValueError("the row holds no image")
    return BytesIO(value["bytes"]) if value["bytes"] is not None else Path(value["path"]).open("rb")
