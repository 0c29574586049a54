"""The objects that a comparison names, built and checked before any work; and which formulations can be compared."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

from sde_gen.comparison.description import describe, digest
from sde_gen.config.objects import build
from sde_gen.config.restore import load_model
from sde_gen.errors import ConfigError
from sde_gen.model import ScoreModel
from sde_gen.objectives import DenoisingScoreMatching
from sde_gen.oracles import GaussianMixture
from sde_gen.parameterizations import Parameterization
from sde_gen.perturbations import Perturbation
from sde_gen.samplers import Sampler

T = TypeVar("T")


class Parts:
    """Samplers and formulations of a comparison, as objects.

    Args:
        spec: the comparison as plain data.
        trust: modules of the user's own that may be built from.
        checkpoint: mode "shared": the folder of the checkpoint that is used instead of training one; else None.

    Attributes:
        samplers, perturbations, parameterizations, objectives: by the names of the comparison.

    Raises:
        ConfigError: a description that builds nothing, or something of another kind.
    """

    def __init__(self, spec: Mapping[str, Any], trust: Sequence[str], checkpoint: str | None) -> None:
        self.spec, self.trust, self.checkpoint = spec, trust, checkpoint
        self.samplers = {
            name: self._built(node, Sampler, f"samplers.{name}", "a sampler")  # type: ignore[type-abstract]
            for name, node in spec["samplers"].items()
        }
        self.perturbations = self._of_each("perturbation", Perturbation, "a perturbation")
        self.parameterizations = self._of_each("parameterization", Parameterization, "a parameterization")
        self.objectives = self._of_each("objective", DenoisingScoreMatching, "an objective")

    def _of_each(self, part: str, cls: type[T], what: str) -> dict[str, T]:
        return {
            name: self._built(node[part], cls, f"formulations.{name}.{part}", what)
            for name, node in self.spec["formulations"].items()
        }

    def _built(self, node: Any, cls: type[T], where: str, what: str) -> T:
        made = build(node, trust=self.trust, where=where)
        if not isinstance(made, cls):
            raise ConfigError(f"{where} must be {what}, got {made!r}")
        return made

    def asked(self, name: str) -> list[str]:
        """The samplers that a formulation is run with."""
        return list(self.spec["formulations"][name]["samplers"] or self.spec["samplers"])

    @property
    def shared_from(self) -> str:
        """Mode "shared": the formulation that the one network is trained under."""
        return self.spec["shared_from"] or next(iter(self.spec["formulations"]))

    def why_not(self) -> dict[str, str]:
        """The formulations that cannot be compared in this mode, with the reason."""
        mode, alike, reasons = self.spec["mode"], {}, {}
        trained = self._trained_parameterization()
        for name, node in self.spec["formulations"].items():
            try:
                self.objectives[name].law_for(ScoreModel(None, self.perturbations[name], self.parameterizations[name]))
            except ConfigError as error:
                reasons[name] = str(error)
                continue
            first = alike.setdefault(digest(node["perturbation"]), name)
            if mode != "network" and first != name:
                reasons[name] = f"differs from {first} only in what is learned, which mode={mode} does not look at"
            elif trained is not None and digest(node["parameterization"]) != digest(trained):
                reasons[name] = "the one trained network has another parameterization, and cannot change it in sampling"
        return reasons

    def _trained_parameterization(self) -> Any:
        if self.spec["mode"] != "shared":
            return None
        if self._given is not None:
            return describe(self._given.parameterization, "parameterization")
        return self.spec["formulations"][self.shared_from]["parameterization"]

    @cached_property
    def _given(self) -> ScoreModel | None:
        return None if self.checkpoint is None else load_model(self.checkpoint, trust=self.trust)

    def probe(self, name: str) -> ScoreModel:
        """A model with the range of times that samplers will use under a formulation."""
        p = self.perturbations[name]
        if self.spec["mode"] != "shared":
            return GaussianMixture([1.0], [[0.0]], [[[1.0]]]).model(p)
        trained = self._given or ScoreModel(lambda x, c: x, self.perturbations[self.shared_from])
        return trained.under(p)
