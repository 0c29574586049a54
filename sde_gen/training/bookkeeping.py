"""What is known of the steps since the last row of metrics, filled on the device and read when a row is due."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sde_gen.distributed import Processes
from sde_gen.errors import TrainingFault
from sde_gen.perturbations import Perturbation
from sde_gen.training.batches import Batches
from sde_gen.training.block_norms import NormByBlock
from sde_gen.training.levels import LearnedWeighting, LossByLevel

#: Skipped updates in a row that end a run.
MOST_IN_A_ROW = 3


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


class Record:
    """Losses and gradient norms of the newest steps; nothing waits for the device until they are read.

    Args:
        length: steps that fit, the interval between two rows.
        batches: of this run; tell which samples a fault concerns.
        processes: of the job.
        device: where the losses are.
        perturbation: by whose noise levels the losses are sorted.
        blocks: sorts the norms of the gradient of each parameter.

    Attributes:
        losses: (length, samples of this process), where the steps put theirs.
        times: of these, of one step each, on the host.
        each: norms of the gradients of each parameter, of one step each.
        levels, blocks: what was read since the last row by noise level, and by block.
        norms: (length,), of their gradients; not finite for an update that was skipped.
        count: steps in these.
        faults: how many updates were skipped because a loss or gradient was not finite.
        since_row: of the steps read since the last row: their number, that of the finite ones, and of these the sums
            of losses and norms. Added in the order of the steps, so that a run that was stopped writes the same rows.
    """

    def __init__(
        self, length: int, batches: Batches, processes: Processes, device: torch.device,
        perturbation: Perturbation, blocks: NormByBlock,
    ) -> None:  # fmt: skip
        self.losses = torch.zeros(length, batches.share.stop - batches.share.start, device=device)
        self.times: list[Tensor] = []
        self.each: list[Tensor] = []
        self.norms = torch.zeros(length, device=device)
        self.count = 0
        self.since_row = (0, 0, 0.0, 0.0)
        self._batches, self._processes = batches, processes
        self.levels, self.blocks = LossByLevel(perturbation), blocks
        self.faults = FaultCount()

    def read(self, step: int) -> None:
        """Count what the steps before `step` left, and begin anew.

        Raises:
            TrainingFault: too many in a row were not finite.
        """
        count, self.count = self.count, 0
        if count == 0:
            return
        losses, norms = self.losses[:count].cpu(), self.norms[:count].tolist()
        times, self.times = self.times, []
        by_block, self.each = self.blocks.sorted(torch.stack(self.each).cpu()), []
        place = self.faults.add([not math.isfinite(norm) for norm in norms])
        if place is not None:
            raise self._fault(step - count, place, losses)
        steps, good, loss, norm = self.since_row
        by_level = self.levels.sorted(losses, torch.stack(times)).flatten(1)
        totals = self._processes.sum(torch.cat([losses.sum(1, dtype=torch.float64)[:, None], by_level], 1))
        for of_losses, of_levels, of_norm, of_blocks in zip(
            totals[:, 0].tolist(), totals[:, 1:].view(count, 2, -1), norms, by_block, strict=True
        ):
            if math.isfinite(of_norm):
                good, loss, norm = good + 1, loss + of_losses, norm + of_norm
                self.levels.add(of_levels)
                self.blocks.add(of_blocks)
        self.since_row = (steps + count, good, loss, norm)

    def row(self, size: int) -> dict[str, float]:
        """What was read since the last row, as means over the steps that count; empty where there was no step.

        Args:
            size: samples in a batch, over all processes.
        """
        (steps, good, loss, norm), self.since_row = self.since_row, (0, 0, 0.0, 0.0)
        if steps == 0:
            return {}
        means = {"loss": loss / (good * size), "grad_norm": norm / good} if good else {}
        return {**means, "skipped": self.faults.total}

    def tables(self, weighting: LearnedWeighting | None) -> dict[str, dict[str, float]]:
        """The rows beside that one, name to columns; without those in which there is nothing."""
        found = {"levels": self.levels.row(), "blocks": self.blocks.row()}
        if weighting is not None and found["levels"]:
            found["weighting"] = self.levels.learned(weighting)
        return {name: row for name, row in found.items() if row}

    def state(self) -> tuple[tuple[int, int, float, float], tuple[float, ...], tuple[float, ...]]:
        """What was read since the last row, as plain data."""
        return self.since_row, self.levels.state(), self.blocks.state()

    def restore(
        self, since_row: tuple[int, int, float, float], levels: tuple[float, ...], blocks: tuple[float, ...]
    ) -> None:
        """Go on from what `state` gave."""
        self.since_row = since_row
        self.levels.restore(levels)
        self.blocks.restore(blocks)

    def _fault(self, first: int, place: int, losses: Tensor) -> TrainingFault:
        """What to raise for the step at `place` of `losses`, one too many, and those before it."""
        known, batches = range(max(0, place + 1 - MOST_IN_A_ROW), place + 1), self._batches
        bad = {first + i: ~self._processes.gather(losses[i].clone()).isfinite() for i in known}
        samples = sorted({int(i) for step, wrong in bad.items() for i in batches.indices(step)[wrong]})
        t = torch.cat([batches.times(step)[wrong] if samples else batches.times(step) for step, wrong in bad.items()])
        where = "training loss" if samples else "gradient"
        return TrainingFault(first + place, (float(t.min()), float(t.max())), samples, where, self.faults.in_a_row)
