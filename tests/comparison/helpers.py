"""Small comparisons, and samplers that go wrong."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sde_gen as sg
from sde_gen.samplers.grid_sampler import Run, Step

DATA = {"_target_": "sde_gen.data.mixture", "n": 64, "n_test": 64}
NETWORK = {"_target_": "sde_gen.networks.MLP", "hidden": 8, "layers": 1}
TRAINER = {"steps": 6, "batch_size": 8, "log_every": 2, "checkpoint_every": 2}


def small(**changes: Any) -> sg.Comparison:
    """An oracle comparison of a few dozen quick cells."""
    settings: dict[str, Any] = {
        "formulations": {"VP": sg.VP(), "VE": sg.VE(sigma_max=6.0)},
        "samplers": {"DDIM": sg.DDIM(), "PC": sg.PredictorCorrector()},
        "data": DATA,
        "budgets": (4, 9),
        "seeds": (0, 1),
        "num_samples": 64,
        "measures": ("energy_distance",),
        "orders": False,
        "trajectories": False,
    }
    return sg.Comparison(**settings | changes)


def trained(**changes: Any) -> sg.Comparison:
    """The same with tiny networks."""
    return small(**{"mode": "network", "network": NETWORK, "trainer": TRAINER, "budgets": (4,)} | changes)


def files(cache: Path) -> dict[str, int]:
    """Result files of a cache, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in (cache / "cells").glob("*.json")}


class Told:
    """Counts what was computed and what was known."""

    def __init__(self) -> None:
        self.known: list[str] = []
        self.computed: list[str] = []

    def __call__(self, cell: Any, result: Any, known: bool) -> None:
        (self.known if known else self.computed).append(cell.kind)


@dataclass(frozen=True)
class OwnVP(sg.VP):
    """A perturbation of one's own."""


@dataclass(frozen=True)
class Diverges(sg.DDIM):
    """Becomes infinite at its second step."""

    def stepper(self, run: Run) -> Step:
        step = super().stepper(run)
        return lambda k, x, memory: (step(k, x, memory)[0] * (float("inf") if k == 1 else 1.0), None)


@dataclass(frozen=True)
class Broken(sg.DDIM):
    """Has a fault that nobody foresaw, but not with one step."""

    def stepper(self, run: Run) -> Step:
        if len(run.times) > 6:
            raise KeyError("a fault")
        return super().stepper(run)


@dataclass(frozen=True)
class NotANumber(sg.DenoisingScoreMatching):
    """A loss that is no number."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs) * float("nan")
