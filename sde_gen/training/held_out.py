"""The loss on held-out samples, at the same times and noise always."""

import torch

from sde_gen.data import Dataset
from sde_gen.model import ScoreModel
from sde_gen.objectives import DenoisingScoreMatching
from sde_gen.rng import keyed_generator
from sde_gen.training.batches import HELD_OUT

_SAMPLES = 1024


@torch.no_grad()
def held_out_loss(
    model: ScoreModel,
    data: Dataset,
    objective: DenoisingScoreMatching,
    *,
    size: int,
    seed: int,
    device: torch.device,
    conditional: bool,
    dequantise: bool,
) -> float:
    """Mean loss of `model` on at most 1,024 held-out samples, `size` at a time; times and noise keyed by `seed`."""
    count, total = min(len(data.test), _SAMPLES), 0.0
    labels = data.test_labels if conditional else None
    for block, first in enumerate(range(0, count, size)):
        rows = slice(first, min(first + size, count))
        x0 = data.test[rows].to(device)
        if dequantise:
            x0 = data.transform.dequantise(x0, seed, first)
        condition = {} if labels is None else {"label": labels[rows].to(device)}
        losses = objective(model, x0, condition, generator=keyed_generator(seed, block, HELD_OUT))
        total += float(losses.sum(dtype=torch.float64))
    return total / count
