"""Weights, averaged weights and optimiser state to and from the named tensors of a checkpoint."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sde_gen.errors import CheckpointError, ConfigError
from sde_gen.training.checkpoint import Checkpoint
from sde_gen.training.ema import EMA
from sde_gen.training.optimizers import fresh_state
from sde_gen.training.progress import Progress
from sde_gen.training.sharding import collected, put


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
        f"{key}.{name}": value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        for name, p in network.named_parameters()
        for key, value in sorted(optimizer.state.get(p, {}).items())
        if value is not None
    }


def unpack_optimizer(
    optimizer: torch.optim.Optimizer,
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    source: Path,
    still: Collection[str] = (),
) -> None:
    """Put back what `pack_optimizer` gave; nothing for those parameters of `still` of which nothing is there.

    Names, shapes and kinds are those that the optimiser itself has after a step: a fused one walks through memory as
    far as the parameter reaches, so a moment must not be smaller than that.

    Raises:
        CheckpointError: naming the first parameter that has nothing there, or something else; nothing was put then.
    """
    saved, state = _by_parameter(tensors), {}
    group_of = {p: group for group in optimizer.param_groups for p in group["params"]}
    for name, p in network.named_parameters():
        if not p.requires_grad or (name in still and name not in saved):
            continue
        fresh = {key: v for key, v in fresh_state(optimizer, group_of[p], p).items() if v is not None}
        if name not in saved and fresh:
            raise CheckpointError(f"the optimiser state in {source} has nothing for {name}; use another checkpoint")
        found = saved.get(name, {})
        shapes = {key: tuple(tensor.shape) for key, tensor in found.items()}
        expected = {key: tuple(v.shape) if isinstance(v, Tensor) else () for key, v in sorted(fresh.items())}
        if shapes != expected or any(not _of_one_kind(found[key], v) for key, v in fresh.items()):
            raise CheckpointError(
                f"the optimiser state in {source} for {name} is {shapes}, not {expected}; use another checkpoint"
            )
        for key, value in fresh.items():  # which is where the optimiser wants it, and laid out as it does
            if isinstance(value, Tensor):
                put(value, found[key])
            else:
                fresh[key] = type(value)(found[key].item())
        state[p] = fresh
    optimizer.state.update(state)


def _of_one_kind(tensor: Tensor, value: object) -> bool:
    if not isinstance(value, Tensor):  # a number, which `pack_optimizer` made a tensor of
        return tensor.dtype == torch.float64
    return (tensor.is_complex(), tensor.is_floating_point()) == (value.is_complex(), value.is_floating_point())


def _by_parameter(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    saved: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        key, _, name = full.partition(".")
        saved.setdefault(name, {})[key] = tensor
    return saved


def packed(
    network: nn.Module,
    averages: Sequence[EMA],
    optimizer: torch.optim.Optimizer,
    weighting: nn.Module | None,
    keep: bool,
    copy: bool = False,
) -> dict[str, dict[str, Tensor]]:
    """What a checkpoint holds in tensors, in host memory where `keep`; every process must ask, as shards are exchanged.

    With `copy` it stays as it is while training goes on. Of tensors that the optimiser does not keep, those of a
    parameter that no loss has reached, there is nothing.
    """
    first, *more = averages
    parts = {"model": network.state_dict(), "ema": first.state_dict(), "optimizer": pack_optimizer(optimizer, network)}
    if more:
        parts["averages"] = {name: tensor for average in more for name, tensor in average.averages().items()}
    if weighting is not None:
        parts["weighting"] = weighting.state_dict() | pack_optimizer(optimizer, weighting)
    return {stem: collected(named, keep, copy) for stem, named in parts.items()}


def unpack(
    checkpoint: Checkpoint,
    progress: Progress,
    network: nn.Module,
    averages: Sequence[EMA],
    optimizer: torch.optim.Optimizer,
    weighting: nn.Module | None = None,
) -> None:
    """Weights, averaged weights and the optimiser's state from a checkpoint, all or (if it does not fit) none.

    Raises:
        CheckpointError: it is of another network.
    """
    path = checkpoint.path
    weights, averaged = checkpoint.tensors("model"), checkpoint.tensors("ema")
    check_weights(network, weights, path)
    check_weights(network, averaged, path)
    more = averages[1:]
    # Averages of imported weights begin with those.
    stored = {} if progress.imported or not more else averages_of(checkpoint)
    others = [averaged if progress.imported else stored.get(average.label, {}) for average in more]
    for average, tensors in zip(more, others, strict=True):
        average.check(tensors, f"the averages {average.label} in {path}")
    learned = {} if weighting is None or progress.imported else checkpoint.tensors("weighting")
    own = {name: learned.pop(name) for name in list(learned) if "." not in name}
    if learned and weighting is not None:
        check_weights(weighting, own, path)
        unpack_optimizer(optimizer, weighting, learned, path)
    if not progress.imported:  # imported weights begin with a fresh optimiser
        # What never moved equals its average; nothing is kept of a parameter that no loss has reached.
        still = {name for name, tensor in weights.items() if torch.equal(tensor, averaged[name])}
        unpack_optimizer(optimizer, network, checkpoint.tensors("optimizer"), path, still)
    load_weights(network, weights, path)
    if own and weighting is not None:
        load_weights(weighting, own, path)
    for average, tensors in zip(averages, [averaged, *others], strict=True):
        average.load_state_dict(tensors, progress.ema_updates)


def averages_of(checkpoint: Checkpoint) -> dict[str, dict[str, Tensor]]:
    """The averages that a checkpoint keeps beside `ema`: label, such as decay=0.99 or power=0.05, to weights."""
    found: dict[str, dict[str, Tensor]] = {}
    for full, tensor in checkpoint.tensors("averages").items():
        label, _, name = full.partition("/")
        found.setdefault(label, {})[name] = tensor
    return found


def check_trainable(network: object) -> nn.Module:
    """The network, unless it has nothing to train or a checkpoint of plain tensors could not bring it back.

    Raises:
        ConfigError: no torch module with trained parameters, a lazy parameter, or extra state that is no tensor.
    """
    if not isinstance(network, nn.Module) or not any(p.requires_grad for p in network.parameters()):
        raise ConfigError("Trainer: the model's network has no parameters to train; give a torch module that has")
    for name, p in [*network.named_parameters(), *network.named_buffers()]:
        if is_lazy(p):
            raise ConfigError(f"Trainer: {name} has no shape yet; call the network once before")
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise ConfigError(
                f"Trainer: {name} is a {type(value).__name__}, and a checkpoint holds tensors only; "
                "keep it in a buffer, or let get_extra_state return a tensor"
            )
    return network


def weights_digest(network: nn.Module) -> str:
    """SHA-256 of all names and values of a network's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
