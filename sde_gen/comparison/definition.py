"""What a comparison compares: formulations, samplers and budgets, over which data, in which mode."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from sde_gen import checks as check
from sde_gen.checks import checked
from sde_gen.comparison.description import modules_of
from sde_gen.comparison.findings import Finding
from sde_gen.config.objects import build, describe
from sde_gen.config.typed import typed
from sde_gen.data import Affine, Dataset
from sde_gen.data.dataset import Mixture
from sde_gen.errors import ConfigError, MissingInputError
from sde_gen.metrics import METRICS
from sde_gen.objectives import DenoisingScoreMatching
from sde_gen.oracles import GaussianMixture
from sde_gen.parameterizations import NoisePrediction, Parameterization
from sde_gen.perturbations import Perturbation
from sde_gen.rng import check_seed
from sde_gen.samplers import Sampler
from sde_gen.training import TrainerSettings

_WHAT = {
    "perturbation": (Perturbation, "a perturbation"),
    "parameterization": (Parameterization, "a parameterization"),
    "objective": (DenoisingScoreMatching, "an objective"),
}


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
class ComparisonSettings:
    """What a `Comparison` is given; see there."""

    formulations: Mapping[str, Any]
    samplers: Mapping[str, Any]
    data: Any
    mode: str = checked("oracle", choices=("oracle", "network", "shared"))
    budgets: Sequence[int] = ()
    seeds: Sequence[int] = (0, 1, 2)
    grid: str = checked("native", choices=("native", "matched"))
    num_samples: int = checked(1000, low=2)
    measures: Sequence[str] = ("energy_distance", "sliced_wasserstein")
    likelihood: int = checked(0, low=0)
    orders: bool = checked(True)
    trajectories: bool = checked(True)
    network: Mapping[str, Any] = field(default_factory=lambda: {"_target_": "auto"})
    trainer: Any = field(default_factory=dict)
    training_seed: int = 0
    train_each_seed: bool = checked(False)
    shared_from: str | None = None
    checkpoint: str | None = None
    findings: Sequence[Any] = ()
    name: str = "comparison"
    question: str = ""
    device: str = "cpu"
    trust: Sequence[str] = ()

    def __post_init__(self) -> None:
        where = "Comparison"
        check.fields(self, where)
        check_seed(self.training_seed)
        if not self.name or self.name in (".", "..") or len(self.name) > 200 or set(self.name) & set("/\\\0"):
            raise ConfigError(f"{where}: name must be that of a folder, at most 200 characters, got {self.name!r}")
        for name in ("formulations", "samplers"):
            given = getattr(self, name)
            if not isinstance(given, Mapping) or not given:
                raise ConfigError(f"{where}: {name} must map names to objects, at least one, got {given!r}")
        budgets = check.integers(where, "budgets", self.budgets)
        seeds = tuple(check_seed(seed) for seed in self.seeds)
        for name, values in (("budgets", budgets), ("seeds", seeds)):
            if len(set(values)) < len(values) or (name == "seeds" and not values):
                raise ConfigError(f"{where}: {name} must be different numbers, at least one seed, got {list(values)}")
        if not self.measures:
            raise ConfigError(f"{where}: measures must name at least one distance")
        if self.checkpoint is not None and self.mode != "shared":
            raise ConfigError(f"{where}: checkpoint={self.checkpoint!r} is for mode='shared', not {self.mode!r}")
        if self.checkpoint is not None and not Path(self.checkpoint).expanduser().is_dir():
            raise MissingInputError(f"no checkpoint at {self.checkpoint}; give the folder of a checkpoint or run")
        if self.shared_from is not None:
            check.choice(where, "shared_from", self.shared_from, tuple(self.formulations))
        trainer = self.trainer
        made = {
            "budgets": tuple(sorted(budgets)),
            "seeds": seeds,
            "measures": tuple(check.choice(where, "measures", name, tuple(METRICS)) for name in self.measures),
            "findings": tuple(Finding.of(finding) for finding in self.findings),
            "trainer": trainer if isinstance(trainer, TrainerSettings) else typed(TrainerSettings, trainer, "trainer"),
            "data": {"_target_": f"sde_gen.data.{self.data}"} if isinstance(self.data, str) else self.data,
            "samplers": {
                str(n): self._made(s, Sampler, f"samplers.{n}", "a sampler") for n, s in self.samplers.items()
            },
            "formulations": {str(n): self._formulation(f, f"formulations.{n}") for n, f in self.formulations.items()},
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)
        _ = self.spec  # refuses here what cannot be written down

    def _made(self, given: Any, cls: type, where: str, what: str) -> Any:
        """An object that was given, or that a mapping names."""
        of_ours = isinstance(given, Sampler | Perturbation | Parameterization | DenoisingScoreMatching)
        made = given if of_ours or given is None else build(given, trust=self.trust, where=where)
        if not isinstance(made, cls):
            raise ConfigError(f"{where} must be {what}, got {made!r}")
        return made

    def _formulation(self, value: Any, where: str) -> Formulation:
        if isinstance(value, Formulation):
            value = {f.name: getattr(value, f.name) for f in fields(value)}
        elif isinstance(value, Perturbation) or (isinstance(value, Mapping) and "_target_" in value):
            value = {"perturbation": value}
        if not isinstance(value, Mapping) or not isinstance(value.get("perturbation"), Mapping | Perturbation):
            raise ConfigError(f"{where} must be a Formulation, a perturbation, or a group with one, got {value!r}")
        for key in value:
            check.choice(where, "key", key, (*_WHAT, "samplers"))
        named = value.get("samplers")
        for sampler in named or ():
            check.choice(where, "samplers", sampler, tuple(map(str, self.samplers)))
        given = {key: item for key, item in value.items() if item is not None and key != "samplers"}
        parts = {key: self._made(item, _WHAT[key][0], f"{where}.{key}", _WHAT[key][1]) for key, item in given.items()}
        return Formulation(**parts, samplers=None if named is None else tuple(named))

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The comparison as plain data; `data` is None where it was given as tensors."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "trust"}
        values["data"] = self.data if isinstance(self.data, Mapping) else None
        values["findings"] = [finding.to_dict() for finding in self.findings]
        spec = {name: describe(value, name) for name, value in values.items()}
        for node in (spec["trainer"], *spec["formulations"].values()):  # of one class anyway
            del node["_target_"]
        return spec

    @property
    def trusted(self) -> tuple[str, ...]:
        """Modules whose classes may be built: those named, and those of objects that are there."""
        return tuple(sorted({*self.trust, *modules_of([self.spec["formulations"], self.spec["samplers"]])}))

    def dataset(self) -> Dataset:
        """The data; read or made now, if it was named."""
        if isinstance(self.data, Dataset):
            return self.data
        if isinstance(self.data, GaussianMixture):
            return mixture_data(self.data, max(2048, self.num_samples))
        return build(self.data, trust=self.trusted, where="data")


def mixture_data(law: GaussianMixture, n: int) -> Dataset:
    """Samples of a mixture as a data set on its own scale, with its law."""
    exact = Mixture(law.weights, law.means, law.covariances)
    train, test = (law.sample(n, seed=2**64 - k).float() for k in (1, 2))  # seeds that no cell is likely to have
    return Dataset("mixture", "vector", train, test, Affine(), law=exact)
