r"""The norm of the gradient in each block of a network, :math:`|g_b| = (\sum_{p \in b} |g_p|^2)^{1/2}`.

Clipping needs the norm of each parameter's gradient anyway. They are kept as they are, on the device, and sorted into
blocks when a row of metrics is due, so that the step itself does nothing more.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class NormByBlock:
    """Sums of the norms of some steps by block: a child of the network, or of a list or sequence in it.

    Args:
        network: whose blocks they are.
        params: in the order of the norms; those that are not the network's are the block `weighting`.

    Attributes:
        names: of the blocks, such as `stem` and `down.0`, in the order in which the network holds them.
        sums, steps: of the norms since the last row, (blocks,), float64, and how many they are.
    """

    def __init__(self, network: nn.Module, params: Sequence[Tensor]) -> None:
        block: dict[Tensor, str] = {p: _block(network, name) for name, p in network.named_parameters()}
        wanted = set(params)
        order = [p for p in block if p in wanted] + [p for p in params if p not in block]
        self.names = tuple(dict.fromkeys(block.get(p, "weighting") for p in order))
        place = {name: k for k, name in enumerate(self.names)}
        self._place = torch.tensor([place[block.get(p, "weighting")] for p in params])
        self.restore(())

    def sorted(self, norms: Tensor) -> Tensor:
        """Norms of blocks (steps, blocks), float64, from those of parameters (steps, params)."""
        squares = torch.zeros(len(norms), len(self.names), dtype=torch.float64)
        return squares.index_add_(1, self._place, norms.double().square()).sqrt()

    def add(self, norms: Tensor) -> None:
        """Count one step more, (blocks,); in the order of the steps, so that a stopped run has the same sums."""
        self.sums += norms
        self.steps += 1

    def row(self) -> dict[str, float]:
        """Mean norm of each block since the last row, empty where there was no step, and begin anew."""
        steps, sums = self.steps, self.sums.tolist()
        self.restore(())
        return {name: total / steps for name, total in zip(self.names, sums, strict=True)} if steps else {}

    def state(self) -> tuple[float, ...]:
        """Sums and steps as plain data."""
        return (*self.sums.tolist(), float(self.steps)) if self.steps else ()

    def restore(self, state: tuple[float, ...]) -> None:
        """Go on from what `state` gave; from nothing, if that is of another network."""
        known = len(state) == len(self.names) + 1
        self.sums = torch.tensor(state[:-1] if known else [0.0] * len(self.names), dtype=torch.float64)
        self.steps = int(state[-1]) if known else 0


def _block(network: nn.Module, name: str) -> str:
    """The part of a parameter's name that names its block: a child, and of a list or sequence its child."""
    parts, module = name.split("."), network
    for k, part in enumerate(parts):
        module = getattr(module, part)
        if not isinstance(module, nn.ModuleList | nn.Sequential | nn.ModuleDict):
            name = ".".join(parts[: k + 1])
            break
    return re.sub(r'[\s,"]', "_", name)  # it heads a column of a CSV
