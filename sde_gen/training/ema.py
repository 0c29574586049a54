"""Exponential moving average of a network's weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sde_gen.checks import number
from sde_gen.errors import CheckpointError
from sde_gen.training.sharding import local, put


class EMA:
    """Shadow weights s <- d_n s + (1 - d_n) w after every optimiser step, in two fused operations.

    With warm-up the decay of update n is d_n = min(decay, (1 + n) / (10 + n)), so that a short run is not dominated
    by its random initial weights. A list of plain tensors is kept, not a copy of the module, so that it also works
    for modules that cannot be deep-copied, such as sharded ones.

    Args:
        module: the network that is trained. Buffers are not averaged: those of the module are used as they are.
        decay: in [0, 1); 0 follows the weights exactly.
        warmup: whether the decay grows from 0.1 as above.

    Raises:
        ConfigError: `decay` outside [0, 1).
    """

    def __init__(self, module: nn.Module, decay: float = 0.999, warmup: bool = True) -> None:
        self.decay = number("EMA", "decay", decay, low=0.0, high=1.0, open_high=True)
        self.warmup = bool(warmup)
        self.updates = 0
        params = [p for p in module.parameters() if p.requires_grad]
        self._shadow: list[Tensor] = [p.detach().clone() for p in params]
        # By every name that a parameter has: tied ones have several, and a state dict repeats them.
        shadows = dict(zip(params, self._shadow, strict=True))
        named = module.named_parameters(remove_duplicate=False)
        self._named = {name: shadows[p] for name, p in named if p in shadows}
        # Where weights are sharded, every process averages its own part: these share memory with the tensors above.
        self._local_params = [local(p.detach()) for p in params]
        self._local_shadow = [local(shadow) for shadow in self._shadow]
        self._module = module

    @property
    def label(self) -> str:
        """What a checkpoint calls it."""
        return f"decay={self.decay!r}"

    def next_decay(self) -> float:
        """The decay d_n that the next update uses."""
        n = self.updates
        return min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay

    def update(self) -> None:
        """Move the shadow towards the current weights."""
        with torch.no_grad():
            torch._foreach_lerp_(self._local_shadow, self._local_params, 1.0 - self.next_decay())
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Run the block with the averaged weights in the network, and put the trained ones back after it."""
        with torch.no_grad():
            trained = [p.clone() for p in self._local_params]
            torch._foreach_copy_(self._local_params, self._local_shadow)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._local_params, trained)

    def averages(self) -> dict[str, Tensor]:
        """The averaged weights alone, as `LABEL/NAME`, so that those of several averages go into one file."""
        return {f"{self.label}/{name}": shadow for name, shadow in self._named.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """A complete state dict of the network with the averaged weights in it."""
        state = {name: tensor.detach() for name, tensor in self._module.state_dict().items()}
        return state | self._named

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Restore what `state_dict` gave, and the number of updates so far.

        Raises:
            CheckpointError: a tensor is missing or of another shape; nothing was restored then.
        """
        self.check(state)
        for name, shadow in self._named.items():
            put(shadow, state[name])
        self.updates = int(updates)

    def check(self, state: Mapping[str, Tensor], source: str = "the averaged weights") -> None:
        """Refuse a state that lacks an averaged weight.

        Raises:
            CheckpointError: naming the first.
        """
        for name, shadow in self._named.items():
            if name not in state or state[name].shape != shadow.shape:
                raise CheckpointError(f"{source} lack {name} of shape {tuple(shadow.shape)}")
