"""What is known of the steps since the last row of metrics, filled on the device and read when a row is due."""

import torch
from torch import Tensor

from sde_gen.distributed import Processes
from sde_gen.training.batches import Batches
from sde_gen.training.faults import MOST_IN_A_ROW, FaultCount, fault


class Record:
    """Losses and gradient norms of the newest steps; nothing waits for the device until they are read.

    Args:
        length: steps that fit, the interval between two rows.
        batches: of this run; tell which samples a fault concerns.
        processes: of the job.
        device: where the losses are.

    Attributes:
        faults: how many updates were skipped because a loss or gradient was not finite.
    """

    def __init__(self, length: int, batches: Batches, processes: Processes, device: torch.device) -> None:
        self._losses = torch.zeros(length, batches.share.stop - batches.share.start, device=device)
        self._norms = torch.zeros(length, device=device)
        self._count = 0
        self._batches, self._processes = batches, processes
        self.faults = FaultCount()

    def losses(self) -> Tensor:
        """Where the losses of the step under way are put, one for each sample of this process."""
        return self._losses[self._count]

    def close(self, norm: Tensor) -> None:
        """The step is done; its gradient had this norm, not finite for an update that was skipped."""
        self._norms[self._count].copy_(norm)
        self._count += 1

    def read(self, step: int) -> tuple[Tensor, Tensor]:
        """Losses (steps, samples) and norms (steps,) of the steps before `step`, on the host, and begin anew.

        Raises:
            TrainingFault: too many in a row were not finite.
        """
        count, self._count = self._count, 0
        losses, norms = self._losses[:count].cpu(), self._norms[:count].cpu()
        first, finite = step - count, norms.isfinite().tolist()
        place = self.faults.add([not good for good in finite])
        if place is not None:
            known = range(max(0, place + 1 - MOST_IN_A_ROW), place + 1)
            bad = [~self._processes.gather(losses[i].clone()).isfinite() for i in known]
            raise fault(self._batches, [first + i for i in known], bad, self.faults.in_a_row)
        return losses, norms

    def row(self, step: int, size: int) -> dict[str, float]:
        """`read`, as means over the steps that count; empty where there was no step.

        Args:
            step: optimiser steps done.
            size: samples in a batch, over all processes.
        """
        losses, norms = self.read(step)
        if len(norms) == 0:
            return {}
        good, row = norms.isfinite(), {}
        total = self._processes.sum(losses[good].sum(dtype=torch.float64))
        if count := int(good.sum()):
            row["loss"] = float(total) / (count * size)
            row["grad_norm"] = float(norms[good].mean(dtype=torch.float64))
        return {**row, "skipped": self.faults.total}
