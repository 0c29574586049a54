"""Steps whose loss or gradient is not finite: the update is skipped, they are counted, three in a row are an error."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sde_gen.errors import NonFiniteError

if TYPE_CHECKING:
    from sde_gen.training.batches import Batches

#: Skipped updates in a row that end a run.
MOST_IN_A_ROW = 3


class TrainingFault(NonFiniteError):
    """Three steps in a row had a loss or gradient that was NaN or infinite, or weights were about to be saved that are.

    Attributes:
        step: 0-based optimiser step of the last of them.
        t: the smallest of their times.
        t_range: smallest and largest time of the samples concerned.
        indices: training samples concerned; empty when a gradient alone was at fault.
        where: "training loss", "gradient" or "weights".
        in_a_row: how many steps.
    """

    def __init__(
        self, step: int, t_range: tuple[float, float], indices: Sequence[int], where: str, in_a_row: int
    ) -> None:
        super().__init__(step, t_range[0], indices, where)
        self.t_range, self.in_a_row = (float(t_range[0]), float(t_range[1])), int(in_a_row)
        self.args = (self._message(),)

    def _message(self) -> str:
        if self.where == "weights":
            return (
                f"the weights became NaN or infinite before step {self.step}; nothing of that is saved: "
                "lower trainer.learning_rate and go on from the newest checkpoint"
            )
        shown = ", ".join(map(str, self.indices[:8])) + (", ..." if len(self.indices) > 8 else "")
        which = f", samples [{shown}]" if self.indices else ""
        low, high = self.t_range
        return (
            f"the {self.where} became NaN or infinite at step {self.step} (t from {low:.6g} to {high:.6g}{which}), "
            f"number {self.in_a_row} in a row; the updates were skipped: lower trainer.learning_rate, or look at these "
            "samples and the network"
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (TrainingFault, (self.step, self.t_range, self.indices, self.where, self.in_a_row))


class FaultCount:
    """How many updates were skipped, in all and in a row.

    Attributes:
        total: skipped updates of the run, earlier parts included.
        in_a_row: of these, how many were the newest steps.
    """

    def __init__(self) -> None:
        self.total = self.in_a_row = 0

    def add(self, bad: Sequence[bool]) -> int | None:
        """Count the next steps; the place in `bad` of the one that made too many in a row, None if there is none."""
        for place, fault in enumerate(bad):
            self.in_a_row = self.in_a_row + 1 if fault else 0
            self.total += int(fault)
            if self.in_a_row >= MOST_IN_A_ROW:
                return place
        return None


def fault(batches: "Batches", steps: Sequence[int], bad: Sequence[Tensor], in_a_row: int) -> TrainingFault:
    """What to raise for `steps`, the last of which was one too many; `bad` marks the places of each batch at fault."""
    samples = sorted({int(i) for step, wrong in zip(steps, bad, strict=True) for i in batches.indices(step)[wrong]})
    if samples:
        t = torch.cat([batches.times(step)[wrong] for step, wrong in zip(steps, bad, strict=True)])
    else:
        t = torch.cat([batches.times(step) for step in steps])
    where = "training loss" if samples else "gradient"
    return TrainingFault(steps[-1], (float(t.min()), float(t.max())), samples, where, in_a_row)
