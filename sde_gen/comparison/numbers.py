"""Numbers for people: as many digits as their error has something to say about."""

import math
from collections.abc import Sequence

from sde_gen.comparison.ranking import Difference, mean_of
from sde_gen.metrics import METRICS


def title_of(name: str) -> str:
    """A metric's name for people, and which way is better where it is not down."""
    way = {"lower": "", "higher": " (higher is better)", "half": " (0.5: cannot be told from real)"}
    return METRICS[name].title + way[METRICS[name].better]


def with_error(mean: float, error: float | None, sign: bool = False) -> str:
    """A number and its error, to two digits of the error; with `sign`, a plus too. Four digits without an error."""
    plus = "+" if sign else ""
    if error is None or not (math.isfinite(error) and error > 0):
        return f"{mean:{plus}.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    if digits > 8:
        return f"{mean:{plus}.3g} ± {error:.2g}"
    return f"{mean:{plus}.{digits}f} ± {error:.{digits}f}"


def mean_with_error(values: Sequence[float]) -> str:
    """The mean over seeds and its standard error; empty for none."""
    return with_error(*mean_of(values)[:2]) if values else ""


def difference_with_interval(d: Difference) -> str:
    """A difference with half of its 95 % interval, and what that rests on."""
    if d.half is None:
        return f"{d.mean:+.3g} (one seed: no error)"
    return f"{with_error(d.mean, d.half, sign=True)} (95 %, {d.n} seeds)"
