"""Likelihoods: accuracy, cost and calibration on the two public problems, where the density is known.

    python benchmarks/likelihood.py --out docs/verification/likelihood.md

Errors are mean absolute errors in nats per dimension, after the prior mismatch and the truncation at t_min, which are
known here and are printed by themselves. `in t, x` is the usual way beside ours, in the same run: scipy's RK45 over a
whole batch with one step size, in the time and the state of the process, at rtol = atol = 1e-5; with the exact trace,
and with one Rademacher probe held fixed; and Heun's method in t with 100 steps and probes drawn afresh at every call.
"""

import argparse
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from problems import PROBLEMS
from scipy import stats
from scipy.integrate import solve_ivp
from torch import Tensor

import sde_gen as sg
from sde_gen.likelihood.divergence import with_divergence

POINTS = {2: 256, 64: 24}
FORMULATIONS = (sg.VP(), sg.SubVP(), sg.VE(), sg.EDM())
SIGNS = (-1.0, 1.0)


def signs(g: torch.Generator, *shape: int) -> Tensor:
    """Rademacher numbers."""
    return torch.randint(0, 2, shape, generator=g).to(torch.float64) * 2 - 1


class InTime:
    """The probability-flow ODE in (t, x), as it is usually integrated."""

    def __init__(self, model: sg.ScoreModel, x: Tensor) -> None:
        self.model, self.p, self.x, self.calls = model, model.perturbation, x, 0

    def rates(self, t: float, x: Tensor, probes: Tensor | None) -> tuple[Tensor, Tensor]:
        """dx/dt, and its divergence or an estimate of it."""
        self.calls += 1
        f, g = float(self.p.drift(t)), float(self.p.diffusion(t))

        def drift(v: Tensor) -> Tensor:
            return f * v - 0.5 * g**2 * self.model(v, t).score

        velocity, divergence = with_divergence(drift, x, probes)
        return velocity, divergence.mean(1)

    def finish(self, x: Tensor, integral: Tensor) -> Tensor:
        """Log-density at the start, prior mismatch taken off."""
        return self.model.log_prob(x, 1.0) + integral

    def rk45(self, probes: Tensor | None) -> Tensor:
        """One step size for the whole batch."""
        n, d = self.x.shape

        def right(t: float, y: np.ndarray) -> np.ndarray:
            x = torch.from_numpy(y[: n * d]).reshape(n, d)
            velocity, divergence = self.rates(t, x, probes)
            return np.concatenate([velocity.numpy().reshape(-1), divergence.numpy()])

        start = np.concatenate([self.x.numpy().reshape(-1), np.zeros(n)])
        y = solve_ivp(right, (self.p.t_min, 1.0), start, method="RK45", rtol=1e-5, atol=1e-5).y[:, -1]
        return self.finish(torch.from_numpy(y[: n * d]).reshape(n, d), torch.from_numpy(y[n * d :]))

    def heun(self, steps: int, g: torch.Generator) -> Tensor:
        """Fresh probes at each of 2 `steps` calls."""
        x, total = self.x, torch.zeros(len(self.x), dtype=torch.float64)
        times = np.linspace(self.p.t_min, 1.0, steps + 1)
        for t, s in pairwise(times):
            k1, d1 = self.rates(t, x, signs(g, 1, *x.shape))
            k2, d2 = self.rates(s, x + (s - t) * k1, signs(g, 1, *x.shape))
            x, total = x + 0.5 * (s - t) * (k1 + k2), total + 0.5 * (s - t) * (d1 + d2)
        return self.finish(x, total)


def accuracy() -> list[dict]:
    """Every formulation, exact divergence, at the default tolerances and on a grid of 98 nodes."""
    rows = []
    for name, make in PROBLEMS.items():
        law = make()
        x = law.sample(POINTS[law.dim], seed=1)
        for p in FORMULATIONS:
            for kind, kw in (("rtol = atol = 1e-5", {}), ("98 nodes", {"steps": 98})):
                ll = sg.log_likelihood(law.model(p), x, divergence="exact", **kw)
                e = (ll.log_prob - ll.prior_mismatch - ll.truncation - law.log_prob(x)).abs() / law.dim
                calls = ll.nfe_per_sample.double()
                rows.append({
                    "problem": name, "formulation": str(p), "solver": kind, "mean error": float(e.mean()),
                    "largest error": float(e.max()), "NFE, mean": float(calls.mean()), "NFE, largest": ll.nfe,
                    "prior mismatch": float(ll.prior_mismatch.mean()) / law.dim,
                    "truncation": float(ll.truncation.mean()) / law.dim,
                })  # fmt: skip
                print(rows[-1], flush=True)
    return rows


def cost() -> list[dict]:
    """Ways of computing the same numbers under VP, in turn."""
    rows = []
    for name, make in PROBLEMS.items():
        law = make()
        d = law.dim
        x, model, g = law.sample(POINTS[d], seed=2), law.model(sg.VP()), torch.Generator().manual_seed(0)
        at_t_min = model.log_prob(x, sg.VP().t_min)

        def ours(law: sg.GaussianMixture = law, x: Tensor = x, model: sg.Oracle = model, **kw) -> tuple[Tensor, float]:
            ll = sg.log_likelihood(model, x, **kw)
            known = ll.prior_mismatch + ll.truncation
            return ll.log_prob - known - law.log_prob(x), float(ll.nfe_per_sample.double().mean())

        def usual(way: Callable[[InTime], Tensor], truth: Tensor = at_t_min, x: Tensor = x, model: sg.Oracle = model):
            flow = InTime(model, x)
            return way(flow) - truth, float(flow.calls)

        ways: dict[str, Callable[[], tuple[Tensor, float]]] = {
            "one fixed probe, RK45 in t, x": lambda u=usual, g=g, x=x: u(lambda f: f.rk45(signs(g, 1, *x.shape))),
            "exact trace, RK45 in t, x": lambda u=usual: u(lambda f: f.rk45(None)),
            "fresh probes, Heun in t, x": lambda u=usual, g=g: u(lambda f: f.heun(100, g)),
        }
        estimates = {"divergence": "hutchinson", "steps": 98, "seed": 4}
        for way, kw in {
            "one fixed probe, adaptive in lambda": {"divergence": "hutchinson", "seed": 4},
            "exact trace, adaptive in lambda": {"divergence": "exact"},
            "exact trace, 98 nodes": {"divergence": "exact", "steps": 98},
            "one fixed probe, 98 nodes": {**estimates, "probe": "rademacher"},
            "4 fixed probes, 98 nodes": {**estimates, "probe": "rademacher", "probes": 4},
            "4 fresh probes a node, 98 nodes": {**estimates, "probe": "fresh", "probes": 4},
            "1 Walsh probe a node, 98 nodes": {**estimates, "probes": 1},
            "2 Walsh probes a node, 98 nodes": {**estimates, "probes": 2},
            "4 Walsh probes a node, 98 nodes": {**estimates, "probes": 4},
            "8 Walsh probes a node, 98 nodes": {**estimates, "probes": 8},
        }.items():
            ways[way] = lambda o=ours, kw=kw: o(**kw)
        base_error = base_time = 1.0
        for way, run in ways.items():
            run()  # warm
            seconds, errors = [], []
            for _ in range(3):
                began = time.process_time()
                e, calls = run()
                seconds.append(time.process_time() - began)
                errors.append(float(e.abs().mean()) / d)
            error, spent = sum(errors) / 3, min(seconds)
            if not rows or rows[-1]["problem"] != name:
                base_error, base_time = error, spent
            rows.append({
                "problem": name, "way": way, "error": error, "NFE": calls, "CPU seconds": spent,
                "error / one fixed probe": error / base_error, "time / one fixed probe": spent / base_time,
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def calibration(repeats: int = 200) -> list[dict]:
    """How often the truth lies within one and two standard errors, beside Student's t."""
    rows = []
    for name, make in PROBLEMS.items():
        law = make()
        model = law.model(sg.VP())
        x = law.sample(4, seed=3)
        for probe, probes, groups, kw in (
            ("rademacher", 8, 8, {"rtol": 1e-4, "atol": 1e-4}),
            ("gaussian", 8, 8, {"rtol": 1e-4, "atol": 1e-4}),
            ("walsh", 8, 4, {"steps": 98}),
            ("walsh", 16, 8, {"steps": 98}),
        ):
            if law.dim == 2 and probe == "walsh":
                continue  # two Walsh rows are the exact trace there
            exact = sg.log_likelihood(model, x, divergence="exact", **kw).log_prob
            many = x.repeat(repeats, 1)
            ll = sg.log_likelihood(model, many, divergence="hutchinson", probe=probe, probes=probes, seed=11, **kw)
            score = ((ll.log_prob - exact.repeat(repeats)) / ll.standard_error).abs()
            rows.append({
                "problem": name, "probes": f"{probes} {probe}", "within 1": float((score < 1).double().mean()),
                "t expects 1": 1 - 2 * stats.t.sf(1, groups - 1), "within 2": float((score < 2).double().mean()),
                "t expects 2": 1 - 2 * stats.t.sf(2, groups - 1), "within 3": float((score < 3).double().mean()),
                "t expects 3": 1 - 2 * stats.t.sf(3, groups - 1),
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def linear_part() -> list[dict]:
    """Variance of one probe's estimate, summed over lambda: the drift of VE against what is left of it in (lambda, u).

    dx/dlambda = sigma^2 score has the Jacobian sigma^2 J. In u = x / sqrt(1 + sigma^2) the part that standard normal
    data have, -sigma^2/(1 + sigma^2) I, is known and is not estimated.
    """
    rows = []
    for name, make in PROBLEMS.items():
        law = make()
        d = law.dim
        x0, p, model = law.sample(POINTS[d], seed=5), sg.VE(), law.model(sg.VE())
        whole = {"rademacher": 0.0, "gaussian": 0.0}
        rest = dict(whole)
        g = torch.Generator().manual_seed(1)
        identity = torch.eye(d, dtype=torch.float64)
        for lam in np.linspace(float(p.half_log_snr(p.t_min)), float(p.half_log_snr(1.0)), 25).tolist():
            t = p.time(torch.tensor(lam, dtype=torch.float64))
            x = p.perturb(x0, t, torch.randn(x0.shape, generator=g, dtype=torch.float64))
            score = torch.func.vmap(torch.func.jacrev(lambda v, t=t, m=model: m(v[None], t).score[0]))
            s2 = float(p.sigma(t)) ** 2
            full = s2 * score(x)
            for total, j in ((whole, full), (rest, full + s2 / (1 + s2) * identity)):
                sym = 0.5 * (j + j.mT)
                square = float(sym.square().sum((1, 2)).mean())
                total["gaussian"] += 2 * square
                total["rademacher"] += 2 * (square - float(sym.diagonal(dim1=1, dim2=2).square().sum(1).mean()))
        rows += [
            {"problem": name, "probe": kind, "variance, whole": whole[kind], "variance, rest": rest[kind],
             "ratio": rest[kind] / whole[kind]}
            for kind in whole
        ]  # fmt: skip
    return rows


def table(rows: list[dict]) -> str:
    """Markdown."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [v if isinstance(v, str) else (f"{v:.0f}" if v > 20 else f"{v:.2g}") for v in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="Markdown; the same as JSON goes beside it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = {
        "Accuracy of the exact divergence": accuracy(),
        "Cost": cost(),
        "Calibration of the standard error": calibration(),
        "The linear part of the divergence": linear_part(),
    }
    text = (
        "# Likelihoods against exact densities\n\n"
        "`python benchmarks/likelihood.py --out docs/verification/likelihood.md`\n\n"
        "Errors in nats per dimension, after the prior mismatch and the truncation at t_min.\n"
    )
    text += "".join(f"\n## {title}\n\n{table(rows)}\n" for title, rows in parts.items())
    print(text)
    if args.out:
        args.out.write_text(text)
        args.out.with_suffix(".json").write_text(json.dumps(parts, indent=1) + "\n")


if __name__ == "__main__":
    main()
