"""Pictures: grids of images, points beside data, curves, animations; by Pillow, and by matplotlib for plots.

Every function writes its file in one rename, so that a viewer never meets half a picture. Nothing touches matplotlib's
global state or needs a display.
"""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sde_gen.errors import ConfigError, DataError, MissingInputError
from sde_gen.files import publish
from sde_gen.perturbations import Perturbation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from sde_gen.likelihood import VariationalBound

_LARGEST = 4096  # pixels along one side of a picture


def has_matplotlib() -> bool:
    """Whether plots can be drawn (image grids can always be)."""
    return importlib.util.find_spec("matplotlib") is not None


def image_grid(images: Tensor, columns: int | None = None, zoom: int | None = None, gap: int = 1) -> "Image":
    """A grid of images, row by row.

    Args:
        images: (N, C, H, W) on the model's scale, [-1, 1] from black to white (values outside are cut off); C of 1 is
            drawn grey, 3 as RGB, 4 as RGBA; of any other count the first channel is drawn.
        columns: images per row; about the square root of N by default.
        zoom: whole-number enlargement; by default small images are enlarged to about 48 pixels.
        gap: pixels between images, before the enlargement.

    Raises:
        DataError: not a batch of images, or NaN values.
    """
    from PIL import Image

    if images.ndim != 4 or 0 in images.shape:
        raise DataError(f"image_grid: images must be (N, C, H, W) with at least one, got {tuple(images.shape)}")
    images = images.detach().float().cpu()
    if not bool(images.isfinite().all()):
        raise DataError("image_grid: the images hold NaN or infinity; a picture would hide that")
    if images.shape[1] not in (1, 3, 4):
        images = images[:, :1]
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    if columns < 1:
        raise ConfigError(f"image_grid: columns={columns} must be at least 1")
    rows = math.ceil(count / columns)
    canvas = torch.zeros(channels, rows * (height + gap) + gap, columns * (width + gap) + gap)
    for i in range(count):
        top, left = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        canvas[:, top : top + height, left : left + width] = (images[i].clamp(-1, 1) + 1) / 2
    pixels = (canvas * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    if zoom is None:
        zoom = max(1, min(48 // max(height, width), _LARGEST // max(picture.size)))
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def save_image(picture: "Image", path: Path) -> Path:
    """Write a Pillow image; the format follows from the ending."""
    return publish(path, lambda temporary: picture.save(temporary), "the picture")


def save_animation(frames: Sequence["Image"], path: Path, seconds: float = 4.0) -> Path:
    """An animated GIF of `seconds`, looping, the last frame held for one second.

    Raises:
        ConfigError: no frames.
    """
    if not frames:
        raise ConfigError("an animation needs at least one frame")
    each = max(20, round(1000 * seconds / len(frames)))
    times = [each] * (len(frames) - 1) + [1000]
    shades = [frame.convert("P") for frame in frames]
    return publish(
        path,
        lambda temporary: shades[0].save(
            temporary, format="GIF", save_all=True, append_images=shades[1:], duration=times, loop=0
        ),
        "the animation",
    )


def picture_of(samples: Tensor, data: Tensor | None = None) -> "Image":
    """Samples as a picture: a grid for images, a scatter (beside `data`, if given) for vectors.

    Args:
        samples: (N, C, H, W), or (N, D); on the model's scale.
        data: real samples of the same kind.

    Raises:
        MissingInputError: vectors, and matplotlib is not installed.
    """
    if samples.ndim == 4:
        return image_grid(samples)
    return scatter({"samples": samples} if data is None else {"samples": samples, "data": data})


def scatter(sets: Mapping[str, Tensor], limits: tuple[float, float, float, float] | None = None) -> "Image":
    """Sets of points side by side on equal axes; of more than two features the first two, of one a histogram.

    Args:
        sets: title to points (N, D).
        limits: (left, right, bottom, top); by default from the last set, which is taken for the real one.
    """
    arrays = {title: points.detach().float().cpu().flatten(1) for title, points in sets.items()}
    figure = _figure(4.0 * len(arrays), 4.0)
    last = list(arrays.values())[-1]
    box = _limits(last) if limits is None else limits
    for place, (title, points) in enumerate(arrays.items()):
        axes = figure.add_subplot(1, len(arrays), place + 1)
        axes.set_title(f"{title} ({len(points)})")
        if points.shape[1] == 1:
            axes.hist(points[:, 0].numpy(), bins=80, range=box[:2], density=True, color="#27408b")
            continue
        _points(axes, points, box)
    return _rendered(figure)


def density(sets: Mapping[str, Tensor], bins: int = 96) -> "Image":
    """Two-dimensional histograms side by side on equal axes and one colour scale.

    Args:
        sets: title to points (N, 2) or more features, of which the first two are drawn; the last set fixes the axes.
        bins: along each side.
    """
    import numpy as np

    arrays = {title: points.detach().double().cpu().flatten(1).numpy() for title, points in sets.items()}
    left, right, bottom, top = _limits(torch.from_numpy(list(arrays.values())[-1]))
    span = ((left, right), (bottom, top))
    tables = {t: np.histogram2d(a[:, 0], a[:, 1], bins=bins, range=span)[0] / len(a) for t, a in arrays.items()}
    most = max(float(table.max()) for table in tables.values())
    figure = _figure(4.0 * len(arrays), 4.0)
    for place, (title, table) in enumerate(tables.items()):
        axes = figure.add_subplot(1, len(arrays), place + 1)
        axes.imshow(table.T, origin="lower", extent=(left, right, bottom, top), vmin=0, vmax=most, cmap="magma")
        axes.set_title(f"{title} ({len(arrays[title])})")
    return _rendered(figure)


def loss_curve(rows: Sequence[Mapping[str, float]], path: Path) -> Path:
    """Training and held-out loss against steps, from the rows of a metrics.csv."""
    figure = _figure(6.0, 4.0)
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
    return save_image(_rendered(figure), path)


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
    figure = _figure(10.0, 4.0)
    each, total = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    for name, bound in bounds.items():
        unit = bound.dim * math.log(2)
        first, ends, terms = _terms(bound)
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
    return _rendered(figure)


def _terms(bound: "VariationalBound") -> tuple[float, list[float], Tensor]:
    """The first time, and of each step (or part of the time) where it ends and its mean over the samples, in nats."""
    if bound.times.ndim == 1:
        return float(bound.times[0]), bound.times[1:].tolist(), bound.terms[:, 1:].mean(0).cpu()
    parts, first = 100, float(bound.times[0, 0])
    index = (bound.times[:, 1:] * parts).long().clamp_max(parts - 1).flatten()
    sums = torch.zeros(parts, dtype=torch.float64).index_add_(0, index, bound.terms[:, 1:].cpu().flatten())
    ends = (torch.arange(parts, dtype=torch.float64) + 1) / parts
    return first, ends[ends > first].tolist(), sums[ends > first] / len(bound.terms)


def forward_strip(perturbation: Perturbation, data: Tensor, seed: int = 0, columns: int = 9) -> "Image":
    """The forward process: the same few samples at times from 0 to the prior, left to right.

    Each state is divided by sqrt(alpha^2 + sigma^2), so that processes that grow can be seen on one scale.

    Args:
        perturbation: the process.
        data: (N, C, H, W), of which the first 6 are drawn, or (N, D).
        seed: of the noise, the same at all times.
        columns: number of times, at least 2.
    """
    if columns < 2:
        raise ConfigError(f"forward_strip: columns={columns} must be at least 2")
    data = data.detach().double().cpu()
    kept = data[:6] if data.ndim == 4 else data
    noise = torch.randn(kept.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    last, states = perturbation.t_max, {}
    for k in range(columns):
        t = last * k / (columns - 1)
        size = math.hypot(float(perturbation.alpha(t)), float(perturbation.sigma(t)))
        states[f"t = {t:.2f}"] = perturbation.perturb(kept, t, noise) / max(size, 1e-12)
    if kept.ndim == 4:
        return image_grid(torch.stack(list(states.values()), dim=1).flatten(0, 1), columns=columns)
    return scatter(states, limits=_limits(torch.cat([kept, noise])))


def limits_of(states: Sequence[Tensor]) -> tuple[float, float, float, float]:
    """Limits that show all of several sets of points, for the frames of an animation."""
    return _limits(torch.cat([state.detach().float().cpu().flatten(1) for state in states]))


def _points(axes: "Axes", points: Tensor, box: tuple[float, float, float, float]) -> None:
    size = max(0.5, min(8.0, 4000.0 / len(points)))
    axes.scatter(points[:, 0].numpy(), points[:, 1].numpy(), s=size, alpha=0.6, linewidths=0, color="#27408b")
    axes.set_xlim(box[0], box[1])
    axes.set_ylim(box[2], box[3])
    axes.set_aspect("equal")


def _limits(points: Tensor) -> tuple[float, float, float, float]:
    """A square (or interval) around the middle 99.8 % of the points."""
    flat = points.double().flatten(1)[:, :2]
    low, high = (torch.quantile(flat[:100_000], q, dim=0) for q in (0.001, 0.999))
    centre, half = (low + high) / 2, 0.6 * float((high - low).max()) or 1.0
    x, y = float(centre[0]), float(centre[-1])
    return (x - half, x + half, y - half, y + half)


def _figure(width: float, height: float) -> "Figure":
    if not has_matplotlib():
        raise MissingInputError("plots need matplotlib, which is not installed; run pip install 'sde_gen[plot]'")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="tight")
    FigureCanvasAgg(figure)
    return figure


def _rendered(figure: "Figure") -> "Image":
    from PIL import Image

    canvas: Any = figure.canvas
    canvas.draw()
    return Image.fromarray(_rgba(canvas)).convert("RGB")


def _rgba(canvas: Any) -> Any:
    import numpy as np

    return np.asarray(canvas.buffer_rgba()).copy()
