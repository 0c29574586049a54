"""Several processes that do one job, for tests: forked from a server that has imported everything and done nothing."""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

_PRELOAD = [
    "torch",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch._dynamo",
    "sde_gen.config.restore",
    "tests.faults.jobs",
]


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    return context


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start_ranks(
    job: Callable[..., Any], world: int, folder: Path, *arguments: Any, timeout: float = 60.0
) -> list[BaseProcess]:
    """Start `job(processes, *arguments)` in `world` processes; what each returns is saved in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    context = _context()
    ranks = [
        context.Process(target=_run, args=(job, rank, world, port, timeout, folder, arguments)) for rank in range(world)
    ]
    for rank in ranks:
        rank.start()
    return ranks


def run_ranks(job: Callable[..., Any], world: int, folder: Path, *arguments: Any, timeout: float = 60.0) -> list[Any]:
    """What `job` returned in each process; an exception's class name and message where it raised one."""
    ranks = start_ranks(job, world, folder, *arguments, timeout=timeout)
    join(ranks, 120)
    return [torch.load(folder / f"rank{r}.pt", weights_only=False) for r in range(world)]


def join(ranks: list[BaseProcess], seconds: float) -> list[int | None]:
    """Exit codes, once all have ended; those that have not after `seconds` are killed and count as None."""
    until = time.monotonic() + seconds
    for rank in ranks:
        rank.join(max(0.0, until - time.monotonic()))
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        if rank.exitcode is None:
            rank.kill()
            rank.join()
    return codes


def _run(
    job: Callable[..., Any], rank: int, world: int, port: int, timeout: float, folder: Path, arguments: tuple[Any, ...]
) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    from sde_gen.distributed import start

    result: Any
    try:
        result = job(start(timeout=timeout), *arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, the test wants to see it
        result = (type(error).__name__, str(error), getattr(error, "exit_code", None))
    torch.save(result, folder / f"rank{rank}.pt")
    sys.stdout.flush()
    os._exit(0)
