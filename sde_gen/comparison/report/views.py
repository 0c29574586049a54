"""What the report shows: curves, samples side by side, and the ways between noise and data."""

import base64
import math
import re
from typing import Any

import numpy as np
import torch

from sde_gen.comparison.cells.cell import Cell
from sde_gen.comparison.numbers import title_of
from sde_gen.comparison.ranking import mean_of
from sde_gen.comparison.report.blocks import Gallery, Picture, Player, Section, Text
from sde_gen.comparison.results import ResultTable
from sde_gen.perturbations import Perturbation
from sde_gen.pictures import curves as plots
from sde_gen.pictures import embedded as images
from sde_gen.pictures import has_matplotlib

_SHOWN_PARTICLES = 120
_STRIP = 7
_MOST_CELLS = 60
_MOST_COLUMNS = 6
_MOST_TICKS = 7


def curves(results: ResultTable) -> Section | None:
    """Quality against counted network calls: a panel for each formulation, or one for all if none has a curve."""
    title, points = "Quality against network calls", _points(results)
    if not points:
        return None
    if not has_matplotlib():
        return Section(
            title, [Text("Curves are drawn by matplotlib, which is not installed: `pip install matplotlib`.")]
        )
    names = list(dict.fromkeys(f for f, _ in points))
    one = all(len(p) < 2 for p in points.values())
    labels = [f"{f}, {s}" for f, s in points] if one else list(dict.fromkeys(s for _, s in points))
    series = {
        key: plots.Series(f"{key[0]}, {key[1]}", value, labels.index(f"{key[0]}, {key[1]}" if one else key[1]))
        for key, value in points.items()
    }
    floor = results.floor.get(results.measure)
    x_range, y_range = plots.limits(list(series.values()), [] if floor is None else [floor])
    panels: dict[str, list[plots.Series]] = {"all": list(series.values())} if one else {}
    for f in [] if one else names:
        panels[f] = [s for key, s in series.items() if key[0] == f]
    measure = title_of(results.measure)
    budgets = [b for b in results.budgets if b is not None]
    ticks = budgets if 1 < len(budgets) <= _MOST_TICKS else None
    pictures = [
        Picture(
            f"calls_{_file(f)}",
            "svg",
            plots.panel(drawn, "network calls for each sample", measure, x_range, y_range, floor, ticks),
            f"{measure} against network calls, {f}: " + "; ".join(f"{s.label} {s.points[-1][1]:.3g}" for s in drawn),
            "" if one else f,
        )
        for f, drawn in panels.items()
    ]
    marks = [(label, i) for i, label in enumerate(labels)]
    alt = "Legend: " + ", ".join(labels)
    key = Picture("calls_legend", "svg", plots.legend(marks, None if floor is None else "real samples"), alt)
    words = (
        "Mean over the seeds with its standard error, against the calls that were counted. The dotted line is what as "
        "many real samples reach: nothing below it means anything. Hollow marks at the upper edge stand for values "
        "above it."
    )
    return Section(title, [Text(words), Gallery([key], "wide"), Gallery(pictures, "plots")])


def _points(results: ResultTable) -> dict[tuple[str, str], list[tuple[float, float, float | None]]]:
    """(formulation, sampler) to points (calls, measure, error), ascending."""
    found: dict[tuple[str, str], dict[Any, list[dict[str, Any]]]] = {}
    for row in results.rows:
        if row["status"] == "ok" and row.get(results.measure) is not None:
            found.setdefault((row["formulation"], row["sampler"]), {}).setdefault(row["budget"], []).append(row)
    result = {}
    for key, budgets in found.items():
        line = []
        for rows in budgets.values():
            m = mean_of(row[results.measure] for row in rows)
            line.append((mean_of(row["nfe"] for row in rows).mean, m.mean, m.error))
        result[key] = sorted(line)
    return result


def samples(results: ResultTable) -> Section | None:
    """Samples of all formulations and samplers from the same noise, at the largest budget."""
    chosen = _largest(results, "samples")
    if not chosen or not _can_be_drawn(results):
        return None
    real = next((cell for cell in results.cells if cell.kind == "real" and _first_seed(results, cell)), None)
    arrays = {key: results.store.arrays(cell).get("x") for key, cell in chosen.items()}
    truth = None if real is None else results.store.arrays(real).get("x")
    truth = results.data.test.numpy() if truth is None else truth
    names, order = list(results.spec["formulations"]), list(results.spec["samplers"])
    by_sampler = sorted(chosen, key=lambda key: (order.index(key[1]), names.index(key[0])))
    pictures = []
    for f, s in by_sampler[:_MOST_CELLS]:
        x = arrays[f, s]
        if x is not None:
            nfe = next(r["nfe"] for r in results.rows if r.get("cell") == chosen[f, s].key)
            pictures.append(_samples_picture(results, x, f"{f}, {s}, {nfe} calls", f"{f}_{s}", truth))
    shown, what = list(dict.fromkeys(f for f, _ in by_sampler)), "image" if results.data.kind == "image" else "point"
    full = len(by_sampler) == len(shown) * len({s for _, s in by_sampler}) and 1 < len(shown) <= _MOST_COLUMNS
    words = (
        f"Seed {results.spec['seeds'][0]}, at the largest budget. Sample i of every picture began from the same noise, "
        f"so deterministic samplers should agree {what} by {what}, and differences are the sampler's or the network's."
        + (" Each row is one sampler, each column one formulation." if full else "")
    )
    left = len(by_sampler) - _MOST_CELLS
    blocks: list[Any] = [
        Text(words),
        Gallery([_samples_picture(results, truth, "real samples", "real", truth)]),
        Gallery(pictures, columns=len(shown) if full else 0),
    ]
    blocks += [Text(f"{left} more are in the cache and not shown here.")] if left > 0 else []
    return Section("Samples from the same noise", blocks)


def _samples_picture(results: ResultTable, x: Any, caption: str, name: str, truth: Any) -> Picture:
    if results.data.kind == "image":
        data, alt = images.grid(x[:36], 6), f"A grid of {min(len(x), 36)} images: {caption}"
    else:
        data, alt = images.cloud(x, images.half_width(truth)), f"{len(x)} points in the plane: {caption}"
    return Picture(f"samples_{_file(name)}", "png", data, alt, caption, sharp=results.data.kind == "image")


def ways(results: ResultTable) -> Section | None:
    """Forward and reverse processes, and moving particles in the plane."""
    if not _can_be_drawn(results):
        return None
    perturbations = {name: formulation.perturbation for name, formulation in results.formulations.items()}
    traces = _largest(results, "trace")
    blocks: list[Any] = []
    found = {key: results.store.arrays(cell) for key, cell in traces.items()}
    found = {key: arrays for key, arrays in found.items() if "x" in arrays and len(arrays["x"]) > 1}
    if results.data.kind == "vector" and found:
        blocks += [
            Text(
                "Particles on their way from noise to data, all from the same noise, at the largest budget. Drag the "
                "slider, or press Play. States are divided by the size of the process, the root of alpha squared plus "
                "sigma squared, so that growing and shrinking processes fit one picture."
            ),
            _player(results, perturbations, found),
        ]
    forward = [_forward(results, name, p) for name, p in perturbations.items()]
    blocks += [Text("The forward process: the same data and the same noise, at even times."), Gallery(forward, "wide")]
    if found:
        reverse = [_reverse(results, key[0], key[1], arrays) for key, arrays in _one_each(results, found).items()]
        blocks += [Text("The reverse process, from the prior to the samples."), Gallery(reverse, "wide")]
    return Section("From data to noise and back", blocks)


def _player(results: ResultTable, perturbations: dict[str, Perturbation], found: dict[Any, Any]) -> Player:
    formulations = [f for f in results.spec["formulations"] if any(k[0] == f for k in found)]
    samplers = [s for s in results.spec["samplers"] if any(k[1] == s for k in found)]
    test = results.data.test[:600].double().numpy()
    half = max(2.6, images.half_width(test))
    scale = 32767 / (4 * half)

    def packed(x: Any) -> str:
        numbers = np.clip(np.round(np.nan_to_num(x) * scale), -32767, 32767).astype("<i2")
        return base64.b64encode(numbers.tobytes()).decode()

    count = min(_SHOWN_PARTICLES, *(arrays["x"].shape[1] for arrays in found.values()))
    runs: list[list[Any]] = []
    for f in formulations:
        row: list[Any] = []
        for s in samplers:
            arrays = found.get((f, s))
            if arrays is None:
                row.append(None)
                continue
            lam = perturbations[f].half_log_snr(torch.from_numpy(arrays["t"])).tolist()
            row.append({
                "xy": packed(arrays["x"][:, :count]),
                "t": [round(float(t), 4) for t in arrays["t"]],
                "lam": [round(v, 3) if math.isfinite(v) else None for v in lam],
            })  # fmt: skip
        runs.append(row)
    data = {"formulations": formulations, "samplers": samplers, "runs": runs, "count": count, "half": round(half, 3),
            "scale": scale, "real": packed(test)}  # fmt: skip
    return Player(data, "The moving particles are in `report.html`.")


def _forward(results: ResultTable, name: str, p: Perturbation) -> Picture:
    test = results.data.test[: 4 if results.data.kind == "image" else 2048].double()
    noise = torch.randn(test.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states = []
    for k in range(_STRIP):
        t = p.t_max * k / (_STRIP - 1)
        size = math.hypot(float(p.alpha(t)), float(p.sigma(t)))
        states.append((p.perturb(test, t, noise) / max(size, 1e-12)).numpy())
    return _strip(results, states, f"forward_{_file(name)}", f"{name}: t from 0 to {p.t_max:g}")


def _reverse(results: ResultTable, f: str, s: str, arrays: Any) -> Picture:
    frames = arrays["x"]
    chosen = [round(k * (len(frames) - 1) / (_STRIP - 1)) for k in range(_STRIP)]
    caption = f"{f}, {s}: t from {float(arrays['t'][0]):g} to {float(arrays['t'][-1]):g}"
    return _strip(results, [frames[k] for k in chosen], f"reverse_{_file(f'{f}_{s}')}", caption)


def _strip(results: ResultTable, states: list[Any], name: str, caption: str) -> Picture:
    if results.data.kind == "image":
        stacked = np.stack([state[:2] for state in states], axis=1).reshape(-1, *states[0].shape[1:])
        alt = f"Images along the way, left to right. {caption}"
        return Picture(name, "png", images.grid(stacked, len(states)), alt, caption, sharp=True)
    half = max(2.6, images.half_width(results.data.test.numpy()))
    return Picture(name, "png", images.clouds(states, half), f"Points along the way, left to right. {caption}", caption)


def _one_each(results: ResultTable, found: dict[Any, Any]) -> dict[Any, Any]:
    """All ways of images; in the plane, where the particles show all, that of the best sampler of each formulation."""
    if results.data.kind == "image":
        return found
    best: dict[str, Any] = {}
    for budget in results.budgets:
        if budget is not None or len(results.budgets) == 1:
            order = [(line.entry[0], line.entry[1]) for line in results.ranking(budget)]
            best = {f: next(((a, b) for a, b in order if a == f and (a, b) in found), None) for f, _ in found}
    keys = [key for key in best.values() if key is not None]
    return {key: found[key] for key in keys} or found


def _largest(results: ResultTable, kind: str) -> dict[tuple[str, str], Cell]:
    """(formulation, sampler) to its cell of this kind with the largest budget and the first seed."""
    result: dict[tuple[str, str], Cell] = {}
    ok = {row.get("cell") for row in results.rows if row["status"] == "ok"}
    for cell in results.cells:
        if cell.kind == kind and _first_seed(results, cell) and (kind != "samples" or cell.key in ok):
            key = (cell.labels["formulation"], cell.labels["sampler"])
            if key not in result or (cell.labels["budget"] or 0) > (result[key].labels["budget"] or 0):
                result[key] = cell
    f, s = ({name: i for i, name in enumerate(results.spec[k])} for k in ("formulations", "samplers"))
    return dict(sorted(result.items(), key=lambda item: (f[item[0][0]], s[item[0][1]])))


def _first_seed(results: ResultTable, cell: Cell) -> bool:
    return cell.labels.get("seed") == results.spec["seeds"][0]


def _can_be_drawn(results: ResultTable) -> bool:
    return results.data.kind == "image" or results.data.shape == (2,)


def _file(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").lower()
