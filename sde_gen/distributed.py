"""Several processes on one job, by plain torch.distributed: who takes which part, and what all must agree on.

    torchrun --nproc_per_node=2 -m sde_gen.train ...

`start` joins the group that the environment describes (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT, as set
by torchrun or by hand); without it there is one process, and everything here is a plain value and costs nothing. Short
messages travel through gloo from host memory, so that no device has to be waited for; tensors on a GPU go by NCCL.
"""

import atexit
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sde_gen.errors import ConfigError, FailedElsewhere, ProcessLostError, SDEGenError

T = TypeVar("T")
# What torch's messages about a broken group have in common.
_SIGNS = ("gloo", "NCCL", "ProcessGroup", "onnection", "pair closure", "TCPStore", "imed out", "ocket")


@dataclass(frozen=True)
class Processes:
    """The processes of one job, as one of them sees them.

    Attributes:
        rank: number of this process, 0 <= rank < world.
        world: how many there are.
        local_rank: number of this process on its machine, which picks its GPU.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is process 0, which owns all files and the screen."""
        return self.rank == 0

    # -- who does what -----------------------------------------------------------------------------------------------

    def rows(self, count: int) -> slice:
        """The contiguous part of 0..count-1 of this process; parts differ in length by at most one."""
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def blocks(self, count: int) -> range:
        """The blocks of a job of `count` equal blocks that this process does: rank, rank + world, ...

        Samples of one block must not depend on who computes it: key its random numbers by the block, not the process.
        """
        return range(self.rank, count, self.world)

    # -- what all hear -----------------------------------------------------------------------------------------------

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over the processes."""
        if self.world == 1:
            return value
        total = value.clone()
        with talking():
            dist.all_reduce(total)
        return total

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in the order of the processes, on the CPU; their numbers may differ."""
        return rows if self.world == 1 else torch.cat(self._everyones(rows.cpu()))

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.world > 1:
            self.sum(torch.zeros(1))

    def on_main(self, task: Callable[[], T]) -> T:
        """`task()` of process 0 in every process; if it fails there, all fail with its exit code.

        Raises:
            FailedElsewhere: in the other processes, where process 0 raised one of the library's errors.
        """
        if self.world == 1:
            return task()
        raised: SDEGenError | None = None
        heard: list[Any] = [None]
        if self.is_main:
            value, raised = _tried(task)
            heard = [(value, _told(raised))]
        with talking():
            dist.broadcast_object_list(heard)
        value, failure = heard[0]
        _raise(raised, [failure])
        return value

    def share(self, count: int, task: Callable[[int], T]) -> list[T]:
        """[task(0), ..., task(count - 1)] in every process, each done by one of them, as in `blocks`.

        Tensors among the results must lie on the CPU.

        Raises:
            FailedElsewhere: where another process raised one of the library's errors; all then fail with its exit code.
        """
        if self.world == 1:
            return [task(index) for index in range(count)]
        done, raised = _tried(lambda: {index: task(index) for index in self.blocks(count)})
        heard = self._everyones((done, _told(raised)))
        _raise(raised, [failure for _, failure in heard])
        every: dict[int, T] = {index: result for part, _ in heard for index, result in part.items()}
        return [every[index] for index in range(count)]

    def agree(self, facts: Mapping[str, str]) -> None:
        """Compare `facts` (what it is called, to any text) with those of process 0.

        Raises:
            ConfigError: in every process, naming what differs and where.
        """
        everyone = [dict(facts)] if self.world == 1 else self._everyones(dict(facts))
        for rank, theirs in enumerate(everyone):
            if names := [name for name in facts if theirs.get(name) != everyone[0].get(name)]:
                raise ConfigError(
                    f"process {rank} does not agree with process 0 on the {', '.join(names)}; "
                    "start all processes with one command on the same files"
                )

    def _everyones(self, value: Any) -> list[Any]:
        """The `value` of each process, in their order; pickled, which is safe among the processes of one job."""
        heard: list[Any] = [None] * self.world
        with talking():
            dist.all_gather_object(heard, value)
        return heard


def _tried(task: Callable[[], T]) -> tuple[T | None, SDEGenError | None]:
    try:
        return task(), None
    except SDEGenError as error:
        return None, error


def _told(error: SDEGenError | None) -> tuple[str, int] | None:
    return None if error is None else (str(error), error.exit_code)


def _raise(raised: SDEGenError | None, failures: list[tuple[str, int] | None]) -> None:
    """Raise what this process raised, or else what another one told."""
    if raised is not None:
        raise raised
    for failure in failures:
        if failure is not None:
            raise FailedElsewhere(*failure)


class Pulse:
    """One short message per step, sent while the step computes: whether to stop, and the clock of process 0.

    Every process hears the same, one step later than it was said, so all stop before the same step and none waits.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._sent: tuple[Tensor, Any] | None = None  # a message, and the work of sending it

    def exchange(self, stop: bool, seconds: float) -> tuple[bool, float]:
        """(whether any process asked to stop, seconds of process 0), as of the last call; tell ours to the next."""
        if self._processes.world == 1:
            return stop, seconds
        if self._sent is None:
            self._send(stop, seconds)
        heard = self.close()
        self._send(stop, seconds)
        return heard

    def _send(self, stop: bool, seconds: float) -> None:
        message = torch.tensor([float(stop), seconds if self._processes.is_main else -1.0], dtype=torch.float64)
        with talking():
            self._sent = message, dist.all_reduce(message, dist.ReduceOp.MAX, async_op=True)

    def close(self) -> tuple[bool, float]:
        """Take the last message off the line; what it says."""
        if self._sent is None:
            return False, 0.0
        (message, work), self._sent = self._sent, None
        with talking():
            work.wait()
        stop, seconds = message.tolist()
        return stop > 0, seconds


@contextmanager
def talking() -> Iterator[None]:
    """Turn the failure of a message inside the block into a `ProcessLostError`."""
    try:
        yield
    except RuntimeError as error:
        broken = isinstance(error, dist.DistError) or any(sign in str(error) for sign in _SIGNS)
        if isinstance(error, SDEGenError) or not broken:
            raise
        first = str(error).strip().splitlines()[0][:200]
        raise ProcessLostError(
            f"another process of the job ended or did not answer in time ({first}); "
            "start the job again: it goes on from the newest checkpoint"
        ) from error


def start(kind: str = "cpu", timeout: float = 600.0) -> Processes:
    """Join the job that the environment describes, once per process; later calls return the same.

    Args:
        kind: "cuda" if tensors of GPUs will be exchanged.
        timeout: seconds after which a process that does not answer ends the job.

    Raises:
        ConfigError: an environment that does not describe a job.
        ProcessLostError: the others did not come.
    """
    world = _number("WORLD_SIZE", 1)
    if dist.is_available() and dist.is_initialized():
        return Processes(dist.get_rank(), dist.get_world_size(), _number("LOCAL_RANK", dist.get_rank()))
    if world == 1:
        return Processes()
    if not dist.is_available():
        raise ConfigError("this build of torch has no torch.distributed; use one process")
    if "RANK" not in os.environ:
        raise ConfigError(f"WORLD_SIZE={world} but RANK is not set; start the processes with torchrun")
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    with talking():
        try:
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        except ValueError as error:
            raise ConfigError(f"the environment does not describe a job of {world} processes: {error}") from error
    # Threads of a group that is still there when the interpreter ends can abort the process after its work is done.
    atexit.register(leave)
    return Processes(dist.get_rank(), world, _number("LOCAL_RANK", dist.get_rank()))


def leave() -> None:
    """Leave the group, if there is one; other processes are not waited for."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else default
