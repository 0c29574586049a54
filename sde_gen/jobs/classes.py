"""Which classes the samples of a command belong to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_gen.data import Dataset, Description
from sde_gen.errors import ConfigError

_SHOWN = 12  # classes in a line
_WIDEST = 20  # images in a row of a grid


@dataclass(frozen=True)
class Labels:
    """The labels that samples take in turn; `names` say the classes, () where the label is that of no class."""

    values: tuple[int, ...]
    names: tuple[str, ...]
    all: bool = False
    """Whether these are all classes that occur."""

    def rows(self, first: int, size: int) -> Tensor:
        """The labels of samples `first`, ..., `first + size - 1`, (size,)."""
        return cycled(self.values, first, size)

    def part(self, data: Dataset) -> Dataset | None:
        """The samples of `data` that belong to these classes; None: of no use, for fewer than two are held out."""
        if self.all or not self.names or data.train_labels is None or data.test_labels is None:
            return data
        wanted = torch.tensor(self.values)
        train, test = (torch.isin(labels, wanted) for labels in (data.train_labels, data.test_labels))
        if int(test.sum()) < 2 or not bool(train.any()):
            return None
        name = f"{data.name} ({', '.join(self.names[:_SHOWN])})"
        pixels = None if data.pixels is None else self.part(data.pixels)
        return Dataset(name, data.kind, data.train[train], data.test[test], data.transform, codec=data.codec,
                       pixels=pixels)  # fmt: skip


def chosen(said: Any, about: Description, dropped: bool | None) -> Labels | None:
    """The labels that `label=` asks for; None: the network takes none, or is asked without one.

    Args:
        said: "cycle", "none", a class (`Description.label_of`) or a list of them; null: no label where training
            dropped labels, else "cycle".
        about: the data that the network was trained on; without classes where it was not given their labels.
        dropped: whether training dropped labels; None: nobody knows.

    Raises:
        ConfigError: a class that there is not, or that training never saw.
    """
    if not about.num_classes:
        if said is not None:
            raise ConfigError(f"label={said}, but this network was trained without labels; leave label out")
        return None
    if said is None and dropped:
        return None
    if said == "none":
        if dropped is False and about.unlabelled == 0:
            raise ConfigError(
                "label=none asks for what training never did: each of its samples had a label; give label=cycle or a "
                "class, or train with objective.label_dropout=0.1"
            )
        return Labels((about.num_classes,), ())
    every = said is None or said == "cycle"
    words = said if isinstance(said, list) else [said]
    if not words:
        raise ConfigError("label=[] names no class; give at least one, or label=cycle")
    values = occurring(about) if every else tuple(about.label_of(word) for word in words)
    return Labels(values, tuple(about.classes[value] for value in values), every)


def occurring(about: Description) -> tuple[int, ...]:
    """The labels that training samples have, ascending."""
    counts = about.counts or (1,) * about.num_classes
    return tuple(label for label, count in enumerate(counts) if count)


def cycled(labels: Sequence[int], first: int, size: int) -> Tensor:
    """The labels of samples `first`, ..., `first + size - 1` where `labels` come in turn, (size,)."""
    return torch.tensor(labels)[torch.arange(first, first + size) % len(labels)]


def columns_for(classes: int, count: int) -> int | None:
    """Images in a row of a grid such that each column holds one class; None: any number."""
    if not 1 < classes <= _WIDEST:
        return None
    return classes * max(1, round(count**0.5 / classes))


def counts_of(about: Description) -> str:
    """One line: the classes with the number of their training samples."""
    counts = about.counts or ("?",) * about.num_classes
    shown = [f"{name} ({count})" for name, count in zip(about.classes, counts, strict=True)]
    more = f", ... ({len(shown)} classes in all)" if len(shown) > _SHOWN else ""
    unlabelled = f"; without a label ({about.unlabelled})" if about.unlabelled else ""
    return f"classes with their training samples: {', '.join(shown[:_SHOWN])}{more}{unlabelled}"


def columns_of(about: Description) -> str:
    """One line: what the columns of a table are taken for."""
    shown = [column.name + ("" if column.kind == "number" else f" ({len(column.values)} values, {column.kind})")
             for column in about.columns]  # fmt: skip
    more = f", ... ({len(shown)} in all)" if len(shown) > _SHOWN else ""
    return f"columns, of numbers unless it says otherwise: {', '.join(shown[:_SHOWN])}{more}"
