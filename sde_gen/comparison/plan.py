"""From a comparison to its cells: what is computed, what is not and why."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sde_gen.comparison.budgets import Range, chooses, common_range, fitted, takes_budget
from sde_gen.comparison.cells.compute import Context, law_of
from sde_gen.comparison.cells.network import learned_from
from sde_gen.comparison.cells.store import Cell
from sde_gen.comparison.description import describe, digest
from sde_gen.comparison.parts import Parts
from sde_gen.config.restore import find_checkpoint, pick_device, resolved_network
from sde_gen.data import Dataset
from sde_gen.errors import ConfigError
from sde_gen.oracles import GaussianMixture
from sde_gen.samplers import GridSampler, ProbabilityFlow

if TYPE_CHECKING:
    from sde_gen.comparison.study import Comparison

#: What is kept for pictures: images, points, particles, and states along the way.
SHOWN_IMAGES, SHOWN_POINTS, PARTICLES, STRIP_IMAGES = 36, 1500, 400, 3
#: Draws of real samples for each seed: what everything is held against should scatter less than it.
REAL_DRAWS = 4
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


@dataclass(frozen=True)
class _Run:
    """A sampler with its steps set, under one formulation: what all its seeds share."""

    name: str
    sampler: Any
    matched: list[float] | None
    labels: dict[str, Any]


class _Planner:
    def __init__(self, comparison: "Comparison") -> None:
        self.spec, self.trust, self.data = comparison.spec, comparison.trusted, comparison.dataset()
        self.device = str(pick_device(self.spec["device"]))
        given = comparison.checkpoint
        found = None if given is None else find_checkpoint(given)[0]
        self.checkpoint, self.weights = (None, None) if found is None else (str(found.path), found.digest)
        self.parts = Parts(self.spec, self.trust, self.checkpoint)
        named = self.spec["data"]  # workers make named data themselves; data in memory travels to them
        self.context = Context(
            named if named is not None else self.data, cache=None, device=self.device, trust=self.trust,  # type: ignore[arg-type]
            checkpoint=self.checkpoint, trainer=self.spec["trainer"],
        )  # fmt: skip
        self.skipped: list[dict[str, Any]] = []
        self.why_not = self.parts.why_not()
        self.usable = [name for name in self.spec["formulations"] if name not in self.why_not]
        matched = self.spec["grid"] == "matched" and self.usable
        self.span = common_range([self.parts.probe(name) for name in self.usable]) if matched else None
        self.models = self._models()

    def plan(self) -> Plan:
        spec = self.spec
        for name, reason in self.why_not.items():
            for sampler in self.parts.asked(name):
                self._skip(name, sampler, None, reason)
        pairs = [(name, sampler) for name in self.usable for sampler in self.parts.asked(name)]
        choices: list[Cell] = []
        samples: list[Cell] = []
        traces: list[Cell] = []
        for name, sampler in pairs:
            runs = self._runs(name, sampler)
            for run in runs:
                choices += self._choices(run)
                samples += [self._samples(run, seed) for seed in spec["seeds"]]
            traces += [self._trace(run) for run in runs[-1:] if self._shows_way(sampler)]
        likelihoods = [self._likelihood(name, seed) for name in self.usable for seed in self._training_seeds()]
        orders = [self._order(*pair) for pair in pairs] if spec["orders"] and spec["mode"] == "oracle" else []
        trained = list({cell.key: cell for cell in self.models.values() if cell is not None}.values())
        cells = [
            *trained,
            *sorted(choices, key=_dearest_first),
            *(likelihoods if spec["likelihood"] else []),
            *sorted(samples, key=_dearest_first),
            *traces,
            *orders,
            *(self._real(seed) for seed in spec["seeds"]),
        ]
        return Plan(cells, self.skipped, self.context, self.data, self.span)

    # -- networks ----------------------------------------------------------------------------------------------------

    def _training_seeds(self) -> list[int]:
        each = self.spec["train_each_seed"] and self.spec["mode"] != "oracle"
        return list(self.spec["seeds"]) if each else [self.spec["training_seed"]]

    def _models(self) -> dict[tuple[str, int], Cell | None]:
        """The cell of the network of each (formulation, training seed); None where there is none to train."""
        names = self.usable
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

    def _model_for(self, name: str, seed: int) -> Cell | None:
        """The network that samples of this seed are drawn from."""
        each = self.spec["train_each_seed"] and self.spec["mode"] != "oracle"
        return self.models[name, seed if each else self.spec["training_seed"]]

    def _runs(self, name: str, sampler: str) -> list[_Run]:
        """One formulation with one sampler at each budget, ascending; those that make no sense are skipped."""
        made = self.parts.samplers[sampler]
        budgets: list[int | None] = (list(self.spec["budgets"]) if takes_budget(made) else []) or [None]
        runs = []
        for budget in budgets:
            try:
                fit = fitted(made, self.parts.perturbations[name], budget, self.span)
            except ConfigError as error:
                self._skip(name, sampler, budget, str(error))
                continue
            labels = {"formulation": name, "sampler": sampler, "budget": budget, "steps": fit.steps, "note": fit.note}
            if self.span is not None and isinstance(made, GridSampler) and fit.steps is not None:
                runs.append(_Run(name, self.spec["samplers"][sampler], [fit.steps, *self.span], labels))
            else:
                runs.append(_Run(name, describe(fit.sampler, "sampler"), None, labels))
        return runs

    def _choices(self, run: _Run) -> list[Cell]:
        """Where the sampler is chosen by measurement: one cell for each network."""
        found = [self._choice(run, seed) for seed in self.spec["seeds"]]
        return list({cell.key: cell for cell in found if cell is not None}.values())

    def _choice(self, run: _Run, seed: int) -> Cell | None:
        if not chooses(self.parts.samplers[run.labels["sampler"]]):
            return None
        model = self._model_for(run.name, seed)
        return Cell("choice", {**self._base(run.name, model), "sampler": run.sampler}, run.labels, _key(model))

    def _samples(self, run: _Run, seed: int) -> Cell:
        model = self._model_for(run.name, seed)
        config = {
            **self._base(run.name, model),
            "sampler": run.sampler,
            "matched": run.matched,
            **self._measured(seed),
        }
        return Cell("samples", config, {**run.labels, "seed": seed}, _key(model), _key(self._choice(run, seed)))

    def _measured(self, seed: int) -> dict[str, Any]:
        """What samples and real samples have in common."""
        shown = SHOWN_IMAGES if self.data.kind == "image" else SHOWN_POINTS
        return {
            "seed": seed,
            "num_samples": min(self.spec["num_samples"], len(self.data.test)),
            "measures": self.spec["measures"],
            "keep": shown if seed == self.spec["seeds"][0] else 0,
        }

    def _shows_way(self, sampler: str) -> bool:
        """Whether there is a way from noise to data to show: the data can be drawn, and the sampler shows states."""
        made = self.parts.samplers[sampler]
        can_be_drawn = self.data.kind == "image" or self.data.shape == (2,)
        shows = isinstance(made, GridSampler | ProbabilityFlow) or chooses(made)
        return self.spec["trajectories"] and can_be_drawn and shows

    def _trace(self, run: _Run) -> Cell:
        seed = self.spec["seeds"][0]
        model = self._model_for(run.name, seed)
        config = {
            **self._base(run.name, model),
            "sampler": run.sampler,
            "matched": run.matched,
            "seed": seed,
            "count": PARTICLES if self.data.kind == "vector" else STRIP_IMAGES,
            "frames": FRAMES[self.data.kind],
        }
        return Cell("trace", config, {**run.labels, "seed": seed}, _key(model), _key(self._choice(run, seed)))

    def _likelihood(self, name: str, seed: int) -> Cell:
        model = self.models[name, seed]
        size = self.data.train[0].numel()
        config = {
            **self._base(name, model),
            "points": min(self.spec["likelihood"], len(self.data.test)),
            # Few numbers: adaptive, with the exact divergence. Many: one grid, quasi-random probes.
            "steps": None if size <= 16 else 128,
            "probes": 1 if size <= 16 else 4,
            "seed": seed,
        }
        return Cell("likelihood", config, {"formulation": name, "seed": seed}, _key(model))

    def _order(self, name: str, sampler: str) -> Cell:
        config = {
            "perturbation": self.spec["formulations"][name]["perturbation"],
            "sampler": self.spec["samplers"][sampler],
        }
        return Cell("order", config, {"formulation": name, "sampler": sampler})

    def _real(self, seed: int) -> Cell:
        config = {"data": self.data.fingerprint, "law": self._law, "draws": REAL_DRAWS, **self._measured(seed)}
        return Cell("real", config, {"formulation": "real data", "sampler": "", "budget": None, "seed": seed})

    def _skip(self, name: str, sampler: str, budget: int | None, reason: str) -> None:
        self.skipped.append(
            {"formulation": name, "sampler": sampler, "budget": budget, "seed": None, "status": "skipped",
             "reason": reason}
        )  # fmt: skip


def _key(cell: Cell | None) -> str | None:
    return None if cell is None else cell.key


def _dearest_first(cell: Cell) -> float:
    """Long cells begin first, so that no process is left with one at the end."""
    return -float(cell.labels["budget"] or 1e9)
