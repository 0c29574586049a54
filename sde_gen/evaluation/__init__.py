"""How good a trained network is: likelihood of held-out data, distances of its samples, a report and a picture."""

from sde_gen.evaluation.arrays import read_samples, write_arrays
from sde_gen.evaluation.likelihood import HeldOutLikelihood, held_out_likelihood
from sde_gen.evaluation.parts import in_parts, part_length
from sde_gen.evaluation.report import Evaluation, rows
from sde_gen.pictures.evaluation_page import evaluation_picture

__all__ = [
    "Evaluation",
    "HeldOutLikelihood",
    "evaluation_picture",
    "held_out_likelihood",
    "in_parts",
    "part_length",
    "read_samples",
    "rows",
    "write_arrays",
]
