"""The picture of a calibration: ranks of truths among their draws, and how often central regions hold them."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sde_gen.pictures.figures import new_figure, rendered

if TYPE_CHECKING:
    from PIL.Image import Image

_BINS = 20
_BLUE, _GREY = "#27408b", "#9aa5b1"


def rank_picture(ranks: Tensor, draws: int, title: str = "") -> "Image":
    """Left a histogram of the ranks, level where draws are calibrated, arched where they are too wide and hollow where
    too narrow; right the part of central regions that hold the truth against their probability.

    Args:
        ranks: of values among as many draws, whole numbers in 0..draws.
        draws: for each truth.
        title: a line above.

    Raises:
        MissingInputError: matplotlib is not installed.
    """
    flat = ranks.flatten()
    bins = min(_BINS, draws + 1)
    edges = torch.arange(bins + 1, dtype=torch.float64) * (draws + 1) / bins
    heights, _ = torch.histogram((flat + 0.5).double(), edges)
    widths = edges.diff().round().clamp_min(1)  # ranks that fall to each bar
    figure = new_figure(9.0, 4.0)
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    left.bar(range(bins), (heights / len(flat) * (draws + 1) / widths).tolist(), width=1.0, color=_BLUE, alpha=0.8)
    left.axhline(1.0, color=_GREY)
    left.set_xticks([])
    left.set_xlabel("rank of the truth among its draws")
    left.set_ylabel("density, 1 is right")
    outer = torch.arange(draws // 2 + 1)
    nominal = (draws + 1 - 2 * outer) / (draws + 1)
    inside = [float(((flat >= k) & (flat <= draws - k)).double().mean()) for k in outer.tolist()]
    right.plot([0, 1], [0, 1], color=_GREY)
    right.plot(nominal.tolist(), inside, "o-", markersize=3, color=_BLUE)
    right.set_xlabel("probability of a central region")
    right.set_ylabel("part that holds the truth")
    figure.suptitle(title, fontsize=10)
    return rendered(figure)
