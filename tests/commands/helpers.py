"""A tiny run, and what a command did."""

from collections.abc import Callable
from typing import NamedTuple

#: A network and a run that take a moment.
TINY = (
    "data=mixture",
    "data.n=64",
    "data.n_test=64",
    "network=mlp",
    "network.hidden=8",
    "network.layers=1",
    "trainer.steps=4",
    "trainer.batch_size=8",
    "trainer.log_every=2",
    "trainer.preview_samples=0",
    "device=cpu",
)


class Result(NamedTuple):
    """Exit code and what was written to standard output and error."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]
