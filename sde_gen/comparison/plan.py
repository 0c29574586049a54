"""From a comparison to its cells: what is computed, what is not and why."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sde_gen.comparison.budgets import Range, common_range, fitted, takes_budget
from sde_gen.comparison.compute import Context, law_of
from sde_gen.comparison.describe import describe, digest
from sde_gen.comparison.parts import Parts
from sde_gen.comparison.store import Cell
from sde_gen.comparison.train import learned_from
from sde_gen.config.restore import find_checkpoint, pick_device, resolved_network
from sde_gen.data import Dataset
from sde_gen.errors import ConfigError
from sde_gen.oracles import GaussianMixture
from sde_gen.samplers import GridSampler

if TYPE_CHECKING:
    from sde_gen.comparison.comparison import Comparison

#: What is kept for pictures: images, points, particles, and states along the way.
SHOWN_IMAGES, SHOWN_POINTS, PARTICLES, STRIP_IMAGES = 36, 1500, 400, 3
FRAMES = {"vector": 25, "image": 9}


@dataclass(frozen=True)
class Plan:
    """Cells in the order in which they are best begun, rows for what is skipped, and what the cells share."""

    cells: list[Cell]
    skipped: list[dict[str, Any]]
    context: Context
    data: Dataset
    span: Range | None


def make_plan(comparison: "Comparison") -> Plan:
    """The plan of a comparison.

    Raises:
        ConfigError, DataError: the comparison as a whole cannot be run.
    """
    return _Planner(comparison).plan()


class _Planner:
    def __init__(self, comparison: "Comparison") -> None:
        self.comparison, self.spec = comparison, comparison.spec
        self.trust, self.data = comparison.trusted, comparison.dataset()
        # Workers make named data themselves; data in memory travels to them.
        named = self.spec["data"]
        self.device = str(pick_device(self.spec["device"]))
        checkpoint = comparison.checkpoint
        found = None if checkpoint is None else find_checkpoint(checkpoint)[0]
        self.checkpoint, self.weights = (None, None) if found is None else (str(found.path), found.digest)
        self.parts = Parts(self.spec, self.trust, self.checkpoint)
        self.context = Context(
            named if named is not None else self.data, cache=None, device=self.device, trust=self.trust,  # type: ignore[arg-type]
            checkpoint=self.checkpoint, trainer=self.spec["trainer"],
        )  # fmt: skip
        self.skipped: list[dict[str, Any]] = []
        self.cells: list[Cell] = []

    def plan(self) -> Plan:
        spec = self.spec
        why_not = self.parts.why_not()
        usable = [name for name in spec["formulations"] if name not in why_not]
        for name, reason in why_not.items():
            for sampler in self.parts.asked(name):
                self._skip(name, sampler, None, reason)
        models = self._models(usable)
        span = (
            common_range([self.parts.probe(name) for name in usable]) if spec["grid"] == "matched" and usable else None
        )
        likelihoods, orders, samples, traces = [], [], [], []
        for name in usable:
            if spec["likelihood"]:
                likelihoods += [self._likelihood(name, seed, models) for seed in self._training_seeds()]
            for sampler in self.parts.asked(name):
                if spec["orders"] and spec["mode"] == "oracle":
                    orders.append(self._order(name, sampler))
                found, drawn = self._runs(name, sampler, models, span)
                samples += found
                traces += drawn
        real = [self._real(seed) for seed in spec["seeds"]]
        trained = list({cell.key: cell for cell in models.values() if cell is not None}.values())
        cells = [*trained, *likelihoods, *sorted(samples, key=_dearest_first), *traces, *orders, *real]
        return Plan(cells, self.skipped, self.context, self.data, span)

    # -- networks ----------------------------------------------------------------------------------------------------

    def _training_seeds(self) -> list[int]:
        each = self.spec["train_each_seed"] and self.spec["mode"] != "oracle"
        return list(self.spec["seeds"]) if each else [self.spec["training_seed"]]

    def _models(self, names: list[str]) -> dict[tuple[str, int], Cell | None]:
        """The cell of the network of each (formulation, training seed); None where there is none to train."""
        if self.spec["mode"] == "oracle" or self.checkpoint is not None or not names:
            return {(name, seed): None for name in names for seed in self._training_seeds()}
        network = resolved_network(self.spec["network"], self.data, False)
        result: dict[tuple[str, int], Cell | None] = {}
        for name in names:
            home = self.parts.shared_from if self.spec["mode"] == "shared" else name
            node = self.spec["formulations"][home]
            for seed in self._training_seeds():
                config = {
                    **{part: node[part] for part in ("perturbation", "parameterization", "objective")},
                    "network": network,
                    "trainer": learned_from(self.spec["trainer"]),
                    "seed": seed,
                    "data": self.data.fingerprint,
                    "device": self.device.partition(":")[0],
                }
                result[name, seed] = Cell("model", config, {"formulation": home, "seed": seed})
        return result

    # -- cells -------------------------------------------------------------------------------------------------------

    def _base(self, name: str, model: Cell | None) -> dict[str, Any]:
        source: Any = model.key if model is not None else None
        if self.spec["mode"] == "oracle":
            source = self._law
        elif self.checkpoint is not None:
            source = self.weights
        return {
            "mode": self.spec["mode"],
            "perturbation": self.spec["formulations"][name]["perturbation"],
            "model": source if isinstance(source, str) else digest(source),
            "data": self.data.fingerprint,
            "device": self.device.partition(":")[0],
        }

    @property
    def _law(self) -> Any:
        law = law_of(self.data)
        if not isinstance(law.exact, GaussianMixture):
            return "the training samples"
        return [part.tolist() for part in (law.exact.weights, law.exact.means, law.exact.covariances)]

    def _model_for(self, name: str, seed: int, models: Mapping[tuple[str, int], Cell | None]) -> Cell | None:
        each = self.spec["train_each_seed"] and self.spec["mode"] != "oracle"
        return models[name, seed if each else self.spec["training_seed"]]

    def _runs(
        self, name: str, sampler: str, models: Mapping[tuple[str, int], Cell | None], span: Range | None
    ) -> tuple[list[Cell], list[Cell]]:
        """The cells of one formulation and sampler: all budgets and seeds; and the one whose way is kept."""
        spec, made = self.spec, self.parts.samplers[sampler]
        budgets: list[int | None] = (list(spec["budgets"]) if takes_budget(made) else []) or [None]
        cells: list[Cell] = []
        last: dict[str, Any] | None = None
        for budget in budgets:
            try:
                fit = fitted(made, self.parts.perturbations[name], budget, span)
            except ConfigError as error:
                self._skip(name, sampler, budget, str(error))
                continue
            steps = fit.steps
            if span is not None and isinstance(made, GridSampler) and steps is not None:
                node = {"sampler": spec["samplers"][sampler], "matched": [steps, *span]}
            else:
                node = {"sampler": describe(fit.sampler, "sampler"), "matched": None}
            labels = {"formulation": name, "sampler": sampler, "budget": budget, "steps": steps, "note": fit.note}
            cells += [self._samples(name, node, {**labels, "seed": seed}, models) for seed in spec["seeds"]]
            last = {**node, "labels": {**labels, "seed": spec["seeds"][0]}}
        keeps = self.data.kind == "image" or self.data.shape == (2,)
        if last is None or not spec["trajectories"] or not keeps or not isinstance(made, GridSampler):
            return cells, []
        return cells, [self._trace(name, last, models)]

    def _samples(
        self,
        name: str,
        node: Mapping[str, Any],
        labels: Mapping[str, Any],
        models: Mapping[tuple[str, int], Cell | None],
    ) -> Cell:
        seed = labels["seed"]
        model = self._model_for(name, seed, models)
        shown = SHOWN_IMAGES if self.data.kind == "image" else SHOWN_POINTS
        config = {
            **self._base(name, model),
            **node,
            "seed": seed,
            "num_samples": min(self.spec["num_samples"], len(self.data.test)),
            "measures": self.spec["measures"],
            "keep": shown if seed == self.spec["seeds"][0] else 0,
        }
        return Cell("samples", config, labels, None if model is None else model.key)

    def _trace(self, name: str, node: Mapping[str, Any], models: Mapping[tuple[str, int], Cell | None]) -> Cell:
        labels = node["labels"]
        model = self._model_for(name, labels["seed"], models)
        count = PARTICLES if self.data.kind == "vector" else STRIP_IMAGES
        config = {
            **self._base(name, model),
            "sampler": node["sampler"],
            "matched": node["matched"],
            "seed": labels["seed"],
            "count": count,
            "frames": FRAMES[self.data.kind],
        }
        return Cell("trace", config, labels, None if model is None else model.key)

    def _likelihood(self, name: str, seed: int, models: Mapping[tuple[str, int], Cell | None]) -> Cell:
        model = models[name, seed]
        size = self.data.train[0].numel()
        config = {
            **self._base(name, model),
            "points": min(self.spec["likelihood"], len(self.data.test)),
            # Few numbers: adaptive, with the exact divergence. Many: one grid, quasi-random probes.
            "steps": None if size <= 16 else 128,
            "probes": 1 if size <= 16 else 4,
            "seed": seed,
        }
        return Cell("likelihood", config, {"formulation": name, "seed": seed}, None if model is None else model.key)

    def _order(self, name: str, sampler: str) -> Cell:
        config = {
            "perturbation": self.spec["formulations"][name]["perturbation"],
            "sampler": self.spec["samplers"][sampler],
        }
        return Cell("order", config, {"formulation": name, "sampler": sampler})

    def _real(self, seed: int) -> Cell:
        shown = SHOWN_IMAGES if self.data.kind == "image" else SHOWN_POINTS
        config = {
            "data": self.data.fingerprint,
            "law": self._law,
            "seed": seed,
            "num_samples": min(self.spec["num_samples"], len(self.data.test)),
            "measures": self.spec["measures"],
            "keep": shown if seed == self.spec["seeds"][0] else 0,
        }
        return Cell("real", config, {"formulation": "real data", "sampler": "", "budget": None, "seed": seed})

    def _skip(self, name: str, sampler: str, budget: int | None, reason: str) -> None:
        self.skipped.append(
            {"formulation": name, "sampler": sampler, "budget": budget, "seed": None, "status": "skipped",
             "reason": reason}
        )  # fmt: skip


def _dearest_first(cell: Cell) -> float:
    """Long cells begin first, so that no process is left with one at the end."""
    return -float(cell.labels["budget"] or 1e9)
