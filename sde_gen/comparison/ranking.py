r"""Who is better, and whether the difference is larger than its error.

All cells share their seeds, and a seed means the same noise, so two cells are compared by their paired differences
:math:`d_s = m_s - m'_s` over the seeds: what the seed does to both cancels. With n seeds a difference counts if
:math:`|\bar d| > t_{0.975, n-1}\, s_d/\sqrt n`; else it is a tie. An entry's rank is a range: from one plus the number
of entries that are better beyond their error, to the number of entries that are not worse beyond it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sde_gen.metrics import METRICS

#: An entry of a ranking: formulation, sampler, budget.
Entry = tuple[str, str, Any]


class Mean(NamedTuple):
    """Mean over seeds, its standard error (None for one seed), and the number of seeds."""

    mean: float
    error: float | None
    n: int


class Difference(NamedTuple):
    """Mean of paired differences, half its 95 % interval (None for one seed), seeds, and -1, 0 (tie) or 1."""

    mean: float
    half: float | None
    n: int
    sign: int


class Ranked(NamedTuple):
    """A line of a ranking: the best and the worst rank that the errors leave open, and what they rest on."""

    rank: int
    last: int
    entry: Entry
    value: Mean
    behind: Difference | None
    """The paired difference to the entry with the lowest mean; None for that entry."""

    @property
    def tied(self) -> bool:
        """Whether it cannot be told from the first."""
        return self.behind is not None and self.behind.sign == 0


def badness(name: str, value: float) -> float:
    """A number that is smaller for better samples, whichever way the metric runs."""
    better = METRICS[name].better
    return -value if better == "higher" else abs(value - 0.5) if better == "half" else value


def mean_of(values: Iterable[float]) -> Mean:
    """Mean and standard error."""
    listed = list(values)
    n = len(listed)
    mean = math.fsum(listed) / n
    if n < 2:
        return Mean(mean, None, n)
    return Mean(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in listed) / (n - 1) / n), n)


def difference(first: Mapping[Any, float], second: Mapping[Any, float]) -> Difference | None:
    """first - second over the seeds that both have; None if there is none."""
    shared = [seed for seed in first if seed in second]
    if not shared:
        return None
    m = mean_of(first[seed] - second[seed] for seed in shared)
    if m.error is None:
        return Difference(m.mean, None, m.n, 0)
    half = _quantile(m.n - 1) * m.error
    # Identical results differ by rounding alone, which has no error to speak of.
    scale = max(abs(first[seed]) + abs(second[seed]) for seed in shared)
    beyond = abs(m.mean) > half and abs(m.mean) > 1e-9 * scale
    return Difference(m.mean, half, m.n, (1 if m.mean > 0 else -1) if beyond else 0)


@lru_cache(maxsize=64)
def _quantile(freedom: int) -> float:
    """Student's t at 97.5 %."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def by_entry(
    rows: Iterable[Mapping[str, Any]], measure: str, turned: Callable[[str, float], float] = lambda name, value: value
) -> dict[Entry, dict[int, float]]:
    """A measure of the rows that have it, such as it is or `turned` so that less is better: entry to seed to value."""
    result: dict[Entry, dict[int, float]] = {}
    for row in rows:
        if row["status"] == "ok" and row.get(measure) is not None:
            entry = (row["formulation"], row["sampler"], row["budget"])
            result.setdefault(entry, {})[row["seed"]] = turned(measure, float(row[measure]))
    return result


def ranking(values: Mapping[Entry, Mapping[int, float]]) -> list[Ranked]:
    """All entries, lowest mean first."""
    order = sorted(values, key=lambda entry: mean_of(values[entry].values()).mean)
    result = []
    for entry in order:
        signs = [_sign(values[other], values[entry]) for other in order if other != entry]
        behind = None if entry == order[0] else difference(values[entry], values[order[0]])
        first, last = 1 + signs.count(-1), len(order) - signs.count(1)
        result.append(Ranked(first, last, entry, mean_of(values[entry].values()), behind))
    return result


def _sign(first: Mapping[int, float], second: Mapping[int, float]) -> int:
    found = difference(first, second)
    return 0 if found is None else found.sign


def groups(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The budgets of the rows, ascending; None last, for samplers that keep their own steps."""
    found = {row["budget"] for row in rows if row["status"] == "ok"}
    return [*sorted(b for b in found if b is not None), *([None] if None in found else [])]
