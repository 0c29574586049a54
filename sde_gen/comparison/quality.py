"""How good a set of samples is, beside held-out data: one place that knows which distances there are."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from sde_gen import metrics
from sde_gen._checks import choice
from sde_gen.model import ScoreModel

#: Smaller is better for each of them; SVM accuracy cannot fall below 0.5 but by chance.
MEASURES: dict[str, Callable[[Any, Any], float]] = {
    "energy_distance": metrics.energy_distance,
    "sliced_wasserstein": metrics.sliced_wasserstein,
    "maximum_mean_discrepancy": metrics.maximum_mean_discrepancy,
    "svm_accuracy": metrics.classifier_accuracy,
}
TITLES = {
    "energy_distance": "energy distance",
    "sliced_wasserstein": "sliced Wasserstein-2 distance",
    "maximum_mean_discrepancy": "squared MMD",
    "svm_accuracy": "SVM accuracy (0.5: indistinguishable)",
}


def check_measures(names: Sequence[str]) -> tuple[str, ...]:
    """`names` if all of them are measures, else a `ConfigError` that lists them."""
    return tuple(choice("Comparison", "measures", name, tuple(MEASURES)) for name in names)


def measured(names: Sequence[str], x: Tensor, real: Tensor) -> dict[str, float]:
    """The measures of samples `x` against held-out data `real`."""
    x, real = x.float().cpu(), real.float().cpu()
    return {name: MEASURES[name](x, real) for name in names}


def likelihood(model: ScoreModel, x: Tensor, seed: int, divergence: str, tolerance: float) -> dict[str, Any]:
    """Negative log-likelihood of held-out data in nats a dimension, with its standard error over the points."""
    from sde_gen.likelihood import log_likelihood  # pyright: ignore[reportMissingImports]

    found = log_likelihood(model, x, divergence=divergence, rtol=tolerance, atol=tolerance, seed=seed)
    each = -found.log_prob.double().cpu() / x[0].numel()
    return {
        "nll": float(each.mean()),
        "nll_standard_error": float(each.std() / len(each) ** 0.5) if len(each) > 1 else None,
        "nfe": int(found.nfe),
    }
