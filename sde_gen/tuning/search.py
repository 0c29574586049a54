r"""What `Auto` looks at, and how it decides.

1. Multistep rules (orders 1 to 4; data, noise or velocity; with and without corrector) on grids of the model's own
   local-error densities and of the classical families, to several last noise levels;
2. the grids of the best of them, and of the rule that is best most often, moved to where their error is least;
3. up to `_WHOLE` calls, all numbers of a solver (`Fitted`), by least squares from there.

The rule that is best most often is kept, unless another is better by a tenth and by two standard errors.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from sde_gen.samplers.grid_sampler import GridSampler
from sde_gen.samplers.grids import GivenLambdas
from sde_gen.samplers.multistep import AdamsBashforth, UniPC
from sde_gen.tuning.fitted import fit
from sde_gen.tuning.grid import densities, fit_levels, last_levels, placed, refine
from sde_gen.tuning.reference import Calibration

#: Most calls for which every number of the solver is fitted: they grow with the square.
_WHOLE = 24
#: Most calls for which order 3 is the usual rule: steps have to be short for order 4 to pay, and for the call it takes.
_FEW = 16
#: What another finalist must be better by than the usual rule.
_USUAL, _MARGIN = "the usual rule on its own grid", 1.1


def rules(nfe: int) -> dict[str, tuple[GridSampler, int]]:
    """Rules to try, and how many times each visits with this many calls."""
    out: dict[str, tuple[GridSampler, int]] = {}
    for prediction in ("data", "noise", "velocity"):
        for order in (1, 2, 3, 4):
            if order > nfe:
                break
            times = nfe - 1 if order == 4 and nfe > 3 else nfe  # its start-up takes a call
            out[f"AdamsBashforth({order}, {prediction})"] = AdamsBashforth(order=order, prediction=prediction), times
            if order > 1 and prediction != "noise":
                out[f"UniPC({order}, {prediction})"] = UniPC(order=order, prediction=prediction), times
    return out


def usual(nfe: int) -> tuple[GridSampler, int]:
    """The rule that is best most often on a grid that fits, and how many times it visits with this many calls."""
    order = 3 if nfe <= _FEW else 4
    return UniPC(order=order, prediction="velocity"), nfe if order == 3 else nfe - 1


def search(c: Calibration, nfe: int, effort: float) -> tuple[GridSampler, float, list[tuple[str, float]]]:
    """The best sampler found for a budget, its error on the rows not chosen on, and the finalists' errors."""
    known, refines = rules(nfe), effort > 0
    best: dict[str, tuple[float, Any]] = {}
    for error, rule, name, last in _screen(c, known, effort)[: 3 if refines else 6]:
        sampler, times = known[rule]
        density, label = densities(c)[name], f"{rule} on {name} to {last:.2f}"
        if refines and times > 1:
            grid, error = refine(c, sampler, times, density, last, max(1, round(40 * effort)))
            label = f"{label}, refined"
        else:
            grid = GivenLambdas(placed(c.lambdas.numpy(), density, times, last))
            error = c.error(replace(sampler, grid=grid), c.checked)
        best[label] = error, replace(sampler, grid=grid)
    if refines and nfe > 2:
        sampler, times = usual(nfe)
        grid, error = fit_levels(c, sampler, times, max(1, round(120 * effort)))
        best[_USUAL] = error, replace(sampler, grid=grid)
    if refines and 1 < nfe <= _WHOLE:
        if nfe > _FEW:  # order 4 looks twice at one time, which is not in the set; order 3 is the better start anyway
            sampler = usual(_FEW)[0]
            grid, error = fit_levels(c, sampler, nfe, max(1, round(120 * effort)))
            best["order 3 on its own grid"] = error, replace(sampler, grid=grid)
        begin = min((error, name) for name, (error, s) in best.items() if s.order != 4)[1]
        found, error = fit(c, best[begin][1], round(150 * effort))
        best["every number fitted"] = error, found
    rows = {label: c.squared(sampler, c.checked) for label, (_, sampler) in best.items()}
    errors = {label: float(each.mean().sqrt()) for label, each in rows.items()}
    label = decide(rows)
    return best[label][1], errors[label], list(errors.items())


def decide(rows: dict[str, Tensor]) -> str:
    """The finalist with the least mean of these squared errors, of those that beat the usual rule beyond noise.

    That is by `_MARGIN` in root mean square, and by two standard errors of the mean paired difference: where a few
    trajectories that change mode make up the error, a smaller one says little of other starts.
    """
    if _USUAL not in rows:
        return min(rows, key=lambda k: float(rows[k].mean()))
    usual = rows[_USUAL]

    def better(each: Tensor) -> bool:
        gain = usual - each
        clear = gain.mean() > 2 * gain.std() / len(gain) ** 0.5
        return bool(clear & (each.mean() * _MARGIN**2 < usual.mean()))

    clear = [k for k, each in rows.items() if not bool(usual.isfinite().all()) or better(each)]
    return min(clear, key=lambda k: float(rows[k].mean()), default=_USUAL)


def _screen(
    c: Calibration, known: dict[str, tuple[GridSampler, int]], effort: float
) -> list[tuple[float, str, str, float]]:
    """(error on some rows, rule, density, last level), best first, one for each rule.

    All densities and levels are looked at with a few rules, and all rules on what was good with those.
    """
    lam, shapes, few = c.lambdas.numpy(), densities(c), slice(0, max(2, c.chosen_on // 4))
    levels = last_levels(c)
    scouts = [k for k in known if k in ("AdamsBashforth(1, data)", "AdamsBashforth(3, velocity)", "UniPC(3, data)")]
    if effort < 0.1:  # a look at a few
        known = {k: v for k, v in known.items() if isinstance(v[0], UniPC) or k == "AdamsBashforth(1, data)"}
        shapes, scouts = {k: shapes[k] for k in ("local2", "lambda")}, list(known)

    def error(rule: str, name: str, last: float) -> float:
        sampler, times = known[rule]
        return c.error(replace(sampler, grid=GivenLambdas(placed(lam, shapes[name], times, last))), few)

    if max(times for _, times in known.values()) == 1:
        levels = [float(lam[-1])]
    found = {(rule, name, last): error(rule, name, last) for rule in scouts for name in shapes for last in levels}
    places = list(dict.fromkeys(key[1:] for key in sorted(found, key=lambda key: found[key])))[:6]
    for rule in known:
        for place in places:
            if (rule, *place) not in found:
                found[rule, *place] = error(rule, *place)
    ranked: dict[str, tuple[float, str, str, float]] = {}
    for key in sorted(found, key=lambda key: found[key]):
        ranked.setdefault(key[0], (found[key], *key))
    return list(ranked.values())
