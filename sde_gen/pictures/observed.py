"""The picture of a posterior: what was observed, what it leaves open, and draws."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from sde_gen.pictures.drawing import image_grid
from sde_gen.pictures.figures import new_figure, rendered

if TYPE_CHECKING:
    from PIL.Image import Image

_DRAWS = 8
_UNSEEN = (70, 110, 160)


def posterior_picture(
    draws: Tensor, observation: Tensor, truth: Tensor | None = None, *, mean: Tensor, std: Tensor, title: str = ""
) -> "Image":
    """Observation, truth, mean and standard deviation in a row, and eight draws below.

    Args:
        draws: (n, C, H, W) on the model's scale.
        observation: (c, h, w), with NaN where nothing is seen, which is drawn in blue.
        truth: (C, H, W), or None.
        mean: of all draws, (C, H, W).
        std: of all draws, (C, H, W); white is its largest value.
        title: a line above.

    Raises:
        MissingInputError: matplotlib is not installed.
    """
    largest = float(std.max())
    panels = {"observation": observation} | ({} if truth is None else {"truth": truth})
    panels |= {"mean": mean, f"standard deviation, up to {largest:.2f}": std.mean(0, keepdim=True) / largest * 2 - 1}
    figure = new_figure(9.6, 4.6)
    grid = figure.add_gridspec(2, _DRAWS, height_ratios=[2.2, 1.0])
    width = _DRAWS // len(panels)
    for place, (name, image) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[0, place * width : (place + 1) * width])
        _show(axes, image)
        axes.set_title(name, fontsize=10)
    for place, image in enumerate(draws[:_DRAWS]):
        axes = figure.add_subplot(grid[1, place])
        _show(axes, image)
        if not place:
            axes.set_title(f"draws ({len(draws)})", fontsize=10, loc="left")
    figure.suptitle(title, fontsize=10)
    return rendered(figure)


def _show(axes: Any, image: Tensor) -> None:
    seen = image.isfinite().all(0)
    picture = image_grid(image.nan_to_num(0.0)[None], columns=1, zoom=1, gap=0).convert("RGB")
    if not bool(seen.all()):
        for y, x in (~seen).nonzero().tolist():
            picture.putpixel((x, y), _UNSEEN)
    axes.imshow(picture, interpolation="nearest")
    axes.set_axis_off()
