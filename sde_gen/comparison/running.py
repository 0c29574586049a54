"""Running a plan, and gathering its cells into results."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sde_gen.comparison.cells.parallel import run_cells
from sde_gen.comparison.cells.store import Cell, Store
from sde_gen.comparison.plan import Plan
from sde_gen.comparison.results import Results
from sde_gen.errors import ConfigError

if TYPE_CHECKING:
    from sde_gen.comparison.study import Comparison


def run_plan(
    comparison: "Comparison",
    plan: Plan,
    cache: Path,
    workers: int,
    tell: Callable[..., None] | None,
    part: tuple[int, int] | None,
) -> Results:
    """Compute the cells of a plan (or of one part of it) and gather all that the cache then holds."""
    context = replace(plan.context, cache=cache)
    store = Store(cache)
    cells = plan.cells if part is None else _part(plan.cells, *part)
    found = run_cells(cells, context, workers=workers, tell=tell)
    for cell in plan.cells:
        if cell.key not in found:
            found[cell.key] = store.read(cell) or {"status": "missing", "reason": "not computed yet"}
    return _gather(comparison, plan, found, store)


def rerun(comparison: "Comparison", plan: Plan, key: str, cache: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Compute the cell whose key begins with `key` afresh; what it needs is taken from the cache or made first."""
    chosen = {cell.key: cell for cell in plan.cells if cell.key.startswith(key)} if key else {}
    if len(chosen) != 1:
        many = "several cells" if chosen else "no cell"
        raise ConfigError(
            f"cell={key} names {many} of this comparison, which has {len(plan.cells)}; give a cell of its table that "
            "was made with these settings, this data and this version of the code"
        )
    cell = next(iter(chosen.values()))
    context = replace(plan.context, cache=cache)
    before = Store(cache).read(cell)
    needed = [other for other in plan.cells if other.key in cell.after]
    if needed:
        run_cells(needed, context)
    return run_cells([cell], context, fresh=True)[cell.key], before


def _part(cells: list[Cell], k: int, n: int) -> list[Cell]:
    """The k-th of n parts (k from 1): cells of one network together, with the network (and choice) they need first."""
    if not 1 <= k <= n:
        raise ConfigError(f"part={k} must be between 1 and parts={n}")
    order = sorted(range(len(cells)), key=lambda i: (cells[i].needs or "", cells[i].tuned or "", i))
    mine = {i for position, i in enumerate(order) if position * n // len(cells) == k - 1}
    chosen = [cells[i] for i in sorted(mine)]
    needed = {key for cell in chosen for key in cell.after}
    first = [cell for i, cell in enumerate(cells) if cell.key in needed and i not in mine]
    return [*first, *chosen]


def _gather(comparison: "Comparison", plan: Plan, found: Mapping[str, dict[str, Any]], store: Store) -> Results:
    spec = comparison.spec
    kinds = ("model", "choice", "samples", "real", "likelihood", "order")
    of_kind: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for cell in plan.cells:
        if cell.kind in of_kind:
            result = found[cell.key]
            of_kind[cell.kind].append(
                {**cell.labels, **result, "cell": cell.key, "code": cell.code, "needs": cell.needs}
            )
    networks = {row["cell"]: row for row in of_kind["model"]}
    nll = {(row["formulation"], row["needs"]): row for row in of_kind["likelihood"] if row["status"] == "ok"}
    rows: list[dict[str, Any]] = []
    for row in [*of_kind["samples"], *plan.skipped]:
        trained = networks.get(row.get("needs"), {})
        known = nll.get((row["formulation"], row.get("needs")), {})
        rows.append(
            {
                "comparison": spec["name"],
                "mode": spec["mode"],
                **row,
                "nll": known.get("nll"),
                "nll_standard_error": known.get("nll_standard_error"),
                "bits_per_dim": known.get("bits_per_dim"),
                "training_loss": trained.get("loss"),
                "held_out_loss": trained.get("held_out_loss"),
                "training_seconds": trained.get("seconds"),
                "data": plan.data.fingerprint[:16],
                "device": spec["device"],
            }
        )
    place = {name: i for i, name in enumerate(spec["formulations"])}
    sampler = {name: i for i, name in enumerate(spec["samplers"])}
    rows.sort(key=lambda r: (place[r["formulation"]], sampler[r["sampler"]], r["budget"] or 0, r["seed"] or 0))
    return Results(
        spec, rows, of_kind["order"], of_kind["likelihood"], of_kind["real"], of_kind["model"], plan.data, store,
        plan.cells, plan.span, comparison.trusted, choices=of_kind["choice"],
    )  # fmt: skip
