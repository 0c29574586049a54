r"""One optimiser step, of a gradient g that is clipped, unless a loss or the gradient is not finite.

With the norm :math:`n = |g|` over all parameters and the limit c, the step is made with :math:`g \min(1, c/n)`. The
one norm serves both: it is finite if every number of g is (up to overflow, itself a fault). It costs one pass over the
gradient. The host of a GPU does not wait for it: a fused optimiser reads both the divisor :math:`\max(1, n/c)` and
whether to do anything where it runs, in the pass that it makes anyway. A CPU has nothing to wait for, and touches the
gradient only where it is too long; so it is with optimisers that are not fused, wherever they run.
"""

import math

import torch
from torch import Tensor

from sde_gen.training.sharding import shared_by, whole


class Update:
    """Moves the weights.

    Args:
        optimizer: of the trained parameters, whole or shards.
        clip: largest norm of the gradient; None switches clipping off.
        device: where the parameters are.
        alone: whether there is one process.

    Attributes:
        optimizer: as given.
        params: all that it moves.
        norms: of the gradient of each of these in the newest step, (params,).
        checked_here: whether the losses are looked at here. Elsewhere they reach this place through the gradient: a
            loss that is not finite must be made to spoil it, so that all processes know and no device is waited for.
        bad_in_a_row: updates skipped since the last that was not, as far as known without waiting for a device.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, clip: float | None, device: torch.device, alone: bool) -> None:
        self.optimizer, self._clip = optimizer, clip
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        self._on_device = device.type == "cuda" and bool(optimizer.defaults.get("fused"))
        self.checked_here = device.type == "cpu" and alone
        self.bad_in_a_row = 0

    def __call__(self, rate: float, losses: Tensor) -> Tensor:
        """One step with learning rate `rate`, and no gradient left; the norm that the gradient had, NaN for a fault."""
        gradients = [p.grad for p in self.params if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients))
        if hasattr(norms, "full_tensor"):  # of shards
            norms = whole(norms)
        norm, clip = torch.linalg.vector_norm(norms), self._clip
        self.norms = norms if len(norms) == len(self.params) else self._with_zeros(norms)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self._on_device:
            self._tell_optimizer(norm)
            self.optimizer.step()
        else:
            if self.checked_here and not math.isfinite(float(losses.sum())):
                norm.fill_(math.nan)
            size = float(norm)
            self.bad_in_a_row = 0 if math.isfinite(size) else self.bad_in_a_row + 1
            if self.bad_in_a_row == 0:
                if clip is not None and size > clip:
                    torch._foreach_mul_(gradients, clip / (size + 1e-6))
                self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _with_zeros(self, norms: Tensor) -> Tensor:
        """Norms of all parameters, also of those that no loss has reached."""
        reached = torch.tensor([p.grad is not None for p in self.params]).to(norms.device, non_blocking=True)
        return torch.zeros(len(reached), device=norms.device).masked_scatter_(reached, norms.float())

    def _tell_optimizer(self, norm: Tensor) -> None:
        told, clip = {"found_inf": (~norm.isfinite()).float()}, self._clip
        if clip is not None:
            told["grad_scale"] = (norm / clip).clamp_min(1.0)
        for name, value in told.items():
            setattr(self.optimizer, name, shared_by(self.params[0], value))
