"""Line plots as small SVG pictures that follow the page's colours, in the light and in the dark."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

#: Told apart by colour and by shape.
COLOURS = ("#0b7fc7", "#d1520a", "#0a9a6d", "#b85a9e", "#b8860b", "#7a6ff0", "#5f6b7a", "#c23b3b", "#2f9fb3", "#8a5a2b",
           "#6a8f1f", "#3d4bb5", "#d06a8c")  # fmt: skip
_SHAPES = ("M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z", "M-4 -4H4V4H-4Z", "M0 -5L4.6 4H-4.6Z", "M0 -5L5 0L0 5L-5 0Z",
           "M-4.6 -4H4.6L0 5Z", "M-5 -1.5H-1.5V-5H1.5V-1.5H5V1.5H1.5V5H-1.5V1.5H-5Z")  # fmt: skip
_WIDTH, _HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 10, 12, 46
_FONT = 'font-family="system-ui, sans-serif" font-size="12"'
_INK, _SOFT, _LINE, _PAPER = "var(--ink,#1d2430)", "var(--soft,#5b6575)", "var(--line,#d8dde5)", "var(--paper,#fff)"


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
    return _wider(min(xs), max(xs), 1.25), _wider(min(ys), min(max(ys), 10 * max(median(most), min(ys))), 1.5)


def panel(
    series: Sequence[Series],
    x_title: str,
    y_title: str,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    floor: float | None = None,
    ticks: Sequence[float] | None = None,
) -> bytes:
    """One plot on logarithmic axes.

    Args:
        series: what is drawn.
        x_title, y_title, x_range, y_range: of the axes; values above y_range are drawn at its edge, hollow.
        floor: a dotted line, such as what real samples reach.
        ticks: values that are named on the x axis; None: round ones.
    """
    x, y = _Scale(x_range, _LEFT, _WIDTH - _RIGHT), _Scale(y_range, _HEIGHT - _BOTTOM, _TOP)
    parts = [f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="{_PAPER}"/>']
    for value in ticks or _ticks(x_range):
        parts += [f'<path d="M{x(value):.1f} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="{_LINE}"/>',
                  _text(x(value), _HEIGHT - _BOTTOM + 16, f"{value:g}", "middle")]  # fmt: skip
    for value in _ticks(y_range):
        parts += [f'<path d="M{_LEFT} {y(value):.1f}H{_WIDTH - _RIGHT}" stroke="{_LINE}"/>',
                  _text(_LEFT - 6, y(value) + 4, f"{value:g}", "end")]  # fmt: skip
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, x_title, "middle", _INK))
    upright = f"translate(14 {(_TOP + _HEIGHT - _BOTTOM) / 2}) rotate(-90)"
    parts.append(f'<g transform="{upright}">{_text(0, 0, y_title, "middle", _INK)}</g>')
    if floor is not None and y_range[0] < floor < y_range[1]:
        parts.append(f'<path d="M{_LEFT} {y(floor):.1f}H{_WIDTH - _RIGHT}" stroke="{_INK}" stroke-dasharray="2 4"/>')
    for one in series:
        parts.append(_drawn(one, x, y, y_range))
    return _svg(_WIDTH, _HEIGHT, parts)


def legend(labels: Sequence[tuple[str, int]], floor: str | None = None) -> bytes:
    """Which colour and shape is which, over as many lines as it takes."""
    parts, left, top = [], 10.0, 14
    entries = [*labels, *([(floor, -1)] if floor else [])]
    for label, mark in entries:
        width = 44 + 7.2 * len(label)
        if left + width > _WIDTH and left > 10:
            left, top = 10.0, top + 22
        if mark < 0:
            parts.append(f'<path d="M{left} {top}h20" stroke="{_INK}" stroke-dasharray="2 4"/>')
        else:
            parts.append(f'<path d="M{left} {top}h20" stroke="{_colour(mark)}" stroke-width="2"/>')
            parts.append(_mark(left + 10, top, mark, False))
        parts.append(_text(left + 26, top + 4, label, "start", _INK))
        left += width
    return _svg(_WIDTH, top + 14, [f'<rect width="{_WIDTH}" height="{top + 14}" fill="{_PAPER}"/>', *parts])


class _Scale:
    def __init__(self, span: tuple[float, float], first: float, last: float) -> None:
        self.low, self.high = (math.log(v) for v in span)
        self.first, self.last = first, last

    def __call__(self, value: float) -> float:
        share = (math.log(value) - self.low) / (self.high - self.low)
        return self.first + min(1.0, max(0.0, share)) * (self.last - self.first)


def _drawn(series: Series, x: _Scale, y: _Scale, y_range: tuple[float, float]) -> str:
    colour = _colour(series.mark)
    points = [(a, max(b, y_range[0]), e) for a, b, e in series.points if math.isfinite(b)]
    line = "M" + "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b, _ in points) if points else ""
    parts = [f'<path d="{line}" fill="none" stroke="{colour}" stroke-width="1.8"/>' if len(points) > 1 else ""]
    for a, b, e in points:
        if e and b <= y_range[1]:
            low, high = max(b - e, y_range[0]), b + e
            parts.append(f'<path d="M{x(a):.1f} {y(low):.1f}V{y(high):.1f}" stroke="{colour}" stroke-width="1.4"/>')
        parts.append(_mark(x(a), y(b), series.mark, b > y_range[1]))
    return f"<g><title>{html.escape(series.label)}</title>{''.join(parts)}</g>"


def _mark(x: float, y: float, mark: int, hollow: bool) -> str:
    shape, colour = _SHAPES[mark % len(_SHAPES)], _colour(mark)
    fill, edge = (_PAPER, colour) if hollow else (colour, _PAPER)
    return f'<path transform="translate({x:.1f} {y:.1f})" d="{shape}" fill="{fill}" stroke="{edge}"/>'


def _colour(mark: int) -> str:
    return COLOURS[mark % len(COLOURS)]


def _text(x: float, y: float, words: str, anchor: str, colour: str = _SOFT) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" {_FONT}>{html.escape(words)}</text>'


def _svg(width: int, height: int, parts: Sequence[str]) -> bytes:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    return (head + "".join(parts) + "</svg>").encode()


def _wider(low: float, high: float, factor: float) -> tuple[float, float]:
    return low / factor, high * factor


def _ticks(span: tuple[float, float]) -> list[float]:
    """Powers of ten, with 2 and 5 between them where there are few."""
    low, high = (math.floor(math.log10(span[0])), math.ceil(math.log10(span[1])))
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        found = [f * 10.0**e for e in range(low, high + 1) for f in factors if span[0] <= f * 10.0**e <= span[1]]
        if len(found) >= 3:
            return found[:: max(1, len(found) // 7)]
    return [span[0], span[1]]
