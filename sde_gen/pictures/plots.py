"""Points, densities and curves, by matplotlib, without its global state and without a display."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sde_gen.errors import ConfigError
from sde_gen.metrics.jackknife import points
from sde_gen.pictures.drawing import image_grid, save_image
from sde_gen.pictures.figures import new_figure, rendered
from sde_gen.pictures.lines import series, slices
from sde_gen.pictures.pairs import pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

    from sde_gen.likelihood import VariationalBound

#: Left, right, bottom and top of a plot.
Box = tuple[float, float, float, float]
BLUE, _OUTSIDE = "#27408b", "#d1520a"


def limits_of(sets: Sequence[Tensor]) -> Box:
    """A square (or interval) around the middle 99.8 % of all points of some sets (N, D)."""
    flat = torch.cat([points(x)[:, :2] for x in sets])
    low, high = (torch.quantile(flat[:: max(1, len(flat) // 50_000)], q, dim=0) for q in (0.001, 0.999))
    centre, half = (low + high) / 2, 0.6 * float((high - low).max()) or 1.0
    x, y = float(centre[0]), float(centre[-1])
    return (x - half, x + half, y - half, y + half)


def draw_points(axes: "Axes", title: str, x: Tensor, box: Box, shown: int | None = None) -> None:
    """Points (N, D) on `axes`: a histogram of one feature, else the first two features.

    Points outside the box are counted in the title and drawn at its edge. `shown` points are drawn at most.
    """
    x = points(x, title)[:, :2]
    kept = _inside(x, box)
    axes.set_title(_counted(title, kept))
    low, high = _corners(x, box)
    drawn, kept = x.clamp(low, high)[:shown], kept[:shown]
    if x.shape[1] == 1:
        axes.hist(drawn[:, 0].numpy(), bins=80, range=box[:2], density=True, color=BLUE)
        return
    size = max(0.5, min(8.0, 4000.0 / len(drawn)))
    axes.scatter(*drawn[kept].T.numpy(), s=size, alpha=0.6, linewidths=0, color=BLUE)
    axes.scatter(*drawn[~kept].T.numpy(), s=8.0, linewidths=0, color=_OUTSIDE, clip_on=False)
    axes.set_xlim(box[0], box[1])
    axes.set_ylim(box[2], box[3])
    axes.set_aspect("equal")


def _corners(x: Tensor, box: Box) -> tuple[Tensor, ...]:
    """The least and the largest of each feature of `x`, of which there are one or two."""
    return torch.tensor(box, dtype=x.dtype).reshape(2, 2)[: x.shape[1]].unbind(1)


def _inside(x: Tensor, box: Box) -> Tensor:
    low, high = _corners(x, box)
    return ((x >= low) & (x <= high)).all(1)


def _counted(title: str, inside: Tensor) -> str:
    outside = int((~inside).sum())
    return f"{title} ({len(inside)}, {outside} outside)" if outside else f"{title} ({len(inside)})"


def picture_of(samples: Tensor, data: Tensor | None = None, columns: int | None = None) -> "Image":
    """Samples as a picture: a grid for images, slices for volumes; curves for series, and for
    vectors a scatter, of more than two features one for each pair.

    Args:
        samples: (N, C, H, W), (N, C, D, H, W), (N, C, L) or (N, D); on the model's scale.
        data: real samples of the same kind, beside which curves and points are drawn.
        columns: images per row.

    Raises:
        MissingInputError: vectors, and matplotlib is not installed.
    """
    if samples.ndim == 4:
        return image_grid(samples, columns)
    if samples.ndim == 5:
        flat, count = slices(samples)
        return image_grid(flat, count * max(1, 12 // count))
    sets = {"samples": samples} if data is None else {"samples": samples, "data": data}
    if samples.ndim == 3:
        return series(sets)
    if samples[0].numel() > 2:
        return pairs({title: {f"x{k}": c.tolist() for k, c in enumerate(points(x).T)} for title, x in sets.items()})
    return scatter(sets)


def scatter(sets: Mapping[str, Tensor], limits: Box | None = None) -> "Image":
    """Sets of points side by side on equal axes; of more than two features the first two, of one a histogram.

    Args:
        sets: title to points (N, D).
        limits: (left, right, bottom, top); by default from the last set, which is taken for the real one. Points
            outside are counted, and drawn at the edge.

    Raises:
        DataError: NaN or infinite values.  MissingInputError: matplotlib is not installed.
    """
    box = limits_of([list(sets.values())[-1]]) if limits is None else limits
    figure = new_figure(4.0 * len(sets), 4.0)
    for place, (title, x) in enumerate(sets.items()):
        draw_points(figure.add_subplot(1, len(sets), place + 1), title, x, box)
    return rendered(figure)


def density(sets: Mapping[str, Tensor], bins: int = 96) -> "Image":
    """Two-dimensional histograms side by side on equal axes and one colour scale.

    Args:
        sets: title to points (N, 2) or more features, of which the first two are drawn; the last set fixes the axes.
        bins: along each side.
    """
    import numpy as np

    arrays = {title: points(x, title)[:, :2] for title, x in sets.items()}
    box = limits_of([list(arrays.values())[-1]])
    span = (box[:2], box[2:])
    tables = [np.histogram2d(*a.T.numpy(), bins=bins, range=span)[0] / len(a) for a in arrays.values()]
    most = max(float(table.max()) for table in tables)
    figure = new_figure(4.0 * len(arrays), 4.0)
    for place, ((title, a), table) in enumerate(zip(arrays.items(), tables, strict=True)):
        axes = figure.add_subplot(1, len(arrays), place + 1)
        axes.imshow(table.T, origin="lower", extent=box, vmin=0, vmax=most, cmap="magma")
        axes.set_title(_counted(title, _inside(a, box)))
    return rendered(figure)


def loss_curve(rows: Sequence[Mapping[str, float]], path: Path) -> Path:
    """Training and held-out loss against steps, from the rows of a metrics.csv."""
    figure = new_figure(6.0, 4.0)
    axes = figure.add_subplot()
    for key, label, style in (("loss", "training", "-"), ("held_out_loss", "held out (averaged weights)", "o-")):
        pairs = [(row["step"], row[key]) for row in rows if key in row]
        if pairs:
            axes.plot(*zip(*pairs, strict=True), style, label=label, markersize=4, linewidth=1)
    values = [row[key] for row in rows for key in ("loss", "held_out_loss") if key in row]
    if values and min(values) > 0:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    if values:
        axes.legend()
    return save_image(rendered(figure), path)


def loss_by_level(rows: Sequence[Mapping[str, float]], path: Path) -> Path:
    """Training loss against half log-SNR, from the rows of a levels.csv: means of five parts of a run."""
    figure = new_figure(6.0, 4.0)
    axes = figure.add_subplot()
    names = sorted({name for row in rows for name in row if name != "step"}, key=float)
    _in_parts(axes, rows, {name: float(name) for name in names})
    axes.set_xlabel("half log-SNR (noise on the left, data on the right)")
    axes.set_ylabel("training loss")
    return save_image(rendered(figure), path)


def norm_by_block(rows: Sequence[Mapping[str, float]], path: Path) -> Path:
    """Gradient norm of each block of the network, from the rows of a gradients.csv: means of five parts of a run."""
    names = dict.fromkeys(name for row in rows for name in row if name != "step")
    figure = new_figure(max(6.0, 0.25 * len(names) + 1.5), 4.0)
    axes = figure.add_subplot()
    _in_parts(axes, rows, {name: float(k) for k, name in enumerate(names)})
    axes.set_xticks(range(len(names)), list(names), rotation=90, fontsize=7)
    axes.set_ylabel("gradient norm")
    return save_image(rendered(figure), path)


def _in_parts(axes: "Axes", rows: Sequence[Mapping[str, float]], places: Mapping[str, float]) -> None:
    """Means over five parts of a run of each column against its place, the later the darker."""
    parts = min(5, len(rows))
    for part in range(parts):
        some = rows[part * len(rows) // parts : (part + 1) * len(rows) // parts]
        values = {name: [row[name] for row in some if name in row] for name in places}
        means = {places[name]: sum(found) / len(found) for name, found in values.items() if found}
        shade = 0.25 + 0.75 * (part + 1) / parts
        label = f"up to step {int(some[-1]['step'])}"
        axes.plot(list(means), list(means.values()), "o-", color=BLUE, alpha=shade, label=label, markersize=3)
        if all(mean > 0 for mean in means.values()):
            axes.set_yscale("log")
    if rows:
        axes.legend(fontsize=7)


def loss_curves(runs: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> Path:
    """Held-out loss of several runs against steps, from the rows of their metrics.csv."""
    figure = new_figure(7.0, 4.5)
    axes = figure.add_subplot()
    for name, rows in runs.items():
        places = [(row["step"], row["held_out_loss"]) for row in rows if "held_out_loss" in row]
        if places:
            axes.plot(*zip(*places, strict=True), "o-", label=name, markersize=3, linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel("held-out loss")
    if axes.lines:
        axes.legend(fontsize=7)
    return save_image(rendered(figure), path)


def bound_terms(bounds: Mapping[str, "VariationalBound"]) -> "Image":
    """The terms of variational bounds against time: what the steps cost, and how it adds up.

    Left: bits per dimension per unit of t, mean over the samples, on logarithmic axes (terms that are not positive are
    left out). Right: the decoder's term, and from there their sum up to time t, with the prior term at the end.

    Args:
        bounds: name of each curve, and the bound; times that are drawn are gathered in 100 equal parts of [0, 1].

    Raises:
        ConfigError: nothing to draw.
    """
    if not bounds:
        raise ConfigError("bound_terms: give at least one bound")
    figure = new_figure(10.0, 4.0)
    each, total = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    for name, bound in bounds.items():
        unit = bound.dim * math.log(2)
        first, ends, terms = mean_terms(bound)
        widths = torch.tensor([first, *ends], dtype=torch.float64).diff()
        rates = [v if v > 0 else math.nan for v in (terms / widths / unit).tolist()]
        each.plot(ends, rates, "-", linewidth=1, label=name)
        sums = (float(bound.reconstruction.mean()) + torch.cat([torch.zeros(1), terms]).cumsum(0)) / unit
        last = float(sums[-1]) + float(bound.prior.mean()) / unit
        total.plot([first, *ends, 1.0], [*sums.tolist(), last], "-", linewidth=1, label=f"{name}: {last:.3f}")
    each.set_yscale("log")
    each.set_ylabel("bits per dimension per unit of t")
    total.set_ylabel("bits per dimension, up to t")
    for axes in (each, total):
        axes.set_xscale("log")
        axes.set_xlabel("t")
        axes.legend()
    return rendered(figure)


def mean_terms(bound: "VariationalBound") -> tuple[float, list[float], Tensor]:
    """The first time, and of each step (or part of the time) where it ends and its mean over the samples, in nats."""
    if bound.times.ndim == 1:
        return float(bound.times[0]), bound.times[1:].tolist(), bound.terms[:, 1:].mean(0).cpu()
    parts, first = 100, float(bound.times[0, 0])
    index = (bound.times[:, 1:] * parts).long().clamp_max(parts - 1).flatten()
    sums = torch.zeros(parts, dtype=torch.float64).index_add_(0, index, bound.terms[:, 1:].cpu().flatten())
    ends = (torch.arange(parts, dtype=torch.float64) + 1) / parts
    return first, ends[ends > first].tolist(), sums[ends > first] / len(bound.terms)
