"""The page of a run, rewritten while it trains: curves as SVG made of text, which takes milliseconds and no library."""

import html
import math
from collections.abc import Mapping, Sequence

Rows = Sequence[Mapping[str, float]]
Line = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 420, 240, 62, 34, 10, 10
_LOSSES = {"loss": "training", "held_out_loss": "held out (averaged weights)"}
_QUALITY = {"Fréchet distance": ("frechet_distance",), "precision and recall": ("precision", "recall"),
            "energy distance": ("energy_distance",)}  # fmt: skip
_MOST = 300  # points of a line
_COLOURS = ("#0b7fc7", "#d1520a", "#0a9a6d", "#b85a9e", "#5f6b7a")
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 72rem; }
table { border-collapse: collapse; } th { text-align: left; font-weight: 600; padding-right: 1.5rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-weight: 600; } svg, img { width: 100%; height: auto; }
figure p { margin: 0 0 .3rem; line-height: 1.3; font-size: 13px; }
figure span { display: inline-block; margin-right: 1rem; }
figure i { display: inline-block; width: 1rem; height: .25rem; margin-right: .35rem; vertical-align: middle; }
img { max-width: 20rem; image-rendering: pixelated; } svg text { font-size: 11px; fill: currentColor; }
""".strip()


def training_page(
    title: str, facts: Mapping[str, str], tables: Mapping[str, Rows], images: Sequence[str], running: bool
) -> str:
    """The page as HTML; a running one asks the browser to load it again every 15 seconds.

    Args:
        title: the run's name.
        facts: what the run is and where it stands, name to text.
        tables: the rows of its metrics.csv ("metrics"), levels.csv ("levels"), gradients.csv ("blocks"),
            weighting.csv ("weighting") and quality.csv ("quality").
        images: places of its pictures, relative to the page, the newest last; of these the last six are shown.
        running: whether it goes on.
    """
    metrics, levels, blocks = (tables.get(name, ()) for name in ("metrics", "levels", "blocks"))
    weighting, quality = (tables.get(name, ()) for name in ("weighting", "quality"))
    order = {name: float(k) for k, name in enumerate(_columns(blocks), 1)}
    every = [
        chart("loss", {title: _line(metrics, name) for name, title in _LOSSES.items()}),
        *(chart(title, _against_real(quality, names), "seconds of training") for title, names in _QUALITY.items()),
        chart("loss by half log-SNR, from noise to data", _profiles(levels, _numbers(levels)), "half log-SNR"),
        chart("learned u by half log-SNR, losses over e^u", _profiles(weighting, _numbers(weighting)), "half log-SNR"),
        chart("gradient norm", {"": _line(metrics, "grad_norm")}),
        chart(
            "gradient norm by block", _profiles(blocks, order), "block",
            ", ".join(f"{place:.0f} {name}" for name, place in order.items()),
        ),
        chart("learning rate", {"": _line(metrics, "learning_rate")}),
        chart("steps per second", {"": _line(metrics, "steps_per_second")}),
    ]  # fmt: skip
    shown = "".join(
        f'<figure><figcaption>{html.escape(place.rpartition("/")[2])}</figcaption><img src="{html.escape(place)}" '
        f'alt="samples"></figure>'
        for place in images[-6:]
    )
    told = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in facts.items())
    reload = '<meta http-equiv="refresh" content="15">\n' if running else ""
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n{reload}<title>{html.escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n<h1>{html.escape(title)}</h1>\n<table>{told}</table>\n"
        f'<div class="plots">{"".join(every)}</div>\n<h2>Samples of the averaged weights, from the same noise</h2>\n'
        f'<div class="plots">{shown or "none yet; trainer.preview_every=N draws some every N steps"}</div>\n</html>\n'
    )


def chart(title: str, lines: Mapping[str, Line], x_title: str = "step", note: str = "") -> str:
    """Lines as an SVG figure with their names below it; y is logarithmic where all values are positive and far apart.

    Empty without points. A `note` is a line of small text at the end.
    """
    kept = {name: [p for p in line if math.isfinite(p[1])] for name, line in lines.items()}
    points = [point for line in kept.values() for point in line]
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    logarithmic = min(ys) > 0 and max(ys) > 5 * min(ys)
    low, high = (math.log10(min(ys)), math.log10(max(ys))) if logarithmic else (min(ys), max(ys))
    (left, right), (low, high) = _wider(min(xs), max(xs)), _wider(low, high)

    def place(x: float, y: float) -> tuple[float, float]:
        v = math.log10(y) if logarithmic else y
        return (
            _LEFT + (x - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT),
            _TOP + (high - v) / (high - low) * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts, names = [], []
    for k in range(5):
        v = low + (high - low) * k / 4
        y = 10**v if logarithmic else v
        height = place(left, y)[1]
        parts.append(f'<path d="M{_LEFT} {height:.1f}H{_WIDTH - _RIGHT}" stroke="#8884"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{y:.3g}</text>')
    for x, anchor in ((left, "start"), (right, "end")):
        across = place(x, ys[0])[0]
        parts.append(f'<text x="{across:.1f}" y="{_HEIGHT - 18}" text-anchor="{anchor}">{x:.6g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{html.escape(x_title)}</text>')
    for k, (name, line) in enumerate(kept.items()):
        colour = _COLOURS[k % len(_COLOURS)]
        spots = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in _thinned(line)))
        parts.append(f'<polyline points="{spots}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        if len(line) == 1:
            x, y = place(*line[0])
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
        if name:
            names.append(f'<span><i style="background:{colour}"></i>{html.escape(name)}</span>')
    below = f"<p>{' '.join(names)}</p>" if names else ""
    below += f"<p><small>{html.escape(note)}</small></p>" if note else ""
    return (
        f'<figure><figcaption>{html.escape(title)}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">'
        f"<title>{html.escape(title)}</title>{''.join(parts)}</svg>{below}</figure>"
    )


def _wider(low: float, high: float) -> tuple[float, float]:
    around = max(0.5, 0.5 * abs(low))  # of what is huge, 0.5 is lost to rounding
    return (low, high) if high > low else (low - around, high + around)


def _thinned(line: Line) -> Line:
    """At most 300 points, the last among them."""
    every = -(-len(line) // _MOST)
    return line if every <= 1 else [*line[:-1:every], line[-1]]


def _line(rows: Rows, name: str) -> Line:
    return [(row["step"], row[name]) for row in rows if name in row]


def _against_real(rows: Rows, names: Sequence[str]) -> dict[str, Line]:
    """Each measure of samples, and of as many training samples, against the seconds of training."""
    told = {name: f"{name}, " if len(names) > 1 else "" for name in names}
    return {
        f"{told[name]}{of}": [(row["seconds"], row[name + end]) for row in rows if name + end in row]
        for name in names
        for end, of in (("", "samples"), ("_real", "training data"))
        if rows
    }


def _columns(rows: Rows) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row if name != "step"))


def _numbers(rows: Rows) -> dict[str, float]:
    return {name: float(name) for name in sorted(_columns(rows), key=float)}


def _profiles(rows: Rows, places: Mapping[str, float]) -> dict[str, Line]:
    """The first row, the one in the middle and the last, each column at its place."""
    some = dict.fromkeys((0, len(rows) // 2, len(rows) - 1)) if rows else {}
    return {
        f"up to step {int(rows[i]['step'])}": [(x, rows[i][name]) for name, x in places.items() if name in rows[i]]
        for i in some
    }
