"""Batches that threads make before they are asked for."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor


class Ahead:
    """The batch of each step, a function of the step alone, made by some threads while earlier ones are used.

    Which batches are there already decides only how long one waits: a step that nobody foresaw, such as the first of a
    resumed run, is made when it is asked for.

    Args:
        make: the batch of a 0-based step; called from several threads at once.
        workers: threads, each of which is two batches ahead; 0: batches are made where they are asked for.
    """

    def __init__(self, make: Callable[[int], Tensor], workers: int) -> None:
        self._make, self._depth = make, 2 * workers
        self._threads = ThreadPoolExecutor(workers, "sde_gen reads ahead") if workers else None
        self._made: dict[int, Future[Tensor]] = {}

    def __call__(self, step: int) -> Tensor:
        """The batch of `step`; what `make` raises for it is raised here."""
        if self._threads is None:
            return self._make(step)
        wanted = range(step, step + self._depth + 1)
        for other in [known for known in self._made if known not in wanted]:
            self._made.pop(other).cancel()
        for each in wanted:
            if each not in self._made:
                self._made[each] = self._threads.submit(self._make, each)
        return self._made[step].result()
