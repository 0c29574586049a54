"""The picture of posteriors by several methods: how far each is from the exact one, observation by observation."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sde_gen.pictures.figures import new_figure, rendered

if TYPE_CHECKING:
    from PIL.Image import Image

_BLUE, _GREY = "#27408b", "#9aa5b1"
_TICKS = (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def posteriors_picture(rows: Sequence[Mapping[str, Any]]) -> "Image":
    """For each problem a row of dots for each method, one an observation, and their mean as a bar.

    Args:
        rows: with "problem", "method" and "distance" over that of two exact sets, 1 where nothing is wrong.

    Raises:
        MissingInputError: matplotlib is not installed.
    """
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure = new_figure(4.5 * len(problems) + 2, 0.45 * len(methods) + 1.6)
    for place, problem in enumerate(problems):
        axes = figure.add_subplot(1, len(problems), place + 1)
        axes.axvline(1.0, color=_GREY)
        for k, method in enumerate(methods):
            values = [row["distance"] for row in rows if (row["problem"], row["method"]) == (problem, method)]
            if values:
                axes.plot(values, [k] * len(values), "o", color=_BLUE, alpha=0.5, markersize=5)
                axes.plot([sum(values) / len(values)], [k], "|", color="black", markersize=16, markeredgewidth=2)
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.set_xticks([v for v in _TICKS if low <= v <= high], [f"{v:g}" for v in _TICKS if low <= v <= high])
        axes.minorticks_off()
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.set_yticks(range(len(methods)), methods if place == 0 else [""] * len(methods))
        axes.set_title(problem, fontsize=10)
        axes.set_xlabel("distance to the exact posterior over the noise floor")
    figure.tight_layout()
    return rendered(figure)
