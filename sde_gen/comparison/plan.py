"""From a comparison to its cells: what is computed, what is not and why."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sde_gen.comparison.budgets import Range, common_range, takes_budget, within_budget
from sde_gen.comparison.cells.cell import Cell
from sde_gen.comparison.cells.choice import SamplerChoice
from sde_gen.comparison.cells.exact import FittedOrder
from sde_gen.comparison.cells.models import Weights
from sde_gen.comparison.cells.network import TrainedNetwork
from sde_gen.comparison.cells.nll import HeldOutLikelihood
from sde_gen.comparison.cells.samples import DrawnSamples, RealSamples, Way
from sde_gen.comparison.definition import ComparisonSettings
from sde_gen.comparison.description import digest
from sde_gen.config.restore import find_checkpoint, load_model, pick_device, resolved_network
from sde_gen.data import Dataset
from sde_gen.errors import ConfigError
from sde_gen.model import ScoreModel
from sde_gen.oracles import GaussianMixture
from sde_gen.parameterizations import NoisePrediction
from sde_gen.samplers import GridSampler, ProbabilityFlow, Sampler
from sde_gen.tuning import Auto

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
    data: Dataset
    device: str
    checkpoint: str | None
    span: Range | None

    def part(self, k: int, n: int) -> list[Cell]:
        """The k-th of n parts (k from 1): cells of one network together, with the network (and choice) they need first.

        Raises:
            ConfigError: there are not so many.
        """
        if not 1 <= k <= n:
            raise ConfigError(f"part={k} must be between 1 and parts={n}")
        order = sorted(range(len(self.cells)), key=lambda i: ([cell.key for cell in self.cells[i].after], i))
        mine = {i for position, i in enumerate(order) if position * n // len(self.cells) == k - 1}
        chosen = [self.cells[i] for i in sorted(mine)]
        needed = {cell.key for one in chosen for cell in one.after}
        return [*(cell for i, cell in enumerate(self.cells) if cell.key in needed and i not in mine), *chosen]


def make_plan(comparison: ComparisonSettings) -> Plan:
    """The plan of a comparison, of its data as they are now.

    Raises:
        ConfigError, DataError: the comparison as a whole cannot be run.
    """
    return _Planner(comparison).plan()


@dataclass(frozen=True)
class _Run:
    """A sampler with its steps set, under one formulation: what all its seeds share."""

    formulation: str
    sampler: Sampler
    labels: dict[str, Any]


class _Planner:
    def __init__(self, comparison: ComparisonSettings) -> None:
        self.asked, self.data, self.device = comparison, comparison.dataset(), str(pick_device(comparison.device))
        self.formulations = comparison.formulations
        given = comparison.checkpoint
        self.checkpoint = None if given is None else find_checkpoint(given)[0]
        self.seeds = [comparison.training_seed]  # of training
        if comparison.train_each_seed and comparison.mode != "oracle":
            self.seeds = list(comparison.seeds)
        self.home = comparison.shared_from or next(iter(self.formulations))  # what the shared network is trained under
        self.skipped: list[dict[str, Any]] = []
        self.why_not = self._why_not()
        self.usable = [name for name in self.formulations if name not in self.why_not]
        matched = comparison.grid == "matched" and self.usable
        self.span = common_range([self._probe(name) for name in self.usable]) if matched else None

    def plan(self) -> Plan:
        asked = self.asked
        for name, reason in self.why_not.items():
            for sampler in self._samplers(name):
                self._skip(name, sampler, None, reason)
        networks = [cell for cell in self._networks.values() if cell is not None]
        likelihoods = [self._likelihood(name, seed) for name in self.usable for seed in self.seeds if asked.likelihood]
        choices: list[Cell] = []
        samples: list[Cell] = []
        ways: list[Cell] = []
        orders: list[Cell] = []
        for name in self.usable:
            for sampler in self._samplers(name):
                runs = self._runs(name, sampler)
                drawn = [self._samples(run, seed) for run in runs for seed in asked.seeds]
                choices += [cell.sampler for cell in drawn if isinstance(cell.sampler, Cell)]
                samples += drawn
                ways += [self._way(run) for run in runs[-1:] if self._shows_way(sampler)]
                if asked.orders and asked.mode == "oracle":
                    p, labels = self.formulations[name].perturbation, {"formulation": name, "sampler": sampler}
                    orders.append(FittedOrder(perturbation=p, sampler=asked.samplers[sampler], labels=labels))
        cells = [
            *_once(networks),
            *sorted(_once(choices), key=_dearest_first),
            *likelihoods,
            *sorted(samples, key=_dearest_first),
            *ways,
            *orders,
            *map(self._real, asked.seeds),
        ]
        folder = None if self.checkpoint is None else str(self.checkpoint.path)
        return Plan(cells, self.skipped, self.data, self.device, folder, self.span)

    # -- what can be compared ----------------------------------------------------------------------------------------

    def _samplers(self, name: str) -> list[str]:
        """The samplers that a formulation is run with."""
        return list(self.formulations[name].samplers or self.asked.samplers)

    def _why_not(self) -> dict[str, str]:
        """The formulations that cannot be compared in this mode, with the reason."""
        mode, first, reasons = self.asked.mode, {}, {}
        # That of a network which is given is its own, where none is asked for.
        trained = self._given.parameterization if self._given else self.formulations[self.home].parameterization
        for name, f in self.formulations.items():
            try:
                f.objective.law_for(ScoreModel(None, f.perturbation, f.parameterization))
            except ConfigError as error:
                reasons[name] = str(error)
                continue
            before = next((n for n, other in first.items() if other == f.perturbation), None)
            first.setdefault(name, f.perturbation)
            if mode != "network" and before is not None:
                reasons[name] = f"differs from {before} only in what is learned, which mode={mode} does not look at"
            elif mode == "shared" and f.parameterization not in (trained, self._given and NoisePrediction()):
                reasons[name] = "the one trained network has another parameterization, and cannot change it in sampling"
        return reasons

    @cached_property
    def _given(self) -> ScoreModel | None:
        return None if self.checkpoint is None else load_model(self.checkpoint, trust=self.asked.trusted)

    def _probe(self, name: str) -> ScoreModel:
        """A model with the range of times that samplers will use under a formulation."""
        p = self.formulations[name].perturbation
        if self.asked.mode != "shared":
            return GaussianMixture([1.0], [[0.0]], [[[1.0]]]).model(p)
        return (self._given or ScoreModel(lambda x, c: x, self.formulations[self.home].perturbation)).under(p)

    # -- cells -------------------------------------------------------------------------------------------------------

    @cached_property
    def _law(self) -> str:
        law = self.data.law
        if law is None:
            return digest("the training samples")
        return digest([part.tolist() for part in (law.weights, law.means, law.covariances)])

    @cached_property
    def _weights(self) -> Weights | None:
        found = self.checkpoint
        parts = ("network", "sde", "parameterization")
        return found and Weights(found.digest, {name: found.config.get(name) for name in parts})

    @cached_property
    def _used(self) -> dict[str, str]:
        """What keys hold of data and device."""
        return {"data": self.data.fingerprint, "device": self.device.partition(":")[0]}

    @cached_property
    def _resolved(self) -> dict[str, Any]:
        return resolved_network(self.asked.network, self.data, False)

    def _network(self, name: str, seed: int) -> TrainedNetwork | None:
        """The cell of the network that samples of a formulation are drawn from; None where there is none to train."""
        if self.asked.mode == "oracle" or self.checkpoint is not None:
            return None
        home = self.home if self.asked.mode == "shared" else name
        f = self.formulations[home]
        return TrainedNetwork(
            perturbation=f.perturbation, parameterization=f.parameterization, objective=f.objective,
            network=self._resolved, trainer=self.asked.trainer, seed=seed, **self._used,
            labels={"formulation": home, "seed": seed},
        )  # fmt: skip

    @cached_property
    def _networks(self) -> dict[tuple[str, int], TrainedNetwork | None]:
        return {(name, seed): self._network(name, seed) for name in self.usable for seed in self.seeds}

    def _model(self, name: str, seed: int) -> dict[str, Any]:
        """What says which model a cell asks, of this seed of training (or the one that there is)."""
        network = self._networks[name, seed if seed in self.seeds else self.seeds[0]]
        p, mode = self.formulations[name].perturbation, self.asked.mode
        return {"mode": mode, "perturbation": p, "source": network or self._weights or self._law, **self._used}

    def _runs(self, name: str, sampler: str) -> list[_Run]:
        """One formulation with one sampler at each budget, ascending; those that make no sense are skipped."""
        made = self.asked.samplers[sampler]
        budgets: list[int | None] = (list(self.asked.budgets) if takes_budget(made) else []) or [None]
        runs = []
        for budget in budgets:
            try:
                bought = within_budget(made, self.formulations[name].perturbation, budget, self.span)
            except ConfigError as error:
                self._skip(name, sampler, budget, str(error))
                continue
            labels = {"formulation": name, "sampler": sampler, "budget": budget}
            runs.append(_Run(name, bought.sampler, labels | {"steps": bought.steps, "note": bought.note}))
        return runs

    def _drawn(self, run: _Run, seed: int) -> dict[str, Any]:
        """The model, the sampler (or the cell in which it is chosen by measurement) and the noise."""
        model, sampler = self._model(run.formulation, seed), run.sampler
        chosen = SamplerChoice(sampler=sampler, labels=run.labels, **model) if isinstance(sampler, Auto) else sampler
        return {**model, "sampler": chosen, "seed": seed, "labels": {**run.labels, "seed": seed}}

    def _samples(self, run: _Run, seed: int) -> DrawnSamples:
        return DrawnSamples(**self._drawn(run, seed), **self._measured(seed))

    def _measured(self, seed: int) -> dict[str, Any]:
        """What samples and real samples have in common."""
        shown = SHOWN_IMAGES if self.data.kind == "image" else SHOWN_POINTS
        return {
            "num_samples": min(self.asked.num_samples, len(self.data.test)),
            "measures": self.asked.measures,
            "keep": shown if seed == self.asked.seeds[0] else 0,
        }

    def _shows_way(self, sampler: str) -> bool:
        """Whether there is a way from noise to data to show: the data can be drawn, and the sampler shows states."""
        if not self.asked.trajectories or (self.data.kind != "image" and self.data.shape != (2,)):
            return False
        return isinstance(self.asked.samplers[sampler], GridSampler | ProbabilityFlow | Auto)

    def _way(self, run: _Run) -> Way:
        count = PARTICLES if self.data.kind == "vector" else STRIP_IMAGES
        return Way(**self._drawn(run, self.asked.seeds[0]), count=count, frames=FRAMES[self.data.kind])

    def _likelihood(self, name: str, seed: int) -> HeldOutLikelihood:
        few = self.data.train[0].numel() <= 16
        return HeldOutLikelihood(
            points=min(self.asked.likelihood, len(self.data.test)),
            # Few numbers: adaptive, with the exact divergence. Many: one grid, quasi-random probes.
            steps=None if few else 128, probes=1 if few else 4,
            seed=seed, labels={"formulation": name, "seed": seed}, **self._model(name, seed),
        )  # fmt: skip

    def _real(self, seed: int) -> RealSamples:
        labels = {"formulation": "real data", "sampler": "", "budget": None, "seed": seed}
        data, measured = self.data.fingerprint, self._measured(seed)
        return RealSamples(data=data, law=self._law, draws=REAL_DRAWS, seed=seed, labels=labels, **measured)

    def _skip(self, name: str, sampler: str, budget: int | None, reason: str) -> None:
        labels = {"formulation": name, "sampler": sampler, "budget": budget, "seed": None}
        self.skipped.append({**labels, "status": "skipped", "reason": reason})


def _once(cells: list[Any]) -> list[Cell]:
    return list({cell.key: cell for cell in cells}.values())


def _dearest_first(cell: Cell) -> float:
    """Long cells begin first, so that no process is left with one at the end."""
    return -float(cell.labels["budget"] or 1e9)
