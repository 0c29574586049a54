"""Weights and optimiser state to and from named tensors; the state of torch's global generators during a step."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from sde_gen.errors import CheckpointError
from sde_gen.rng import keyed_generator
from sde_gen.training.sharding import laid_out_like, put

_MOMENTS = ("exp_avg", "exp_avg_sq")  # what Adam keeps of a parameter, shaped like it, beside the number of its steps


def check_weights(network: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Refuse `tensors` that do not have the names and shapes of the state of `network`.

    Raises:
        CheckpointError: naming the first tensor that is missing, left over or of another shape.
    """
    own = network.state_dict()
    for name in sorted(set(own) | set(tensors)):
        if name not in tensors or name not in own or own[name].shape != tensors[name].shape:
            there = tuple(tensors[name].shape) if name in tensors else "nothing"
            here = tuple(own[name].shape) if name in own else "nothing"
            raise CheckpointError(f"the weights in {source} do not fit: {name} is {there} there, {here} in the network")


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy `tensors` into `network`; every name and shape must fit.

    Raises:
        CheckpointError: as `check_weights`; nothing was copied then.
    """
    check_weights(network, tensors, source)
    own = network.state_dict()
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


def check_optimizer(network: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Refuse what is not the state of an Adam of the trained parameters of `network`.

    A fused optimiser walks through memory as far as the parameter reaches, so a moment must not be smaller than that.

    Raises:
        CheckpointError: naming the first parameter that has nothing there, or something else.
    """
    saved = _by_parameter(tensors)
    for name, p in network.named_parameters():
        if not p.requires_grad:
            continue
        if name not in saved:
            raise CheckpointError(f"the optimiser state in {source} has nothing for {name}; use another checkpoint")
        shapes = {key: tuple(tensor.shape) for key, tensor in saved[name].items()}
        expected = {"step": (), **dict.fromkeys(_MOMENTS, tuple(p.shape))}
        if shapes != expected or not all(tensor.is_floating_point() for tensor in saved[name].values()):
            raise CheckpointError(
                f"the optimiser state in {source} for {name} is {shapes}, not {expected}; use another checkpoint"
            )


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, network: nn.Module, tensors: Mapping[str, Tensor], source: Path
) -> None:
    """Put back what `pack_optimizer` gave.

    Raises:
        CheckpointError: as `check_optimizer`.
    """
    check_optimizer(network, tensors, source)
    saved, fused = _by_parameter(tensors), bool(optimizer.param_groups[0].get("fused"))
    for name, p in network.named_parameters():
        if p.requires_grad:
            moments = {key: _laid_out_like(p, saved[name][key]) for key in _MOMENTS}
            # The number of steps stays on the host unless the optimiser is fused.
            step = saved[name]["step"].to(p.device if fused else "cpu", torch.float32)
            optimizer.state[p] = {"step": step, **moments}


def _by_parameter(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    saved: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        key, _, name = full.partition(".")
        saved.setdefault(name, {})[key] = tensor
    return saved


def _laid_out_like(p: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` in the place and dtype of `p`, with its strides, at which fused optimisers do not look."""
    if hasattr(p, "full_tensor"):
        return laid_out_like(p, tensor.to(p.dtype))
    return torch.empty_like(p, requires_grad=False).copy_(tensor)


@contextmanager
def global_draws(seed: int, *keys: int, device: torch.device) -> Iterator[None]:
    """Inside the block torch's global generators, from which dropout draws, depend on (seed, keys) alone."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.set_rng_state(keyed_generator(seed, *keys).get_state())
        if on_gpu:
            torch.cuda.set_rng_state(keyed_generator(seed, *keys, device=device).get_state(), device)
        yield
