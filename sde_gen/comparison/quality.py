"""How good a set of samples is, beside held-out data: one place that knows which distances there are."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sde_gen._checks import choice
from sde_gen.metrics import METRICS
from sde_gen.metrics.distances import points
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
