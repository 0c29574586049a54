"""The parts of a job, each done whole by one process: fixed by the job alone, whoever does them."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from sde_gen.distributed import Processes
from sde_gen.rng import block_size

T = TypeVar("T")
_PARTS = 16  # of a job, at most, unless told otherwise


def part_length(count: int, shape: Sequence[int], chunk: int | None = None) -> int:
    """Samples per part: `chunk`, or a sixteenth of all, but at least a block of noise (2^16 numbers, 64 samples)."""
    return chunk or max(block_size(max(1, math.prod(shape))), -(-count // _PARTS))


def in_parts(processes: Processes, count: int, length: int, task: Callable[[slice], T]) -> list[T]:
    """`task(rows)` of each part of 0..count-1, in order, in every process; each is done by one of them.

    Raises:
        FailedElsewhere: a part failed in another process.
    """
    return processes.share(
        -(-count // length), lambda part: task(slice(part * length, min((part + 1) * length, count)))
    )
