"""Models from what diffusers holds in memory or wrote into a folder; nothing that lies in the folder is executed.

Configurations are JSON, read here; the classes that they name are looked up in closed lists; weights are safetensors,
or tensors of torch's own format that `weights_only=True` reads.
"""

import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sde_gen.config.restore import build_model
from sde_gen.data import Affine
from sde_gen.errors import CheckpointError, ConfigError, MissingInputError
from sde_gen.files import read_text
from sde_gen.guidance import Clipped, Thresholded
from sde_gen.interop.diffusers.library import NETWORKS, checked_config, network_class, parameters, size
from sde_gen.interop.diffusers.schedules import meaning, merged
from sde_gen.interop.diffusers.wrapper import Network
from sde_gen.model import ScoreModel

INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
#: The class under which `save_pretrained` writes a network of ours.
OURS = "SdeGenNetwork"
_PARTS = ("unet", "transformer", "model")
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_MOST_BYTES = 16 * 2**20
Clip = Literal["own"] | bool


def from_modules(unet: nn.Module, scheduler: Any, *, clip: Clip = False, rounded: bool | None = None) -> ScoreModel:
    """The model that a network of diffusers and its scheduler are, both in memory; in evaluation mode.

    Its perturbation is the process that the scheduler's settings describe; sampling it needs neither the scheduler nor
    diffusers' loop, and `model.under(p)` moves it to any other formulation.

    Args:
        unet: a network on the list of `Network`.
        scheduler: an object of diffusers, or its settings with their `_class_name`.
        clip: "own" to clip or threshold x0hat as the scheduler is set to; True to clip it to [-1, 1].
        rounded: whether the network is told whole indices also between nodes, as DPMSolverMultistepScheduler does on
            Karras' sigmas; None: if its scheduler does so.

    Raises:
        CheckpointError: a network or a scheduler that is not known, or that do not go together.
        MissingInputError: diffusers is not installed.
    """
    given = scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", None)
    if not isinstance(unet, nn.Module) or not isinstance(given, Mapping):
        raise ConfigError("from_modules: give a network and a scheduler of diffusers, got "
                          f"{type(unet).__name__} and {type(scheduler).__name__}")  # fmt: skip
    named = {"_class_name": type(scheduler).__name__, **given}
    config = merged({**named, "_class_name": type(scheduler).__name__} if scheduler is not given else named)
    network = Network.around(unet, config)
    is_fourier = getattr(unet.config, "time_embedding_type", None) == "fourier"  # type: ignore[union-attr]
    if is_fourier and network.name == "UNet2DModel" and config["_class_name"] != "ScoreSdeVeScheduler":
        raise CheckpointError(f"a UNet2DModel with time_embedding_type=fourier divides what it says by sigma, so it "
                              f"does not go with {config['_class_name']}; give ScoreSdeVeScheduler")  # fmt: skip
    said = meaning(config, is_flux=network.name.startswith("Flux"), rounded=rounded)
    model = ScoreModel(network, said.process, said.parameterization).eval()
    model.shape, model.classes = network.shape, tuple(map(str, range(network.num_classes)))
    if len(model.shape) == 3 and model.shape[0] in (1, 3):
        model.transform = Affine.to_unit(0, 255, 256)
    elif model.shape:
        model.transform = Affine()
    return clipped(model, config, clip)


def clipped(model: ScoreModel, config: Mapping[str, Any], clip: Clip) -> ScoreModel:
    """The model with x0hat within the bounds that `clip` asks for."""
    if clip not in (True, False, "own"):
        raise ConfigError(f"clip must be true, false or 'own', got {clip!r}")
    if clip == "own" and config.get("thresholding"):
        return Thresholded(model, float(config.get("dynamic_thresholding_ratio", 0.995)),
                           float(config.get("sample_max_value", 1.0)))  # fmt: skip
    if clip is True or (clip == "own" and config.get("clip_sample")):
        most = float(config.get("clip_sample_range") or 1.0) if clip == "own" else 1.0
        return Clipped(model, -most, most)
    return model


def from_pretrained(
    path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    scheduler: Any = None,
    clip: Clip = False,
    dtype: torch.dtype | None = None,
    local_files_only: bool = False,
) -> ScoreModel:
    """The model in a folder that diffusers wrote, or of a name on the Hugging Face hub; in evaluation mode.

    The network is the folder's unet or transformer, or lies at the top (older folders, and networks saved alone).
    What `save_pretrained` wrote comes back as it was. No code of the folder runs, and no remote code is fetched.

    Args:
        path: the folder, or NAME/NAME on the hub.
        revision: of the hub, a branch, tag or commit.
        scheduler: instead of the folder's own, an object of diffusers or its settings.
        clip: "own" to clip or threshold x0hat as the scheduler is set to; True to clip it to [-1, 1].
        dtype: of the weights; None: as they were written.
        local_files_only: do not ask the hub for what was fetched before.

    Returns:
        A `ScoreModel` with `.shape`, `.classes` and `.transform` as far as the folder says.

    Raises:
        MissingInputError: nothing there, or diffusers is not installed.  CheckpointError: damaged, a class that is not
            on the list, settings that are not known.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        folder = fetched(str(path), revision, local_files_only)
    place, config = _network_of(folder)
    if config["_class_name"] == OURS:
        return _ours(place, config, dtype)
    settings = scheduler if scheduler is not None else _scheduler_of(folder, place)
    network = read_network(place, config, dtype)
    return from_modules(network, settings, clip=clip)


def read_json(path: Path) -> dict[str, Any]:
    """A configuration: plain data of a bounded size.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise CheckpointError(f"{path} is too large for a configuration")
        value = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged (it is not a JSON object); fetch it again")
    return value


def fetched(name: str, revision: str | None = None, local: bool = False) -> Path:
    """The folder that a name on the hub was fetched into, without other weights than those of networks."""
    missing = f"no folder {name}; give one that diffusers wrote"
    if not _NAME.fullmatch(name):
        raise MissingInputError(missing)
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingInputError(f"{missing}; or for a name on the hub run pip install 'sde_gen[hub]'") from error
    patterns = [f"{part}{name}" for part in ("", "*/") for name in ("*.json", "diffusion_pytorch_model*.safetensors",
                                                                   "diffusion_pytorch_model*.bin")]  # fmt: skip
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=local, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MissingInputError(f"{missing}; nor can it be fetched from the hub ({reason})") from error


def _network_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Where the network lies, and its configuration."""
    place = folder
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        part = next((name for name in _PARTS if name in index), None)
        if part is None:
            raise CheckpointError(f"{folder / INDEX} names no {', '.join(_PARTS[:-1])} or {_PARTS[-1]}; there are "
                                  f"{', '.join(key for key in index if not key.startswith('_'))[:200]}")  # fmt: skip
        named = index[part]
        cls = named[1] if isinstance(named, list) and len(named) == 2 else None
        if cls != OURS:
            if not isinstance(named, list) or named[0] != "diffusers":
                raise CheckpointError(f"{folder / INDEX}: {part} is {named!r}, which is no class of diffusers; code "
                                      "that comes with a folder is never run")  # fmt: skip
            network_class(cls)
        place = folder / part if (folder / part / CONFIG).is_file() else folder
    if not (place / CONFIG).is_file():
        raise MissingInputError(f"{place} holds no {CONFIG}; give a folder that diffusers wrote")
    config = read_json(place / CONFIG)
    if config.get("_class_name") != OURS:
        network_class(config.get("_class_name"))
    for key in ("quantization_config", "auto_map"):
        if config.get(key):
            raise CheckpointError(f"{place / CONFIG} holds {key}, which needs other people's code to be read; save the "
                                  "network as plain floating weights")  # fmt: skip
    return place, config


def _scheduler_of(folder: Path, place: Path) -> dict[str, Any]:
    for path in (folder / "scheduler" / SCHEDULER, folder / SCHEDULER, place.parent / "scheduler" / SCHEDULER):
        if path.is_file():
            return read_json(path)
    raise CheckpointError(f"{folder} holds no {SCHEDULER}, so what the network predicts is not known; give scheduler=, "
                          "such as diffusers.DDPMScheduler()")  # fmt: skip


def read_network(
    place: Path, config: Mapping[str, Any], dtype: torch.dtype | None = None, among: Sequence[str] = NETWORKS
) -> Any:
    """The network of a folder with its weights, all of them; its class is one of those on a closed list.

    Raises:
        CheckpointError, MissingInputError: a class that is not on the list, weights that are damaged or not there.
    """
    name = config.get("_class_name")
    cls = network_class(name, among)
    settings = checked_config(str(name), {k: value for k, value in config.items() if k in parameters(cls)}, among)
    files = [path for path in place.iterdir() if path.name.startswith("diffusion_pytorch_model")]
    safe = [path for path in files if path.suffix == ".safetensors"]
    weights = safe or [path for path in files if path.suffix == ".bin"]
    if not weights:
        raise MissingInputError(f"{place} holds no diffusion_pytorch_model.safetensors; fetch it again")
    count, there = size(cls, settings), sum(path.stat().st_size for path in weights)
    if count > there:
        raise CheckpointError(f"{place / CONFIG} describes {count:,} numbers, but the weights are {there:,} bytes; "
                              "they do not belong together")  # fmt: skip
    variants = {match[1] for path in weights if (match := re.search(r"model\.(\w+)\.(?:safetensors|bin)$", path.name))}
    plain = any(re.fullmatch(r"diffusion_pytorch_model(-\d+-of-\d+)?\.(safetensors|bin)", p.name) for p in weights)
    variant = None if plain or not variants else min(variants)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the library, on the way to reading or refusing
            network, told = cls.from_pretrained(
                str(place), torch_dtype=dtype, use_safetensors=bool(safe), local_files_only=True, variant=variant,
                low_cpu_mem_usage=False, output_loading_info=True,
            )  # fmt: skip
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        how = "" if safe else "; load it once with diffusers and save_pretrained(safe_serialization=True)"
        raise CheckpointError(f"the weights in {place} cannot be read: {reason}{how}") from error
    if missing := list(told.get("missing_keys", ())):
        raise CheckpointError(f"the weights in {place} lack {missing[0]} and {len(missing) - 1} more; fetch them again")
    return network.eval()


def _ours(place: Path, config: Mapping[str, Any], dtype: torch.dtype | None) -> ScoreModel:
    """The model that `save_pretrained` wrote."""
    from safetensors.torch import load_file

    described = config.get("model")
    if not isinstance(described, Mapping):
        raise CheckpointError(f"{place / CONFIG} does not describe a model; save it again")
    model = build_model(described, f"in {place}", about=described.get("data"))
    try:
        tensors = load_file(place / "diffusion_pytorch_model.safetensors")
        model.load_state_dict({name.removeprefix("held."): tensor for name, tensor in tensors.items()})
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise CheckpointError(f"the weights in {place} cannot be read: {reason}") from error
    return model.to(dtype).eval() if dtype is not None else model.eval()
