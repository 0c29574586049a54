"""Many samples through a little memory: drawn in blocks, by any number of processes, each a file until all are there.

A block is a fixed range of samples that is always drawn whole and alone, so what it holds does not depend on who draws
it or when. Blocks that are there already are not drawn again: a job that was interrupted goes on where it was.

    store = BlockStore(folder, {"seed": 0, ...}, count=1_000_000, shape=(2,), block=block_length((2,)))
    draw_blocks(store, processes, lambda first, size: sampler(model, (size, 2), seed=0, first=first))
    for x in store.read_all(): ...
"""

import hashlib
import json
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sde_gen import checks as check
from sde_gen.distributed import Processes
from sde_gen.errors import CheckpointError
from sde_gen.files import locked, make_folder, publish, write_json
from sde_gen.rng import block_size
from sde_gen.samplers import Samples
from sde_gen.training.checkpoint import save_tensors

_BLOCK_NUMBERS = 2**20  # numbers in a block on a GPU, about
_BLOCK_SAMPLES = 2**16  # and samples, at most

__all__ = ["Block", "BlockStore", "block_length", "draw_blocks", "write_npz"]


class Block(NamedTuple):
    """Samples `first`, `first` + 1, ... as drawn."""

    first: int
    x: Tensor
    nfe: int
    seconds: float


def block_length(shape: Sequence[int], device: str = "cpu") -> int:
    """Samples per block for samples of `shape`, which are drawn at once: whole blocks of noise.

    One on a CPU (2^16 numbers, 64 samples at least), whose caches more would not fit; measured with a U-Net on 8x8
    digits, blocks of a million numbers take 1.6 times as long and 3 times the memory. On a GPU, named by
    `device="cuda"`, about a million numbers, at most 65,536 samples.
    """
    size = max(1, math.prod(shape))
    noise = block_size(size)
    if device != "cuda":
        return noise
    return min(_BLOCK_SAMPLES, max(1, _BLOCK_NUMBERS // (noise * size)) * noise)


@dataclass(frozen=True)
class BlockStore:
    """The blocks of one job in a folder of their own.

    Args:
        folder: of the blocks; made by `open`, removed by `remove`.
        plan: everything that decides what the samples are, as plain data.
        count: samples in all, >= 1.
        shape: of one sample.
        block: samples per block, >= 1.

    Raises:
        ConfigError: numbers out of range.
    """

    folder: Path
    plan: Mapping[str, Any]
    count: int
    shape: tuple[int, ...]
    block: int

    def __post_init__(self) -> None:
        check.integer("BlockStore", "count", self.count)
        check.integer("BlockStore", "block", self.block)

    def __len__(self) -> int:
        return -(-self.count // self.block)

    @property
    def digest(self) -> str:
        """SHA-256 of the plan and the division into blocks."""
        whole = [dict(self.plan), self.count, list(self.shape), self.block]
        return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()

    def rows(self, index: int) -> tuple[int, int]:
        """(first sample, number of samples) of a block."""
        first = index * self.block
        return first, min(self.block, self.count - first)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Make the folder and hold it for this job alone.

        Raises:
            OutputError: it cannot be made, or another process has it.
        """
        make_folder(self.folder, "the folder of the blocks")
        with locked(self.folder):
            write_json(self.folder / "plan.json", dict(self.plan) | {"count": self.count, "block": self.block})
            try:
                yield
            finally:
                if not any(self.folder.glob("block_*")):  # nothing to go on from
                    self.remove()

    def write(self, index: int, samples: Samples) -> None:
        """Publish a block; a reader never meets half of one.

        Raises:
            WriteError, OutputError: it could not be written.
        """
        x = samples.x.detach().float().cpu().contiguous()
        notes = {"job": self.digest, "nfe": str(samples.nfe), "seconds": repr(float(samples.seconds))}
        notes["sha256"] = _digest(x, notes)
        publish(self._path(index), lambda temporary: save_tensors(temporary, {"x": x}, notes), "a block of samples")

    def read(self, index: int) -> Block | None:
        """A block, or None if it is not there, belongs to another job, or is damaged."""
        path, (first, size) = self._path(index), self.rows(index)
        if path.is_symlink() or not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                notes, x = file.metadata() or {}, file.get_tensor("x")
            if (
                notes.get("job") != self.digest
                or tuple(x.shape) != (size, *self.shape)
                or notes["sha256"] != _digest(x, notes)
            ):
                return None
            return Block(first, x, int(notes["nfe"]), float(notes["seconds"]))
        except (SafetensorError, OSError, KeyError, ValueError):
            return None

    def read_all(self) -> Iterator[Block]:
        """Every block in order, one in memory at a time.

        Raises:
            CheckpointError: one is missing or damaged.
        """
        for index in range(len(self)):
            block = self.read(index)
            if block is None:
                raise CheckpointError(
                    f"block {index} of the samples is not in {self.folder}, or is damaged; run the same command again "
                    "(all processes must see one folder)"
                )
            yield block

    def remove(self) -> None:
        """Delete the folder and what is in it."""
        rmtree(self.folder, ignore_errors=True)

    def _path(self, index: int) -> Path:
        return self.folder / f"block_{index:06d}.safetensors"


def draw_blocks(
    store: BlockStore,
    processes: Processes,
    draw: Callable[[int, int], Samples],
    stop: Callable[[], bool] = lambda: False,
    again: Sequence[int] = (),
) -> bool:
    """Draw the blocks that are not there yet, each process its own; whether all are there (or `stop` came between).

    Args:
        store: where they go, opened by process 0.
        processes: of the job.
        draw: `draw(first, size)` returns the samples `first`, ..., `first + size - 1`.
        stop: asked before each block.
        again: blocks to draw even if they are there.

    Raises:
        ProcessLostError: another process is gone.
    """
    left = 0
    for index in processes.blocks(len(store)):
        if index not in again and store.read(index) is not None:
            continue
        if stop():
            left = 1
            break
        store.write(index, draw(*store.rows(index)))
    return int(processes.sum(torch.tensor(left))) == 0


def write_npz(path: Path, arrays: Mapping[str, tuple[tuple[int, ...], str, Iterable[np.ndarray]]]) -> Path:
    """An uncompressed .npz written piece by piece and published by one rename.

    Args:
        path: the file.
        arrays: name to (shape, dtype, pieces along the first dimension).

    Raises:
        WriteError, OutputError: it could not be written.
    """

    def save(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as file:
            for name, (shape, dtype, pieces) in arrays.items():
                kind = np.dtype(dtype)
                with file.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    head = {"descr": kind.str, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(stream, head)
                    for piece in pieces:
                        stream.write(np.ascontiguousarray(piece, dtype=kind).data.cast("B"))

    return publish(path, save, "the samples")


def _digest(x: Tensor, notes: Mapping[str, str]) -> str:
    digest = hashlib.sha256(f"{notes['job']} {notes['nfe']} {notes['seconds']} {tuple(x.shape)}".encode())
    digest.update(np.ascontiguousarray(x.numpy()).data.cast("B") if x.numel() else b"")
    return digest.hexdigest()
