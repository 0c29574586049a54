"""The cache of a comparison: one JSON file (and at times one .npz) for each cell, one folder for each trained network.

    cells/<kind>-<key>.json  cells/<kind>-<key>.npz     results, each published by one rename
    models/<key>/checkpoints/step_*/                    trained networks, as `python -m sde_gen.train` leaves them

A key is a digest of everything that determines the result: configuration, data and code. An entry counts only if its
own words agree with that and its digest with its numbers, so a damaged file, or one of another version, is computed
again.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sde_gen.comparison.description import canonical, digest
from sde_gen.files import make_folder, publish, read_text, write_json
from sde_gen.training import newest_checkpoint

FORMAT = 2


@dataclass(frozen=True)
class Store:
    """Cells on disk, below the folder `root`; a cell is what has a kind, a key, a code and a config."""

    root: Path

    def make(self) -> "Store":
        """Make the folders.

        Raises:
            OutputError: they cannot be written.
        """
        for name in ("cells", "models"):
            make_folder(self.root / name, "the cache of the comparison")
        return self

    def path(self, cell: Any, ending: str = ".json") -> Path:
        """Where a cell's file lies."""
        return self.root / "cells" / f"{cell.kind}-{cell.key}{ending}"

    def model(self, key: str) -> Path:
        """Folder of a trained network."""
        return self.root / "models" / key

    def read(self, cell: Any) -> dict[str, Any] | None:
        """The stored result of a cell, or None if there is none that fits it."""
        entry = self._sound(cell)
        if entry is None or (entry["packed"] and self._bytes(cell, entry["packed"]) is None):
            return None
        result = dict(entry["result"])
        if cell.kind == "model" and result["status"] == "ok" and not self._has_network(cell, result):
            return None
        return result

    def _sound(self, cell: Any) -> dict[str, Any] | None:
        try:
            entry = json.loads(read_text(self.path(cell)))
            return entry if entry == self._entry(cell, entry["result"], entry["packed"]) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _has_network(self, cell: Any, result: Mapping[str, Any]) -> bool:
        """Whether the last checkpoint is there and sound; an older one is where training goes on."""
        found, _ = newest_checkpoint(self.model(cell.key) / "checkpoints")
        return found is not None and found.step == result["steps"]

    def write(self, cell: Any, result: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Publish a result, and return it; the arrays first, so that an entry is never without them."""
        stream = io.BytesIO()
        if arrays:
            np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
            publish(self.path(cell, ".npz"), lambda path: path.write_bytes(stream.getvalue()), "the arrays of a cell")
        kept = {**result, "arrays": bool(arrays)}
        packed = hashlib.sha256(stream.getvalue()).hexdigest() if arrays else ""
        write_json(self.path(cell), self._entry(cell, kept, packed), "the result of a cell")
        return kept

    @staticmethod
    def _entry(cell: Any, result: Mapping[str, Any], packed: str) -> dict[str, Any]:
        """What the file says; `packed` is the SHA-256 of the arrays beside it."""
        config = json.loads(canonical(cell.config))
        head = {"format": FORMAT, "kind": cell.kind, "key": cell.key, "code": cell.code, "config": config}
        return {**head, "result": dict(result), "packed": packed, "digest": digest([cell.key, result, packed])}

    def arrays(self, cell: Any) -> dict[str, np.ndarray]:
        """The arrays stored with a cell; empty where there are none, or not those that were computed."""
        entry = self._sound(cell)
        data = self._bytes(cell, entry["packed"]) if entry is not None and entry["packed"] else None
        if data is None:
            return {}
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return dict(file)

    def _bytes(self, cell: Any, packed: str) -> bytes | None:
        try:
            data = self.path(cell, ".npz").read_bytes()
        except OSError:
            return None
        return data if hashlib.sha256(data).hexdigest() == packed else None
