"""Away from what a model says without the condition: classifier-free guidance."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.conditions import Condition, Rows
from sde_gen.errors import ConfigError
from sde_gen.guidance.extrapolation import Extrapolated
from sde_gen.guidance.guided import Scale
from sde_gen.model import Levels, ScoreModel
from sde_gen.perturbations import Perturbation


class ClassifierFree(Extrapolated):
    """Classifier-free guidance, F_w = F_none + w (F_label - F_none). Ho & Salimans 2022, arXiv:2207.12598.

    Args:
        model: with a condition that was dropped now and then in training, such as a network of the package with labels.
        scale: w: 0 is the model without the condition, 1 with it, more strengthens it; a function of sigma/alpha makes
            a schedule.
        interval: (low, high] of sigma/alpha outside of which the condition alone counts, at the price of one call; such
            as (0.2, 2), which keeps more variety. Kynkaanniemi et al. 2024, arXiv:2404.07724. None: everywhere.
        null: what the model is told instead of the condition: the number of a label, or names with what all samples are
            told, such as {"label": 3} to go away from class 3. By default nothing of what is given: for a network of
            the package the label "none", a vector of zeros, tokens of zeros; for a mixture the label "none".
        rescale: share, in [0, 1], of the way back to the spread within a sample that x0hat has at scale 1, against
            over-exposed pictures. Lin et al. 2023, arXiv:2305.08891.
        memory: "double" for one call with twice the batch, "single" for two calls; each counts as two.

    Raises:
        ConfigError: for an argument outside its range, or a model without a null label; when asked, without the
            condition.
    """

    def __init__(
        self,
        model: ScoreModel,
        scale: Scale = 2.0,
        interval: tuple[float, float] | None = None,
        null: Mapping[str, Any] | int | None = None,
        *,
        rescale: float = 0.0,
        memory: str = "double",
    ) -> None:
        super().__init__(model, scale, interval, rescale)
        self.memory = checks.choice("ClassifierFree", "memory", memory, ("double", "single"))
        self.null, self._said = _null(model, null), null

    def under(self, perturbation: Perturbation) -> "ClassifierFree":
        base, how = self.base.under(perturbation), {"rescale": self.rescale, "memory": self.memory}
        return ClassifierFree(base, self.scale, self.interval, self._said, **how)

    def _instead(self, condition: Condition) -> Mapping[str, Any]:
        """What is told instead; by default only of what is given."""
        given = {name: value for name, value in self.null.items() if condition.parts.get(name) is not None}
        return given if self._said is None and given else self.null

    def pair(self, alpha: Tensor, sigma: Tensor, like: Tensor, condition: Condition) -> tuple[Levels, Levels]:
        null = self._instead(condition)
        if missing := [name for name in null if condition.parts.get(name) is None]:
            raise ConfigError(f"ClassifierFree: it strengthens the condition {missing[0]!r}, which is not given; give "
                              f"{missing[0]}=..., or sample the model itself")  # fmt: skip
        without = Condition({**condition.parts, **{name: _rows(value, like) for name, value in null.items()}})
        return self.base.levels(alpha, sigma, like, condition), self.base.levels(alpha, sigma, like, without)

    def doubled(self, alpha: Tensor, sigma: Tensor, like: Tensor, condition: Condition) -> Levels | None:
        if self.memory == "single":
            return None
        count, told = 2 * len(like), {}
        for name, null in self._instead(condition).items():
            given, other = (_rows(value, like).value for value in (condition.parts[name], null))
            told[name] = Rows(torch.cat([given.to(like.device), other.to(like.device, given.dtype).expand_as(given)]))
        shared = Condition({name: part for name, part in condition.parts.items() if name not in told}).tiled(count)
        wide = like.new_empty(()).expand(count, *like.shape[1:])
        if alpha.ndim > 1:
            alpha, sigma = torch.cat([alpha, alpha], 1), torch.cat([sigma, sigma], 1)
        return self.base.levels(alpha, sigma, wide, Condition({**shared.parts, **told}))


def _rows(value: Any, like: Tensor) -> Rows:
    """A row for each sample, the same for all where they share it."""
    if isinstance(value, Rows):
        return value
    value = torch.as_tensor(getattr(value, "value", value))
    return Rows(value.to(like.device).expand(len(like), *value.shape))


def _null(model: ScoreModel, null: Mapping[str, Any] | int | None) -> dict[str, Any]:
    """What stands for no condition.

    Raises:
        ConfigError: if it is not said, and the model has no null label that one could know of.
    """
    where = "ClassifierFree"
    if isinstance(null, Mapping):
        if not null:
            raise ConfigError(f"{where}: null={{}} names no condition; give one such as {{'label': 1000}}")
        return dict(null)
    if null is not None:
        return {"label": checks.integer(where, "null", null, low=0)}
    while model.network is None and isinstance(getattr(model, "base", None), ScoreModel):
        model = model.base  # pyright: ignore[reportAssignmentType]
    asked: Any = getattr(model, "law", model) if model.network is None else model.network
    classes = getattr(asked, "num_classes", None)
    shapes = {"vector": (getattr(asked, "vector_size", 0),), "tokens": (1, getattr(asked, "token_size", 0))}
    nothing = {name: torch.zeros(shape) for name, shape in shapes.items() if all(shape)}
    if not classes and not nothing:
        why = "has no classes" if classes == 0 else "does not say with num_classes which label stands for none"
        raise ConfigError(f"{where}: {type(asked).__name__} {why}; take a network that was trained with labels, some "
                          "of them dropped, or give null={'label': ...}")  # fmt: skip
    if model.always_labelled:
        raise ConfigError(f"{where}: it asks the network without a label too, which training never did: each of its "
                          "samples had one; train with objective.label_dropout=0.1, or give null=LABEL, a class to go "
                          "away from")  # fmt: skip
    return {"label": classes, **nothing} if classes else nothing
