"""`python -m sde_gen.compare`: compare formulations, samplers and budgets, and write one report."""

import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sde_gen.config.launch import config_folders, job_overrides, launch, say

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from sde_gen.comparison import Comparison, Results

_QUIET_SECONDS = 5.0  # between two lines of progress
#: Settings that say where and how to run, not what is compared.
_RUNNING = ("workers", "out", "cell", "part", "parts", "spec")


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Settings of `python -m sde_gen.compare`; conf/compare.yaml says what each is."""

    formulations: dict[str, Any]
    samplers: dict[str, Any]
    data: dict[str, Any] | None
    network: dict[str, Any]
    trainer: dict[str, Any]
    mode: str
    grid: str
    budgets: list[int]
    seeds: list[int]
    num_samples: int
    measures: list[str]
    likelihood: int
    orders: bool
    trajectories: bool
    training_seed: int
    train_each_seed: bool
    shared_from: str | None
    checkpoint: str | None
    findings: list[Any]
    name: str
    question: str
    device: str
    trust: list[str] = field(default_factory=list)
    workers: int | Literal["auto"] = "auto"
    cache: str = "runs/comparisons/.cache"
    out: str | int | None = None
    cell: str | int | float | None = None
    part: int | None = None
    parts: int | None = None
    spec: str | None = None


def run(config: "DictConfig | Mapping[str, Any]") -> dict[str, Any]:
    """Compare as `config` says and return the verdicts of the findings; the body of the command.

    Raises:
        SDEGenError: one of its subclasses, with the exit code of the command, before any long work where possible.
    """
    from sde_gen.config.objects import plain
    from sde_gen.config.typed import typed
    from sde_gen.errors import ConfigError
    from sde_gen.files import make_folder

    cfg = typed(CompareConfig, plain(config))
    comparison = _comparison(cfg)
    command = _command(cfg)
    if cfg.cell is not None:
        return _one_cell(comparison, _as_written("cell", cfg.cell), cfg)
    if (cfg.part is None) != (cfg.parts is None):
        raise ConfigError("part=K and parts=N go together: the K-th of N parts of the cells")
    folder = Path("runs/comparisons") / comparison.name if cfg.out is None else Path(str(cfg.out)).expanduser()
    workers = _workers(cfg)
    cells = comparison.cells()
    say(f"{comparison.name}: {len(cells)} cells in mode {comparison.mode}, {workers} at a time; cache {cfg.cache}")
    part = None if cfg.part is None or cfg.parts is None else (cfg.part, cfg.parts)
    if part is None:
        make_folder(folder, "the folder of the report")  # refused now, not after the work
    progress = _Progress(len({cell.key for cell in cells}))
    results = comparison.run(cfg.cache, workers=workers, tell=progress, part=part)
    progress.finish()
    if part is not None:
        say("part done; run the same command without part= and parts= for the report")
        return {}
    results = results.with_command(command)
    report = results.report(folder)
    _table(results, report)
    return {row["claim"]: row["verdict"] for row in results.findings}


def _comparison(cfg: CompareConfig) -> "Comparison":
    from sde_gen.comparison.study import Comparison, from_spec

    if cfg.spec is not None:
        return from_spec(_stored(cfg.spec), cfg.trust)
    from dataclasses import fields

    names = [f.name for f in fields(Comparison)]
    return Comparison(**{name: getattr(cfg, name) for name in names})


def _stored(path: str) -> dict[str, Any]:
    import json

    from sde_gen.errors import DataError, MissingInputError

    try:
        value = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingInputError(f"cannot read spec={path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"spec={path} is not JSON ({error}); give a comparison.json of a report") from error
    if not isinstance(value, dict) or "formulations" not in value:
        raise DataError(f"spec={path} is not a comparison; give a comparison.json of a report")
    return value


def _command(cfg: CompareConfig) -> str:
    """The command that makes this comparison again, without what only says where and how."""
    base = "python -m sde_gen.compare"
    given = job_overrides()
    if cfg.spec is not None:  # which holds all of the comparison but where its parts are
        kept = [word for word in given if word.split("=")[0] in ("spec", "cache", "trust")]
        return " ".join([base, *map(shlex.quote, kept or [f"spec={cfg.spec}"])])
    base += "".join(f" --config-dir {shlex.quote(place)}" for place in config_folders())
    kept = [word for word in given if word.split("=")[0].lstrip("+~") not in _RUNNING]
    if not any(word.split("=")[0].lstrip("~") == "experiment" for word in kept):
        kept.insert(0, "experiment=oracle_2d")
    return " ".join([base, *map(shlex.quote, kept)])


def _as_written(name: str, value: Any) -> str:
    """A setting as it stands on the command line: 1234e567 is the name of a cell, though it reads like a number."""
    given = [word.partition("=")[2] for word in job_overrides() if word.startswith(f"{name}=")]
    return given[-1].strip("'\"") if given else str(value)


def _workers(cfg: CompareConfig) -> int:
    from sde_gen.config.restore import pick_device
    from sde_gen.errors import ConfigError

    if cfg.workers == "auto":
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return count if pick_device(cfg.device).type == "cpu" else 1
    if cfg.workers < 1:
        raise ConfigError(f"workers={cfg.workers} must be at least 1, or auto")
    return cfg.workers


def _one_cell(comparison: "Comparison", key: str, cfg: CompareConfig) -> dict[str, Any]:
    import json

    result, before = comparison.rerun(key, cfg.cache)
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
        if time.monotonic() - self._said > _QUIET_SECONDS:
            self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        bad = f", {self.bad} skipped or failed" if self.bad else ""
        say(f"  {self.done + self.known} of {self.total} cells ({self.known} from the cache{bad})")

    def finish(self) -> None:
        """The last line."""
        self._say()


def _table(results: "Results", report: Path) -> None:
    for row in results.findings:
        say(f"  {row['verdict']:<7}  {row['claim']} ({row['numbers']})")
    for budget in results.budgets[-2:]:
        say(f"  best {'at ' + str(budget) + ' calls' if budget else 'with steps of their own'} ({results.measure}):")
        for line in results.ranking(budget)[:3]:
            rank = str(line.rank) if line.rank == line.last else f"{line.rank}-{line.last}"
            error = "" if line.value.error is None else f" ± {line.value.error:.2g}"
            say(f"    {rank:<6} {line.entry[0]} with {line.entry[1]}: {line.value.mean:.4g}{error}")
    say(f"report: {report}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return launch("compare", run, argv)


if __name__ == "__main__":
    sys.exit(main())
