"""Whether two commits compute the same, number for number.

    python benchmarks/behaviour.py record runs/before.npz            # with the code in this checkout
    python benchmarks/behaviour.py compare runs/before.npz runs/after.npz
    python benchmarks/behaviour.py against v0.1.0                    # record both and compare, in one go

What is recorded: every sampler under every formulation, on exact scores in float64 and on a small network in float32;
losses of every weighting; likelihoods, bounds and latents; a short training of each formulation and samples from it;
the rows of small comparisons. Only public names and the commands are used, so that a move of code from one room to
another needs no change here. A sampler or setting that one of the two commits does not have is listed, not compared.
Equal means equal bit for bit; the largest relative difference is shown where it is not.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
FORMULATIONS = ("vp", "subvp", "ve", "cosine", "edm", "flow", "ddpm", "ncsn")
#: A trainer that ends in seconds, and says nothing on the way.
SHORT = ["trainer.steps=12", "trainer.batch_size=32", "trainer.preview_samples=0", "trainer.checkpoint_every=12",
         "data=two_moons", "data.n=256", "data.n_test=64", "network=mlp", "network.hidden=16", "network.layers=1",
         "device=cpu"]  # fmt: skip


class Record:
    """Named arrays; what fails is kept as the class of its error."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}

    def __call__(self, name: str, make: Callable[[], Any]) -> None:
        """Keep what `make` returns: tensors, numbers, or a mapping or sequence of them."""
        try:
            value = make()
        except Exception as error:  # noqa: BLE001 - a refusal is behaviour too
            value = f"{type(error).__name__}"
        self.keep(name, value)

    def keep(self, name: str, value: Any) -> None:
        """One array for each leaf."""
        if isinstance(value, dict):
            for key, inner in value.items():
                self.keep(f"{name}/{key}", inner)
        elif isinstance(value, tuple | list):
            for i, inner in enumerate(value):
                self.keep(f"{name}/{i}", inner)
        elif is_dataclass(value):
            self.keep(name, {f.name: getattr(value, f.name) for f in fields(value) if f.name != "seconds"})
        elif value is not None:
            array = value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
            self.arrays[name] = array


def record(path: Path) -> None:
    """Everything, into one .npz."""
    import torch

    import sde_gen as sg

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    keep = Record()
    _samplers(sg, torch, keep)
    _losses(sg, torch, keep)
    _likelihoods(sg, torch, keep)
    _comparisons(sg, keep)
    with tempfile.TemporaryDirectory() as folder:
        _runs(Path(folder), keep)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: Any = keep.arrays
    np.savez(path, **arrays)
    print(f"{len(keep.arrays)} arrays in {path}")


def _processes(sg: Any) -> dict[str, Any]:
    return {
        "VP": sg.VP(), "SubVP": sg.SubVP(), "VE": sg.VE(), "Cosine": sg.Cosine(), "EDM": sg.EDM(),
        "FlowMatching": sg.FlowMatching(), "DDPM": sg.DDPM(steps=50), "NCSN": sg.NCSN(levels=40),
    }  # fmt: skip


def _known(sg: Any) -> dict[str, Any]:
    """One or more of every sampler."""
    corrector, few = sg.Langevin(snr=0.1), (4, "data")
    made: dict[str, Callable[[], Any]] = {
        "EulerMaruyama": lambda: sg.EulerMaruyama(steps=7),
        "EulerMaruyama eta=0": lambda: sg.EulerMaruyama(steps=7, eta=0.0),
        "ReverseDiffusion": lambda: sg.ReverseDiffusion(steps=7),
        "Ancestral": lambda: sg.Ancestral(steps=7),
        "Ancestral large": lambda: sg.Ancestral(steps=7, variance="large"),
        "DDIM": lambda: sg.DDIM(steps=7),
        "DDIM eta": lambda: sg.DDIM(steps=7, eta=0.5),
        "DDIM karras": lambda: sg.DDIM(steps=7, grid="karras", denoise=False),
        "Heun": lambda: sg.Heun(steps=5),
        "EDMChurn": lambda: sg.EDMChurn(steps=5),
        "AnnealedLangevin": lambda: sg.AnnealedLangevin(steps=7, steps_per_level=2),
        "PredictorCorrector": lambda: sg.PredictorCorrector(corrector=sg.Langevin(snr=0.16), steps=5),
        "PredictorCorrector fixed": lambda: sg.PredictorCorrector(
            predictor=sg.DDIM(), corrector=sg.Langevin(snr=0.05, step="fixed", steps=2), steps=4
        ),
        "corrector only": lambda: sg.PredictorCorrector(predictor=None, corrector=corrector, steps=4),
        "DPMSolverPP2M": lambda: sg.DPMSolverPP2M(steps=7),
        "DPMSolverPP2M paper": lambda: sg.DPMSolverPP2M(steps=7, exact=False),
        "DPMSolverPP3M": lambda: sg.DPMSolverPP3M(steps=7),
        "DEIS": lambda: sg.DEIS(steps=7),
        "LMS": lambda: sg.LMS(steps=7),
        "PLMS": lambda: sg.PLMS(steps=7),
        "UniPC": lambda: sg.UniPC(steps=7, order=few[0], prediction="velocity"),
        "AdamsBashforth": lambda: sg.AdamsBashforth(steps=7, order=few[0], prediction=few[1]),
        "AdamsBashforth noise": lambda: sg.AdamsBashforth(steps=7, order=2, prediction="noise"),
        "SingleStep 2": lambda: sg.SingleStep(steps=4),
        "SingleStep 3": lambda: sg.SingleStep(steps=4, order=3, prediction="noise"),
        "ExponentialSDE": lambda: sg.ExponentialSDE(steps=7),
        "SDEDPMSolverPP": lambda: sg.SDEDPMSolverPP(steps=7, solver_order=3),
        "StochasticHeun": lambda: sg.StochasticHeun(steps=5),
        "Restart": lambda: sg.Restart(steps=5),
        "AdaptiveSDE": lambda: sg.AdaptiveSDE(),
        "ProbabilityFlow": lambda: sg.ProbabilityFlow(rtol=1e-3, atol=1e-3),
        "ProbabilityFlow RK45": lambda: sg.ProbabilityFlow(method="RK45", rtol=1e-2, atol=1e-2),
        "ProbabilityFlow rk4": lambda: sg.ProbabilityFlow(method="rk4", steps=4),
        "ProbabilityFlow bosh3": lambda: sg.ProbabilityFlow(method="bosh3", rtol=1e-2, atol=1e-2),
        "Auto": lambda: sg.Auto(nfe=4, count=8, effort=0.05),
    }
    return made


def _network(sg: Any, torch: Any, seed: int = 0, **more: Any) -> Any:
    torch.manual_seed(seed)
    network = sg.MLP(features=2, hidden=16, layers=1, **more)
    for parameter in network.parameters():  # the last layer begins at zero
        torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


def _samplers(sg: Any, torch: Any, keep: Record) -> None:
    mixture = sg.GaussianMixture(
        [0.3, 0.7], [[1.0, 0.5], [-0.8, 0.2]], [[[0.2, 0.1], [0.1, 0.3]], [[0.1, 0.0], [0.0, 0.05]]]
    )
    network = _network(sg, torch)
    for process, p in _processes(sg).items():
        for name, make in _known(sg).items():

            def run(model: Any, dtype: Any, make: Any = make) -> tuple[Any, ...]:
                found = make()(model, (5, 2), seed=3, dtype=dtype)
                return found.x, found.nfe

            keep(f"sampler/{process}/{name}/exact", lambda: run(mixture.model(p), torch.float64))
            if name != "Auto":
                keep(f"sampler/{process}/{name}/network", lambda: run(sg.ScoreModel(network, p), torch.float32))
    model = sg.ScoreModel(network, sg.VP())
    keep("sampler/under", lambda: sg.DDIM(steps=5)(model.under(sg.VE()), (4, 2), seed=1).x)
    keep("sampler/deterministic", lambda: sg.Ancestral(steps=5)(model, (9, 2), seed=1, deterministic=True).x)
    keep("sampler/chunks", lambda: sg.Ancestral(steps=5)(model, (9, 2), seed=1, chunk=4, first=3).x)
    labelled = sg.ScoreModel(_network(sg, torch, 1, num_classes=3), sg.VP())
    keep("sampler/labels", lambda: sg.DDIM(steps=5)(labelled, (6, 2), condition={"label": torch.arange(6) % 3}).x)


def _losses(sg: Any, torch: Any, keep: Record) -> None:
    x0 = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    known = {"noise": sg.NoisePrediction(), "data": sg.DataPrediction(), "v": sg.VPrediction(),
             "score": sg.ScorePrediction(), "edm": sg.EDMPreconditioning()}  # fmt: skip
    for process, p in _processes(sg).items():
        for name, parameterization in known.items():
            model = sg.ScoreModel(_network(sg, torch), p, parameterization)
            t = p.nodes[::7][:3] if p.is_chain else torch.tensor([p.t_min, 0.3, 0.9], dtype=torch.float64)
            for part in ("denoised", "noise", "score", "v"):
                keep(f"prediction/{process}/{name}/{part}", lambda: [getattr(model(x0, u), part) for u in t])
            keep(f"prediction/{process}/{name}/rows", lambda: model(x0, t.repeat(4)).score)
        for weighting in ("simple", "score", "likelihood", "snr", "min-snr", "edm", "vlb", "hybrid"):
            learned = weighting in ("vlb", "hybrid") and p.is_chain
            model = sg.ScoreModel(_network(sg, torch, learned_variance=learned), p)

            def loss(weighting: str = weighting, model: Any = model, **more: Any) -> Any:
                objective = sg.DenoisingScoreMatching(weighting=weighting, **more)
                value = objective(model, x0, generator=torch.Generator().manual_seed(1))
                gradients = torch.autograd.grad(value.mean(), list(model.parameters()), allow_unused=True)
                times = objective.times(model, 5, generator=torch.Generator().manual_seed(2))
                return value, [g for g in gradients if g is not None], times

            keep(f"loss/{process}/{weighting}", loss)
            keep(f"loss/{process}/{weighting}/uniform", lambda: loss(times_law="uniform"))
        keep(f"curves/{process}", lambda: [f(p.nodes if p.is_chain else torch.linspace(0, 1, 9).double()) for f in
                                           (p.alpha, p.sigma, p.half_log_snr, p.drift, p.diffusion)])  # fmt: skip


def _likelihoods(sg: Any, torch: Any, keep: Record) -> None:
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    for process, p in _processes(sg).items():
        model = sg.ScoreModel(_network(sg, torch), p)
        keep(f"likelihood/{process}/adaptive", lambda: sg.log_likelihood(model, x, rtol=1e-3, atol=1e-3).log_prob)
        for probe in ("rademacher", "gaussian", "fresh", "walsh"):
            keep(f"likelihood/{process}/{probe}", lambda: sg.log_likelihood(
                model, x, steps=12, divergence="hutchinson", probe=probe, probes=4, seed=2).log_prob)  # fmt: skip
        keep(f"bound/{process}", lambda: sg.variational_bound(model, x, terms=6, seed=1).log_prob)
        keep(f"encode/{process}", lambda: sg.encode(model, x, rtol=1e-3, atol=1e-3))
        keep(f"decode/{process}", lambda: sg.decode(model, x, rtol=1e-3, atol=1e-3))


def _comparisons(sg: Any, keep: Record) -> None:
    mixture = sg.GaussianMixture([0.5, 0.5], [[1.0, 0.0], [-1.0, 0.0]], [[[0.1, 0.0], [0.0, 0.1]]] * 2)
    common = {"budgets": (4, 8), "seeds": (0, 1), "num_samples": 64}
    small = {"_target_": "sde_gen.networks.MLP", "hidden": 16, "layers": 1}
    trained = {"steps": 6, "batch_size": 16, "preview_samples": 0, "checkpoint_every": 6}
    with tempfile.TemporaryDirectory() as cache:
        for mode, grid in (("oracle", "native"), ("oracle", "matched"), ("network", "native"), ("shared", "native")):

            def rows(mode: str = mode, grid: str = grid) -> dict[str, Any]:
                results = sg.Comparison(
                    formulations={"VP": sg.VP(), "VE": sg.VE(), "DDPM": sg.DDPM(steps=40)},
                    samplers={"DDIM": sg.DDIM(), "2M": sg.DPMSolverPP2M(), "ancestral": sg.Ancestral()},
                    data=mixture, mode=mode, grid=grid, likelihood=8, orders=mode == "oracle" and grid == "native",
                    network=small, trainer=trained, **common,
                ).run(cache)  # fmt: skip
                left_out = (
                    "seconds",
                    "date",
                    "code",
                    "cell",
                    "command",
                    "training_seconds",
                    "note",
                    "device",
                    "data",
                    "wall_seconds",
                )
                numbers = {
                    f"{row['formulation']}/{row['sampler']}/{row['budget']}/{row['seed']}/{key}": value
                    for row in results.rows for key, value in row.items()
                    if key not in left_out and isinstance(value, int | float) and key not in ("budget", "seed")
                }  # fmt: skip
                orders = {f"order/{row['formulation']}/{row['sampler']}": row["fitted"]
                          for row in results.orders if row["status"] == "ok"}  # fmt: skip
                real = {f"real/{row['seed']}": row["energy_distance"] for row in results.real}
                return numbers | orders | real

            keep(f"comparison/{mode}/{grid}", rows)


def _runs(folder: Path, keep: Record) -> None:
    """A short training of each formulation by the command, and samples from it."""
    from safetensors.numpy import load_file

    script = (
        "import sys, json; from importlib import import_module\n"
        "for name, arguments in json.load(sys.stdin):\n"
        "    code = import_module('sde_gen.' + name).main(arguments)\n"
        "    print('code', name, arguments[0], code)\n"
    )
    jobs: list[tuple[str, list[str]]] = []
    for sde in FORMULATIONS:
        jobs.append(("train", [f"sde={sde}", f"run={sde}", *SHORT]))
        jobs.append(("sample", [f"run={sde}", "sampler=ddim", "sampler.steps=4", "num_samples=16", f"out={sde}.npz",
                                "device=cpu", "metrics=false"]))  # fmt: skip
    more = ["run=digits", "data=digits", "network=auto", "trainer.steps=3", "trainer.batch_size=8",
            "trainer.preview_samples=0", "class_conditional=true", "device=cpu"]  # fmt: skip
    jobs.append(("train", ["sde=vp", *more]))
    jobs.append(("sample", ["run=digits", "sampler=dpmpp2m", "sampler.steps=3", "num_samples=6", "label=cycle",
                            "out=digits.npz", "device=cpu", "metrics=false"]))  # fmt: skip
    jobs.append(("evaluate", ["run=vp", "num_samples=40", "sampler=ddim", "sampler.steps=4", "nll.steps=12",
                              "nll.samples=16", "likelihood=both", "out=evaluated", "device=cpu"]))  # fmt: skip
    import json

    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], input=json.dumps(jobs), text=True, cwd=folder,
                          env=environment, capture_output=True, check=False)  # fmt: skip
    codes = [line for line in done.stdout.splitlines() if line.startswith("code ")]
    keep.keep("runs/codes", np.array(codes))
    if len(codes) < len(jobs):
        print(done.stdout[-2000:], done.stderr[-2000:])
    for name in (*FORMULATIONS, "digits"):
        for file in sorted(folder.glob(f"runs/{name}/checkpoints/step_*/*.safetensors")):
            for key, value in load_file(file).items():
                keep.keep(f"runs/{name}/{file.stem}/{key}", value)
        if (samples := folder / f"{name}.npz").is_file():
            with np.load(samples) as arrays:
                keep.keep(f"runs/{name}/samples", {key: arrays[key] for key in arrays.files})
    if (report := folder / "evaluated" / "evaluation.npz").is_file():
        with np.load(report) as arrays:
            keep.keep("runs/evaluated", {key: arrays[key] for key in arrays.files})


def compare(first: Path, second: Path) -> int:
    """Print what differs; the number of differences."""
    with np.load(first, allow_pickle=False) as a, np.load(second, allow_pickle=False) as b:
        only = [(name, "only in the first" if name in a.files else "only in the second")
                for name in sorted(set(a.files) ^ set(b.files))]  # fmt: skip
        both, different = sorted(set(a.files) & set(b.files)), []
        for name in both:
            x, y = a[name], b[name]
            if x.shape == y.shape and x.dtype == y.dtype and x.tobytes() == y.tobytes():
                continue
            if x.shape == y.shape and x.dtype.kind == y.dtype.kind == "f":
                gap = np.abs(x - y).max() / max(np.abs(x).max(), 1e-300)
                different.append((name, f"relative difference {gap:.2g}"))
            else:
                different.append((name, f"{x.dtype}{x.shape} {x.flat[:1]} is {y.dtype}{y.shape} {y.flat[:1]}"))
    shown = [*only, *different]
    for name, what in shown[:60]:
        print(f"  {name}: {what}")
    if len(shown) > 60:
        print(f"  and {len(shown) - 60} more")
    print(f"{len(both) - len(different)} of {len(both)} arrays equal bit for bit, {len(different)} differ, "
          f"{len(only)} in one of the two only")  # fmt: skip
    return len(different)


def against(commit: str) -> int:
    """Record this checkout and another commit, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", str(tree), commit], cwd=ROOT, check=True)
        try:
            before, after = Path(folder) / "before.npz", Path(folder) / "after.npz"
            for root, path in ((tree, before), (ROOT, after)):
                script = root / "benchmarks" / "behaviour.py"
                script = script if script.is_file() else Path(folder) / "behaviour.py"
                if not script.is_file():  # the other commit is older than this script
                    there = root / "benchmarks" / "_behaviour.py"
                    there.write_text(Path(__file__).read_text())
                    script = there
                environment = os.environ | {"PYTHONPATH": str(root)}
                subprocess.run([sys.executable, str(script), "record", str(path)], env=environment, check=True)
            return compare(before, after)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=False)


def main() -> int:
    """Run as asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("record", help="write what this checkout computes")
    one.add_argument("path", type=Path)
    two = commands.add_parser("compare", help="compare two records")
    two.add_argument("first", type=Path)
    two.add_argument("second", type=Path)
    three = commands.add_parser("against", help="compare this checkout with another commit")
    three.add_argument("commit")
    given = parser.parse_args()
    if given.command == "record":
        record(given.path)
        return 0
    return min(1, compare(given.first, given.second) if given.command == "compare" else against(given.commit))


if __name__ == "__main__":
    sys.exit(main())
