"""Series as curves, volumes as slices."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sde_gen.pictures.figures import new_figure, rendered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

_CURVES, _CHANNELS, _SLICES = 8, 4, 6  # drawn at most, of each set
_COLOURS = ("#27408b", "#d1520a", "#1a7a4c", "#7a3a8f")


def slices(volumes: Tensor) -> tuple[Tensor, int]:
    """Volumes (N, C, D, H, W) as images (N k, C, H, W), k slices of each at even depths; and k."""
    depth = volumes.shape[2]
    chosen = torch.linspace(0, depth - 1, min(_SLICES, depth)).round().long()
    return volumes[:, :, chosen].transpose(1, 2).flatten(0, 1), len(chosen)


def series_range(sets: Sequence[Tensor]) -> tuple[float, float]:
    """Where the middle 99.8 % of the values of some sets (N, C, L) lie, with a margin."""
    values = torch.cat([x.detach().double().cpu().flatten() for x in sets])
    values = values[:: max(1, len(values) // 50_000)]
    low, high = (float(torch.quantile(values, q)) for q in (0.001, 0.999))
    margin = 0.2 * (high - low) or 1.0
    return low - margin, high + margin


def draw_series(axes: "Axes", title: str, x: Tensor, span: tuple[float, float]) -> None:
    """The first series of a set (N, C, L), a colour for each channel, over the mean and two standard deviations of all.

    Values outside `span` are counted in the title.
    """
    x = x.detach().double().cpu()
    outside = int(((x < span[0]) | (x > span[1])).flatten(1).any(1).sum())
    axes.set_title(f"{title} ({len(x)}" + (f", {outside} leave the picture)" if outside else ")"))
    places = range(x.shape[2])
    for channel, colour in zip(range(min(_CHANNELS, x.shape[1])), _COLOURS, strict=False):
        mean, std = x[:, channel].mean(0), x[:, channel].std(0, correction=0)
        axes.fill_between(places, (mean - 2 * std).numpy(), (mean + 2 * std).numpy(), color=colour, alpha=0.12, lw=0)
        for curve in x[:_CURVES, channel]:
            axes.plot(places, curve.numpy(), color=colour, linewidth=0.8, alpha=0.8)
    axes.set_ylim(*span)


def series(sets: Mapping[str, Tensor], span: tuple[float, float] | None = None) -> "Image":
    """Sets of series (N, C, L) side by side on equal axes.

    Args:
        sets: title to series.
        span: least and largest value drawn; by default of the last set, which is taken for the real one.

    Raises:
        MissingInputError: matplotlib is not installed.
    """
    span = series_range([list(sets.values())[-1]]) if span is None else span
    figure = new_figure(min(5.0 * len(sets), 24.0), 4.0)
    for place, (title, x) in enumerate(sets.items()):
        draw_series(figure.add_subplot(1, len(sets), place + 1), title, x, span)
    return rendered(figure)
