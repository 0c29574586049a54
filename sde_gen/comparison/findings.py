"""What a comparison should show, stated before it is run, and checked afterwards with its numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sde_gen import checks as check
from sde_gen.comparison.numbers import difference_with_interval, title_of
from sde_gen.comparison.ranking import badness, difference, mean_of
from sde_gen.errors import ConfigError

_KEYS = ("formulation", "sampler", "budget")
#: What a fitted order may fall short of the claimed one, besides three standard errors of the fit.
ORDER_MARGIN = 0.1


def falls_short(row: Mapping[str, Any]) -> bool:
    """Whether a fitted order is below the claimed one, beyond the margin and the error of the fit."""
    return bool(row["fitted"] < row["claimed"] - max(ORDER_MARGIN, 3 * row["standard_error"]))


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A claim, and how it is checked; exactly one of `better`, `equal`, `below` and `order_of` is given.

    A selection names a formulation, a sampler, a budget, or some of them; what it leaves open is paired row by row.

    Args:
        claim: in words.
        better, than: the first selection has a smaller measure than the second, beyond the error of the paired
            differences over the seeds: pass; beyond it the other way round: fail; else tie.
        equal, to: the two agree within `tolerance` for every seed.
        below, limit: the selection's mean is below `limit` times that of as many real samples.
        order_of: every fitted order of the selection is at least the claimed one, less 0.1 or three errors of the fit.
        measure: which one; None: the first of the comparison.
        tolerance: of `equal`, relative to the larger value.

    Raises:
        ConfigError: for none or several of them, or a key that no selection has.
    """

    claim: str
    better: Mapping[str, Any] | None = None
    than: Mapping[str, Any] | None = None
    equal: Mapping[str, Any] | None = None
    to: Mapping[str, Any] | None = None
    below: Mapping[str, Any] | None = None
    limit: float | None = None
    order_of: Mapping[str, Any] | None = None
    measure: str | None = None
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        pairs = {"better": self.than, "equal": self.to, "below": self.limit, "order_of": {}}
        given = [name for name in pairs if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(f"finding {self.claim!r}: give one of {', '.join(pairs)}, got {given or 'none'}")
        if pairs[given[0]] is None:
            other = {"better": "than", "equal": "to", "below": "limit"}[given[0]]
            raise ConfigError(f"finding {self.claim!r}: {given[0]} needs {other}")
        for name in ("better", "than", "equal", "to", "below", "order_of"):
            for key in getattr(self, name) or {}:
                check.choice(f"finding {self.claim!r}", name, key, _KEYS)

    @classmethod
    def of(cls, value: Any) -> "Finding":
        """A finding from one, or from a mapping of its arguments."""
        if isinstance(value, Finding):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"a finding must be a group with a claim, got {value!r}")
        names = [f.name for f in fields(cls)]
        for key in value:
            check.choice("finding", "key", key, names)
        if not isinstance(value.get("claim"), str):
            raise ConfigError(f"a finding needs a claim in words, got {dict(value)!r}")
        return cls(**value)

    def to_dict(self) -> dict[str, Any]:
        """Its arguments, without those that were not given."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {n: dict(v) if isinstance(v, Mapping) else v for n, v in values.items() if v is not None}

    def check(
        self,
        rows: Sequence[Mapping[str, Any]],
        orders: Sequence[Mapping[str, Any]],
        real: Mapping[str, float],
        measure: str,
    ) -> dict[str, Any]:
        """Verdict ("pass", "fail", "tie", or "no data") and the numbers behind it.

        Args:
            rows: the tidy rows.  orders: the fitted orders.
            real: measure to its mean for real samples.  measure: the comparison's first.
        """
        name = self.measure or measure
        ok = [row for row in rows if row["status"] == "ok" and row.get(name) is not None]
        if self.better is not None:
            verdict, numbers = _better(_pairs(ok, self.better, self.than or {}, name), name)
        elif self.equal is not None:
            verdict, numbers = _equal(_pairs(ok, self.equal, self.to or {}, name), name, self.tolerance)
        elif self.below is not None:
            verdict, numbers = _below([r[name] for r in ok if _fits(r, self.below)], name, real.get(name), self.limit)
        else:
            fitted = [row for row in orders if row["status"] == "ok" and _fits(row, self.order_of or {})]
            verdict, numbers = _order(fitted)
        return {"claim": self.claim, "verdict": verdict, "numbers": numbers}


#: Seed to the values of two selections.
Pairs = Mapping[Any, Sequence[tuple[float, float]]]


def _better(pairs: Pairs, name: str) -> tuple[str, str]:
    bad = [{seed: mean_of(badness(name, p[i]) for p in values).mean for seed, values in pairs.items()} for i in (0, 1)]
    found = difference(bad[0], bad[1])
    if found is None:
        return "no data", "no seed has both"
    first, second = (mean_of(p[i] for values in pairs.values() for p in values).mean for i in (0, 1))
    told = f"{title_of(name)} {first:.4g} against {second:.4g}; difference {difference_with_interval(found)}"
    return {-1: "pass", 0: "tie", 1: "fail"}[found.sign], told


def _equal(pairs: Pairs, name: str, tolerance: float) -> tuple[str, str]:
    gaps = [abs(a - b) / max(abs(a), abs(b), 1e-300) for values in pairs.values() for a, b in values]
    if not gaps:
        return "no data", "no seed has both"
    told = f"largest relative difference of {title_of(name)}: {max(gaps):.2g} (allowed: {tolerance:g})"
    return "pass" if max(gaps) <= tolerance else "fail", told


def _below(values: Sequence[float], name: str, real: float | None, limit: float | None) -> tuple[str, str]:
    if not values or real is None or limit is None:
        return "no data", "nothing was measured"
    mean = mean_of(values).mean
    told = f"{title_of(name)} {mean:.4g}, {mean / real:.2f} times that of real samples (allowed: {limit:g})"
    return "pass" if badness(name, mean) < limit * badness(name, real) else "fail", told


def _order(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    if not rows:
        return "no data", "no order was fitted"
    short = [row for row in rows if falls_short(row)]
    shown = [f"{r['formulation']} {r['sampler']} {r['fitted']:.2f} (claimed {r['claimed']:g})" for r in short or rows]
    more = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
    return "fail" if short else "pass", ", ".join(shown[:4]) + more


def _fits(row: Mapping[str, Any], selection: Mapping[str, Any]) -> bool:
    return all(row.get(key) == value for key, value in selection.items())


def _pairs(rows: Sequence[Mapping[str, Any]], first: Mapping[str, Any], second: Mapping[str, Any], name: str) -> Pairs:
    """Seed to the pairs of values of the two selections that agree in everything which neither of them names."""
    free = [key for key in (*_KEYS, "seed") if key not in first and key not in second]
    others = {tuple(row[key] for key in free): row[name] for row in rows if _fits(row, second)}
    result: dict[Any, list[tuple[float, float]]] = {}
    for row in rows:
        other = others.get(tuple(row[key] for key in free))
        if other is not None and _fits(row, first):
            result.setdefault(row["seed"], []).append((row[name], other))
    return result
