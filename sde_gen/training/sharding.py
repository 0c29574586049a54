"""One network on several processes: a copy on each (DDP), or a shard on each (FSDP2); tensors to and from shards."""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from sde_gen.distributed import Processes, talking
from sde_gen.errors import ConfigError, UncompiledWarning
from sde_gen.model import ScoreModel, evaluating
from sde_gen.objectives import DenoisingScoreMatching
from sde_gen.training.batches import Batches
from sde_gen.training.settings import TrainerSettings


class Parallel:
    """The network where it is trained, and how the gradient of one process becomes that of all.

    Args:
        model: its network is moved to the device, and sharded in place ("fsdp") or wrapped in a copy of the model.
        batches, objective: what it is trained on.
        settings: strategy, precision, memory layout, compilation.
        processes: of the job.
        device: of this process.

    Attributes:
        model: what the loss is computed with.
        network: the network itself.
        plain: whether a part of a batch needs no `surroundings`.
    """

    def __init__(
        self,
        model: ScoreModel,
        batches: Batches,
        objective: DenoisingScoreMatching,
        settings: TrainerSettings,
        processes: Processes,
        device: torch.device,
    ) -> None:
        self.network = network = cast(nn.Module, model.network)
        self.model, self._batches, self._device = model, batches, device
        self._bf16, self._synchronised = settings.precision == "bf16", processes.world == 1
        self._dropout = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in network.modules())
        self.plain = self._synchronised and not self._bf16 and not self._dropout
        self._wrapped: Any = None
        sharded = settings.strategy == "fsdp" and processes.world > 1
        if not sharded:
            network.to(device)
            # Shards are contiguous; and torch knows no such layout for a network of volumes.
            if settings.channels_last and all(p.dim() < 5 for p in network.parameters()):
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if settings.checkpoint_activations:
            _recompute(network)
        unreached = processes.world > 1 and not sharded and self._some_unreached(objective, processes)
        if settings.compile and _compiler_works(device):
            network.compile()
        with talking():
            if sharded:
                _shard(network, processes, device)
            elif processes.world > 1:
                ids = [device] if device.type == "cuda" else None
                self._wrapped = DistributedDataParallel(network, device_ids=ids, find_unused_parameters=unreached)
                self.model = copy.copy(model)
                self.model._modules = dict(model._modules)
                self.model.network = self._wrapped

    def surroundings(self, step: int, rows: slice) -> AbstractContextManager[object]:
        """What a part of a batch is computed under; gradients are exchanged with the last part only."""
        stack, share = ExitStack(), self._batches.share
        last = rows.stop == share.stop - share.start
        if self._wrapped is not None and not last:
            stack.enter_context(self._wrapped.no_sync())
        elif self._wrapped is None and not self._synchronised:
            cast(Any, self.network).set_requires_gradient_sync(last)
        stack.enter_context(self.precision())
        if self._dropout:
            stack.enter_context(self._batches.dropout_of(step, rows))
        return stack

    def precision(self) -> AbstractContextManager[object]:
        """Autocast, if it was asked for."""
        return torch.autocast(self._device.type, torch.bfloat16) if self._bf16 else nullcontext()

    def _some_unreached(self, objective: DenoisingScoreMatching, processes: Processes) -> bool:
        """Whether, in any process, a parameter has no gradient of the loss, which DDP must know before it waits."""
        part, network, on_gpu = next(self._batches.parts(0)), self.network, self._device.type == "cuda"
        with evaluating(network), torch.random.fork_rng([self._device] if on_gpu else []):
            objective(self.model, part.x0, part.condition, generator=part.generator).sum().backward()
        unreached = any(p.requires_grad and p.grad is None for p in network.parameters())
        network.zero_grad(set_to_none=True)
        return bool(processes.sum(torch.tensor(int(unreached))))


def _compiler_works(device: torch.device) -> bool:
    """Whether torch can compile for the device, shown by a function of one line; if not, a warning says so."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the compiler imports
            torch.compile(lambda x: x.sin() + 1, fullgraph=True)(torch.zeros(2, device=device))
    except (RuntimeError, ImportError, OSError) as error:  # torch's own are RuntimeErrors
        why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        needed = "a C++ compiler" if device.type == "cpu" else "a C compiler and triton"
        warnings.warn(
            f"trainer.compile=true: torch cannot compile here ({why}), so the network runs as it is, with the same "
            f"numbers; install {needed}, or leave it out",
            UncompiledWarning,
            stacklevel=4,
        )
        return False
    return True


def _recompute(network: nn.Module) -> None:
    """Let each block of a network, a child of its lists and sequences, keep its inputs alone for the backward pass."""
    found = list(_outer_blocks(network))
    if not found:
        raise ConfigError(
            "trainer.checkpoint_activations=true needs a network with blocks in an nn.ModuleList or nn.Sequential, "
            f"and {type(network).__name__} has none; leave it out"
        )
    for block in found:
        block.forward = _recomputing(getattr(block.forward, "plain", block.forward))  # type: ignore[method-assign]


def _recomputing(plain: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*values: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(*values, **named)
        return checkpoint(plain, *values, use_reentrant=False, **named)

    forward.plain = plain  # type: ignore[attr-defined]
    return forward


def _outer_blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(module, nn.ModuleList | nn.Sequential) and any(p.requires_grad for p in child.parameters()):
            yield child
        else:
            yield from _outer_blocks(child)


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
def training_mode(network: nn.Module) -> Iterator[None]:
    """Training mode for the time of a block; afterwards each submodule is in its own mode again.

    What is in training mode already may have parts frozen on purpose, and stays as it is.
    """
    modes = [(module, module.training) for module in network.modules()]
    if not network.training:
        network.train()
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


def collected(named: Mapping[str, Tensor], keep: bool, copy: bool = False) -> dict[str, Tensor]:
    """Whole tensors in host memory where `keep`; every process must ask, since shards are exchanged.

    With `copy` they share no memory with what they are of, nor with each other.
    """
    result = {}
    for name, tensor in named.items():
        full = whole(tensor.detach())
        if keep:
            result[name] = full.to("cpu", copy=True, memory_format=torch.contiguous_format) if copy else full.cpu()
    return result
