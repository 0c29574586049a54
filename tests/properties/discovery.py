"""Every perturbation, sampler, grid and corrector of the package, and the cases that the properties are tested on.

The classes are found by walking the package. A class without a case makes `test_discovery.py` fail and says what to add
here, so that no sampler can be added without being verified.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import sde_gen
import sde_gen as sg
from tests.perturbations.cases import vp_diffusion, vp_drift
from tests.properties import curves, recursions

#: Nothing to sample with, and slow to import, or in need of somebody's library.
_NOT_WALKED = {
    "train", "sample", "evaluate", "compare", "report", "config", "jobs", "pictures", "training", "data", "metrics",
    "interop",
}  # fmt: skip


def concrete_subclasses(base: type) -> set[type]:
    """Every class of the package that derives from `base` and can be built."""
    for module in pkgutil.walk_packages(sde_gen.__path__, "sde_gen.", onerror=lambda name: None):
        if module.name.split(".")[1] not in _NOT_WALKED:
            importlib.import_module(module.name)
    found: set[type] = set()
    todo = [base]
    while todo:
        for child in todo.pop().__subclasses__():
            if child not in found:
                found.add(child)
                todo.append(child)
    return {c for c in found if not inspect.isabstract(c) and c.__module__.split(".")[0] == "sde_gen"}


#: Each class once or more; `tests/properties/curves.py` states the same curves in numpy.
PERTURBATIONS: dict[str, sg.Perturbation] = {
    "VP": sg.VP(),
    "SubVP": sg.SubVP(),
    "VE": sg.VE(),
    "EDM": sg.EDM(),
    "Cosine": sg.Cosine(),
    "FlowMatching": sg.FlowMatching(),
    "DDPM-linear": sg.DDPM(steps=200),
    "DDPM-cosine": sg.DDPM(steps=200, schedule="cosine"),
    "DDPM-quadratic": sg.DDPM(steps=200, schedule="quadratic"),
    "DDPM-sigmoid": sg.DDPM(steps=200, schedule="sigmoid"),
    "NCSN": sg.NCSN(levels=150),
    "LinearSDE": sg.LinearSDE(vp_drift, vp_diffusion),
    "Table": sg.Table.from_betas(curves.table_betas()),
}
CONTINUOUS = [name for name, p in PERTURBATIONS.items() if not p.is_chain]
CHAINS = [name for name, p in PERTURBATIONS.items() if p.is_chain]


ALL_GRIDS = ("uniform", "lambda", "karras", "quadratic", "nodes")
#: For polynomials in t: even noise levels lie too close in t where alpha or sigma is small.
IN_TIME = ("uniform", "quadratic", "nodes")


#: Processes for cases that need not be tried under all.
BRIEF = ("VP", "Cosine", "NCSN")


@dataclass(frozen=True)
class Case:
    """A fixed-step sampler and what is claimed of it.

    `make(steps=, grid=, denoise=)` builds it; `rule` names the recursion of `recursions.py` and `args` are its
    arguments; `calls` is the number of network calls of one step; `invariant` says that its answer, given the same
    noise, depends on the noise levels visited alone and not on the formulation.
    """

    make: Callable[..., sg.GridSampler]
    rule: str
    args: tuple[Any, ...] = ()
    calls: int = 1
    invariant: bool = True
    order: float | None = 1.0
    stochastic: bool = False
    default: str = "uniform"
    """Grid taken on a continuous process when none is given."""
    nfe: Callable[[int, bool], int] | None = None
    """Network calls of `steps` and `denoise` under VP, where they are not `calls` for each step."""
    fitted_on: tuple[str, ...] = ()
    """Grids on which its order is fitted, under VP (and the chains on "lambda"), instead of all of both."""
    draws: Callable[[int], int] = lambda n: n
    """Normal vectors drawn in n whole steps."""
    predictor: "Case | None" = None
    corrector_steps: int = 0
    snr: float = 0.1

    repeats: bool = False
    """Whether a run of two steps or more calls the network once more than its steps."""
    grids: tuple[str, ...] = ALL_GRIDS
    """Grids on which its weights are well conditioned."""
    brief: bool = False
    """More arguments of a class that is tested in full elsewhere: under `BRIEF` alone."""

    @property
    def nodes(self) -> str:
        """Grid taken on a chain when none is given: even in lambda where `default` is."""
        inner = self if self.predictor is None else self.predictor
        return "lambda-nodes" if inner.default == "lambda" else "nodes"


PREDICTORS: dict[str, Case] = {
    "EulerMaruyama(eta=0)": Case(lambda **k: sg.EulerMaruyama(eta=0.0, **k), "euler", (0.0,), invariant=False),
    "EulerMaruyama(eta=0.5)": Case(
        lambda **k: sg.EulerMaruyama(eta=0.5, **k), "euler", (0.5,), invariant=False, stochastic=True
    ),
    "EulerMaruyama": Case(lambda **k: sg.EulerMaruyama(**k), "euler", (1.0,), invariant=False, stochastic=True),
    "ReverseDiffusion": Case(lambda **k: sg.ReverseDiffusion(**k), "reverse", invariant=False, stochastic=True),
    "Ancestral(small)": Case(lambda **k: sg.Ancestral(**k), "ancestral", ("small",), stochastic=True),
    "Ancestral(large)": Case(
        lambda **k: sg.Ancestral(variance="large", **k), "ancestral", ("large",), invariant=False, stochastic=True
    ),
    "DDIM": Case(lambda **k: sg.DDIM(**k), "ddim", (0.0,)),
    "DDIM(eta=0.4)": Case(lambda **k: sg.DDIM(eta=0.4, **k), "ddim", (0.4,), stochastic=True),
    "DDIM(eta=1)": Case(lambda **k: sg.DDIM(eta=1.0, **k), "ddim", (1.0,), stochastic=True),
    "Heun": Case(lambda **k: sg.Heun(**k), "heun", calls=2, order=2.0, default="karras"),
    "DPMSolverPP2M": Case(lambda **k: sg.DPMSolverPP2M(**k), "2m", (True,), order=2.0, default="lambda"),
    "DPMSolverPP2M(paper)": Case(
        lambda **k: sg.DPMSolverPP2M(exact=False, **k), "2m", (False,), order=2.0, default="lambda"
    ),
    "DPMSolverPP3M": Case(
        lambda **k: sg.DPMSolverPP3M(**k), "multistep", (3, "data", "lambda", False), order=3.0, default="lambda"
    ),
    "DEIS": Case(
        lambda **k: sg.DEIS(**k), "multistep", (3, "noise", "time", False), order=3.0, invariant=False, grids=IN_TIME
    ),
    "LMS": Case(
        lambda **k: sg.LMS(**k), "multistep", (4, "noise", "rho", False), order=4.0, default="karras", repeats=True
    ),
    "PLMS": Case(lambda **k: sg.PLMS(**k), "plms", order=2.0),
    "SingleStep(2, data)": Case(
        lambda **k: sg.SingleStep(**k), "singlestep", (2, "data"), calls=2, order=2.0, default="lambda"
    ),
    "UniPC(3, data)": Case(
        lambda **k: sg.UniPC(**k), "multistep", (3, "data", "lambda", True), order=3.0, default="lambda"
    ),
    "AdamsBashforth(3, velocity)": Case(
        lambda **k: sg.AdamsBashforth(prediction="velocity", **k), "multistep", (3, "velocity", "angle", False),
        order=3.0, default="lambda",
    ),
}  # fmt: skip

#: More arguments of the same classes, which a predictor-corrector need not be tried with.
MORE: dict[str, Case] = {
    **{
        f"SingleStep({order}, {prediction})": Case(
            lambda order=order, prediction=prediction, **k: sg.SingleStep(order=order, prediction=prediction, **k),
            "singlestep", (order, prediction), calls=order, order=float(order), default="lambda", brief=True,
        )
        for order, prediction in ((3, "data"), (3, "noise"), (2, "velocity"))
    },
    **{
        f"{make.__name__}({order}, {prediction})": Case(
            lambda make=make, order=order, prediction=prediction, **k: make(order=order, prediction=prediction, **k),
            "multistep", (order, prediction, "angle" if prediction == "velocity" else "lambda", make is sg.UniPC),
            order=float(order), default="lambda", repeats=order == 4, brief=True,
        )
        for make, order, prediction in (
            (sg.AdamsBashforth, 1, "data"), (sg.AdamsBashforth, 2, "noise"), (sg.AdamsBashforth, 3, "noise"),
            (sg.AdamsBashforth, 4, "data"), (sg.AdamsBashforth, 4, "velocity"), (sg.UniPC, 2, "velocity"),
            (sg.UniPC, 3, "noise"), (sg.UniPC, 4, "data"),
        )
    },
    "AdamsBashforth(3, data in rho)": Case(
        lambda **k: sg.AdamsBashforth(variable="rho", **k), "multistep", (3, "data", "rho", False), order=3.0,
        default="lambda", brief=True,
    ),
}  # fmt: skip


#: Predictors that are joined with a corrector in one way only; the others show that the rest follows.
ONCE = ("DPMSolverPP3M", "DEIS", "LMS", "PLMS", "SingleStep(2, data)", "UniPC(3, data)", "AdamsBashforth(3, velocity)")

#: Stochastic solvers; one of each class is tested inside a `PredictorCorrector` too.
STOCHASTIC_RULES: dict[str, Case] = {
    **{
        f"ExponentialSDE(eta={eta:g})": Case(
            lambda eta=eta, **k: sg.ExponentialSDE(eta=eta, **k),
            "sde",
            (1, eta),
            stochastic=True,
            default="arctan",
            fitted_on=("lambda",),
        )
        for eta in (0.5, 2.0)
    },
    **{
        f"SDEDPMSolverPP({order}, eta={eta:g})": Case(
            lambda order=order, eta=eta, **k: sg.SDEDPMSolverPP(solver_order=order, eta=eta, **k),
            "sde",
            (order, eta),
            order=float(min(order, 2)),
            stochastic=True,
            default="arctan",
            # A parabola through a step after a much shorter one is left out: grids on which it never is.
            fitted_on=("lambda", "karras") if order == 3 else ("uniform", "lambda", "quadratic"),
        )
        for order, eta in ((1, 1.0), (2, 1.0), (2, 0.3), (3, 1.0))
    },
    "SDEDPMSolverPP(between levels)": Case(
        # A quarter of the levels that orders are fitted on has more noise, another less.
        lambda **k: sg.SDEDPMSolverPP(eta=1.2, s_tmin=0.323, s_tmax=5.104, **k),
        "sde",
        (2, 1.2, 0.323, 5.104),
        draws=lambda n: n // 2 + 1,
        order=2.0,
        stochastic=True,
        default="arctan",
        fitted_on=("lambda",),
    ),
    **{
        f"StochasticHeun(eta={eta:g})": Case(
            lambda eta=eta, **k: sg.StochasticHeun(eta=eta, **k),
            "sde-heun",
            (eta,),
            calls=2,
            order=2.0,
            stochastic=eta > 0,
            default="arctan",
            fitted_on=("uniform", "lambda"),
        )
        for eta in (1.0, 0.4)
    },
    "EDMChurn": Case(
        lambda **k: sg.EDMChurn(s_churn=6.0, s_tmin=0.0, s_tmax=float("inf"), **k),
        "churn",
        (6.0, 0.0, 1e9, 1.0),
        draws=lambda n: n - 1,
        calls=2,
        order=2.0,
        stochastic=True,
        default="karras",
        fitted_on=("uniform", "lambda"),
    ),
    "EDMChurn(between levels)": Case(
        lambda **k: sg.EDMChurn(s_churn=20.0, s_tmin=0.1, s_tmax=5.0, s_noise=1.01, **k),
        "churn",
        (20.0, 0.1, 5.0, 1.01),
        calls=2,
        order=None,
        stochastic=True,
        default="karras",
        fitted_on=("uniform", "lambda"),
    ),
}


def _restart(rule: str, default: str, *intervals: tuple[float, float, int, int | None]) -> Case:
    inner = PREDICTORS[rule]
    even = all(steps is None for *_, steps in intervals)

    def nfe(n: int, denoise: bool) -> int:
        times = curves.grid(curves.CURVES["VP"], default, n if denoise else n + 1)
        laps = recursions.restart_laps(curves.CURVES["VP"], times, intervals)
        return inner.calls * sum(len(lap) - 1 for lap in laps) + denoise

    return Case(
        lambda **k: sg.Restart(rule=inner.make(), intervals=list(intervals), **k), "restart", intervals,
        calls=inner.calls, order=inner.order if even else None, stochastic=True, default=default,
        fitted_on=("uniform", "lambda"),
        nfe=nfe, draws=lambda n: sum(repeats for _, _, repeats, _ in intervals), predictor=inner,
    )  # fmt: skip


def _annealed(per_level: int, snr: float, rule: str = "langevin") -> Case:
    return Case(
        lambda **k: sg.AnnealedLangevin(steps_per_level=per_level, snr=snr, rule=rule, **k),
        "annealed" if rule == "langevin" else rule, (per_level, snr), calls=per_level, order=None, stochastic=True,
    )  # fmt: skip


def _corrected(predictor: str | None, steps: int) -> Case:
    inner = None if predictor is None else (PREDICTORS | STOCHASTIC_RULES)[predictor]
    snr = 0.1
    corrector = sg.Langevin(snr=snr, steps=steps, step="fixed") if steps else None
    return Case(
        lambda **k: sg.PredictorCorrector(
            predictor=None if inner is None else inner.make(), corrector=corrector, **k
        ),
        "corrected",
        calls=steps + (0 if inner is None else inner.calls),
        invariant=steps == 0 and inner is not None and inner.invariant,
        order=inner.order if inner is not None and not steps else None,
        stochastic=bool(steps) or (inner is not None and inner.stochastic),
        default="uniform" if inner is None else inner.default,
        predictor=inner, corrector_steps=steps, snr=snr, repeats=inner is not None and inner.repeats,
        grids=ALL_GRIDS if inner is None else inner.grids,
    )  # fmt: skip


SAMPLERS: dict[str, Case] = {
    **PREDICTORS,
    **STOCHASTIC_RULES,
    "Restart(Heun)": _restart("Heun", "karras", (0.25, 1.5, 2, None)),
    "Restart(DPMSolverPP2M)": _restart("DPMSolverPP2M", "lambda", (0.1, 0.4, 1, 3), (0.4, 4.0, 2, 2)),
    **MORE,
    "AnnealedLangevin(1)": _annealed(1, 0.176),
    "AnnealedLangevin(3)": _annealed(3, 0.4),
    "AnnealedLangevin(consistent, 1)": _annealed(1, 0.4, "consistent"),
    "AnnealedLangevin(consistent, 3)": _annealed(3, 0.1, "consistent"),
    **{
        f"PC({name}, {steps})": _corrected(name, steps)
        for name in [*PREDICTORS, None]
        for steps in ((1,) if name in ONCE else (0, 1, 2))
        if name or steps
    },
    **{
        f"PC({name}, 1)": _corrected(name, 1)
        for name in ("ExponentialSDE(eta=0.5)", "SDEDPMSolverPP(2, eta=1)", "StochasticHeun(eta=1)", "EDMChurn")
    },
}

#: Samplers without a fixed number of steps, which have their own properties.
OTHER_SAMPLERS: dict[str, Callable[..., sg.Sampler]] = {
    "ProbabilityFlow": sg.ProbabilityFlow,
    "AdaptiveSDE": sg.AdaptiveSDE,
    "LangevinDynamics": sg.LangevinDynamics,
    "Auto": sg.Auto,
    "Fitted": sg.Fitted,
    "FittedSteps": sg.FittedSteps,
    "LimitedUniPC": sg.LimitedUniPC,
}

#: Samplers of guided models alone; their properties are in `tests/inverse`.
GUIDED_SAMPLERS: dict[str, type[sg.Sampler]] = {"SplitGibbs": sg.inverse.SplitGibbs}

GRIDS: dict[str, Any] = {
    "uniform": sg.UniformTime(),
    "lambda": sg.UniformLambda(),
    "karras": sg.KarrasRho(),
    "quadratic": sg.Quadratic(),
    "nodes": sg.ChainNodes(),
    "lambda-nodes": sg.ChainNodes("lambda"),
}
#: Grids without a name.
UNNAMED_GRIDS: dict[str, Any] = {"arctan": sg.ArctanLambda()}
#: Grids that are a list of numbers.
LISTED_GRIDS: dict[str, type] = {"times": sg.GivenTimes, "lambdas": sg.GivenLambdas}

#: What each class of fixed steps takes when it is told nothing: steps, the grid on a continuous process, and whether it
#: visits all nodes of a chain.
DEFAULTS: dict[str, tuple[int, str, bool]] = {
    "EulerMaruyama": (1000, "uniform", False),
    "ReverseDiffusion": (1000, "uniform", True),
    "Ancestral": (1000, "uniform", True),
    "DDIM": (50, "uniform", False),
    "Heun": (18, "karras", False),
    "EDMChurn": (18, "karras", False),
    "DPMSolverPP2M": (20, "lambda", False),
    "DPMSolverPP3M": (20, "lambda", False),
    "AdamsBashforth": (20, "lambda", False),
    "UniPC": (20, "lambda", False),
    "LimitedUniPC": (20, "lambda", False),
    "DEIS": (20, "uniform", False),
    "LMS": (20, "karras", False),
    "PLMS": (20, "uniform", False),
    "SingleStep": (10, "lambda", False),
    "ExponentialSDE": (100, "arctan", False),
    "SDEDPMSolverPP": (20, "arctan", False),
    "StochasticHeun": (20, "arctan", False),
    "AnnealedLangevin": (232, "uniform", True),
    "PredictorCorrector": (500, "uniform", False),
    "Restart": (18, "karras", False),
}

CORRECTORS: dict[str, sg.Corrector] = {
    "Langevin(fixed)": sg.Langevin(step="fixed"),
    "Langevin(adaptive)": sg.Langevin(),
    "Langevin(adaptive, no cap)": sg.Langevin(cap=None),
    "Langevin(batch)": sg.Langevin(norm="batch"),
}


def gaussian(dim: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of a Gaussian with fixed random mean and eigenvectors, standard deviations 0.3 ... 1.2."""
    rng = np.random.default_rng(20240611)
    vectors, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    return rng.standard_normal(dim), vectors @ np.diag(np.linspace(0.3, 1.2, dim) ** 2) @ vectors.T


def oracle(mean: np.ndarray, cov: np.ndarray, p: sg.Perturbation) -> sg.Oracle:
    """The exact model of one Gaussian."""
    return sg.GaussianMixture([1.0], mean[None], cov[None]).model(p)


def float64(x: Any) -> torch.Tensor:
    return torch.as_tensor(np.array(x), dtype=torch.float64)
