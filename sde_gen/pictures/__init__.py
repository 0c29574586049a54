"""Every picture of the project, drawn by matplotlib and Pillow; both are imported when something is drawn."""

from sde_gen.pictures.animated import save_animation
from sde_gen.pictures.animation import Frames, forward_strip
from sde_gen.pictures.drawing import image_grid, save_each, save_image
from sde_gen.pictures.evaluation_page import evaluation_picture
from sde_gen.pictures.figures import has_matplotlib
from sde_gen.pictures.observed import posterior_picture
from sde_gen.pictures.pairs import pairs
from sde_gen.pictures.plots import (
    bound_terms,
    density,
    limits_of,
    loss_by_level,
    loss_curve,
    loss_curves,
    norm_by_block,
    picture_of,
    scatter,
)
from sde_gen.pictures.posteriors_drawn import posteriors_picture
from sde_gen.pictures.rank_picture import rank_picture
from sde_gen.pictures.training_page import training_page

__all__ = [
    "Frames",
    "bound_terms",
    "density",
    "evaluation_picture",
    "forward_strip",
    "has_matplotlib",
    "image_grid",
    "limits_of",
    "loss_by_level",
    "loss_curve",
    "loss_curves",
    "norm_by_block",
    "pairs",
    "picture_of",
    "posterior_picture",
    "posteriors_picture",
    "rank_picture",
    "save_animation",
    "save_each",
    "save_image",
    "scatter",
    "training_page",
]
