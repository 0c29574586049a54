"""How good a trained network is: likelihood of held-out data, distances of its samples, and a report."""

from sde_gen.evaluation.likelihood import HeldOutLikelihood, held_out_likelihood, in_parts, part_length
from sde_gen.evaluation.outcome import Evaluation, read_samples, rows, write_arrays

__all__ = [
    "Evaluation",
    "HeldOutLikelihood",
    "held_out_likelihood",
    "in_parts",
    "part_length",
    "read_samples",
    "rows",
    "write_arrays",
]
