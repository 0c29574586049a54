"""How good a set of samples is, beside held-out data: one place that knows which distances there are."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sde_gen.checks import choice
from sde_gen.data import Dataset
from sde_gen.errors import SolverError
from sde_gen.likelihood import log_likelihood
from sde_gen.metrics import METRICS
from sde_gen.metrics.jackknife import points
from sde_gen.model import ScoreModel


def check_measures(names: Sequence[str]) -> tuple[str, ...]:
    """`names` if all of them are metrics, else a `ConfigError` that lists them."""
    return tuple(choice("Comparison", "measures", name, tuple(METRICS)) for name in names)


def title_of(name: str) -> str:
    """A metric's name for people, and which way is better where it is not down."""
    way = {"lower": "", "higher": " (higher is better)", "half": " (0.5: cannot be told from real)"}
    return METRICS[name].title + way[METRICS[name].better]


def badness(name: str, value: float) -> float:
    """A number that is smaller for better samples, whichever way the metric runs."""
    better = METRICS[name].better
    return -value if better == "higher" else abs(value - 0.5) if better == "half" else value


def measured(names: Sequence[str], x: Tensor, real: Tensor) -> dict[str, float | None]:
    """The metrics of samples `x` against held-out data `real`, each with its standard error over both sets.

    The real set and every random choice are the same for all cells.
    """
    a, b = points(x.float(), "samples"), points(real.float(), "held-out data")
    result: dict[str, float | None] = {}
    for name in names:
        found = METRICS[name].function(a, b, 0)
        result[name], result[f"{name}_standard_error"] = found.value, found.standard_error
    return result


def likelihood(model: ScoreModel, data: Dataset, config: Mapping[str, Any]) -> dict[str, Any]:
    """Negative log-likelihood of held-out data with its standard error over the points.

    `nll` is in nats a dimension on the model's scale; `bits_per_dim` of the raw data where it has levels, which are
    then spread out by uniform noise, the same for all models.

    Raises:
        SolverError: a point could not be integrated.
    """
    x, levels = data.test[: config["points"]], data.transform.levels is not None
    if levels:
        x = data.transform.dequantise(x, seed=0)
    x = x.to(device=model.device, dtype=torch.float64 if model.network is None else torch.float32)
    found = log_likelihood(
        model,
        x,
        probes=config["probes"],
        steps=config["steps"],
        seed=config["seed"],
        transform=data.transform if levels else None,
    )
    if found.failed:
        index, error = next(iter(found.failed.items()))
        raise SolverError(f"{len(found.failed)} of {len(x)} points could not be integrated; point {index}: {error}")
    size = x[0].numel()
    mean, error = found.mean()
    result = {"nll": -mean / size, "nll_standard_error": error / size, "nfe": int(found.nfe)}
    if levels:
        result["bits_per_dim"], result["bits_per_dim_standard_error"] = found.mean_bits_per_dim()
    return result
