"""The folder of one run: who may use it, what lies where."""

import csv
import io
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from sde_gen.errors import ConfigError, DataError, MissingInputError, OutputError, WriteError
from sde_gen.files import fsync_folder, make_folder, write_text, writing
from sde_gen.training.checkpoint import MANIFEST, checkpoint_folders, iter_runs

_RUN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=,+@-]*")


class RunDirectory:
    """Paths of a run, and its lock.

        config.yaml   metrics.csv   loss.png   checkpoints/   samples/ (pictures during training)   tensorboard/

    Args:
        path: the run's folder; nothing is created by the constructor.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.csv"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.tensorboard = self.path / "tensorboard"

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    @classmethod
    def named(cls, root: Path, name: str) -> "RunDirectory":
        """The run `name` below `root`, made if it is not there.

        Raises:
            ConfigError: a name that is not a plain folder name.
            OutputError: the folder cannot be created or written.
        """
        return cls(make_folder(run_path(root, name), "the run folder"))

    @classmethod
    def fresh(cls, root: Path, label: str) -> "RunDirectory":
        """A new folder `<date>-<time>_<label>` below `root`, never one that exists, also when many start at once."""
        make_folder(root, "the folder of the runs")
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for attempt in range(1, 10_000):
            path = root / (f"{stamp}_{label}" if attempt == 1 else f"{stamp}_{label}-{attempt}")
            with writing(path, "the run folder"):
                try:
                    path.mkdir()
                except FileExistsError:
                    continue
                fsync_folder(root)
            return cls(path)
        raise OutputError(f"cannot find a free name for a run in {root}; give one with run=NAME")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process alone. The system drops the lock when the process ends, however it ends.

        Raises:
            OutputError: another process has it.
        """
        with writing(self.path / ".lock", "the lock file"):
            stream = (self.path / ".lock").open("a+")
        with stream:
            _take(stream, self.path)
            yield


def _take(stream: IO[str], path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not a POSIX system: no advisory locks there
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise OutputError(
            f"run {path} is in use by another process; wait for it to end or give another name with run=NAME"
        ) from error


def run_path(root: Path, name: str) -> Path:
    """Where the run called `name` lies: `root/name`.

    Raises:
        ConfigError: a name that is not a plain folder name.
    """
    if not _RUN_NAME.fullmatch(name) or len(name) > 200:
        raise ConfigError(
            f"run={name!r} is not a run's name; use letters, digits and . _ - = , + @ (runs_dir=PATH sets the place)"
        )
    return root / name


def newest_run(root: Path) -> RunDirectory:
    """The run below `root` whose newest checkpoint was saved last.

    Raises:
        MissingInputError: no run below `root` has a checkpoint.
    """
    saved: list[tuple[int, str, Path]] = []
    for path in iter_runs(root):
        manifest = checkpoint_folders(path / "checkpoints")[0] / MANIFEST
        if manifest.is_file():
            saved.append((manifest.stat().st_mtime_ns, path.name, path))
    if not saved:
        raise MissingInputError(
            f"no run with a checkpoint under {root.resolve()}; train one first with python -m sde_gen.train, "
            "or name one with run=NAME or checkpoint=PATH"
        )
    return RunDirectory(max(saved)[2])


METRIC_COLUMNS = (
    "step",
    "loss",
    "grad_norm",
    "learning_rate",
    "seconds",
    "steps_per_second",
    "held_out_loss",
    "skipped",
)
_FEWEST_COLUMNS = 7  # files of older runs end before "skipped"
_MOST_FAILURES = 3


class MetricsFile:
    """`metrics.csv`: one row per log line, flushed at once; a resumed run continues it after the resumed step.

    Args:
        path: the file.
        step: rows after this step are dropped: they belong to steps that will be done again.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        self.path = path
        self._waiting: list[Sequence[str]] = []
        self._failures = 0
        kept = [row for row in read_metrics(path) if row["step"] <= step] if path.is_file() else []
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerow(METRIC_COLUMNS)
        for row in kept:
            csv.writer(buffer, lineterminator="\n").writerow(_cells(row))
        write_text(path, buffer.getvalue(), "the metrics file")

    def add(self, row: Mapping[str, float]) -> bool:
        """Append one row; columns that `row` lacks stay empty.

        A row that cannot be written, because the disk is full, waits for the next; whether all are written is returned.

        Raises:
            WriteError: the third time in a row.
        """
        self._waiting.append(_cells(row))
        try:
            with writing(self.path, "the metrics file"):
                self._append()
        except WriteError:
            self._failures += 1
            if self._failures >= _MOST_FAILURES:
                raise
            return False
        self._failures = 0
        return True

    def _append(self) -> None:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(self._waiting)
        with self.path.open("ab", buffering=0) as stream:
            whole = stream.tell()
            data = buffer.getvalue().encode()
            try:
                while data:
                    data = data[stream.write(data) :]
            except OSError:
                stream.truncate(whole)  # not half a row, to which the next would be glued
                raise
        self._waiting.clear()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.csv`; empty cells are left out, and so are rows that a crash or a fault has damaged."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise MissingInputError(f"cannot read {path}: {error.strerror}") from error
    columns = tuple(lines[0].split(","))
    if columns != METRIC_COLUMNS[: max(_FEWEST_COLUMNS, len(columns))]:
        raise DataError(f"{path} is not a metrics file of a run: its first line must be {','.join(METRIC_COLUMNS)}")
    rows = []
    for line in lines[1:-1]:  # what follows the last line break is not a complete row
        cells = line.split(",")
        if len(cells) == len(columns) and cells[0].isdigit():
            with suppress(ValueError):
                rows.append({k: float(v) for k, v in zip(columns, cells, strict=True) if v})
    return rows


def _cells(row: Mapping[str, float]) -> Sequence[str]:
    unknown = set(row) - set(METRIC_COLUMNS)
    if unknown:
        raise ConfigError(f"metrics.csv has no column {sorted(unknown)}; its columns are {', '.join(METRIC_COLUMNS)}")
    return [(str(int(row[c])) if c == "step" else repr(float(row[c]))) if c in row else "" for c in METRIC_COLUMNS]
