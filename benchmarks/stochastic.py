"""Stochastic solvers at few network calls, with exact scores, beside other libraries.

    python benchmarks/stochastic.py [--out docs/verification] [--quick]

Sliced Wasserstein distance of 20,000 samples to 20,000 exact ones of the same mixture under VP(0.1, 20), and beside it
that of two exact sets: the noise floor. Both are averaged over three exact sets and over mixtures, with the standard
error over the latter; "excess" in the JSON is what is left when the floor is taken off in squares. Mixtures: seed 0 of
benchmarks/problems.py, the public ones, and two others of the same kind; the recommended settings were chosen on
seeds 1 to 4 instead.

Weak error: error of the mean and of the standard deviation, relative to the latter, for Gaussian data of standard
deviation 0.5 and mean 1, read off from unit noises and so without sampling error.

Peers are run on the same mixtures with the same exact score where they are installed: diffusers' SDE-DPM-Solver++
2M on each of its grids and Euler ancestral, on the DDPM chain of 1,000 nodes, and azula's DDPM and DDIM samplers on
VP itself.

Writes stochastic.md, stochastic.json and stochastic.png.
"""

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from problems import PROBLEMS
from torch import Tensor

import sde_gen as sg

BUDGETS = (10, 20, 30, 50)
SEEDS = (0, 11, 12)
COUNT = 20_000
VP = sg.VP(0.1, 20.0)


def recommended(nfe: int) -> sg.GridSampler:
    """The documented default of each budget, the same for every problem."""
    return sg.SDEDPMSolverPP(eta=0.2 if nfe < 15 else 0.4 if nfe < 40 else 1.0, steps=nfe)


#: Of a number of calls: the sampler with at most that many.
OURS: dict[str, Callable[[int], sg.Sampler]] = {
    "recommended": recommended,
    "ExponentialSDE": lambda n: sg.ExponentialSDE(steps=n),
    "SDEDPMSolverPP(2)": lambda n: sg.SDEDPMSolverPP(steps=n),
    "SDEDPMSolverPP(3)": lambda n: sg.SDEDPMSolverPP(solver_order=3, steps=n),
    "StochasticHeun": lambda n: sg.StochasticHeun(steps=(n + 1) // 2),
    "EDMChurn": lambda n: sg.EDMChurn(steps=(n + 1) // 2),
    "Restart(DPMSolverPP2M)": lambda n: sg.Restart(
        rule=sg.DPMSolverPP2M(), intervals=[(0.3, 1.0, 1, 3)], steps=n - 5, grid=sg.ArctanLambda()
    ),
    "EulerMaruyama": lambda n: sg.EulerMaruyama(steps=n),
}


class Exact(torch.nn.Module):
    """The exact denoiser of a mixture under VP in single precision, for a batch at one noise level: several times as
    fast as the oracle, which works in double, and equal to 1e-4 (checked at the start of a run).
    """

    def __init__(self, law: sg.GaussianMixture) -> None:
        super().__init__()
        values, axes = torch.linalg.eigh(law.covariances)
        self.means, self.values = law.means.float(), values.float()
        self.axes = axes.permute(1, 0, 2).flatten(1).float()  # (D, K D)
        self.centres = torch.einsum("kd,kde->ke", law.means, axes).float()
        self.log_weights = law.weights.log().float()

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        alpha2 = float(torch.sigmoid(2 * c_noise[0].double()))
        alpha, total = alpha2**0.5, alpha2 * self.values + (1 - alpha2)
        d = (x.float() @ self.axes).view(len(x), *self.values.shape) - alpha * self.centres
        logs = (
            self.log_weights
            - 0.5 * total.log().sum(1)
            - 0.5 * (d.square().flatten(1) @ torch.block_diag(*(1 / total)).T)
        )
        share = logs.softmax(1)
        d.mul_(alpha * self.values / total).mul_(share[..., None])
        return (d.flatten(1) @ self.axes.T + share @ self.means).to(x.dtype)


def exact_model(law: sg.GaussianMixture) -> sg.ScoreModel:
    """`law.model(VP)`, faster."""
    model, slow = sg.ScoreModel(Exact(law), VP, sg.DataPrediction()), law.model(VP)
    for t in (1.0, 0.5, 0.1, 1e-3):
        x = VP.perturb(law.sample(200, seed=1), t, torch.randn(200, law.dim, dtype=torch.float64))
        if float((model(x, t).denoised - slow(x, t).denoised).abs().max()) > 1e-4:
            raise RuntimeError(f"the fast denoiser is wrong at t = {t}")
    return model


def sliced(x: Tensor, y: Tensor, projections: int = 64) -> float:
    """Sliced W2 of two sets of equal size, in float32 sorting."""
    g = torch.Generator().manual_seed(0)
    d = torch.randn(x.shape[1], projections, generator=g, dtype=torch.float64)
    d /= d.norm(dim=0)
    u, v = ((z.to(torch.float64) @ d).float().sort(dim=0).values for z in (x, y))
    return float((u - v).square().mean().sqrt())


# -- peers -------------------------------------------------------------------------------------------------------------


def diffusers_runs() -> dict[str, Callable[[sg.ScoreModel, int, int, int], Tensor]]:
    """Its stochastic schedulers with the exact noise prediction on the DDPM chain."""
    try:
        import diffusers
    except ImportError:
        return {}
    kinds: dict[str, Callable[[], Any]] = {}
    for solver in ("uniform t", "karras", "lambda"):
        options = {"use_karras_sigmas": solver == "karras", "use_lu_lambdas": solver == "lambda"}
        kinds[f"diffusers SDE-DPM-Solver++ 2M, {solver}"] = lambda o=options: diffusers.DPMSolverMultistepScheduler(
            beta_schedule="linear", algorithm_type="sde-dpmsolver++", solver_order=2, **o
        )
    kinds["diffusers Euler ancestral"] = lambda: diffusers.EulerAncestralDiscreteScheduler(beta_schedule="linear")

    def runner(make: Callable[[], Any]) -> Callable[[sg.ScoreModel, int, int, int], Tensor]:
        def run(model: sg.ScoreModel, dim: int, nfe: int, seed: int) -> Tensor:
            scheduler = make()
            scheduler.set_timesteps(nfe)
            torch.manual_seed(seed)
            x = torch.randn(COUNT, dim) * scheduler.init_noise_sigma
            for i, t in enumerate(scheduler.timesteps):
                scaled = scheduler.scale_model_input(x, t)
                sigma = float(scheduler.sigmas[i])
                alpha = 1 / math.sqrt(1 + sigma**2)
                levels = (torch.tensor(v, dtype=torch.float64) for v in (alpha, alpha * sigma))
                state = scaled if "Euler" in type(scheduler).__name__ else x
                eps = model.predict(state.double(), *levels, {}).noise.float()
                x = scheduler.step(eps, t, x).prev_sample
            return x

        return run

    return {name: runner(make) for name, make in kinds.items()}


def azula_runs() -> dict[str, Callable[[sg.ScoreModel, int, int, int], Tensor]]:
    """Its stochastic samplers on VP itself, uniform in t; its last step goes to t = 1e-3 and is denoised here."""
    try:
        import azula.denoise
        import azula.noise
        import azula.sample
    except ImportError:
        return {}

    class Schedule(azula.noise.Schedule):
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return VP.alpha(t), VP.sigma(t)

    class Denoiser(azula.denoise.Denoiser):
        def __init__(self, model: sg.ScoreModel) -> None:
            super().__init__()
            self.model, self.schedule = model, Schedule()

        def forward(self, x: Tensor, t: Tensor, **kwargs: Any) -> Any:
            return azula.denoise.DiracPosterior(self.model(x, t).denoised)

    def runner(kind: str, **options: Any) -> Callable[[sg.ScoreModel, int, int, int], Tensor]:
        def run(model: sg.ScoreModel, dim: int, nfe: int, seed: int) -> Tensor:
            torch.manual_seed(seed)
            sampler = getattr(azula.sample, kind)(Denoiser(model), start=1.0, stop=1e-3, steps=nfe - 1, silent=True,
                                                  dtype=torch.float64, **options)  # fmt: skip
            x = sampler(torch.randn(COUNT, dim, dtype=torch.float64) * VP.prior_std)
            return model(x, 1e-3).denoised

        return run

    return {"azula DDPM": runner("DDPMSampler"), "azula DDIM(eta=0.5)": runner("DDIMSampler", eta=0.25)}


# -- measurements ------------------------------------------------------------------------------------------------------


def distances(problem: str, seeds: tuple[int, ...], peers: bool) -> Iterator[dict[str, Any]]:
    """One row for each sampler and budget: sliced W2, over the mixtures."""
    theirs = (diffusers_runs() | azula_runs()) if peers else {}
    found: dict[tuple[str, int], list[tuple[int, float]]] = {}
    floors: list[tuple[int, float]] = []
    for seed in seeds:
        law = PROBLEMS[problem](seed)
        model = exact_model(law)
        reals = [law.sample(COUNT, seed=1000 + i) for i in range(3)]
        floors += [(seed, sliced(reals[i], reals[j])) for i in range(3) for j in range(i)]
        for nfe in BUDGETS:
            if nfe > 30 and seed != seeds[0]:
                continue
            for name, make in OURS.items():
                if name != "recommended" and (seed != seeds[0] or nfe == 30):
                    continue
                result = make(nfe)(model, (COUNT, law.dim), seed=100)
                if result.nfe > nfe:
                    raise RuntimeError(f"{name} made {result.nfe} calls of {nfe}")
                # Against each real set: their sampling noise is averaged out, that of the samples is not.
                found.setdefault((name, nfe), []).extend((seed, sliced(result.x, real)) for real in reals)
            if seed == seeds[0] and nfe != 30:
                for name, run in theirs.items():
                    x = run(model, law.dim, nfe, 5)
                    found.setdefault((name, nfe), []).extend((seed, sliced(x, real)) for real in reals)
    floor = over_mixtures(floors)
    yield {"problem": problem, "sampler": "two exact sets", "nfe": 0, "sliced_w2": floor[0], "error": floor[1],
           "each": floors}  # fmt: skip
    for (name, nfe), values in found.items():
        w, error = over_mixtures(values)
        base = [v for s, v in floors if s in {seed for seed, _ in values}]
        floor_squared = sum(v * v for v in base) / len(base)
        excess = math.sqrt(max(0.0, sum(v * v for _, v in values) / len(values) - floor_squared))
        yield {"problem": problem, "sampler": name, "nfe": nfe, "sliced_w2": w, "error": error, "excess": excess,
               "floor": sum(base) / len(base), "public": of_mixture(values, 0), "each": values}  # fmt: skip


def over_mixtures(values: list[tuple[int, float]]) -> tuple[float, float | None]:
    """Mean of (mixture, value) pairs, and its standard error over the mixtures (None for one)."""
    means = [of_mixture(values, seed) for seed in dict.fromkeys(seed for seed, _ in values)]
    x = torch.tensor(means, dtype=torch.float64)
    return float(x.mean()), float(x.std() / len(x) ** 0.5) if len(x) > 1 else None


def of_mixture(values: list[tuple[int, float]], seed: int) -> float:
    """Mean of the values of one mixture."""
    mine = [v for s, v in values if s == seed]
    return sum(mine) / len(mine)


class UnitNoise:
    """One unit noise for each row: row r is 1 at step r - 2 (row 0: none; row 1: the start), all else 0."""

    def __call__(self, like: Tensor, step: int, draw: int) -> Tensor:
        noise = torch.zeros_like(like)
        noise[step + 2] = 1.0
        return noise


def weak_errors() -> Iterator[dict[str, Any]]:
    """One row for each sampler and budget: relative error of the standard deviation and of the mean."""
    model = sg.GaussianMixture([1.0], [[1.0]], [[[0.25]]]).model(VP)
    for name, make in OURS.items():
        for nfe in (10, 20, 50):
            rows = 3 * nfe + 20
            x = make(nfe)(model, (rows, 1), noise=UnitNoise(), dtype=torch.float64).x
            std = float((x[1:] - x[0]).square().sum().sqrt())
            yield {"sampler": name, "nfe": nfe, "std": abs(std / 0.5 - 1), "mean": abs(float(x[0, 0]) - 1) / 0.5}


# -- output ------------------------------------------------------------------------------------------------------------


def markdown(rows: list[dict[str, Any]], weak: list[dict[str, Any]], seconds: float) -> str:
    """The tables."""
    all_seeds = ", ".join(map(str, SEEDS))
    lines = [
        "# Stochastic solvers",
        "",
        f"`python benchmarks/stochastic.py` prints and writes this page ({seconds / 60:.0f} minutes of one thread).",
        "",
        f"Sliced W2 of {COUNT:,} samples to as many exact ones, VP(0.1, 20), exact score, mixture {SEEDS[0]}.",
        f"The recommended sampler: mean over mixtures {all_seeds} with its standard error; mixture 0 in brackets.",
    ]
    for problem in PROBLEMS:
        mine = [r for r in rows if r["problem"] == problem]
        floor = mine[0]
        budgets = [n for n in BUDGETS if any(r["nfe"] == n for r in mine)]
        shown = f"{floor['sliced_w2']:.4f} ± {floor['error'] or 0:.4f} ({of_mixture(floor['each'], 0):.4f})"
        lines += ["", f"## {problem}", "", f"Two exact sets: {shown}.", "",
                  "| sampler | " + " | ".join(f"{n} calls" for n in budgets) + " |",
                  "|---|" + "---|" * len(budgets)]  # fmt: skip
        for name in dict.fromkeys(r["sampler"] for r in mine[1:]):
            cells = []
            for n in budgets:
                cell = next((r for r in mine if (r["sampler"], r["nfe"]) == (name, n)), None)
                if cell is None:
                    cells.append("")
                elif name == "recommended":
                    error = "" if cell["error"] is None else f" ± {cell['error']:.4f}"
                    cells.append(f"{cell['sliced_w2']:.4f}{error} ({cell['public']:.4f})")
                else:
                    cells.append(f"{cell['sliced_w2']:.3f}")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "## Weak error",
        "",
        "Relative error of the standard deviation (of the mean) for data N(1, 0.25), exact; it includes those of the",
        "start, N(0, sigma(1)^2), and of the last denoising.",
        "",
        "| sampler | 10 calls | 20 calls | 50 calls |",
        "|---|---|---|---|",
    ]
    for name in OURS:
        cells = [f"{r['std']:.1e} ({r['mean']:.0e})" for r in weak if r["sampler"] == name]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "![sliced W2 against calls](stochastic.png)", ""])


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Distance against calls, a panel for each problem."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, problem in zip(figure.subplots(1, 2), PROBLEMS, strict=True):
        mine = [r for r in rows if r["problem"] == problem]
        for name in dict.fromkeys(r["sampler"] for r in mine[1:]):
            points = [r for r in mine if r["sampler"] == name]
            theirs = name.startswith(("diffusers", "azula"))
            axes.loglog([r["nfe"] for r in points], [r["sliced_w2"] for r in points], ":x" if theirs else "-o",
                        label=name, linewidth=3 if name == "recommended" else 1)  # fmt: skip
        axes.axhline(mine[0]["sliced_w2"], color="black", linestyle="--", label="two exact sets")
        axes.set(title=problem, xlabel="network calls", ylabel="sliced W2", xticks=BUDGETS, xticklabels=BUDGETS)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/verification"))
    parser.add_argument("--quick", action="store_true", help="one mixture, no peers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="__array__ implementation")
    began = time.process_time()
    seeds = SEEDS[:1] if args.quick else SEEDS
    rows = [row for problem in PROBLEMS for row in distances(problem, seeds, peers=not args.quick)]
    weak = list(weak_errors())
    text = markdown(rows, weak, time.process_time() - began)
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "stochastic.md").write_text(text)
    (args.out / "stochastic.json").write_text(json.dumps({"distances": rows, "weak": weak}, indent=1) + "\n")
    picture(rows, args.out / "stochastic.png")


if __name__ == "__main__":
    main()
