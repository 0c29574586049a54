"""Samplers of a posterior against the exact one, observation by observation.

Data from a mixture of Gaussians have a posterior and an evidence in closed form, so a method can be told how far it is
from right: an average over observations hides wrong weights of modes, and so there is a row for each.
"""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.errors import ConfigError
from sde_gen.inverse.operators import Operator
from sde_gen.inverse.particles import TwistedSMC
from sde_gen.inverse.posterior import Posterior
from sde_gen.inverse.split_gibbs import SplitGibbs
from sde_gen.inverse.systems import Particles
from sde_gen.metrics import sliced_wasserstein
from sde_gen.oracles import Conditioned, GaussianMixture
from sde_gen.perturbations import VP, Perturbation
from sde_gen.rng import keyed_generator
from sde_gen.samplers.one_step import Ancestral
from sde_gen.samplers.sampler import Samples

#: Called as `method(posterior, (n, D), seed=0, dtype=torch.float64)`, as a sampler is; `posterior.base`, `.operator`,
#: `.y` and `.noise_std` say what is asked.
Method = Callable[..., Samples]
#: Sets of exact draws; every distance is a mean over them, as one set is off by a third by itself.
_SETS = 6


def _by(method: str) -> Method:
    chain = Ancestral(steps=100, grid="lambda")
    return lambda posterior, shape, **more: chain(posterior.using(method), shape, **more)


METHODS: dict[str, Method] = {
    "PiGDM, ancestral 100": _by("pigdm"),
    "MMPS, ancestral 100": _by("mmps"),
    "split Gibbs": SplitGibbs(),
    "particles, PiGDM": TwistedSMC(twist="pigdm", return_all=True),
    "particles, MMPS": TwistedSMC(twist="mmps", return_all=True),
}
_COLUMNS = {
    "distance": "over floor", "distance_error": "+-", "worst": "worst", "modes": "modes off",
    "worst_modes": "worst modes", "residual": "residual", "evidence": "log p(y) off", "nfe": "calls",
    "products": "products", "seconds": "seconds",
}  # fmt: skip


@dataclass(frozen=True)
class PosteriorTable:
    """What `compare_posteriors` found; printed, it is a table of means over observations and the worst of them.

    Attributes:
        rows: one mapping for each method and observation: "method", "observation"; "distance", sliced Wasserstein-2
            distance to exact draws over that of two exact sets, 1 where none is to be seen, and "distance_error", by
            how much that of exact draws scatters; "modes", total variation of the weights of the components, whose
            expectation for exact draws is "modes_floor"; "residual", mean of |y - A x|^2 in units of the noise over
            that of exact draws; "evidence", error of log p(y) in nats, NaN where a method gives none; "nfe", "products"
            and "seconds" of a sample. Each is a mean over the repeats. Particles that were all returned have rows
            as "NAME, pooled", too.
    """

    rows: tuple[dict[str, Any], ...]

    def means(self) -> list[dict[str, Any]]:
        """One mapping for each method: means over observations, "worst" and "worst_modes", the standard error of
        "distance", the root mean square of "evidence".
        """
        found = []
        for name in dict.fromkeys(row["method"] for row in self.rows):
            mine = [row for row in self.rows if row["method"] == name]
            mean = {
                key: sum(row[key] for row in mine) / len(mine) for key in ("distance", "modes", "residual", "seconds")
            }
            errors = [row["evidence"] ** 2 for row in mine]
            scatter = sum(row["distance_error"] ** 2 for row in mine) ** 0.5 / len(mine)
            found.append({
                "method": name, **mean, "distance_error": scatter, "worst": max(row["distance"] for row in mine),
                "worst_modes": max(row["modes"] for row in mine), "evidence": (sum(errors) / len(errors)) ** 0.5,
                "nfe": mine[0]["nfe"], "products": mine[0]["products"],
            })  # fmt: skip
        return found

    def __str__(self) -> str:
        means = self.means()
        width = max(len(row["method"]) for row in means)
        lines = [" " * width + "".join(f"{title:>14}" for title in _COLUMNS.values())]
        for row in means:
            cells = (f"{row[key]:>14.3g}" if isinstance(row[key], float) else f"{row[key]:>14}" for key in _COLUMNS)
            lines.append(f"{row['method']:<{width}}" + "".join(cells))
        modes, scatter = (
            sum(row[key] for row in self.rows) / len(self.rows) for key in ("modes_floor", "distance_error")
        )
        told = f"(exact draws, one observation: 1 +- {scatter:.2g} over the floor, modes off by {modes:.3g})"
        return "\n".join([*lines, told])


def compare_posteriors(
    law: GaussianMixture,
    operator: Operator,
    noise_std: Any,
    methods: Mapping[str, Method] | None = None,
    *,
    perturbation: Perturbation | None = None,
    observations: int = 8,
    samples: int = 512,
    repeats: int = 1,
    seed: int = 0,
) -> PosteriorTable:
    """Samplers of x given y = A x + noise against the exact posterior, for data from a mixture of Gaussians.

    Args:
        law: of the data; the model is its exact one, so that all that is wrong is the method's.
        operator: A, linear.
        noise_std: as of a `Posterior`.
        methods: name to a sampler of a `Posterior`, or to anything called as one. By default guidance, split Gibbs and
            particles.
        perturbation: formulation of the model; by default `VP()`.
        observations: number of them, each of a sample of its own, >= 1.
        samples: drawn by each method for each observation, >= 2.
        repeats: how often each method draws them, with a seed of its own, >= 1. What is measured of one observation
            scatters, most of all where modes lie far apart, and less by the root of this.
        seed: of the observations and, plus the number of the repeat, of the methods.

    Raises:
        ConfigError: for values outside these.
    """
    where = "compare_posteriors"
    if not isinstance(law, GaussianMixture) or not isinstance(operator, Operator):
        raise ConfigError(f"{where}: give a GaussianMixture and an Operator, got {law!r} and {operator!r}")
    checks.integer(where, "observations", observations)
    checks.integer(where, "samples", samples, low=2)
    model = law.model(VP() if perturbation is None else perturbation)
    checks.integer(where, "repeats", repeats)
    rows = []
    for i, y in enumerate(_observed(law, operator, noise_std, observations, seed)):
        posterior, exact = Posterior(model, operator, y, noise_std), law.condition(operator, y, noise_std)
        truth = _Truth(posterior, exact, [exact.sample(samples, seed + 1 + j) for j in range(_SETS)])
        for name, method in (METHODS if methods is None else methods).items():
            found: dict[str, list[dict[str, float]]] = {}
            for repeat in range(repeats):
                began = time.perf_counter()
                drawn = method(posterior, (samples, law.dim), seed=seed + repeat, dtype=torch.float64)
                about = {"seconds": time.perf_counter() - began, "evidence": math.nan}
                about |= {"nfe": drawn.nfe, "products": drawn.products}
                sets = {name: drawn.x}
                if isinstance(drawn, Particles):
                    about["evidence"] = float(drawn.log_evidence - exact.log_evidence)
                    if drawn.particles is not None:
                        sets[f"{name}, pooled"] = drawn.pooled(samples, seed + repeat)
                for each, x in sets.items():
                    found.setdefault(each, []).append(truth.measured(x.to(torch.float64)) | about)
            for each, measured in found.items():
                means = {key: sum(one[key] for one in measured) / repeats for key in measured[0]}
                rows.append({
                    "method": each, "observation": i, **means, "distance_error": truth.scatter / repeats**0.5,
                    "modes_floor": truth.modes_floor, "nfe": round(means["nfe"]), "products": round(means["products"]),
                })  # fmt: skip
    return PosteriorTable(tuple(rows))


class _Truth:
    """Sets of draws from the exact posterior, and how others compare with them."""

    def __init__(self, posterior: Posterior, exact: Conditioned, sets: list[Tensor]) -> None:
        self.posterior, self.exact, self.sets = posterior, exact, sets
        pairs = torch.zeros(len(sets), len(sets), dtype=torch.float64)
        for i, j in itertools.combinations(range(len(sets)), 2):
            pairs[i, j] = pairs[j, i] = sliced_wasserstein(sets[i], sets[j])
        each = pairs.sum(1) / (len(sets) - 1)
        self.floor = float(each.mean())
        self.scatter = float(each.std()) / self.floor
        self.modes_floor = sum(_modes_off(exact, x) for x in sets) / len(sets)
        self.residual = sum(_residual(posterior, x) for x in sets) / len(sets)

    def measured(self, x: Tensor) -> dict[str, float]:
        distance = sum(float(sliced_wasserstein(x, other)) for other in self.sets) / len(self.sets)
        return {
            "distance": distance / self.floor, "modes": _modes_off(self.exact, x),
            "residual": _residual(self.posterior, x) / self.residual,
        }  # fmt: skip


def _observed(law: GaussianMixture, operator: Operator, noise_std: Any, count: int, seed: int) -> Sequence[Tensor]:
    """Measurements of samples of the law, each as the flat numbers that the operator measures."""
    clean = operator.apply(law.sample(count, seed)).flatten(1)
    n = torch.randn(clean.shape, dtype=torch.float64, generator=keyed_generator(seed, 1))
    noise = torch.as_tensor(noise_std, dtype=torch.float64)
    return list(clean + (n @ torch.linalg.cholesky(noise).T if noise.ndim == 2 else n * noise))


def _modes_off(exact: Conditioned, x: Tensor) -> float:
    """Total variation between the weights of the components and those that the samples fall to."""
    return 0.5 * float((exact.responsibilities(x).mean(0) - exact.weights).abs().sum())


def _residual(posterior: Posterior, x: Tensor) -> float:
    """Mean of |y - A x|^2/m in units of the noise."""
    measured = posterior.measurement(tuple(x.shape[1:]), x.device)
    return float((measured.observed(posterior.y, False) - measured.forward(x)).square().mean())
