"""The doors of a comparison: what is asked, run, and what came out, reported."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sde_gen import checks as check
from sde_gen.comparison.cells.cell import Cell, Context
from sde_gen.comparison.cells.parallel import Listener, run_cells
from sde_gen.comparison.cells.store import Store
from sde_gen.comparison.definition import ComparisonSettings
from sde_gen.comparison.plan import Plan, make_plan
from sde_gen.comparison.report import write_report
from sde_gen.comparison.results import ResultTable, gathered
from sde_gen.config.typed import typed
from sde_gen.errors import ConfigError
from sde_gen.files import make_folder, write_json

_CACHE = "runs/comparisons/.cache"


@dataclass(frozen=True)
class Results(ResultTable):
    """The results of a comparison.

    Attributes:
        settings: the comparison.
        rows: one for each cell and seed, as mappings of the columns; skipped and failed ones say why.
        orders: fitted orders of convergence (mode "oracle").
        likelihoods: negative log-likelihoods of the formulations.
        real: the measures of as many real samples, one row for each seed.
        networks: what was trained, by formulation.
        choices: what samplers that measure first chose, by formulation and budget, and what that cost.
        findings: claims with their verdicts.
        data: the data set.
        store: where cells and their arrays are kept.
        cells: all of them.
        span: half log-SNRs at the ends of matched grids.
        command: the command line that makes the comparison again.
    """

    command: str = "python -m sde_gen.compare spec=comparison.json"

    def with_command(self, command: str) -> "Results":
        """The same with the command line that makes the comparison again."""
        return replace(self, command=command)

    def report(self, folder: Any) -> Path:
        """Write report.html, report.md with its pictures, rows.csv, rows.json and comparison.json; return the HTML.

        Raises:
            OutputError: the folder cannot be written.
        """
        place = make_folder(Path(folder).expanduser(), "the folder of the report")
        if self.command == Results.command:  # made in Python: the description beside the report is what reruns it
            words = [f"spec={place / 'comparison.json'}", f"cache={self.store.root}"]
            own = [
                name for name in self.settings.trusted if name != "__main__"
            ]  # what a script defines, no other can build
            words += [f"trust=[{','.join(own)}]"] if own else []
            return self.with_command(" ".join(["python -m sde_gen.compare", *map(shlex.quote, words)])).report(folder)
        self.to_csv(place / "rows.csv")
        self.to_json(place / "rows.json")
        write_json(place / "comparison.json", dict(self.spec), "the comparison")
        return write_report(self, place)


@dataclass(frozen=True, kw_only=True)
class Comparison(ComparisonSettings):
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
        name, question: title and first sentence of the report; the name is that of its folder too.
        device: "cpu", "cuda", ...
        trust: modules of your own whose classes a mapping may name.

    Raises:
        ConfigError: for values outside these.
    """

    def run(
        self,
        cache: Any = _CACHE,
        *,
        workers: int = 1,
        tell: Listener | None = None,
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
        check.integer("Comparison.run", "workers", workers)
        plan = self._plan
        del self.__dict__["_plan"]  # the data may be others at the next run
        context = self._context(plan, cache)
        found = run_cells(plan.cells if part is None else plan.part(*part), context, workers=workers, tell=tell)
        for cell in plan.cells:
            if cell.key not in found:
                found[cell.key] = context.store.read(cell) or {"status": "missing", "reason": "not computed yet"}
        return Results(**gathered(self, plan, found, context.store))

    def cells(self) -> list[Cell]:
        """All cells, without computing any."""
        return list(self._plan.cells)

    @cached_property
    def _plan(self) -> Plan:
        return make_plan(self)

    def _context(self, plan: Plan, cache: Any) -> Context:
        store = Store(Path(cache).expanduser()).make()
        return Context(plan.data, store, plan.device, self.trusted, plan.checkpoint)

    def rerun(self, key: str, cache: Any = _CACHE) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Compute one cell afresh: its result, and the one that the cache held before (None if it held none).

        What it needs is taken from the cache, or made first.

        Args:
            key: of the cell, or enough of its first characters.
        """
        plan = make_plan(self)
        chosen = list({cell.key: cell for cell in plan.cells if key and cell.key.startswith(key)}.values())
        if len(chosen) != 1:
            raise ConfigError(
                f"cell={key} names {'several cells' if chosen else 'no cell'} of this comparison, which has "
                f"{len(plan.cells)}; give a cell of its table that was made with these settings, this data and this "
                "version of the code"
            )
        context = self._context(plan, cache)
        before = context.store.read(chosen[0])
        run_cells(_first(chosen[0]), context)
        return run_cells(chosen, context, fresh=True)[chosen[0].key], before


def _first(cell: Cell) -> list[Cell]:
    """What a cell needs, in order."""
    return [needed for direct in cell.after for needed in (*_first(direct), direct)]


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
    return typed(Comparison, {str(key): value for key, value in spec.items()} | {"trust": tuple(trust)}, "spec")
