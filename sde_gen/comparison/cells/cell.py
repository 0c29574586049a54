"""One thing that a comparison computes: an object whose fields are all that decides the result."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from sde_gen.comparison.cells.closure import code_version, names_in
from sde_gen.comparison.cells.store import Store
from sde_gen.comparison.description import digest
from sde_gen.config.objects import describe
from sde_gen.data import Dataset

#: Plain data, and arrays that go with it.
Result = tuple[dict[str, Any], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Context:
    """What all cells of a comparison share, and no key needs to hold: each cell names what it used of it.

    Attributes:
        data: the data set itself, as it was when the comparison was planned.
        store: where results and networks lie.
        device: where networks run.
        trust: modules of the user's own whose classes a checkpoint may name.
        checkpoint: of mode "shared" with a network that was trained elsewhere.
        afresh: whether a network is trained from the beginning, whatever the store holds, and not kept.
    """

    data: Dataset
    store: Store
    device: str = "cpu"
    trust: tuple[str, ...] = ()
    checkpoint: str | None = None
    afresh: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """A subclass says what it is by its fields, and computes it.

    Attributes:
        kind: a word for it, part of the key and of the name of its file.
        labels: where it stands in the comparison: formulation, sampler, budget, seed. Decides nothing.
    """

    kind: ClassVar[str]
    labels: Mapping[str, Any] = field(default_factory=dict)

    @property
    def after(self) -> tuple["Cell", ...]:
        """The cells that must be there before."""
        return tuple(value for f in fields(self) if isinstance(value := getattr(self, f.name), Cell))

    @cached_property
    def config(self) -> dict[str, Any]:
        """Everything that determines the result, as plain data: each object described, each cell by its key."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "labels"}
        return {n: v.key if isinstance(v, Cell) else describe(v, n) for n, v in values.items()}

    @cached_property
    def code(self) -> str:
        """Version of the code that computes it, sources of the user's own classes included."""
        values = [getattr(self, f.name) for f in fields(self) if f.name != "labels"]
        inner = (v for v in values if not isinstance(v, Cell))  # whose key holds their own code
        return code_version([(type(self).__module__, ""), *(name for v in inner for name in names_in(v))])

    @cached_property
    def key(self) -> str:
        """Digest of the kind, the configuration and the code."""
        return digest({"kind": self.kind, "config": self.config, "code": self.code})

    def compute(self, context: Context, stop: Callable[[], bool]) -> Result:
        """The result.

        Raises:
            SDEGenError: a combination that does not work, a numerical failure, or `Interrupted` when `stop` asked.
        """
        raise NotImplementedError
