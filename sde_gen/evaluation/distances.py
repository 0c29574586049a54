"""A few quick distances of samples to data, beside those of real data: what `sample` reports."""

from typing import Any

import torch
from torch import Tensor

from sde_gen import metrics
from sde_gen.data import Dataset
from sde_gen.rng import keyed_generator

_COMPARED = 2000  # samples, at most


def distances(x: Tensor, data: Dataset) -> dict[str, Any]:
    """Distances to held-out data; beside each, that of as many training samples: what a perfect sampler would reach.

    At most 2,000 of either are compared.

    Args:
        x: samples on the model's scale, (N, *shape).
        data: what they should be like.
    """
    generated, held_out = x[:_COMPARED], data.test[:_COMPARED]
    order = torch.randperm(len(data.train), generator=keyed_generator(0, 1))
    real = data.train[order[: len(generated)]]
    measures = {"energy_distance": metrics.energy_distance, "sliced_wasserstein": metrics.sliced_wasserstein}
    if min(len(generated), len(held_out), len(real)) >= 50:
        measures["svm_accuracy"] = metrics.classifier_accuracy
    result: dict[str, Any] = {"compared": [len(generated), len(held_out)]}
    for name, measure in measures.items():
        result |= {name: measure(generated, held_out), f"{name}_real": measure(real, held_out)}
    return result
