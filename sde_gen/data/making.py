"""A `Dataset` from raw samples: sized, split, scaled."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sde_gen.data.augment import Augment
from sde_gen.data.columns import Column
from sde_gen.data.dataset import Dataset
from sde_gen.data.order import split_indices
from sde_gen.data.resizing import resized
from sde_gen.data.source import Held
from sde_gen.data.transform import Affine, standardising
from sde_gen.errors import DataError


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
    if test_from is not None:
        everything = torch.arange(raw.shape[0])
        train, test = everything[:test_from], everything[test_from:]
    elif raw.shape[0] < 2:
        raise DataError(f"{name}: needs at least 2 samples, one of them held out, got {raw.shape[0]}")
    else:
        train, test = split_indices(raw.shape[0], held_out, seed)
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
    )
