"""Objects whose settings depend on others, and models that come back from a checkpoint."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from sde_gen import networks
from sde_gen.config import known_data
from sde_gen.config.objects import build
from sde_gen.config.signatures import group_of
from sde_gen.data import Affine, Dataset
from sde_gen.errors import CheckpointError, ConfigError, DataError, MissingInputError, SDEGenError
from sde_gen.model import ScoreModel
from sde_gen.networks import MLP, UNet
from sde_gen.networks.sizes import sized
from sde_gen.training.checkpoint import (
    CODEC,
    MANIFEST,
    Checkpoint,
    best_checkpoint,
    has_interpolation,
    newest_checkpoint,
    read_checkpoint,
)
from sde_gen.training.posthoc import averaged_weights
from sde_gen.training.run_folder import newest_run, run_path
from sde_gen.training.state import load_weights

_PLAUSIBLE = 4096  # a number that a stored network may name whatever its weights
_SMALL = 16  # pixels along a side up to which the default U-Net is meant


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device called `name`; "auto" takes CUDA, then MPS, then the CPU.

    Where several processes share a machine, "auto" and "cuda" are the GPU numbered `local_rank`, or the only one that a
    process is shown.

    Raises:
        ConfigError: a name that torch does not know, or a device that is not there.
    """
    if local_rank and name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{local_rank % torch.cuda.device_count()}"
    if name == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or not (index == "" or (index.isdigit() and kind == "cuda")):
        raise ConfigError(f"device={name} is not a device; use auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda" and (not torch.cuda.is_available() or int(index or 0) >= torch.cuda.device_count()):
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise ConfigError(f"device={name} is not there: torch sees {there} CUDA devices; use device=auto or device=cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device=mps is not there; use device=auto or device=cpu")
    return torch.device(name)


def resolved_network(node: Mapping[str, Any], data: Dataset, conditional: bool) -> dict[str, Any]:
    """The network's configuration with what follows from the data filled in, so that it needs the data no more.

    Raises:
        ConfigError: labels asked for that the data does not have.
    """
    node = dict(node)
    if node.get("_target_") == "auto":
        if len(node) > 1:
            extra = ", ".join(f"network.{key}" for key in node if key != "_target_")
            raise ConfigError(f"{extra} cannot be set with network=auto; choose network=unet or network=mlp as well")
        node = {"_target_": f"sde_gen.networks.{'MLP' if data.kind == 'vector' else 'UNet'}"}
        if data.kind != "vector" and max(data.shape[1:]) > _SMALL:  # the defaults of UNet are those for smaller ones
            node |= UNet.fitting(data.shape, len(data.train))
    if conditional and data.num_classes == 0 and not data.train_told:
        raise ConfigError(f"class_conditional=true, but the data set {data.name} has no labels")
    target = str(node.get("_target_"))
    network = getattr(networks, target.removeprefix("sde_gen.networks."), None)
    _fits(network, data)
    if network is MLP:
        node.setdefault("features", data.shape[0])
    elif network is not None:
        node.setdefault("channels", data.shape[0])
        if "size" in node:
            _sizes(node, network, data)
        if data.kind != "image":
            node.setdefault("dimensions", max(1, len(data.shape) - 1))
    if conditional:
        node.setdefault("num_classes", data.num_classes)
        for name, value in data.train_told.items():  # vector_size of vectors, token_size of tokens
            key = f"{name.removesuffix('s')}_size"
            node[key] = node.get(key) or value.shape[-1]
    return node


def _sizes(node: dict[str, Any], network: Any, data: Dataset) -> None:
    """Write into `node` what its size says, or what fits the data where it has none; what it says itself stands."""
    size = node.pop("size", None)
    says = sized(network.__name__, network.sizes, size, dict.fromkeys(next(iter(network.sizes.values()))))
    if size is None:
        says = network.fitting(data.shape, len(data.train))
        if levels := node.get("multipliers"):  # of which there may be fewer
            says["attention"] = [level for level in says["attention"] if level < len(levels)] or [-1]
    node |= {key: value for key, value in says.items() if node.get(key) is None}


def _fits(network: Any, data: Dataset) -> None:
    if network is not None and (network is MLP) != (data.kind == "vector"):
        wanted = "mlp" if data.kind == "vector" else "unet"
        raise ConfigError(
            f"{network.__name__} cannot take samples like those of {data.name}, of shape {data.shape}; "
            f"use network={wanted} or network=auto"
        )
    if network is not None and data.kind not in ("image", "vector") and "dimensions" not in network().arguments:
        raise ConfigError(f"{network.__name__} takes images, and {data.name} has samples of shape {data.shape}; use "
                          "network=unet, network=dit or network=auto")  # fmt: skip


def find_checkpoint(path: str | os.PathLike[str], best: bool = False) -> tuple[Checkpoint, list[str]]:
    """The checkpoint at `path`, or the newest sound one if `path` is a run or its `checkpoints` folder.

    Args:
        path: folder of a checkpoint, a run or its checkpoints.
        best: of a run, the checkpoint of the lowest held-out loss instead.

    Returns:
        The checkpoint, and one sentence for each newer one that was damaged.

    Raises:
        MissingInputError: nothing there.  CheckpointError: only damaged ones.
    """
    folder = Path(path).expanduser()
    if (folder / MANIFEST).is_file():
        return read_checkpoint(folder), []
    if not folder.is_dir():
        raise MissingInputError(f"no checkpoint at {folder}: there is no such folder; give run=NAME or checkpoint=PATH")
    inside = folder / "checkpoints"
    find = best_checkpoint if best else newest_checkpoint
    found, skipped = find(inside if inside.is_dir() else folder)
    if found is not None:
        return found, skipped
    if skipped:
        raise CheckpointError(f"no checkpoint in {folder} is sound: {skipped[0]}")
    if best and newest_checkpoint(inside if inside.is_dir() else folder)[0] is not None:
        raise MissingInputError(f"no checkpoint in {folder} was measured on held-out data; leave best=true out")
    raise MissingInputError(f"no checkpoint in {folder}; train it first, or give another run=NAME or checkpoint=PATH")


def chosen_checkpoint(
    run: str | int | float | None,
    checkpoint: str | None,
    runs_dir: str,
    say: Callable[[str], object],
    *,
    best: bool = False,
) -> Checkpoint:
    """The checkpoint that a command's run=, checkpoint= and runs_dir= mean; the newest run's where both are null.

    `say` is told which run was the newest, and of each damaged checkpoint that was passed over. With `best`, the one of
    the lowest held-out loss.

    Raises:
        As `find_checkpoint`, and for a name that is not a run's `ConfigError`.
    """
    root = Path(runs_dir).expanduser()
    if checkpoint is not None:
        place = Path(checkpoint)
    elif run is not None:
        place = run_path(root, str(run))
    else:
        place = newest_run(root).path
        say(f"newest run: {place}")
    found, skipped = find_checkpoint(place, best=best)
    for sentence in skipped:
        say(f"passed over: {sentence}")
    return found


def stored_data(checkpoint: Checkpoint, trust: Sequence[str] = (), given: Mapping[str, Any] | None = None) -> Dataset:
    """The data that the network of a checkpoint was trained on, read or made again.

    Args:
        checkpoint: says which data, by their fingerprint.
        trust: modules of your own.
        given: the configuration of the data; None: as it was given on this machine before. What the checkpoint itself
            says is followed for data that come with the package, are drawn, or are of a module in `trust`.

    Raises:
        SDEGenError: they are not here.  DataError: they are not what they were.  CheckpointError: it names none.
    """
    node, wanted = checkpoint.config.get("data"), checkpoint.state.get("data", {}).get("fingerprint")
    if node is None and given is None:
        raise CheckpointError(f"the configuration of checkpoint {checkpoint.path} has no data; give data=...")
    known = given or known_data.place_of(wanted)
    if given is None and known is not None and "codec" in known and (checkpoint.home / CODEC).is_dir():
        known = {**known, "codec": str(checkpoint.home / CODEC)}  # the run's own, which nothing has moved
    if known is None:
        name = str(node.get("_target_", "")) if isinstance(node, Mapping) else ""
        if not (known_data.made_on_the_spot(node) or name.rpartition(".")[0] in trust):
            kind = name.rpartition(".")[2] if group_of(name) == "data" else "csv_file"
            place = "name" if kind == "hub" else "path"
            raise MissingInputError(
                f"where the data of checkpoint {checkpoint.path} lie was never said on this machine, and a checkpoint "
                f"alone is not followed there; give them, such as data={kind} data.{place}=..."
            )
    data = build(known or node, trust=trust, where="data", stored=known is None)
    if wanted and data.fingerprint != wanted:
        raise DataError(f"{data.name} is not what it was when the network was trained; give those data with data=...")
    if given is not None:
        known_data.remember(given, data.fingerprint)
    return data


def load_model(
    checkpoint: Checkpoint | str | os.PathLike[str],
    *,
    weights: Literal["ema", "model"] | float = "ema",
    device: torch.device | str = "cpu",
    trust: Sequence[str] = (),
) -> ScoreModel:
    """The model of a checkpoint (or of the newest one of a run), ready to sample from; see `sde_gen.load`.

    Raises:
        CheckpointError: damaged, or it names a class that is not allowed.  MissingInputError: nothing there.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint, _ = find_checkpoint(checkpoint)
    about = checkpoint.state.get("data")
    if isinstance(about, Mapping) and not checkpoint.state.get("conditional"):
        about = {**about, "classes": (), "num_classes": 0}  # of a network that was not given them
    tensors = checkpoint.tensors(weights) if isinstance(weights, str) else averaged_weights(checkpoint, weights)
    check_size(checkpoint.config.get("network"), tensors, f"of checkpoint {checkpoint.path}")
    model = build_model(checkpoint.config, f"of checkpoint {checkpoint.path}", trust=trust, about=about)
    load_weights(model.network, tensors, checkpoint.path)  # type: ignore[arg-type]
    model.always_labelled = always_labelled(checkpoint)
    return model.to(device).eval()


def always_labelled(checkpoint: Checkpoint) -> bool:
    """Whether each sample that a network of ours was trained on had a label, which none was told not to see."""
    state, objective = checkpoint.state, checkpoint.config.get("objective")
    if not state.get("conditional") or "imported" in state or not isinstance(objective, Mapping):
        return False
    about = state.get("data")
    some = isinstance(about, Mapping) and about.get("unlabelled")
    return not (objective.get("label_dropout") or objective.get("condition_dropout")) and not some


def check_size(node: Any, tensors: Mapping[str, torch.Tensor], whose: str) -> None:
    """Refuse a stored network that asks for more memory than the tensors beside it call for, before it is built.

    Raises:
        CheckpointError: a number of it is larger than all of them hold, or it would have far more weights.
    """
    held = sum(tensor.numel() for tensor in tensors.values())
    pending = [node]
    while pending:
        value = pending.pop()
        pending += value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
        if isinstance(value, int | float) and not abs(value) <= max(held, _PLAUSIBLE):
            raise CheckpointError(f"the configuration {whose} names {value} for a network of {held:,} weights")
    if isinstance(node, Mapping) and str(node.get("_target_")).startswith("sde_gen.networks."):
        try:
            with torch.device("meta"):  # shapes alone
                network = build(node, where="network", stored=True)
        except SDEGenError:  # for `build_model` to tell
            return
        wanted = sum(tensor.numel() for tensor in network.state_dict().values())
        if wanted > 2 * held + _PLAUSIBLE:
            raise CheckpointError(f"the configuration {whose} is of a network of {wanted:,} weights, not of {held:,}")


def build_model(config: Mapping[str, Any], whose: str, *, trust: Sequence[str] = (), about: Any = None) -> ScoreModel:
    """The model that stored plain data describes, without its weights.

    Args:
        config: nodes `network`, `sde`, `parameterization` and perhaps `under`, the formulation it is asked in.
        whose: how messages go on after "the configuration".
        trust: modules of your own whose classes may be named.
        about: shape, classes and transform of the data, or nothing.

    Raises:
        CheckpointError: a part that is missing, not allowed or of no use.
    """
    parts = {}
    for name in ("network", "sde", "parameterization", "under"):
        node = config.get(name)
        if node is None and name == "under":
            continue
        if not isinstance(node, Mapping) or has_interpolation(node):
            raise CheckpointError(f"the configuration {whose} has no {name} as plain data")
        try:
            parts[name] = build(node, trust=trust, where=name, stored=True)
        except CheckpointError:
            raise
        except SDEGenError as error:
            raise CheckpointError(f"the configuration {whose} is of no use: {error}") from error
    try:
        model = ScoreModel(parts["network"], parts["sde"], parts["parameterization"])
        model = model.under(parts["under"]) if "under" in parts else model
    except SDEGenError as error:
        raise CheckpointError(f"the configuration {whose} is of no use: {error}") from error
    model.transform, model.shape, model.classes = _about(about, whose)  # pyright: ignore[reportArgumentType]
    return model


def _about(data: Any, whose: str) -> tuple[Affine | None, tuple[int, ...], tuple[str, ...]]:
    if data is None:
        return None, (), ()
    try:
        transform = None if data["transform"] is None else Affine.from_dict(data["transform"])
        names = data["classes"] if "classes" in data else range(int(data["num_classes"]))
        return transform, tuple(int(n) for n in data["shape"]), tuple(map(str, names))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the configuration {whose} does not describe its data: {error}") from error
