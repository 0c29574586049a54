r"""One optimiser step: Adam, of a gradient g that is clipped, unless a loss or the gradient is not finite.

With the norm :math:`n = |g|` over all parameters and the limit c, the step is made with :math:`g \min(1, c/n)`. The
one norm serves both: it is finite if every number of g is (up to overflow, itself a fault).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sde_gen.training.sharding import whole


class Update:
    """Moves the weights.

    Args:
        params: the trained parameters.
        clip: largest norm of the gradient; None switches clipping off.
        device: where the parameters are.
        alone: whether there is one process.
        sharded: whether the parameters are shards.

    Attributes:
        optimizer: Adam, fused where that can be.
        checked_here: whether the losses are looked at here. Elsewhere they reach this place through the gradient: a
            loss that is not finite must be made to spoil it, so that all processes know and no device is waited for.
        bad_in_a_row: updates skipped since the last that was not, as far as known without waiting for a device.
    """

    def __init__(
        self, params: Sequence[nn.Parameter], clip: float | None, device: torch.device, alone: bool, sharded: bool
    ) -> None:
        self._params, self._clip = list(params), clip
        fused = device.type in ("cpu", "cuda") and not sharded
        self.optimizer = torch.optim.Adam(self._params, fused=fused)
        self._skips_on_device = fused and device.type == "cuda"
        self.checked_here = device.type == "cpu" and alone
        self.bad_in_a_row = 0

    def __call__(self, rate: float, losses: Tensor) -> Tensor:
        """One step with learning rate `rate`, and no gradient left; the norm that the gradient had, NaN for a fault."""
        norm = self._clipped()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self._skips_on_device:  # fused Adam reads this where it runs: nobody waits for the device
            self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        else:
            if self.checked_here and not math.isfinite(float(losses.sum())):
                norm.fill_(math.nan)
            if math.isfinite(float(norm)):
                self.bad_in_a_row = 0
                self.optimizer.step()
            else:
                self.bad_in_a_row += 1
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _clipped(self) -> Tensor:
        clip, gradients = self._clip, [p.grad for p in self._params if p.grad is not None]
        if not self.checked_here:
            if clip is None:
                return whole(nn.utils.get_total_norm(gradients, foreach=True))
            return whole(nn.utils.clip_grad_norm_(self._params, clip, foreach=True))
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if clip is not None and (size := float(norm)) > clip:  # most gradients are not, and are not touched then
            torch._foreach_mul_(gradients, clip / (size + 1e-6))
        return norm
