"""Published samplers of inverse problems against exact posteriors, beside those of the library.

    python benchmarks/posteriors.py [--problem 2d 8d blur small 64d magnitudes saturated] [--observations 8]
        [--samples 512] [--repeats 1] [--library] [--out FILE]

About a minute of one core for four observations of a problem at 256 samples; more for 64d.

Data from mixtures of Gaussians with the exact score: all error is the method's. The published methods are those of
`posterior_published.py`; azula and deepinv stand beside them where they are installed (`posterior_peers.py`).
Measurements that are not linear have no posterior in closed form; exact draws are then a million of the prior, drawn
again by their likelihood.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import posterior_peers
import posterior_published
import torch
from torch import Tensor

import sde_gen as sg
from sde_gen.inverse import Blur, Mask, Matrix, Nonlinear, Operator, Particles, Posterior, PosteriorTable, Reshape
from sde_gen.inverse.compared import METHODS
from sde_gen.metrics import sliced_wasserstein


def mixture(dim: int, modes: int, spread: float, low: float, high: float, seed: int = 3) -> sg.GaussianMixture:
    """A random mixture with full covariances whose standard deviations lie between low and high."""
    g = torch.Generator().manual_seed(seed)
    means = spread * torch.randn(modes, dim, generator=g, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(modes, dim, dim, generator=g, dtype=torch.float64))[0]
    std = low * (high / low) ** torch.rand(modes, dim, generator=g, dtype=torch.float64)
    cov = turn @ torch.diag_embed(std**2) @ turn.mT
    return sg.GaussianMixture(torch.rand(modes, generator=g) + 0.3, means, (cov + cov.mT) / 2)


def digits() -> sg.GaussianMixture:
    """One Gaussian for each class of the 8 x 8 digits, on [-1, 1]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.from_numpy(data.data / 8 - 1)
    parts = [x[torch.from_numpy(data.target == c)] for c in range(10)]
    covs = [0.9 * part.T.cov() + 0.1 * part.T.cov().diagonal().diag() + 0.02 * torch.eye(64) for part in parts]
    return sg.GaussianMixture([len(p) for p in parts], torch.stack([p.mean(0) for p in parts]), torch.stack(covs))


def problems() -> dict[str, Callable[[], tuple[sg.GaussianMixture, Operator, float]]]:
    """Name to law, operator and noise."""
    plane, eight = mixture(2, 8, 1.0, 0.08, 0.25), mixture(8, 10, 0.8, 0.15, 0.6)
    seen = Mask([i in (0, 3, 5) for i in range(8)])
    upper = Mask([i < 24 for i in range(64)])
    return {
        "2d": lambda: (plane, Matrix([[1.0, 0.0]]), 0.3),
        "8d": lambda: (eight, seen, 0.1),
        "blur": lambda: (eight, Blur([[0.2, 0.6, 0.2]]) @ Reshape((1, 1, 8)), 0.5),
        "small": lambda: (plane, Matrix([[1.0, 0.0]]), 0.001),
        "64d": lambda: (digits(), upper, 0.3),
    }  # fmt: skip


NONLINEAR: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "magnitudes": (lambda x: x[:, :3].abs(), 0.1),
    "saturated": (lambda x: (3 * x[:, :4]).tanh(), 0.1),
}


def nonlinear(name: str, observations: int, samples: int, sets: int = 6) -> list[dict[str, Any]]:
    """Rows as of `sg.compare_posteriors` for y = h(x) + noise in 8-D."""
    law, (h, noise) = mixture(8, 10, 0.8, 0.15, 0.6), NONLINEAR[name]
    model, prior = law.model(sg.VP()), law.sample(1_000_000, 9)
    clean = h(law.sample(observations, 0))
    ys = clean + noise * torch.randn(clean.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    chain = sg.Ancestral(steps=100, grid="lambda")
    rows = []
    for i, y in enumerate(ys):
        log_likelihood = -0.5 * ((h(prior) - y) / noise).square().sum(1)
        scale = y.numel() * math.log(noise * (2 * math.pi) ** 0.5)
        evidence = float(log_likelihood.logsumexp(0)) - math.log(len(prior)) - scale
        g = torch.Generator().manual_seed(i)
        weights = log_likelihood.softmax(0)
        truth = [prior[torch.multinomial(weights, samples, replacement=True, generator=g)] for _ in range(sets)]
        modes = (weights[:, None] * law.responsibilities(prior)).sum(0)
        pairs = torch.tensor([[float(sliced_wasserstein(a, b)) for a in truth] for b in truth])
        each = pairs.sum(1) / (sets - 1)
        floor, residual = float(each.mean()), sum(_misfit(h, x, y, noise) for x in truth) / sets
        modes_floor = sum(_modes(law, x, modes) for x in truth) / sets
        posterior = Posterior(model, Nonlinear(h, norm=3.0), y, noise)
        methods = {
            "PiGDM, ancestral 100": lambda **more: chain(posterior.using("pigdm"), **more),
            "MMPS, ancestral 100": lambda **more: chain(posterior.using("mmps"), **more),
            "particles, PiGDM": lambda **more: sg.TwistedSMC(twist="pigdm", return_all=True)(posterior, **more),
            "particles, MMPS": lambda **more: sg.TwistedSMC(twist="mmps", return_all=True)(posterior, **more),
            "particles, no gradient, 64": lambda **more: sg.TwistedSMC(particles=64, twist="none")(posterior, **more),
        }  # fmt: skip
        for method, draw in methods.items():
            began = time.perf_counter()
            found = draw(shape=(samples, 8), seed=0, dtype=torch.float64)
            seconds, off = time.perf_counter() - began, math.nan
            drawn = {method: found.x.double()}
            if isinstance(found, Particles):
                off = float(found.log_evidence) - evidence
                if found.particles is not None:
                    drawn[f"{method}, pooled"] = found.pooled(samples).double()
            rows += [{
                "method": key, "observation": i, "distance_error": float(each.std()) / floor,
                "distance": sum(float(sliced_wasserstein(x, other)) for other in truth) / sets / floor,
                "modes": _modes(law, x, modes), "modes_floor": modes_floor,
                "residual": _misfit(h, x, y, noise) / residual, "evidence": off, "nfe": found.nfe,
                "products": found.products, "seconds": seconds,
            } for key, x in drawn.items()]  # fmt: skip
    return rows


def _misfit(h: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, noise: float) -> float:
    return float(((h(x) - y) / noise).square().mean())


def _modes(law: sg.GaussianMixture, x: Tensor, weights: Tensor) -> float:
    return 0.5 * float((law.responsibilities(x).mean(0) - weights).abs().sum())


TITLES = {
    "2d": "2-D, 8 modes, one number seen, noise 0.3",
    "8d": "8-D, 10 modes, three numbers seen, noise 0.1",
    "blur": "8-D, 10 modes, blurred, noise 0.5",
    "small": "2-D, 8 modes, one number seen, noise 0.001",
    "64d": "64-D, a Gaussian for each class of 8 x 8 digits, 24 pixels seen, noise 0.3",
    "magnitudes": "8-D, 10 modes, three numbers seen without their signs, noise 0.1",
    "saturated": "8-D, 10 modes, tanh of three times four numbers, noise 0.1",
}


def markdown(rows: list[dict[str, Any]]) -> str:
    """Tables of the page, one for each problem."""
    parts = []
    for problem in dict.fromkeys(row["problem"] for row in rows):
        mine = [row for row in rows if row["problem"] == problem]
        table = PosteriorTable(tuple(mine))
        count = len({row["observation"] for row in mine})
        scatter = sum(row["distance_error"] for row in mine) / len(mine)
        modes = sum(row["modes_floor"] for row in mine) / len(mine)
        parts.append(
            f"## {TITLES[problem]}\n\n{count} observations, {mine[0]['samples']} draws. Exact draws are at 1 +- "
            f"{scatter:.2f} for one observation, and their modes off by {modes:.3f}.\n\n"
            "| method | over floor | worst | modes off | worst | residual | log p(y) off | calls | products |\n"
            "|---|---|---|---|---|---|---|---|---|"
        )
        for row in table.means():
            off = "" if row["evidence"] != row["evidence"] else f"{row['evidence']:.3f}"
            parts[-1] += (
                f"\n| {row['method']} | {row['distance']:.2f} ± {row['distance_error']:.2f} | {row['worst']:.2f} "
                f"| {row['modes']:.3f} | {row['worst_modes']:.3f} | {row['residual']:.2f} | {off} | {row['nfe']} "
                f"| {row['products']} |"
            )
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Print a table for each problem, and write all rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", nargs="+", choices=list(TITLES), default=["2d", "8d", "blur", "small"])
    parser.add_argument("--observations", type=int, default=8)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--library", action="store_true", help="the library's own methods alone")
    parser.add_argument("--out", type=Path, help="a JSON file for all rows; those of other problems in it are kept")
    given = parser.parse_args()
    kept = json.loads(given.out.read_text("utf-8")) if given.out and given.out.exists() else []
    rows = [row for row in kept if row["problem"] not in given.problem]
    peers, missing = ({}, []) if given.library else posterior_peers.installed()
    for sentence in missing:
        print(sentence, file=sys.stderr)
    for name in given.problem:
        if name in NONLINEAR:
            found = nonlinear(name, given.observations, given.samples)
        else:
            law, operator, noise = problems()[name]()
            # What replaces numbers that are seen needs numbers, and not mixtures of them.
            skipped = () if isinstance(operator, Mask | Matrix) else ("replacement", "RePaint, 10")
            published = (
                {} if given.library else {k: v for k, v in posterior_published.METHODS.items() if k not in skipped}
            )
            methods = published | peers | METHODS | {"particles, PiGDM, 200": sg.TwistedSMC(twist="pigdm", steps=200)}
            found = sg.compare_posteriors(
                law, operator, noise, methods, observations=given.observations, samples=given.samples,
                repeats=given.repeats,
            ).rows  # fmt: skip
        print(f"\n{name}\n{PosteriorTable(tuple(found))}", flush=True)
        rows += [{"problem": name, "samples": given.samples, **row} for row in found]
        if given.out:
            rows.sort(key=lambda row: list(TITLES).index(row["problem"]))
            given.out.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    print(markdown(rows))


if __name__ == "__main__":
    main()
