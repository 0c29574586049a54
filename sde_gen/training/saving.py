"""What a run keeps is written while training goes on: it waits for the copy of its state alone.

Process 0 writes, in one thread that takes one task after another, so that what is published appears in the order of the
steps. How a save went is heard by all processes together: before the next one begins, with a row of metrics, and at the
end, which waits for it. So does whatever else ends training, an error or a second Ctrl-C: a write is never cut off.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sde_gen.distributed import Processes
from sde_gen.errors import SDEGenError, WriteError

_MOST_FAILED = 3

Task = Callable[[], Path]


class Saver:
    """Does what is to be written, in the background or at once, and counts what fails.

    Args:
        processes: of the job.
        apart: whether a thread of its own writes.
        tell: called with "checkpoint" or "save failed", and values.

    Attributes:
        apart: as given.
        failed: saves of a checkpoint in a row that failed.
    """

    def __init__(self, processes: Processes, apart: bool, tell: Callable[[str, Mapping[str, Any]], None]) -> None:
        self.apart, self.failed = apart, 0
        self._processes, self._tell = processes, tell
        self._pool: ThreadPoolExecutor | None = None
        self._pending: dict[str, Future[Path] | Task] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Write in the background within the block, at the end of which everything is written."""
        try:
            with ThreadPoolExecutor(1, "checkpoints") as pool:  # no thread before the first task
                self._pool = pool if self.apart else None
                yield
        finally:
            self._pool = None
            self._pending.clear()

    def begin(self, kind: str, task: Task) -> None:
        """Have process 0 do `task`, once the last one of its kind is settled; every process must call it.

        Args:
            kind: "checkpoint", whose third failure in a row is an error, or another.
            task: returns what it published.
        """
        if kind in self._pending:
            self._settle(kind, wait=True)
        self._pending[kind] = task if self._pool is None or not self._processes.is_main else self._pool.submit(task)
        self.settle(wait=False)

    def settle(self, wait: bool = True) -> None:
        """Hear how what was begun went, where it is done or with `wait`; every process must ask.

        Raises:
            SDEGenError: it failed, and is not to be tried again.
        """
        for kind in tuple(self._pending):
            self._settle(kind, wait)

    def _settle(self, kind: str, wait: bool) -> None:
        pending = self._pending[kind]

        def heard() -> Path | None:
            if not isinstance(pending, Future):
                return pending()
            return pending.result() if wait or pending.done() else None

        try:
            path = self._processes.on_main(heard)
        except SDEGenError as error:
            del self._pending[kind]
            self.failed += kind == "checkpoint"
            if error.exit_code != WriteError.exit_code or self.failed >= _MOST_FAILED:
                raise
            self._tell("save failed", {"error": str(error)})
            return
        if path is not None:
            del self._pending[kind]
            if kind == "checkpoint":
                self.failed = 0
                self._tell("checkpoint", {"path": path})
