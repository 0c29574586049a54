"""Data sets of latents: what a codec makes of pictures, or of any other data."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sde_gen import data
from sde_gen.codecs.autoencoder import Autoencoder
from sde_gen.codecs.codec import Codec
from sde_gen.codecs.stored import read_codec
from sde_gen.config.restore import pick_device
from sde_gen.data import Dataset
from sde_gen.data.transform import standardising
from sde_gen.errors import ConfigError, DataError
from sde_gen.interop.diffusers.library import CODECS

#: What samples are, by the number of their axes, and the axis that is standardised.
_KINDS = {1: ("vector", -1), 2: ("series", -2), 3: ("image", -3), 4: ("volume", -4)}


def latents(
    codec: Any, source: Any = "digits", *, standardise: bool = True, device: str = "auto", trust: Sequence[str] = ()
) -> Dataset:
    """Latents z = encode(x) of a data set, each channel with mean 0 and standard deviation 1 over the training part.

    They are computed once. Of a codec that says a law of z, as AutoencoderKL does, the mode is taken. Labels, classes
    and the held-out part are those of the source, which is kept as `.pixels`, the codec as `.codec`.
    Rombach et al. (2022), arXiv:2112.10752.

    Args:
        codec: a folder (`sde_gen.codecs.read_codec`), a `Codec`, or a module with encode and decode.
        source: a data set, the name of one that needs no more ("digits", "fashion_mnist"), or a folder of pictures.
        standardise: per channel; False: x = (z - shift_factor) scaling_factor of the codec, as others train on it.
        device: where to encode: auto, cpu, cuda, mps.
        trust: modules of your own whose classes the folder of a codec may name.

    Raises:
        MissingInputError: no such folder.  DataError: the codec cannot take such data, or decodes to
            another shape; data that are streamed or augmented.
    """
    pixels = _source(source)
    if pixels.source is not None or pixels.augment is not None:
        raise DataError(f"{pixels.name}: latents are computed once, of data in memory that nothing changes; leave out "
                        "what streams or augments them")  # fmt: skip
    made = _codec(codec, trust)
    made.module.to(pick_device(device))
    try:
        train, test = (made.encode(part) for part in (pixels.train, pixels.test))
        back = made.decode(test[:1]).shape[1:]
    finally:
        made.module.to("cpu")
    if tuple(back) != pixels.shape:
        raise DataError(f"the codec decodes latents of {pixels.name} to samples of shape {tuple(back)}, and they have "
                        f"shape {pixels.shape}; give another codec, or data of its shape")  # fmt: skip
    if train.ndim - 1 not in _KINDS:
        raise DataError(f"the codec makes latents of shape {tuple(train.shape[1:])}; they must have 1 to 4 axes")
    kind, axis = _KINDS[train.ndim - 1]
    transform = standardising(train, axis) if standardise else made.transform
    scaled = [transform.forward(part).to(torch.float32).contiguous() for part in (train, test)]
    return Dataset(
        f"latents of {pixels.name}", kind, scaled[0], scaled[1], transform, pixels.train_labels, pixels.test_labels,
        classes=pixels.classes, codec=made, pixels=pixels,
    )  # fmt: skip


def _source(source: Any) -> Dataset:
    if isinstance(source, Dataset):
        return source
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(f"data.source must be a data set, the name of one, or a folder of pictures, got {source!r}")
    if str(source) in data.__all__ and str(source)[:1].islower():
        try:
            return getattr(data, str(source))()
        except TypeError as error:
            raise ConfigError(f"data.source={source} needs more than its name; write data.source={{_target_: "
                              f"sde_gen.data.{source}, ...}}") from error  # fmt: skip
    return data.image_folder(Path(source))


def _codec(codec: Any, trust: Sequence[str]) -> Codec:
    if isinstance(codec, str | os.PathLike):
        return read_codec(codec, trust)
    if isinstance(codec, Codec):
        return codec
    is_theirs = isinstance(codec, nn.Module) and type(codec).__name__ in CODECS
    return Codec(Autoencoder.around(codec) if is_theirs else codec)
