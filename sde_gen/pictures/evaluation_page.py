"""The picture of an evaluation: samples beside real data, and each metric beside that of two sets of real data."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sde_gen.metrics import MetricResult
from sde_gen.pictures.drawing import image_grid
from sde_gen.pictures.figures import new_figure, rendered
from sde_gen.pictures.lines import draw_series, series_range
from sde_gen.pictures.plots import BLUE, draw_points, limits_of, picture_of

if TYPE_CHECKING:
    from PIL.Image import Image

_IMAGES = 36
_POINTS = 5000
_COLOURS = (BLUE, "#9aa5b1")


def evaluation_picture(samples: Tensor | None, real: Tensor, metrics: Sequence[MetricResult]) -> "Image":
    """Samples, real data and one small bar chart for each metric; the value's error or interval as a whisker.

    Args:
        samples: (n, C, H, W), (n, C, D, H, W), (n, C, L) or (n, D) on the model's scale, or None where none were drawn.
        real: held-out data of the same kind.
        metrics: of the samples.

    Raises:
        MissingInputError: matplotlib is not installed.
    """
    sets = {"samples": samples, "held-out data": real} if samples is not None else {"held-out data": real}
    columns = 4
    bars = -(-len(metrics) // columns)
    figure = new_figure(10.0, 4.2 + 1.9 * bars)
    grid = figure.add_gridspec(1 + bars, columns * len(sets), height_ratios=[4.2] + [1.9] * bars)
    for place, (title, x) in enumerate(sets.items()):
        axes = figure.add_subplot(grid[0, place * columns : (place + 1) * columns])
        if x.ndim > 3:
            shown = min(len(x), _IMAGES if x.ndim == 4 else _IMAGES // 3)
            some = x[torch.arange(shown) * len(x) // shown]  # of all classes, which may follow one another
            picture = image_grid(some, zoom=1) if x.ndim == 4 else picture_of(some)
            axes.imshow(picture, cmap="gray", interpolation="nearest")
            axes.set_axis_off()
            axes.set_title(f"{title} ({len(x)})")
        elif x.ndim == 3:
            draw_series(axes, title, x, series_range([real]))
        else:
            draw_points(axes, title, x, limits_of([real]), shown=_POINTS)
        axes.title.set_fontsize(10)
    for place, metric in enumerate(metrics):
        row, column = divmod(place, columns)
        axes = figure.add_subplot(grid[1 + row, column * len(sets) : (column + 1) * len(sets)])
        _bars(axes, metric)
    return rendered(figure)


def _bars(axes: Any, metric: MetricResult) -> None:
    values = torch.tensor([metric.value, metric.real_against_real])
    errors = (metric.standard_error, metric.real_standard_error)
    intervals = (metric.interval, metric.real_interval)
    axes.barh([1, 0], values.tolist(), color=_COLOURS, height=0.7)
    for place, (value, error, interval) in enumerate(zip(values.tolist(), errors, intervals, strict=True)):
        low, high = interval or ((value - 2 * error, value + 2 * error) if error is not None else (value, value))
        axes.plot([low, high], [1 - place, 1 - place], color="black", linewidth=1)
    axes.set_yticks([1, 0], ["samples", "real"], fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.locator_params(axis="x", nbins=4)
    better = {"lower": "lower is better", "higher": "higher is better", "half": "0.5 is best"}[metric.better]
    axes.set_title(metric.title, fontsize=8)
    axes.set_xlabel(better, fontsize=7)
    if metric.better != "lower":
        axes.set_xlim(0, max(1.0, 1.1 * float(values.max())))
    axes.axvline(0.5 if metric.better == "half" else 0.0, color="black", linewidth=0.5)
