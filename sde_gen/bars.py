"""Progress of long work: a bar on a terminal or in a notebook, elsewhere a line on standard error now and then."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

QUIET_SECONDS = 30.0  # between two lines, where there is no terminal


def draws_bars() -> bool:
    """Whether what is written to standard error may be rewritten: a terminal, or a notebook."""
    return "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())


def shown(items: Sequence[T], title: str) -> Iterable[T]:
    """The items, with a bar that moves as they are taken."""
    return tqdm(items, desc=title, leave=False, dynamic_ncols=True) if draws_bars() else _lines(items, title)


def _lines(items: Sequence[T], title: str) -> Iterator[T]:
    began = said = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - said > QUIET_SECONDS:
            said = now
            sys.stderr.write(f"{title}: {done} of {len(items)}, {now - began:.0f} s\n")
        yield item


@contextmanager
def ticking(tick: Callable[[], object], seconds: float | None = None) -> Iterator[None]:
    """Call `tick` from a thread of its own while the block runs.

    Args:
        tick: must not raise, nor touch what the block works with.
        seconds: between two calls; None: 0.5 where bars are drawn, else `QUIET_SECONDS`.
    """
    ended = threading.Event()
    wait = (0.5 if draws_bars() else QUIET_SECONDS) if seconds is None else seconds

    def watch() -> None:
        while not ended.wait(wait):
            tick()

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def elapsing(title: str, expected: float) -> Iterator[None]:
    """Show the seconds that pass in the block, of about so many: a bar, or a line now and then."""
    began = time.monotonic()
    if not draws_bars():
        with ticking(lambda: sys.stderr.write(f"{title}: {time.monotonic() - began:.0f} s of about {expected:.0f}\n")):
            yield
        return
    style = "{desc}: {n:.0f} s of about {total:.0f} |{bar}|"
    with tqdm(total=max(1.0, expected), desc=title, leave=False, dynamic_ncols=True, bar_format=style) as bar:

        def move() -> None:
            bar.n = min(time.monotonic() - began, bar.total)
            bar.refresh()

        with ticking(move):
            yield
