"""An empty figure of matplotlib, and a drawn one as an image: without its global state and without a display."""

import importlib.util
from typing import TYPE_CHECKING, Any

from sde_gen.errors import MissingInputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


def has_matplotlib() -> bool:
    """Whether plots can be drawn (image grids can always be)."""
    return importlib.util.find_spec("matplotlib") is not None


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, sides in units of 100 pixels.

    Raises:
        MissingInputError: matplotlib is not installed.
    """
    if not has_matplotlib():
        raise MissingInputError("plots need matplotlib, which is not installed; run pip install 'sde_gen[plot]'")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="tight")
    FigureCanvasAgg(figure)
    return figure


def rendered(figure: "Figure") -> "Image":
    """A figure as a Pillow image."""
    from PIL import Image

    canvas: Any = figure.canvas
    canvas.draw()
    return Image.frombytes("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB")
