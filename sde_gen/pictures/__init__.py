"""Every picture of the project, drawn by matplotlib and Pillow; both are imported when something is drawn."""

from sde_gen.pictures.drawing import (
    bound_terms,
    density,
    forward_strip,
    has_matplotlib,
    image_grid,
    limits_of,
    loss_curve,
    picture_of,
    save_animation,
    save_image,
    scatter,
)

__all__ = [
    "bound_terms",
    "density",
    "forward_strip",
    "has_matplotlib",
    "image_grid",
    "limits_of",
    "loss_curve",
    "picture_of",
    "save_animation",
    "save_image",
    "scatter",
]
