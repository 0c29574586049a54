"""The cache of a comparison: one JSON file (and at times one .npz) for each cell, one folder for each trained network.

    cells/<kind>-<key>.json  cells/<kind>-<key>.npz     results, each published by one rename
    models/<key>/checkpoints/step_*/                    trained networks, as `python -m sde_gen.train` leaves them

A key is a digest of everything that determines the result: configuration, data and code. An entry counts only if its
own words agree with that, so a damaged file, or one of another version, is computed again.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sde_gen.comparison.cells.sources import code_version
from sde_gen.comparison.description import canonical, digest, modules_of
from sde_gen.errors import CheckpointError
from sde_gen.files import make_folder, publish, write_json, writing
from sde_gen.training import newest_checkpoint

FORMAT = 1


@dataclass(frozen=True)
class Cell:
    """One thing to compute.

    Attributes:
        kind: "model", "choice", "samples", "real", "likelihood", "order" or "trace".
        config: everything that determines the result, as plain data.
        labels: where it stands in the comparison: formulation, sampler, budget, seed.
        needs: key of the cell of the trained network that it uses, or None.
        tuned: key of the cell in which its sampler is chosen by measurement, or None.
    """

    kind: str
    config: Mapping[str, Any]
    labels: Mapping[str, Any] = field(default_factory=dict)
    needs: str | None = None
    tuned: str | None = None

    @property
    def after(self) -> tuple[str, ...]:
        """Keys of the cells that must be there before."""
        return tuple(key for key in (self.needs, self.tuned) if key is not None)

    @cached_property
    def code(self) -> str:
        """Version of the code that computes it, sources of the user's own classes included."""
        return code_version(self.kind, tuple(sorted(modules_of(self.config))))

    @cached_property
    def key(self) -> str:
        """Digest of the kind, the configuration and the code."""
        return digest({"kind": self.kind, "config": self.config, "code": self.code})


class Store:
    """Cells on disk.

    Args:
        root: the cache folder, made if it is not there.

    Raises:
        OutputError: it cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cells = make_folder(root / "cells", "the cache of the comparison")
        self.models = make_folder(root / "models", "the cache of the comparison")

    def path(self, cell: Cell, ending: str = ".json") -> Path:
        """Where a cell's file lies."""
        return self.cells / f"{cell.kind}-{cell.key}{ending}"

    def model(self, key: str) -> Path:
        """Folder of a trained network."""
        return self.models / key

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """The stored result of a cell, or None if there is none that fits it."""
        try:
            entry = json.loads(self.path(cell).read_text(encoding="utf-8"))
            if entry["format"] != FORMAT or entry["key"] != cell.key or entry["code"] != cell.code:
                return None
            if canonical(entry["config"]) != canonical(cell.config):
                return None
            result = entry["result"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if result.get("arrays") and not self.path(cell, ".npz").is_file():
            return None
        if cell.kind == "model" and result["status"] == "ok" and not self._has_network(cell, result):
            return None
        return dict(result)

    def _has_network(self, cell: Cell, result: Mapping[str, Any]) -> bool:
        """Whether the last checkpoint is there and sound; an older one is where training goes on."""
        found, _ = newest_checkpoint(self.model(cell.key) / "checkpoints")
        return found is not None and found.step == result["steps"]

    def write(self, cell: Cell, result: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> None:
        """Publish a result; the arrays first, so that an entry is never without them."""
        if arrays:
            savez: Any = np.savez_compressed

            def save(temporary: Path) -> None:
                with temporary.open("wb") as stream:
                    savez(stream, **arrays)

            publish(self.path(cell, ".npz"), save, "the arrays of a cell")
        entry = {
            "format": FORMAT,
            "kind": cell.kind,
            "key": cell.key,
            "code": cell.code,
            "config": json.loads(canonical(cell.config)),
            "result": {**result, "arrays": bool(arrays)},
        }
        write_json(self.path(cell), entry, "the result of a cell")

    def sampler(self, choice: str) -> dict[str, Any]:
        """What was chosen in the "choice" cell of this key, as plain data.

        Raises:
            CheckpointError: it cannot be read.
        """
        try:
            path = self.cells / f"choice-{choice}.json"
            return dict(json.loads(path.read_text(encoding="utf-8"))["result"]["sampler_chosen"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"the sampler chosen in cell {choice} cannot be read; run the comparison") from error

    def arrays(self, cell: Cell) -> dict[str, np.ndarray]:
        """The arrays stored with a cell; empty where there are none that can be read."""
        try:
            with np.load(self.path(cell, ".npz"), allow_pickle=False) as data:
                return {name: data[name] for name in data.files}
        except (OSError, ValueError, KeyError):
            return {}


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; waits for another one that has it. The system lets go when a process ends."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system: no advisory locks there
        yield
        return
    make_folder(folder, "the folder of a network")
    with writing(folder / ".lock", "the lock file"):
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
