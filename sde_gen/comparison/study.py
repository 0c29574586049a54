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
from sde_gen.comparison.plan import Plan, make_plan
from sde_gen.comparison.report import write_report
from sde_gen.comparison.results import ResultTable, gathered
from sde_gen.comparison.settings import ComparisonSettings
from sde_gen.config.typed import typed
from sde_gen.errors import ConfigError
from sde_gen.files import make_folder, write_json

_CACHE = "runs/comparisons/.cache"


@dataclass(frozen=True)
class Results(ResultTable):  # noqa: D101 - that of its table
    __doc__ = ResultTable.__doc__

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
            own = [name for name in self.settings.trusted if name != "__main__"]  # which no other program can build
            words += [f"trust=[{','.join(own)}]"] if own else []
            return self.with_command(" ".join(["python -m sde_gen.compare", *map(shlex.quote, words)])).report(folder)
        self.to_csv(place / "rows.csv")
        self.to_json(place / "rows.json")
        write_json(place / "comparison.json", dict(self.spec), "the comparison")
        return write_report(self, place)


@dataclass(frozen=True, kw_only=True)
class Comparison(ComparisonSettings):  # noqa: D101 - that of its settings
    __doc__ = ComparisonSettings.__doc__

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
