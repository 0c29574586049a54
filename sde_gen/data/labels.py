"""Class labels: from what stands in the data to 0..K-1, and from a person's word back to the class."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sde_gen.checks import nearest
from sde_gen.errors import ConfigError, DataError

_SHOWN = 12


def encode(where: str, values: np.ndarray) -> tuple[Tensor, tuple[str, ...]]:
    """Labels (N,) int64 and the names of the K classes, from (N,) whole numbers or strings.

    The classes are the distinct values as they were written, numbers in their order and before text, which goes by the
    alphabet; class k of the names is label k. The value -1 is a sample without a label, and becomes K, which networks
    take for "no label"; beside 1 alone it is a class, as in data of the two classes -1 and 1.

    Raises:
        DataError: other kinds of values, an empty label (the first is named), no label at all.
    """
    if values.ndim != 1 or values.dtype.kind not in "iubUS":
        raise DataError(
            f"{where}: labels must be a one-dimensional list of whole numbers or strings, "
            f"got {values.dtype} of shape {values.shape}; round or convert them (labels.astype(int))"
        )
    if values.dtype.kind in "US":
        values = np.char.strip(np.char.decode(values, "utf-8", "replace") if values.dtype.kind == "S" else values)
        if (values == "").any():
            raise DataError(
                f"{where}: the label of sample {int((values == '').argmax())} is empty; "
                "write -1 for a sample without a label"
            )
    found, inverse = np.unique(values, return_inverse=True)
    names = [str(value) for value in found.tolist()]
    unlabelled = {"-1"} if {name.lstrip("+") for name in names} != {"-1", "1"} else set()
    order = sorted((i for i, name in enumerate(names) if name not in unlabelled), key=lambda i: order_of(names[i]))
    if not order:
        raise DataError(f"{where}: every label is -1, which means no label; give labels, or leave them out")
    place = np.full(len(names), len(order), np.int64)
    place[order] = np.arange(len(order))
    return torch.from_numpy(place[inverse]), tuple(names[i] for i in order)


def order_of(name: str) -> tuple[bool, float, str]:
    """What class names are sorted by: numbers by their value, then text by the alphabet."""
    value = _value(name)
    return value is None, value or 0, name


def label_of(classes: Sequence[str], word: object, counts: Sequence[int] = (), where: str = "label") -> int:
    """The label of the class that a person means by `word`: its name or, where no name is a number, its place.

    Args:
        classes: names of the classes, such as `Dataset.classes`.
        word: text or a whole number: "Trouser", "3", 3.
        counts: training samples of each class, where they are known.
        where: what messages call it.

    Raises:
        ConfigError: no such class (the nearest name is shown), or one that no training sample belongs to.
    """
    text = str(word).strip()
    value = None if isinstance(word, bool) else _value(text)
    alike = [k for k, name in enumerate(classes) if name.casefold() == text.casefold()]
    found = next((k for k, name in enumerate(classes) if name == text), None)
    if found is None and len(alike) == 1:
        found = alike[0]
    if found is None and value is not None:
        values = [_value(name) for name in classes]
        numbered = values if any(v is not None for v in values) else range(len(classes))
        found = next((k for k, v in enumerate(numbered) if v == value), None)
    if found is None:
        shown = ", ".join(classes[:_SHOWN]) + (f", ... ({len(classes)} in all)" if len(classes) > _SHOWN else "")
        near = nearest(text, classes)
        hint = f"; did you mean {near!r}?" if near else ""
        raise ConfigError(
            f"{where} must be one of the classes {shown}, got {word!r}{hint}" if classes else
            f"{where}={word!r} was given, but the data has no classes"
        )  # fmt: skip
    if counts and not counts[found]:
        seen = ", ".join(name for name, count in zip(classes, counts, strict=True) if count)
        raise ConfigError(f"{where}: class {classes[found]!r} never occurred in training; choose one of {seen}")
    return found


def _value(name: str) -> float | None:
    """The finite number that `name` writes, None where it writes none."""
    try:
        return int(name)
    except ValueError:
        pass
    try:
        value = float(name)
    except ValueError:
        return None
    return value if np.isfinite(value) else None
