"""A `Dataset` from raw samples: sized, split, scaled."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sde_gen.data.augment import Augment
from sde_gen.data.columns import Column
from sde_gen.data.dataset import Dataset
from sde_gen.data.order import split_indices
from sde_gen.data.resizing import resized
from sde_gen.data.source import Held, Part, Source
from sde_gen.data.transform import Affine, standardising
from sde_gen.errors import DataError

# Streamed images of which each part is held in memory for whoever compares: as many as `sample` compares.
_NUMBERS, _FEWEST, _MOST = 2**22, 2_000, 20_000


def from_raw(
    name: str,
    kind: str,
    raw: Tensor,
    labels: Tensor | None,
    transform: Affine | None,
    held_out: int | float,
    seed: int,
    classes: Sequence[str] = (),
    test_from: int | None = None,
    columns: tuple[Column, ...] = (),
    *,
    image_size: int | None = None,
    random_flip: bool = False,
    random_crop: int | None = None,
    told: Mapping[str, Tensor] | None = None,
) -> Dataset:
    """A Dataset from raw samples (N, *shape): split, then scaled; no transform: standardised by the training part.

    The samples from `test_from` on are held out; None: `held_out` and `seed` pick them. Images are brought to
    `image_size` as `resized` says; what `random_flip` and `random_crop` do says `Augment`.

    Raises:
        DataError: fewer than two samples, or one so far from the training samples that float32 cannot hold it.
        ConfigError: a size, flips or windows of what is no image, or a window larger than the images.
    """
    if image_size is not None:
        raw = resized(name, raw, image_size, transform)
    augment = Augment.of(name, tuple(raw.shape[1:]), random_flip, random_crop)
    train, test = _split(name, raw.shape[0], held_out, seed, test_from)
    if transform is None:
        transform = standardising(raw[train], {"series": -2, "volume": -4}.get(kind, -1))
        flags = [column.kind == "category" for column in columns for _ in range(column.width)]
        if any(flags):  # 0 and 1 become -1 and 1: a rare category is not stretched
            known = (np.broadcast_to(values, len(flags)) for values in (transform.shift, transform.scale))
            shift, scale = (np.where(flags, 0.5, values).tolist() for values in known)
            transform = Affine(tuple(shift), tuple(scale))

    def scaled(rows: Tensor) -> Tensor:
        kept = raw[rows] if augment is None else augment.central(raw[rows])
        x = transform.forward(kept).to(torch.float32).contiguous()
        for place in (~x.isfinite()).nonzero()[:1]:
            raise DataError(
                f"{name}: the value {kept[tuple(place)].item():g} of sample {int(rows[place[0]])} is too far from "
                "the training samples to be held in float32 on their scale; remove or repair that sample"
            )
        return x

    of_train, of_test = (None if labels is None else labels[rows] for rows in (train, test))
    wide = augment is not None and augment.crop is not None
    return Dataset(
        name,
        kind,
        scaled(train),
        scaled(test),
        transform,
        of_train,
        of_test,
        classes=tuple(classes),
        columns=columns,
        augment=augment,
        source=Held(raw[train], transform, of_train) if wide else None,
        train_told={name: value[train] for name, value in (told or {}).items()},
        test_told={name: value[test] for name, value in (told or {}).items()},
    )


def streamed(
    name: str,
    whole: Source,
    transform: Affine,
    held_out: int | float,
    seed: int,
    classes: Sequence[str] = (),
    test_from: int | None = None,
    *,
    random_flip: bool = False,
    random_crop: int | None = None,
) -> Dataset:
    """A Dataset whose training images stay where `whole` reads them; see `from_raw`.

    In memory are, of the training and of the held-out images each, as many as have 4 million numbers, 2,000 to 20,000,
    evenly spaced; those held out beside them are not used.

    Raises:
        DataError: fewer than two samples.  ConfigError: as `from_raw`.
    """
    augment = Augment.of(name, whole.shape, random_flip, random_crop)
    parts = _split(name, len(whole), held_out, seed, test_from)
    most = min(_MOST, max(_FEWEST, _NUMBERS // math.prod(whole.shape)))
    kept = [part[torch.arange(min(most, len(part))) * len(part) // min(most, len(part))] for part in parts]
    samples = [whole.read(rows) if augment is None else augment.central(whole.read(rows)) for rows in kept]
    labels = [None if whole.labels is None else whole.labels[rows] for rows in kept]
    return Dataset(
        name,
        "image",
        samples[0].contiguous(),
        samples[1].contiguous(),
        transform,
        labels[0],
        labels[1],
        classes=tuple(classes),
        augment=augment,
        source=Part(whole, parts[0]),
    )


def _split(name: str, count: int, held_out: int | float, seed: int, test_from: int | None) -> tuple[Tensor, Tensor]:
    """Indices of the training and of the held-out samples."""
    if test_from is not None:
        return torch.arange(test_from), torch.arange(test_from, count)
    if count < 2:
        raise DataError(f"{name}: needs at least 2 samples, one of them held out, got {count}")
    return split_indices(count, held_out, seed)
