"""What is made of a trained model before it is sampled: guidance, a clip, a start from data of one's own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_gen.config.launch import say
from sde_gen.config.objects import build
from sde_gen.config.restore import chosen_checkpoint, load_model
from sde_gen.config.schema import SampleConfig
from sde_gen.data.images import SUFFIXES, Source, load_images
from sde_gen.data.reading import located, sentence
from sde_gen.data.transform import Affine
from sde_gen.errors import ConfigError, DataError
from sde_gen.guidance import ClassifierFree, Clipped, Edited
from sde_gen.jobs.common import Trained
from sde_gen.model import ScoreModel


def guided(what: Trained, cfg: SampleConfig) -> Trained:
    """`what` with the model that the settings make of its own.

    Raises:
        SDEGenError: one of its subclasses, naming the setting.
    """
    model = what.model
    if cfg.guidance is not None:
        node, given = dict(cfg.guidance), {}
        if isinstance(node.get("bad"), str | int):
            path = Path(str(node.pop("bad")))
            place = (None, str(path), cfg.runs_dir) if path.is_dir() else (path.name, None, cfg.runs_dir)
            bad = chosen_checkpoint(*place, say)
            given["bad"] = load_model(bad, weights=cfg.weights, device=what.device, trust=cfg.trust)
        model = build(node, trust=cfg.trust, where="guidance", model=model, **given)
    if cfg.clip:
        model = Clipped(model, *_range(model.transform))
    if cfg.start is not None:
        model = Edited(model, cfg.strength)
    return replace(what, model=model)


def told(cfg: SampleConfig, label: Any, model: ScoreModel, dropped: bool | None) -> Any:
    """What `label=` asks for where guidance strengthens a label.

    Raises:
        ConfigError: if there is nothing that it could strengthen.
    """
    while isinstance(model, Clipped | Edited):
        model = model.base
    if not isinstance(model, ClassifierFree):
        return label
    if dropped is False and cfg.guidance is not None and cfg.guidance.get("null") is None:
        raise ConfigError(
            "guidance=cfg asks the network without a label too, which training never did: each of its samples had one; "
            "train with objective.label_dropout=0.1, or give guidance.null=LABEL to go away from a class"
        )
    if label == "none":
        raise ConfigError("label=none leaves guidance=cfg nothing to strengthen; give a class, or label=cycle")
    return "cycle" if label is None else label


def made_of(cfg: SampleConfig) -> dict[str, Any]:
    """What the settings make of the model, as a report says it; empty where that is nothing."""
    parts = {"guidance": cfg.guidance, "clip": cfg.clip or None, "start": cfg.start}
    parts["strength"] = None if cfg.start is None else cfg.strength
    return {name: value for name, value in parts.items() if value is not None}


def started(what: Trained, given: Tensor, seed: int, first: int, size: int) -> Tensor:
    """The states that samples `first`, ..., `first + size - 1` start from; the data that are given come in turn."""
    rows = given[torch.arange(first, first + size) % len(given)].to(what.device)
    return what.model.start(rows, seed, first) if isinstance(what.model, Edited) else rows


def _range(transform: Affine | None) -> tuple[float, float]:
    """The least and the most that data can be, on the model's scale."""
    if transform is None or transform.low is None or isinstance(transform.shift, tuple | list):
        raise ConfigError("clip=true cuts to the range of the data, and these data have none; leave clip out")
    low, high = transform.forward(torch.tensor([transform.low, transform.high], dtype=torch.float64)).tolist()
    return low, high


def read_samples(path: str, setting: str, transform: Affine, shape: tuple[int, ...]) -> Tensor:
    """The samples of a file on the model's scale, (N, *shape), float32.

    A picture, whose 8 bits span the range of the data; or an array of raw data in .npy or .npz (x, or the only one).

    Raises:
        MissingInputError: no such file.
        DataError: it cannot be read, or holds something else.
    """
    place = located(path, f"{setting} must be a picture, or a .npy or .npz file of raw data")
    if place.suffix.lower() in SUFFIXES:
        if len(shape) != 3 or shape[0] not in (1, 3) or transform.low is None or transform.high is None:
            raise DataError(f"{setting}={path} is a picture, and this model has samples of shape {shape}; give a .npy "
                            "file")  # fmt: skip
        pixels = load_images([Source(str(place), lambda: place.open("rb"))], image_size=None, channels=shape[0])
        raw = transform.low + pixels.to(torch.float64) / 255 * (transform.high - transform.low)
    else:
        raw = torch.from_numpy(_array(place, setting))
    raw = raw.reshape(1, *shape) if tuple(raw.shape) in (shape, shape[1:] if shape[0] == 1 else shape) else raw
    if tuple(raw.shape[1:]) != shape or not len(raw):
        raise DataError(f"{setting}={path} holds {tuple(raw.shape)}, and samples of this model have shape {shape}")
    if not bool(raw.isfinite().all()):
        raise DataError(f"{setting}={path} holds NaN or infinity")
    return transform.forward(raw.to(torch.float64)).to(torch.float32)


def _array(place: Path, setting: str) -> np.ndarray:
    try:
        loaded = np.load(place, allow_pickle=False)
        if not isinstance(loaded, np.ndarray):
            with loaded:
                names = loaded.files
                if "x" not in names and len(names) != 1:
                    raise DataError(f"{setting}={place} holds {', '.join(names)}, and no x")
                loaded = loaded["x" if "x" in names else names[0]]
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{setting}={place} is no picture, .npy or .npz file: {sentence(error)}") from None
    if loaded.dtype.kind not in "fiub":
        raise DataError(f"{setting}={place} holds {loaded.dtype}, and not numbers")
    return loaded
