"""What is made of a trained model before it is sampled: guidance, a clip, a start from data of one's own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_gen.config.launch import say
from sde_gen.config.objects import build
from sde_gen.config.restore import chosen_checkpoint, load_model
from sde_gen.config.schema import SampleConfig
from sde_gen.data.transform import Affine
from sde_gen.errors import ConfigError
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


def told(label: Any, model: ScoreModel) -> Any:
    """What `label=` asks for where guidance strengthens a label.

    Raises:
        ConfigError: if there is nothing that it could strengthen.
    """
    while isinstance(model, Clipped | Edited):
        model = model.base
    if not isinstance(model, ClassifierFree):
        return label
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
