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
    generated = x[:_COMPARED]
    held_out = data.test[:_COMPARED]
    order = torch.randperm(len(data.train), generator=keyed_generator(0, 1))
    real = data.train[order[: len(generated)]]
    result: dict[str, Any] = {"compared": [len(generated), len(held_out)]}
    for name, function in (
        ("energy_distance", metrics.energy_distance),
        ("sliced_wasserstein", metrics.sliced_wasserstein),
    ):
        result[name], result[f"{name}_real"] = function(generated, held_out), function(real, held_out)
    if min(len(generated), len(held_out)) >= 50:
        result["svm_accuracy"] = metrics.classifier_accuracy(generated, held_out)
        result["svm_accuracy_real"] = metrics.classifier_accuracy(real, held_out)
    return result
