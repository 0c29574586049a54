"""Line plots as small SVG pictures that follow the page's colours, in the light and in the dark; by matplotlib."""

import html
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Told apart by colour and by shape.
COLOURS = ("#0b7fc7", "#d1520a", "#0a9a6d", "#b85a9e", "#b8860b", "#7a6ff0", "#5f6b7a", "#c23b3b", "#2f9fb3", "#8a5a2b",
           "#6a8f1f", "#3d4bb5", "#d06a8c")  # fmt: skip
_SHAPES = "os^DvP"
_WIDTH, _HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 10, 12, 46
_INK, _SOFT, _LINE, _PAPER = "#1d2430", "#5b6575", "#d8dde5", "#ffffff"
_VARIABLES = {"ink": _INK, "soft": _SOFT, "line": _LINE, "paper": _PAPER}
#: Text stays text, and is what it says: a name with dollar signs is no formula.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 12, "xtick.labelsize": 12, "ytick.labelsize": 12,
    "axes.labelsize": 12, "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"],
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """Points (x, y, error or None) in ascending x, and which colour and shape they have."""

    label: str
    points: Sequence[tuple[float, float, float | None]]
    mark: int


def limits(series: Sequence[Series], also: Sequence[float] = ()) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ranges of x and y for all series, with a margin, on logarithmic axes.

    y ends at ten times the median of the largest values of the series: one far above leaves the others their room.
    """
    xs = [x for s in series for x, _, _ in s.points]
    ys = [y for s in series for _, y, _ in s.points if y > 0] + [y for y in also if y > 0]
    if not xs or not ys:
        return (1.0, 10.0), (0.1, 1.0)
    most = [max(y for _, y, _ in s.points) for s in series if s.points]
    high = min(max(ys), 10 * max(median(most), min(ys)))
    return (min(xs) / 1.25, max(xs) * 1.25), (min(ys) / 1.5, high * 1.5)


def panel(
    series: Sequence[Series],
    x_title: str,
    y_title: str,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    floor: float | None = None,
    ticks: Sequence[float] | None = None,
) -> bytes:
    """One plot on logarithmic axes; who points at a mark is told its label and numbers.

    Args:
        series: what is drawn.
        x_title, y_title, x_range, y_range: of the axes; values above y_range are drawn at its edge, hollow.
        floor: a dotted line, such as what real samples reach.
        ticks: values that are named on the x axis; None: round ones.
    """
    titles: dict[str, str] = {}
    with _drawing(_HEIGHT) as figure:
        axes = _axes(figure, x_title, y_title, x_range, y_range, ticks)
        if floor is not None and y_range[0] < floor < y_range[1]:
            axes.plot(x_range, [floor, floor], color=_INK, linewidth=1, linestyle=(0, (2, 4)), clip_on=False)
        for i, one in enumerate(series):
            points = [(x, y, e) for x, y, e in one.points if math.isfinite(y)]
            shown = [min(max(y, y_range[0]), y_range[1]) for _, y, _ in points]
            line: dict[str, Any] = {"color": _colour(one.mark), "clip_on": False, "solid_capstyle": "butt"}
            titles[f"line{i}"] = one.label
            axes.plot([x for x, _, _ in points], shown, linewidth=1.8, gid=f"line{i}", **line)
            for j, ((x, y, error), at) in enumerate(zip(points, shown, strict=True)):
                if error and y <= y_range[1]:
                    ends = [max(y - error, y_range[0]), min(y + error, y_range[1])]
                    axes.plot([x, x], ends, linewidth=1.4, **line)
                titles[f"point{i}_{j}"] = f"{one.label}: {y:.4g}" + (f" ± {error:.2g}" if error else "") + f" at {x:g}"
                _mark(axes, x, at, one.mark, hollow=y > y_range[1], gid=f"point{i}_{j}")
        return _svg(figure, titles)


def legend(labels: Sequence[tuple[str, int]], floor: str | None = None) -> bytes:
    """Which colour and shape is which, over as many lines as it takes."""
    places: list[tuple[float, int]] = []
    left, top = 10.0, 14
    entries = [*labels, *([(floor, -1)] if floor else [])]
    for label, _ in entries:
        width = 44 + 7.2 * len(label)
        if left + width > _WIDTH and left > 10:
            left, top = 10.0, top + 22
        places.append((left, top))
        left += width
    with _drawing(top + 14) as figure:
        axes = figure.add_axes((0, 0, 1, 1), facecolor="none")
        axes.set(xlim=(0, _WIDTH), ylim=(top + 14, 0))
        axes.axis("off")
        for (label, mark), (x, y) in zip(entries, places, strict=True):
            colour, style, width = (_INK, (0, (2, 4)), 1) if mark < 0 else (_colour(mark), "-", 2)
            axes.plot([x, x + 20], [y, y], color=colour, linestyle=style, linewidth=width, clip_on=False)
            if mark >= 0:
                _mark(axes, x + 10, y, mark)
            axes.text(x + 26, y, label, color=_INK, verticalalignment="center_baseline")
        return _svg(figure, {"": "legend"})


def _axes(figure: "Figure", x_title: str, y_title: str, x_range: Any, y_range: Any, ticks: Any) -> "Axes":
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    axes = figure.add_axes((_LEFT / _WIDTH, _BOTTOM / _HEIGHT, width / _WIDTH, height / _HEIGHT), facecolor="none")
    axes.set(xscale="log", yscale="log", xlim=x_range, ylim=y_range)
    axes.set_xlabel(x_title, color=_INK)
    axes.set_ylabel(y_title, color=_INK)
    for axis, values in ((axes.xaxis, ticks or _ticks(x_range)), (axes.yaxis, _ticks(y_range))):
        axis.set_ticks(values, [f"{value:g}" for value in values])
        axis.set_ticks([], minor=True)
        axis.grid(visible=True, color=_LINE, linewidth=1, clip_on=False)
    axes.tick_params(length=0, labelcolor=_SOFT, pad=6)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def _mark(axes: "Axes", x: float, y: float, mark: int, *, hollow: bool = False, gid: str | None = None) -> None:
    colour = _colour(mark)
    fill, edge = (_PAPER, colour) if hollow else (colour, _PAPER)
    axes.plot([x], [y], _SHAPES[mark % len(_SHAPES)], markersize=8, markerfacecolor=fill, markeredgecolor=edge,
              markeredgewidth=1, clip_on=False, gid=gid, zorder=3)  # fmt: skip


def _colour(mark: int) -> str:
    return COLOURS[mark % len(COLOURS)]


@contextmanager
def _drawing(height: float) -> "Iterator[Figure]":
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that its fonts lack, and a browser's have
        yield Figure((_WIDTH / 72, height / 72), dpi=72, facecolor=_PAPER)


def _svg(figure: "Figure", titles: Mapping[str, str]) -> bytes:
    """The drawing alone: no header, no names that another drawing of the page may have too, colours as variables."""
    from matplotlib import rc_context

    stream = io.StringIO()
    with rc_context({"svg.hashsalt": "/".join(titles.values())}):
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = stream.getvalue()
    text = re.sub(r'<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->|<g id="[^"]*"/>', "",
                  text[text.index("<svg") :], flags=re.DOTALL)  # fmt: skip
    text = re.sub(r'(width|height)="([\d.]+)pt"', r'\1="\2"', text, count=2)
    text = text.replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "").replace("xlink:href", "href")
    text = text.replace("'DejaVu Sans'", "system-ui, sans-serif")
    for name, colour in _VARIABLES.items():
        text = text.replace(colour, f"var(--{name},{colour})")

    def named(match: "re.Match[str]") -> str:
        told = titles.get(match[1])
        return "<g>" if told is None else f"<g><title>{html.escape(told)}</title>"

    return re.sub(r'<g id="([^"]*)">', named, text).encode()


def _ticks(span: tuple[float, float]) -> list[float]:
    """Powers of ten, with 2 and 5 between them where there are few."""
    low, high = (math.floor(math.log10(span[0])), math.ceil(math.log10(span[1])))
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        found = [f * 10.0**e for e in range(low, high + 1) for f in factors if span[0] <= f * 10.0**e <= span[1]]
        if len(found) >= 3:
            return found[:: max(1, len(found) // 7)]
    return [span[0], span[1]]
