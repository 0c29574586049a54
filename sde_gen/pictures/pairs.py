"""Samples of many features: the law of each, and of each two of them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sde_gen.errors import DataError
from sde_gen.pictures.figures import new_figure, rendered

if TYPE_CHECKING:
    from PIL.Image import Image

_MOST, _POINTS = 6, 1500  # features and points drawn, at most
_COLOURS = ("#27408b", "#d1520a", "#1a7a4c")
#: Name of a column to its values: numbers, or texts.
Table = Mapping[str, Sequence[Any]]


def pairs(sets: Mapping[str, Table], orders: Mapping[str, Sequence[str]] | None = None) -> "Image":
    """Tables of the same columns, one colour each: histograms on the diagonal, scatters below it.

    The axes are those of the last table, which is taken for the real one; what lies outside is counted in its title and
    drawn at the edge. Of more than six columns the first six are drawn.

    Args:
        sets: title to a table.
        orders: the values of columns of text in their order; by the alphabet without.

    Raises:
        DataError: NaN or infinite values.  MissingInputError: matplotlib is not installed.
    """
    names = list(next(iter(sets.values())))[:_MOST]
    real = list(sets.values())[-1]
    values, ticks, boxes = {}, {}, {}
    for name in names:
        texts = {v for table in sets.values() for v in table[name] if isinstance(v, str)}
        ticks[name] = list((orders or {}).get(name, ())) or sorted(texts)
        values[name] = [_numbers(name, table[name], ticks[name]) for table in sets.values()]
        boxes[name] = _box(_numbers(name, real[name], ticks[name]), bool(ticks[name]))
    side = max(1.6, min(3.0, 9.0 / len(names)))
    figure = new_figure(max(6.0, side * len(names)), max(4.0, side * len(names)))
    for row, down in enumerate(names):
        for column, across in enumerate(names[: row + 1]):
            axes = figure.add_subplot(len(names), len(names), row * len(names) + column + 1)
            outside = 0
            for place, title in enumerate(sets):
                x, y = values[across][place], values[down][place]
                outside += int((_outside(x, boxes[across]) | _outside(y, boxes[down])).sum())
                colour = _COLOURS[place % len(_COLOURS)]
                if row == column:
                    bins = max(2, len(ticks[across])) if ticks[across] else 40
                    shown: dict[str, Any] = {"histtype": "step", "color": colour, "label": f"{title} ({len(x)})"}
                    axes.hist(x.clip(*boxes[across]), bins, range=boxes[across], density=True, **shown)
                else:
                    axes.scatter(x[:_POINTS].clip(*boxes[across]), y[:_POINTS].clip(*boxes[down]), s=3, alpha=0.4,
                                 linewidths=0, color=colour)  # fmt: skip
            _dress(axes, (across, down), boxes, ticks, outside, (row == len(names) - 1, column == 0))
            if row == column == 0:
                axes.legend(fontsize=6)
    return rendered(figure)


def _dress(axes: Any, of: tuple[str, str], boxes: Any, ticks: Any, outside: int, edge: tuple[bool, bool]) -> None:
    across, down = of
    axes.set_xlim(*boxes[across])
    axes.tick_params(labelsize=6)
    if across != down:
        axes.set_ylim(*boxes[down])
        if ticks[down]:
            axes.set_yticks(range(len(ticks[down])), ticks[down])
    if ticks[across]:
        axes.set_xticks(range(len(ticks[across])), ticks[across], rotation=45)
    if outside:
        axes.set_title(f"{outside} outside", fontsize=6)
    if edge[0]:
        axes.set_xlabel(across, fontsize=8)
    if edge[1]:
        axes.set_ylabel(down, fontsize=8)


def _numbers(name: str, values: Sequence[Any], texts: Sequence[str]) -> NDArray[np.float64]:
    """Numbers as they are, texts as their places."""
    found = np.array([texts.index(v) for v in values] if texts else values, dtype=np.float64)
    if not np.isfinite(found).all():
        raise DataError(f"the column {name} holds NaN or infinity in {int((~np.isfinite(found)).sum())} of its rows")
    return found


def _box(x: NDArray[np.float64], texts: bool) -> tuple[float, float]:
    if texts:
        return -0.5, float(x.max(initial=0.0)) + 0.5
    low, high = np.quantile(x, [0.001, 0.999])
    margin = 0.15 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def _outside(x: NDArray[np.float64], box: tuple[float, float]) -> NDArray[np.bool_]:
    return (x < box[0]) | (x > box[1])
