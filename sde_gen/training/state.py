"""Weights and optimiser state to and from named tensors; the state of torch's global generators during a step."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from sde_gen.errors import CheckpointError
from sde_gen.rng import keyed_generator
from sde_gen.training.sharding import laid_out_like, put


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy `tensors` into `network`; every name and shape must fit.

    Raises:
        CheckpointError: naming the first tensor that is missing, left over or of another shape.
    """
    own = network.state_dict()
    for name in sorted(set(own) | set(tensors)):
        if name not in tensors or name not in own or own[name].shape != tensors[name].shape:
            there = tuple(tensors[name].shape) if name in tensors else "nothing"
            here = tuple(own[name].shape) if name in own else "nothing"
            raise CheckpointError(f"the weights in {source} do not fit: {name} is {there} there, {here} in the network")
    if not any(hasattr(tensor, "full_tensor") for tensor in own.values()):
        network.load_state_dict(dict(tensors))
        return
    with torch.no_grad():
        for name, tensor in own.items():
            put(tensor, tensors[name])


def pack_optimizer(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """The optimiser's tensors, named `<what>.<parameter>`, such as `exp_avg.head.weight`."""
    return {
        f"{key}.{name}": value
        for name, p in network.named_parameters()
        for key, value in sorted(optimizer.state.get(p, {}).items())
    }


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, network: nn.Module, tensors: Mapping[str, Tensor], source: Path
) -> None:
    """Put back what `pack_optimizer` gave.

    Raises:
        CheckpointError: a trained parameter has nothing there.
    """
    saved: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        key, _, name = full.partition(".")
        saved.setdefault(name, {})[key] = tensor
    fused = bool(optimizer.param_groups[0].get("fused"))
    for name, p in network.named_parameters():
        if p.requires_grad:
            if name not in saved:
                raise CheckpointError(f"the optimiser state in {source} has nothing for {name}; use another checkpoint")
            optimizer.state[p] = {key: _laid_out_like(p, tensor, fused) for key, tensor in saved[name].items()}


def _laid_out_like(p: Tensor, tensor: Tensor, fused: bool) -> Tensor:
    """`tensor` on the device of `p`, with its strides: fused optimisers walk through memory without looking at them."""
    if hasattr(p, "full_tensor") and tensor.shape == p.shape:
        return laid_out_like(p, tensor)
    if tensor.shape != p.shape:  # the number of steps, which stays on the host unless the optimiser is fused
        return tensor.to(p.device) if fused else tensor
    return torch.empty_like(p, dtype=tensor.dtype, requires_grad=False).copy_(tensor)


@contextmanager
def global_draws(seed: int, *keys: int, device: torch.device) -> Iterator[None]:
    """Inside the block torch's global generators, from which dropout draws, depend on (seed, keys) alone."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.set_rng_state(keyed_generator(seed, *keys).get_state())
        if on_gpu:
            torch.cuda.set_rng_state(keyed_generator(seed, *keys, device=device).get_state(), device)
        yield
