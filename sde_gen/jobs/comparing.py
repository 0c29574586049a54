"""Compare formulations, samplers and budgets, and write one report: the work of `python -m sde_gen.compare`."""

import json
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sde_gen.bars import QUIET_SECONDS, ticking
from sde_gen.comparison import Comparison, Results
from sde_gen.comparison.study import from_spec
from sde_gen.config.launch import say
from sde_gen.config.objects import settings
from sde_gen.config.restore import pick_device
from sde_gen.config.schema import CompareSettings, PosteriorSettings
from sde_gen.config.typed import arguments, typed
from sde_gen.errors import ConfigError, DataError, MissingInputError
from sde_gen.files import make_folder, read_text
from sde_gen.jobs import posteriors
from sde_gen.jobs.origins import resolved

#: Settings that say where and how to run, not what is compared.
_RUNNING = ("workers", "out", "cell", "part", "parts", "spec")
_LINE_SECONDS = 5.0  # between two lines, where cells are quick


def run(config: Mapping[str, Any]) -> dict[str, Any]:
    """Compare as `config` says and return the verdicts of the findings.

    Raises:
        SDEGenError: one of its subclasses, before any long work where possible.
    """
    values, given = settings(config)
    running = {field.name for field in fields(CompareSettings)}
    cfg = typed(CompareSettings, {name: value for name, value in values.items() if name in running})
    asked = {name: value for name, value in values.items() if name not in running}
    if isinstance(asked.get("checkpoint"), str):
        asked["checkpoint"] = resolved(asked["checkpoint"], "runs")
    if cfg.posteriors is not None:
        folder = _folder(cfg, "posteriors")
        make_folder(folder, "the folder of the report")
        return posteriors.compared(typed(PosteriorSettings, cfg.posteriors, "posteriors"), folder, _command(cfg, given))
    comparison = _comparison(cfg, asked)
    if cfg.cell is not None:
        return _one_cell(comparison, _as_written("cell", cfg.cell, given), cfg.cache)
    cells, workers = comparison.cells(), _workers(cfg, comparison.device)
    part = None if cfg.part is None or cfg.parts is None else (cfg.part, cfg.parts)
    folder = _folder(cfg, comparison.name)
    if part is None:
        make_folder(folder, "the folder of the report")
    say(f"{comparison.name}: {len(cells)} cells in mode {comparison.mode}, {workers} at a time; cache {cfg.cache}")
    progress = _Progress(len({cell.key for cell in cells}))
    with ticking(progress.tick):
        results = comparison.run(cfg.cache, workers=workers, tell=progress, part=part)
    progress.finish()
    if part is not None:
        say("part done; run the same command without part= and parts= for the report")
        return {}
    results = results.with_command(_command(cfg, given))
    _tell(results, results.report(folder))
    return {row["claim"]: row["verdict"] for row in results.findings}


def _comparison(cfg: CompareSettings, values: Mapping[str, Any]) -> Comparison:
    if cfg.spec is not None:
        return from_spec(_stored(cfg.spec), values.get("trust", ()))
    return Comparison(**arguments(Comparison, "Comparison", {"data": None, **values}, "compare"))


def _folder(cfg: CompareSettings, name: str) -> Path:
    """Where the report goes: out=, or a folder of the comparison's name, which may be of somebody else's file."""
    if cfg.out is not None:
        return Path(str(cfg.out)).expanduser()
    if name.startswith("."):  # hidden, as the cache is
        raise ConfigError(f"name={name!r} is not the name of a folder; use letters, digits and . _ -, or give out=PATH")
    return Path("runs/comparisons") / name


def _stored(path: str) -> dict[str, Any]:
    try:
        value = json.loads(read_text(Path(path).expanduser()))
    except OSError as error:
        raise MissingInputError(f"cannot read spec={path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"spec={path} is not JSON ({error}); give a comparison.json of a report") from error
    if not isinstance(value, dict) or "formulations" not in value:
        raise DataError(f"spec={path} is not a comparison; give a comparison.json of a report")
    return value


def _command(cfg: CompareSettings, given: Sequence[str]) -> str:
    """The command that makes this comparison again, without what only says where and how."""
    base = "python -m sde_gen.compare"
    folders = [word for word in given if word.startswith("--")]
    if cfg.spec is not None:  # which holds all of the comparison but where its parts are
        kept = [word for word in given if word.split("=")[0] in ("spec", "cache", "trust")]
        return " ".join([base, *map(shlex.quote, kept or [f"spec={cfg.spec}"])])
    kept = [word for word in given if word.split("=")[0].lstrip("+~") not in _RUNNING and word not in folders]
    if not any(word.split("=")[0].lstrip("~") == "experiment" for word in kept):
        kept.insert(0, "experiment=oracle_2d")
    return " ".join([base, *map(shlex.quote, folders + kept)])


def _as_written(name: str, value: Any, given: Sequence[str]) -> str:
    """A setting as it stands on the command line: 1234e567 is the name of a cell, though it reads like a number."""
    words = [word.partition("=")[2] for word in given if word.startswith(f"{name}=")]
    return words[-1].strip("'\"") if words else str(value)


def _workers(cfg: CompareSettings, device: str) -> int:
    if cfg.workers != "auto":
        return cfg.workers
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return count if pick_device(device).type == "cpu" else 1


def _one_cell(comparison: Comparison, key: str, cache: str) -> dict[str, Any]:
    result, before = comparison.rerun(key, cache)
    shown = {name: value for name, value in result.items() if name not in ("arrays", "wall_seconds", "date")}
    say(json.dumps(shown, indent=1))
    if before is None:
        say("the cache held no result of this cell")
        return shown
    timed = ("seconds", "wall_seconds", "date", "arrays")
    changed = [k for k in {**before, **result} if k not in timed and before.get(k) != result.get(k)]
    say("equal to what the cache held" if not changed else f"differs from what the cache held in {', '.join(changed)}")
    return shown


class _Progress:
    """A line now and then."""

    def __init__(self, total: int) -> None:
        self.total, self.known, self.done, self.bad = total, 0, 0, 0
        self._said = time.monotonic()

    def __call__(self, cell: Any, result: Mapping[str, Any], known: bool) -> None:
        """Count a cell."""
        self.known += known
        self.done += not known
        self.bad += result["status"] != "ok"
        if cell.kind == "model" and not known:
            label = f"{cell.labels['formulation']}, seed {cell.labels['seed']}"
            loss = result.get("held_out_loss")
            how = f"held-out loss {loss:.4g}" if loss is not None else result.get("reason", "")
            say(f"  trained {label}: {how}")
        if time.monotonic() - self._said > _LINE_SECONDS:
            self._say()

    def tick(self) -> None:
        """A line while a cell takes long; called from a thread of its own."""
        if time.monotonic() - self._said >= QUIET_SECONDS:
            self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        bad = f", {self.bad} skipped or failed" if self.bad else ""
        say(f"  {self.done + self.known} of {self.total} cells ({self.known} from the cache{bad})")

    def finish(self) -> None:
        """The last line."""
        self._say()


def _tell(results: Results, report: Path) -> None:
    for row in results.findings:
        say(f"  {row['verdict']:<7}  {row['claim']} ({row['numbers']})")
    for budget in results.budgets[-2:]:
        say(f"  best {'at ' + str(budget) + ' calls' if budget else 'with steps of their own'} ({results.measure}):")
        for line in results.ranking(budget)[:3]:
            rank = str(line.rank) if line.rank == line.last else f"{line.rank}-{line.last}"
            error = "" if line.value.error is None else f" ± {line.value.error:.2g}"
            say(f"    {rank:<6} {line.entry[0]} with {line.entry[1]}: {line.value.mean:.4g}{error}")
    say(f"report: {report}")
