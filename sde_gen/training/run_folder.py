"""The folder of one run: who may use it, what lies where."""

import os
import re
import time
from contextlib import AbstractContextManager
from pathlib import Path

from sde_gen.errors import ConfigError, MissingInputError, OutputError
from sde_gen.files import fsync_folder, locked, make_folder, writing
from sde_gen.training.checkpoint import MANIFEST, checkpoint_folders

_RUN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=,+@-]*")


class RunDirectory:
    """Paths of a run, and its lock.

        config.yaml   metrics.csv   levels.csv   gradients.csv   weighting.csv   quality.csv
        training.html   loss.png   levels.png   gradients.png   checkpoints/
        samples/ (pictures during training)   tensorboard/

    Args:
        path: the run's folder; nothing is created by the constructor.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.csv"
        self.levels = self.path / "levels.csv"
        self.gradients = self.path / "gradients.csv"
        self.weighting = self.path / "weighting.csv"
        self.quality = self.path / "quality.csv"
        self.page = self.path / "training.html"
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

    def locked(self) -> AbstractContextManager[None]:
        """Hold the run for this process alone; see `sde_gen.files.locked`."""
        return locked(self.path, "wait for it to end or give another name with run=NAME")


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
    newest = (found[0] / MANIFEST for found in map(checkpoint_folders, root.glob("*/checkpoints")) if found)
    saved = [(path.stat().st_mtime_ns, path.parents[2]) for path in newest if path.is_file()]
    if not saved:
        raise MissingInputError(
            f"no run with a checkpoint under {root.resolve()}; train one first with python -m sde_gen.train, "
            "or name one with run=NAME or checkpoint=PATH"
        )
    return RunDirectory(max(saved)[1])
