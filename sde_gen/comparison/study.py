"""A comparison: which formulations, samplers and budgets, over which data, in which mode."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sde_gen import checks as check
from sde_gen.comparison.cells.quality import check_measures
from sde_gen.comparison.description import describe, modules_of
from sde_gen.comparison.findings import Finding
from sde_gen.comparison.results import Results
from sde_gen.data import Affine, Dataset
from sde_gen.data.base import Mixture
from sde_gen.errors import ConfigError, MissingInputError
from sde_gen.objectives import DenoisingScoreMatching
from sde_gen.oracles import GaussianMixture
from sde_gen.parameterizations import NoisePrediction, Parameterization
from sde_gen.perturbations import Perturbation
from sde_gen.rng import check_seed
from sde_gen.training import TrainerSettings

if TYPE_CHECKING:
    from sde_gen.comparison.plan import Plan

__all__ = ["Comparison", "Formulation"]

MODES = ("oracle", "network", "shared")
GRIDS = ("native", "matched")


@dataclass(frozen=True)
class Formulation:
    """A way to pose the learning problem: a perturbation, what the network predicts, and the loss.

    Args:
        perturbation: the forward process.
        parameterization: what the network's raw output means.
        objective: the loss it is trained with.
        samplers: names of the samplers it is run with; None: all of the comparison's.
    """

    perturbation: Perturbation
    parameterization: Parameterization = field(default_factory=NoisePrediction)
    objective: DenoisingScoreMatching = field(default_factory=DenoisingScoreMatching)
    samplers: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Formulations x samplers x budgets x seeds over one data set, with one network configuration.

    Args:
        formulations: name to `Formulation`, or to a perturbation (which then predicts noise with the simple loss).
        samplers: name to sampler. One with `steps` set, or an adaptive one, is run once as it is; the others once for
            each budget, with the most steps whose *counted* network calls do not exceed it.
        data: a `Dataset`, a `GaussianMixture`, a name such as "digits", or a mapping with a `_target_`.
        mode: "oracle": exact scores, no training: what discretisation costs. "network": every formulation trained with
            the same network, budget, data order and draws: what the formulation costs in learning. "shared": one
            trained network under every formulation: what it costs in sampling, learning held fixed.
        budgets: network calls for each sample, ascending.
        seeds: of sampling; one seed gives the same noise, number for number, to every cell.
        grid: "native": each sampler's own times; "matched": the same half log-SNRs for all.
        num_samples: samples in a cell.
        measures: distances to held-out data; the first decides the ranking.
        likelihood: held-out points for the negative log-likelihood; 0: none.
        orders: whether the order of convergence is fitted (mode "oracle").
        trajectories: whether the way from noise to data is kept for the report.
        network: as for `python -m sde_gen.train`: {"_target_": "auto"}, or a class and its arguments.
        trainer: settings of the `Trainer`.
        training_seed: of the network's first weights, the order of the data and the draws of training.
        train_each_seed: whether each seed trains a network of its own, so that the error includes that of training.
        shared_from: mode "shared": which formulation the one network is trained under; None: the first.
        checkpoint: mode "shared": a run or checkpoint to use instead of training one.
        findings: what should come out, stated beforehand; see `Finding`.
        name, question: title and first sentence of the report.
        device: "cpu", "cuda", ...
        trust: modules of your own whose classes a mapping may name.

    Raises:
        ConfigError: for values outside these.
    """

    formulations: Mapping[str, Any]
    samplers: Mapping[str, Any]
    data: Any
    mode: str = "oracle"
    budgets: Sequence[int] = ()
    seeds: Sequence[int] = (0, 1, 2)
    grid: str = "native"
    num_samples: int = 1000
    measures: Sequence[str] = ("energy_distance", "sliced_wasserstein")
    likelihood: int = 0
    orders: bool = True
    trajectories: bool = True
    network: Mapping[str, Any] = field(default_factory=lambda: {"_target_": "auto"})
    trainer: Any = field(default_factory=dict)
    training_seed: int = 0
    train_each_seed: bool = False
    shared_from: str | None = None
    checkpoint: str | None = None
    findings: Sequence[Any] = ()
    name: str = "comparison"
    question: str = ""
    device: str = "cpu"
    trust: Sequence[str] = ()

    def __post_init__(self) -> None:
        where = "Comparison"
        check.choice(where, "mode", self.mode, MODES)
        check.choice(where, "grid", self.grid, GRIDS)
        check.integer(where, "num_samples", self.num_samples, low=2)
        check.integer(where, "likelihood", self.likelihood, low=0)
        check_seed(self.training_seed)
        for name in ("formulations", "samplers"):
            if not isinstance(getattr(self, name), Mapping) or not getattr(self, name):
                raise ConfigError(
                    f"{where}: {name} must map names to objects, at least one, got {getattr(self, name)!r}"
                )
        budgets = [check.integer(where, "budgets", b) for b in self.budgets]
        seeds = [check_seed(s) for s in self.seeds]
        for name, values in (("budgets", budgets), ("seeds", seeds)):
            if len(set(values)) < len(values) or (name == "seeds" and not values):
                raise ConfigError(f"{where}: {name} must be different numbers, at least one seed, got {values}")
        object.__setattr__(self, "budgets", tuple(sorted(budgets)))
        object.__setattr__(self, "seeds", tuple(seeds))
        if not self.measures:
            raise ConfigError(f"{where}: measures must name at least one distance")
        object.__setattr__(self, "measures", check_measures(self.measures))
        object.__setattr__(self, "findings", tuple(Finding.of(f) for f in self.findings))
        if self.checkpoint is not None and self.mode != "shared":
            raise ConfigError(f"{where}: checkpoint={self.checkpoint!r} is for mode='shared', not {self.mode!r}")
        if self.checkpoint is not None and not Path(self.checkpoint).expanduser().is_dir():
            raise MissingInputError(f"no checkpoint at {self.checkpoint}; give the folder of a checkpoint or run")
        if self.shared_from is not None:
            check.choice(where, "shared_from", self.shared_from, tuple(self.formulations))
        _ = self.spec  # refuses here what cannot be written down

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The comparison as plain data; `data` is None where it was given as tensors."""
        data = self.data
        if isinstance(data, str):
            data = {"_target_": f"sde_gen.data.{data}"}
        trainer = describe(self.trainer, "trainer")
        trainer.pop("_target_", None)
        return {
            "name": self.name,
            "question": self.question,
            "mode": self.mode,
            "grid": self.grid,
            "data": describe(data, "data") if isinstance(data, Mapping) else None,
            "formulations": {str(n): self._formulation(str(n), f) for n, f in self.formulations.items()},
            "samplers": {str(n): describe(s, f"samplers.{n}") for n, s in self.samplers.items()},
            "budgets": list(self.budgets),
            "seeds": list(self.seeds),
            "num_samples": self.num_samples,
            "measures": list(self.measures),
            "likelihood": self.likelihood,
            "orders": self.orders,
            "trajectories": self.trajectories,
            "network": describe(self.network, "network"),
            "trainer": trainer,
            "training_seed": self.training_seed,
            "train_each_seed": self.train_each_seed,
            "shared_from": self.shared_from,
            "checkpoint": self.checkpoint,
            "findings": [finding.to_dict() for finding in self.findings],
            "device": self.device,
        }

    def _formulation(self, name: str, value: Any) -> dict[str, Any]:
        where = f"formulations.{name}"
        if isinstance(value, Perturbation):
            value = Formulation(value)
        if isinstance(value, Formulation):
            value = {n: getattr(value, n) for n in ("perturbation", "parameterization", "objective", "samplers")}
        if isinstance(value, Mapping) and "_target_" in value:
            value = {"perturbation": value}
        if not isinstance(value, Mapping) or not isinstance(value.get("perturbation"), Mapping | Perturbation):
            raise ConfigError(f"{where} must be a Formulation, a perturbation, or a group with one, got {value!r}")
        known = ("perturbation", "parameterization", "objective", "samplers")
        for key in value:
            check.choice(where, "key", key, known)
        node = describe({**Formulation(value["perturbation"]).__dict__, **_given(value)}, where)
        for sampler in node["samplers"] or ():
            check.choice(where, "samplers", sampler, tuple(map(str, self.samplers)))
        return node

    @property
    def trusted(self) -> tuple[str, ...]:
        """Modules whose classes may be built: those named, and those of objects that were given as objects."""
        objects = [*self.samplers.values(), self.trainer]
        for f in self.formulations.values():  # one is an object, or has objects in it
            inner = f.__dict__ if isinstance(f, Formulation) else f if isinstance(f, Mapping) else {"": f}
            objects += [o for name, o in inner.items() if name != "samplers"]
        given = [describe(o, "object") for o in objects if not isinstance(o, Mapping)]
        return tuple(sorted({*self.trust, *modules_of(given)}))

    def dataset(self) -> Dataset:
        """The data, built if it was named."""
        from sde_gen.config.objects import build

        if isinstance(self.data, Dataset):
            return self.data
        if isinstance(self.data, GaussianMixture):
            return mixture_data(self.data, max(2048, self.num_samples))
        return build(self.spec["data"], trust=self.trusted, where="data")

    def run(
        self,
        cache: Any = "runs/comparisons/.cache",
        *,
        workers: int = 1,
        tell: Callable[..., None] | None = None,
        part: tuple[int, int] | None = None,
    ) -> Results:
        """Compute what the cache does not hold, and return everything.

        Args:
            cache: folder of results, shared by any number of comparisons.
            workers: processes, each with one torch thread; 1 computes here. In a script, call `run` under
                `if __name__ == "__main__":` for more than one.
            tell: called as tell(cell, result, known) after each cell.
            part: (k, n) computes only the k-th of n parts, for jobs that share a cache; the rest of the rows is what
                the cache has already.

        Raises:
            ConfigError, DataError, OutputError: before any work, where the comparison as a whole cannot be run.
        """
        from sde_gen.comparison.running import run_plan

        check.integer("Comparison.run", "workers", workers)
        return run_plan(self, self._plan, Path(cache).expanduser(), workers, tell, part)

    def cells(self) -> list[Any]:
        """All cells, without computing any."""
        return list(self._plan.cells)

    @cached_property
    def _plan(self) -> "Plan":
        from sde_gen.comparison.plan import make_plan

        return make_plan(self)

    def rerun(self, key: str, cache: Any = "runs/comparisons/.cache") -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Compute one cell afresh: its result, and the one that the cache held before (None if it held none).

        Args:
            key: of the cell, or enough of its first characters.
        """
        from sde_gen.comparison.running import rerun

        return rerun(self, self._plan, key, Path(cache).expanduser())


def _given(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not None}


def mixture_data(law: GaussianMixture, n: int) -> Dataset:
    """Samples of a mixture as a data set on its own scale, with its law."""
    exact = Mixture(law.weights, law.means, law.covariances)
    train, test = (law.sample(n, seed=2**64 - k).float() for k in (1, 2))  # seeds that no cell is likely to have
    return Dataset("mixture", "vector", train, test, Affine(), law=exact)


def from_spec(spec: Mapping[str, Any], trust: Sequence[str] = ()) -> Comparison:
    """The comparison that `Comparison.spec` described.

    Raises:
        ConfigError: its data was given as tensors, which a description does not hold; or it is none.
    """
    if spec.get("data") is None:
        raise ConfigError(
            "this comparison was made with data in memory, which its description does not hold; "
            "rerun the cell with Comparison.rerun in Python"
        )
    from sde_gen.config.typed import typed

    return typed(Comparison, {str(key): value for key, value in spec.items()} | {"trust": tuple(trust)}, "spec")


def trainer_settings(values: Mapping[str, Any]) -> TrainerSettings:
    """The settings, checked."""
    from sde_gen.config.typed import typed

    return typed(TrainerSettings, values, "trainer")
