"""What the report shows: curves, samples side by side, and the ways between noise and data."""

import base64
import math
import re
from typing import Any

import numpy as np
import torch

from sde_gen.comparison.cells.cell import Cell
from sde_gen.comparison.numbers import title_of
from sde_gen.comparison.ranking import by_entry, mean_of
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
        return Section(title, [Text("matplotlib draws curves, and is not installed: `pip install matplotlib`.")])
    one = all(len(line) < 2 for line in points.values())
    named = {key: f"{key[0]}, {key[1]}" for key in points}
    labels = list(dict.fromkeys(named[key] if one else key[1] for key in points))
    panels: dict[str, list[plots.Series]] = {}
    for (f, s), line in points.items():
        label = named[f, s]
        panels.setdefault("all" if one else f, []).append(plots.Series(label, line, labels.index(label if one else s)))
    floor, measure = results.floor.get(results.measure), title_of(results.measure)
    ranges = plots.limits([series for drawn in panels.values() for series in drawn], [] if floor is None else [floor])
    budgets = [b for b in results.budgets if b is not None]
    ticks = budgets if 1 < len(budgets) <= _MOST_TICKS else None
    pictures = []
    for f, drawn in panels.items():
        svg = plots.panel(drawn, "network calls for each sample", measure, *ranges, floor, ticks)
        last = "; ".join(f"{series.label} {series.points[-1][1]:.3g}" for series in drawn)
        alt = f"{measure} against network calls, {f}: {last}"
        pictures.append(Picture(f"calls_{_file(f)}", "svg", svg, alt, "" if one else f))
    marks = [(label, i) for i, label in enumerate(labels)]
    drawing = plots.legend(marks, None if floor is None else "real samples")
    legend = Picture("calls_legend", "svg", drawing, "Legend: " + ", ".join(labels))
    words = (
        "Mean over the seeds with its standard error, against the calls that were counted. The dotted line is what as "
        "many real samples reach: nothing below it means anything. Hollow marks at the upper edge stand for values "
        "above it. Point at a mark for its numbers."
    )
    return Section(title, [Text(words), Gallery([legend], "wide"), Gallery(pictures, "plots")])


def _points(results: ResultTable) -> dict[tuple[str, str], list[tuple[float, float, float | None]]]:
    """(formulation, sampler) to points (calls, measure, error), ascending."""
    lines: dict[tuple[str, str], list[tuple[float, float, float | None]]] = {}
    calls = by_entry(results.rows, "nfe")
    for entry, values in by_entry(results.rows, results.measure).items():
        m, n = mean_of(values.values()), mean_of(calls[entry].values())
        lines.setdefault(entry[:2], []).append((n.mean, m.mean, m.error))
    return {key: sorted(line) for key, line in lines.items()}


def samples(results: ResultTable) -> Section | None:
    """Samples of all formulations and samplers from the same noise, at the largest budget."""
    chosen = _largest(results, "samples")
    if not chosen or not _can_be_drawn(results):
        return None
    real = next((cell for cell in results.cells if cell.kind == "real" and _first_seed(results, cell)), None)
    truth = None if real is None else results.store.arrays(real).get("x")
    truth = results.data.test.numpy() if truth is None else truth
    order = list(results.samplers)
    by_sampler = sorted(chosen, key=lambda key: order.index(key[1]))  # formulations are in their order already
    calls = {row.get("cell"): row.get("nfe") for row in results.rows}
    pictures = [_samples_picture(results, truth, "real samples", "real", truth)]
    for f, s in by_sampler[:_MOST_CELLS]:
        x = results.store.arrays(chosen[f, s]).get("x")
        if x is not None:
            words = f"{f}, {s}, {calls[chosen[f, s].key]} calls"
            pictures.append(_samples_picture(results, x, words, f"{f}_{s}", truth))
    shown, what = {f for f, _ in by_sampler}, "image" if results.data.kind == "image" else "point"
    full = len(by_sampler) == len(shown) * len({s for _, s in by_sampler}) and 1 < len(shown) <= _MOST_COLUMNS
    words = (
        f"Seed {results.settings.seeds[0]}, at the largest budget. Sample i of every picture began from one noise, "
        f"so deterministic samplers should agree {what} by {what}, and differences are the sampler's or the network's."
        + (" Each row is one sampler, each column one formulation." if full else "")
    )
    left = len(by_sampler) - _MOST_CELLS
    blocks: list[Any] = [Text(words), Gallery(pictures[:1]), Gallery(pictures[1:], columns=len(shown) if full else 0)]
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
            _player(results, found),
        ]
    forward = [_forward(results, name, f.perturbation) for name, f in results.formulations.items()]
    blocks += [Text("The forward process: the same data and the same noise, at even times."), Gallery(forward, "wide")]
    if found:
        reverse = [_reverse(results, key[0], key[1], arrays) for key, arrays in _one_each(results, found).items()]
        blocks += [Text("The reverse process, from the prior to the samples."), Gallery(reverse, "wide")]
    return Section("From data to noise and back", blocks)


def _player(results: ResultTable, found: dict[Any, Any]) -> Player:
    formulations = [f for f in results.formulations if any(key[0] == f for key in found)]
    samplers = [s for s in results.samplers if any(key[1] == s for key in found)]
    test = results.data.test[:600].double().numpy()
    half = max(2.6, images.half_width(test))
    scale, count = 32767 / (4 * half), min(_SHOWN_PARTICLES, *(arrays["x"].shape[1] for arrays in found.values()))

    def packed(x: Any) -> str:
        numbers = np.clip(np.round(np.nan_to_num(x) * scale), -32767, 32767).astype("<i2")
        return base64.b64encode(numbers.tobytes()).decode()

    def run(f: str, arrays: Any) -> dict[str, Any] | None:
        if arrays is None:
            return None
        lam = results.formulations[f].perturbation.half_log_snr(torch.from_numpy(arrays["t"])).tolist()
        times = [round(float(t), 4) for t in arrays["t"]]
        lam = [round(v, 3) if math.isfinite(v) else None for v in lam]
        return {"xy": packed(arrays["x"][:, :count]), "t": times, "lam": lam}

    runs = [[run(f, found.get((f, s))) for s in samplers] for f in formulations]
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
    budgets = [b for b in results.budgets if b is not None] or results.budgets
    order = [line.entry[:2] for line in results.ranking(budgets[-1])] if budgets else []
    best = {f: next((key for key in order if key[0] == f and key in found), None) for f, _ in found}
    return {key: found[key] for key in best.values() if key is not None} or found


def _largest(results: ResultTable, kind: str) -> dict[tuple[str, str], Cell]:
    """(formulation, sampler) to its cell of this kind with the largest budget and the first seed."""
    ok = {row.get("cell") for row in results.rows if row["status"] == "ok"}
    result: dict[tuple[str, str], Cell] = {}
    for cell in sorted(results.cells, key=lambda cell: cell.labels.get("budget") or 0):
        if cell.kind == kind and _first_seed(results, cell) and (kind != "samples" or cell.key in ok):
            result[cell.labels["formulation"], cell.labels["sampler"]] = cell
    return {(f, s): result[f, s] for f in results.formulations for s in results.samplers if (f, s) in result}


def _first_seed(results: ResultTable, cell: Cell) -> bool:
    return cell.labels.get("seed") == results.spec["seeds"][0]


def _can_be_drawn(results: ResultTable) -> bool:
    return results.data.kind == "image" or results.data.shape == (2,)


def _file(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").lower()
