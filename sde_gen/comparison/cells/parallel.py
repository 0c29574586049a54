"""Cells over processes: each result is written by the process that computed it, at once and in one piece.

Killing everything loses only the cells that are being computed, one for each process; a network in training goes on
from its last checkpoint. Workers that outlive their parent finish their cell (a training saves and stops) and end; so
they do when the parent is interrupted. Everywhere a cell has one thread: how sums are split changes their last digits.
"""

import multiprocessing
import os
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import connection
from typing import Any

import torch

from sde_gen.comparison.cells.cell import Cell, Context
from sde_gen.errors import (
    BetweenNodesWarning,
    ConfigError,
    NonFiniteError,
    OutputError,
    SDEGenError,
    SolverError,
    WriteError,
)
from sde_gen.training import Interrupted

#: Told of each cell that is done: (cell, result, whether it was there already).
Listener = Callable[[Cell, dict[str, Any], bool], None]


def run_cells(
    cells: Sequence[Cell], context: Context, *, workers: int = 1, fresh: bool = False, tell: Listener | None = None
) -> dict[str, dict[str, Any]]:
    """The results of all cells by their keys; those that the cache holds are read, not computed.

    A result has a `status`: "ok", "skipped" (a combination that makes no sense) or "failed", with a `reason`.

    Args:
        cells: in the order in which they are best begun.
        context: what they share.
        workers: processes, >= 1; 1 computes here.
        fresh: compute also what the cache holds.
        tell: called after each.

    Raises:
        Interrupted: a signal stopped a training; all results so far are in the cache.
        SDEGenError: worker processes cannot be started here.
    """
    results: dict[str, dict[str, Any]] = {}
    tell = tell or (lambda cell, result, known: None)
    todo: dict[str, Cell] = {}
    for cell in cells:
        known = None if fresh else context.store.read(cell)
        if known is None:
            todo[cell.key] = cell
        elif cell.key not in results:
            results[cell.key] = known
            tell(cell, known, True)
    if workers <= 1 or len(todo) <= 1:
        context = replace(context, afresh=fresh)
        with _one_thread():
            for key, cell in todo.items():
                results[key] = _refused(cell, results) or _one(cell, context)
                tell(cell, results[key], False)
        return results
    with _spawning():
        _in_processes(todo, context, min(workers, len(todo)), results, tell)
    return results


def _in_processes(
    todo: dict[str, Cell], context: Context, workers: int, results: dict[str, dict[str, Any]], tell: Listener
) -> None:
    waiting = dict(todo)
    spawn = multiprocessing.get_context("spawn")
    given = pickle.dumps(context)  # as bytes: tensors would go by shared memory, of which a container has little
    while waiting:
        running: dict[Future[dict[str, Any]], Cell] = {}
        stop, begun = spawn.Event(), spawn.Event()
        pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_begin, initargs=(given, stop, begun))
        try:
            while waiting or running:
                for key in [k for k, c in waiting.items() if all(need.key in results for need in c.after)]:
                    if len(running) >= 2 * workers:
                        break
                    cell = waiting.pop(key)
                    refused = _refused(cell, results)
                    if refused:
                        results[key] = refused
                        tell(cell, refused, False)
                    else:
                        running[pool.submit(_in_worker, cell)] = cell
                done = wait(running, return_when=FIRST_COMPLETED).done if running else set()
                for future in done:
                    cell = running.pop(future)
                    results[cell.key] = future.result()
                    tell(cell, results[cell.key], False)
        except BrokenProcessPool as error:
            if not begun.is_set():
                raise SDEGenError(
                    "the worker processes end before they begin; in a script, call run() under "
                    'if __name__ == "__main__":, or use workers=1'
                ) from error
            # Which of the cells ended its process cannot be told: those that were running are given up, as a row says.
            lost = {key: c for key, c in todo.items() if key not in results and key not in waiting}
            for key, cell in lost.items():
                gone = {"status": "failed", "reason": "its process ended abruptly (out of memory?); run again"}
                results[key] = context.store.read(cell) or gone
                tell(cell, results[key], False)
        except BaseException:
            stop.set()  # a training saves and ends, instead of being waited for
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _refused(cell: Cell, results: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """A cell whose network could not be trained, or sampler not chosen, is not computed, and says why."""
    for needed in cell.after:
        found = results.get(needed.key, {"status": "ok"})
        if found["status"] != "ok":
            what = "network" if needed.kind == "model" else "calibration"
            return {"status": found["status"], "reason": f"its {what}: {found['reason']}"}
    return None


def _one(cell: Cell, context: Context, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Compute a cell and publish its result, whatever it is; only what nobody foresaw is not kept for the next time."""
    began = time.time()
    arrays: dict[str, Any] = {}
    keep = not (context.afresh and cell.kind == "model")  # the network of the cache stays, and so does what it says
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BetweenNodesWarning)  # stated in the report's table of formulations
            made, arrays = cell.compute(context, stop)
        result = {"status": "ok", **made}
    except (Interrupted, OutputError, WriteError):
        raise  # of the run, not of the cell
    except ConfigError as error:
        result = {"status": "skipped", "reason": str(error)}
    except (NonFiniteError, SolverError) as error:
        result = {"status": "failed", "reason": str(error)}
    except Exception as error:  # noqa: BLE001 - a fault in one cell is a row of the result; the rest goes on
        result = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        keep = False
    result |= {"wall_seconds": time.time() - began, "date": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())}
    return context.store.write(cell, result, arrays) if keep else {**result, "arrays": bool(arrays)}


@contextmanager
def _spawning() -> Iterator[None]:
    """Processes may be started here; in a worker of joblib, whose own way to start them no child of ours knows."""
    before = multiprocessing.get_start_method(allow_none=True)
    foreign = before not in (None, *multiprocessing.get_all_start_methods())
    if foreign:
        multiprocessing.set_start_method("spawn", force=True)
    try:
        yield
    finally:
        if foreign:
            multiprocessing.set_start_method(before, force=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# -- in a worker -------------------------------------------------------------------------------------------------------

_CONTEXT: list[tuple[Context, Any]] = []
_ORPHANED = threading.Event()
_BUSY = threading.Lock()


def _begin(given: bytes, stop: Any, begun: Any) -> None:
    begun.set()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    _CONTEXT[:] = [(pickle.loads(given), stop)]  # noqa: S301 - bytes of the process that began this one
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        _ORPHANED.set()
        with _BUSY:
            os._exit(0)


def _in_worker(cell: Cell) -> dict[str, Any]:
    context, stop = _CONTEXT[0]
    with _BUSY:
        if stop.is_set():
            raise Interrupted("stopped before it was begun")
        return _one(cell, context, lambda: _ORPHANED.is_set() or stop.is_set())
