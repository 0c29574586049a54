"""What a network is told besides its input, and which of it has a row for each sample.

One rule for samplers, objectives, likelihoods and tuning, and nothing is guessed from lengths: a tensor or array of one
dimension or more has a row for each sample, `Rows(value)` says so too; what all samples share is said, `Whole(value)`.
Numbers, text and tensors without dimensions are shared anyway. Mappings, lists and tuples are walked.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.errors import ConfigError

__all__ = ["Condition", "Rows", "Whole"]


class Rows:
    """A tensor with a row for each sample, (B, ...)."""

    def __init__(self, value: Tensor | np.ndarray) -> None:
        self.value = torch.as_tensor(value)
        if not self.value.ndim:
            raise ConfigError(f"Rows: expected a tensor with a row for each sample, got the number {value!r}")

    def __repr__(self) -> str:
        return f"Rows({_shown(self.value)})"


class Whole:
    """What all samples share, whatever its length: `condition={"table": Whole(table)}`."""

    def __init__(self, value: Any) -> None:
        self.value = torch.from_numpy(value) if isinstance(value, np.ndarray) else value

    def __repr__(self) -> str:
        return f"Whole({_shown(self.value)})"


class Condition:
    """Arguments of a network for some samples; made by `Condition.of`.

    Attributes:
        parts: name to value, tensors with rows in `Rows`, shared ones in `Whole`.
    """

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.parts = dict(parts)

    @classmethod
    def of(cls, where: str, given: "Mapping[str, Any] | Condition | None", rows: int | None) -> "Condition":
        """The condition that was given, with a row for each of `rows` samples; any number of rows for None.

        Raises:
            ConfigError: for a tensor with another number of rows.
        """
        if isinstance(given, Condition):
            given = given.parts
        if given is not None and not isinstance(given, Mapping):
            raise ConfigError(f"{where}: condition must map names of the network's arguments to values, got {given!r}")
        condition = cls({str(name): _read(value) for name, value in (given or {}).items()})
        for name, value in condition.leaves():
            if isinstance(value, Rows) and rows is not None and len(value.value) != rows:
                raise ConfigError(
                    f"{where}: condition {name!r} has {len(value.value)} rows for {rows} samples; give one for each, "
                    "or say that all samples share it: sg.Whole(value)"
                )
        return condition

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the network."""
        return {name: _map(value, lambda leaf: getattr(leaf, "value", leaf)) for name, value in self.parts.items()}

    def tensors(self) -> list[Tensor]:
        """Every tensor in it."""
        values = (getattr(leaf, "value", None) for _, leaf in self.leaves())
        return [value for value in values if isinstance(value, Tensor)]

    def leaves(self) -> Iterator[tuple[str, Any]]:
        """(name, value) of everything in it, names of nested values with dots."""
        for name, value in self.parts.items():
            yield from _leaves(name, value)

    def __bool__(self) -> bool:
        return bool(self.parts)

    def beside(self, other: "Condition", where: str, rows: int | None) -> "Condition":
        """With what `other` says and this one does not, whose rows are checked as in `of`."""
        missing = {name: value for name, value in other.parts.items() if name not in self.parts}
        return Condition({**Condition.of(where, missing, rows).parts, **self.parts}) if missing else self

    def __getitem__(self, rows: slice | Tensor) -> "Condition":
        """Of some of the samples."""
        return self._each(lambda value: value[rows.to(value.device) if isinstance(rows, Tensor) else rows])

    def repeated(self, times: int) -> "Condition":
        """Each sample's row `times` times in a row."""
        return self._each(lambda value: value.repeat_interleave(times, 0))

    def tiled(self, count: int) -> "Condition":
        """The rows again and again, `count` in all."""
        return self._each(lambda value: value[torch.arange(count, device=value.device) % len(value)])

    def padded(self, count: int) -> "Condition":
        """The last row again up to `count` rows."""
        return self._each(lambda value: torch.cat([value, value[-1:].expand(count - len(value), *value.shape[1:])]))

    def copied(self) -> "Condition":
        """The same with tensors of its own."""

        def one(leaf: Any) -> Any:
            return type(leaf)(leaf.value.clone()) if isinstance(getattr(leaf, "value", None), Tensor) else leaf

        return Condition({name: _map(value, one) for name, value in self.parts.items()})

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        def one(leaf: Any) -> Any:
            return Rows(change(leaf.value)) if isinstance(leaf, Rows) else leaf

        return Condition({name: _map(value, one) for name, value in self.parts.items()}) if self.parts else self

    def __repr__(self) -> str:
        return f"Condition({self.parts})"


_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

#: What a network without a condition is told.
NOTHING = Condition({})


def gathered(
    where: str, network: Any, condition: Mapping[str, Any] | Condition | None, named: Mapping[str, Any],
    call: Callable[..., Any],
) -> Mapping[str, Any] | Condition | None:  # fmt: skip
    """`condition=` and the keywords that `call` was given besides its own arguments, as one; None is no condition.

    Raises:
        ConfigError: for a keyword that the network does not take (a misspelt argument), or one that is given twice.
    """
    if not named:
        return condition
    before = condition.parts if isinstance(condition, Condition) else dict(condition or {})
    takes = _parameters(network)
    for name in named:
        if name in before:
            raise ConfigError(f"{where}: {name!r} is given twice, as a keyword and in condition=")
        near = checks.nearest(name, inspect.signature(call).parameters, 0.75)
        if near or (takes is not None and name not in takes and named[name] is not None):
            near = near or checks.nearest(name, takes or ())
            raise ConfigError(
                f"{where}: {name!r} is no argument of this call, and its network takes "
                f"{', '.join(takes or ()) or 'no condition'}" + (f"; did you mean {near!r}?" if near else "")
            )
    return {**before, **{name: value for name, value in named.items() if takes is None or name in takes}} or None


def check_range(where: str, label: Tensor, classes: int) -> None:
    """Refuse labels outside 0..classes, the last of which is no label. It reads them, and so waits for their device.

    Raises:
        ConfigError: naming both ranges.
    """
    low, high = (int(end) for end in label.aminmax())
    if low < 0 or high > classes:
        raise ConfigError(f"{where}: labels are 0..{classes - 1}, or {classes} for no label; got {low}..{high}")


def check_labels(where: str, model: Any, label: Any) -> None:
    """Refuse labels that the network of a model, or of the model it is made of, has no row for.

    A table of a GPU would not say so, but end the process. A run asks once, before its loop; what is no tensor of whole
    numbers is left to the network.

    Raises:
        ConfigError: naming both ranges.
    """
    while model.network is None and getattr(model, "base", None) is not None:
        model = model.base
    classes, label = getattr(model.network, "num_classes", None), getattr(label, "value", label)
    if isinstance(classes, int) and classes and isinstance(label, Tensor) and label.dtype in _WHOLE and label.numel():
        check_range(where, label, classes)


def _parameters(network: Any) -> list[str] | None:
    """Names of what a network takes besides x and the noise level; None where that cannot be told, or it takes any."""
    if network is None:  # an oracle, which speaks for itself
        return None
    try:
        given = inspect.signature(getattr(network, "forward", network)).parameters
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in given.values()):
        return None
    return [p.name for p in list(given.values())[2:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _read(value: Any) -> Any:
    if isinstance(value, Rows | Whole):
        return value
    if isinstance(value, np.ndarray | np.generic):
        value = torch.as_tensor(value)
    if isinstance(value, Tensor):
        return Rows(value) if value.ndim else Whole(value)
    if isinstance(value, Mapping):
        return {key: _read(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_read(inner) for inner in value]
    return value


def _map(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _map(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_map(inner, change) for inner in value]
    return change(value)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}", inner)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _leaves(f"{name}.{i}", inner)
    else:
        yield name, value


def _shown(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
