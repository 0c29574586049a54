"""Stopping at a step boundary: the first signal asks, the second insists."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ASKING = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")


class StopFlag:
    """Becomes true when a signal asked to stop.

    Attributes:
        reason: the signal's name, or "" as long as nothing asked.
    """

    def __init__(self) -> None:
        self.reason = ""

    def __bool__(self) -> bool:
        return bool(self.reason)

    def set(self, reason: str) -> None:
        """Ask to stop at the next step boundary."""
        self.reason = reason


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """A `StopFlag` set by SIGTERM, SIGUSR1, SIGHUP or Ctrl-C inside the block; a second Ctrl-C is a KeyboardInterrupt.

    SIGHUP, of a terminal that goes away, asks nothing of a process started with nohup, which ignores it. Outside the
    main thread, where Python takes no signals, the flag is never set.
    """
    flag = StopFlag()

    def ask(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and flag:
            raise KeyboardInterrupt
        flag.set(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    numbers = [getattr(signal, name) for name in _ASKING if hasattr(signal, name)]
    if "SIGHUP" in dir(signal) and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        numbers.remove(signal.SIGHUP)
    before = [signal.signal(number, ask) for number in numbers]
    try:
        yield flag
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
