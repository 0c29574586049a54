"""One network on several processes: a copy on each (DDP), or a shard on each (FSDP2); tensors to and from shards."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sde_gen.distributed import Processes, talking
from sde_gen.model import ScoreModel


class Parallel:
    """How the gradient of one process becomes that of all.

    Args:
        model: its network is sharded in place ("fsdp"), or wrapped in a copy of the model ("ddp").
        processes: of the job; one process changes nothing.
        strategy: "ddp" or "fsdp".
        device: of this process.
        unreached: whether some parameters have no gradient, which DDP must know before it waits for them.

    Attributes:
        model: what the loss is computed with.
        sharded: whether the parameters are shards.
    """

    def __init__(
        self, model: ScoreModel, processes: Processes, strategy: str, device: torch.device, unreached: bool = False
    ) -> None:
        self.model, self.sharded = model, strategy == "fsdp" and processes.world > 1
        self._wrapped = not self.sharded and processes.world > 1
        self._network: Any = model.network
        if processes.world == 1:
            return
        with talking():
            if self.sharded:
                _shard(self._network, processes, device)
                return
            ids = [device] if device.type == "cuda" else None
            self._network = DistributedDataParallel(self._network, device_ids=ids, find_unused_parameters=unreached)
        self.model = copy.copy(model)
        self.model._modules = dict(model._modules)
        self.model.network = self._network

    def backward_of(self, last: bool) -> AbstractContextManager[object]:
        """The surroundings of one part of a batch; gradients are exchanged with the last part only."""
        if self.sharded:
            self._network.set_requires_gradient_sync(last)
            return nullcontext()
        return nullcontext() if last or not self._wrapped else self._network.no_sync()


def _shard(network: nn.Module, processes: Processes, device: torch.device) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes.world,))
    blocks = [
        child
        for module in network.modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        for child in module.children()
        if any(p.requires_grad for p in child.parameters())
    ]
    for block in reversed(blocks):  # inner blocks before those that hold them
        fully_shard(block, mesh=mesh)
    # Also the root is sharded again after a forward pass, so that averaged weights put into it are what it uses.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)


@contextmanager
def mode_of(network: nn.Module, training: bool) -> Iterator[None]:
    """Inside the block `network` is in training mode or not; after it each submodule is in its own again."""
    modes = [(module, module.training) for module in network.modules()]
    if network.training != training:  # what is in training may have parts frozen on purpose
        network.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def local(tensor: Tensor) -> Tensor:
    """The part of `tensor` that lies on this process: itself, unless it is sharded. Shares memory."""
    shard: Any = tensor
    return shard.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of `tensor`; every process must ask."""
    shard: Any = tensor
    if not hasattr(tensor, "full_tensor"):
        return tensor
    with talking():
        return shard.full_tensor()


def shared_by(like: Tensor, value: Tensor) -> Tensor:
    """`value`, which every process has, in the form that goes with `like`: itself, unless that is a shard."""
    shard: Any = like
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import DTensor, Replicate

    mesh = shard.device_mesh
    return DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)


def put(target: Tensor, value: Tensor) -> None:
    """Copy the whole `value` into `target`, which may be a shard."""
    local(target).copy_(local(laid_out_like(target, value)))


def laid_out_like(target: Tensor, value: Tensor) -> Tensor:
    """`value` in the dtype of itself and the place of `target`, sharded as it is."""
    shard: Any = target
    if not hasattr(target, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    # Every process has read the same file: each cuts out its own part, nothing is sent.
    return distribute_tensor(value.to(shard.device), shard.device_mesh, shard.placements, src_data_rank=None)


def collected(named: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors in host memory where `keep`; every process must ask, since shards are exchanged."""
    result = {}
    for name, tensor in named.items():
        full = whole(tensor.detach())
        if keep:
            result[name] = full.cpu()
    return result
