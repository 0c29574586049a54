"""Models from disk and to disk, without Hydra.

    model = sg.load("runs/first")       # a run, a checkpoint, a folder of sg.save or of diffusers, a name on the hub
    sg.save(model, "mine")              # config.json and model.safetensors
    sg.DDIM(steps=50)(model, (16, *model.shape), seed=0)

What is loaded is data: the classes that it names must be the library's own, or lie in a module that you trust; weights
are safetensors and nothing else.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from sde_gen.config.objects import describe
from sde_gen.config.restore import build_model, check_size, find_checkpoint, load_model
from sde_gen.errors import CheckpointError, ConfigError, MissingInputError, SDEGenError
from sde_gen.files import make_folder, publish, read_text, write_json
from sde_gen.interop.diffusers import from_pretrained
from sde_gen.interop.diffusers.folders import INDEX, fetched
from sde_gen.interop.sniffing import family_of, is_diffusers
from sde_gen.model import ScoreModel
from sde_gen.training.checkpoint import has_interpolation, read_tensors, save_tensors
from sde_gen.training.state import load_weights

__all__ = ["load", "save"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def load(
    path: str | os.PathLike[str],
    *,
    weights: Literal["ema", "model"] | float = "ema",
    device: torch.device | str = "cpu",
    trust: Sequence[str] = (),
) -> ScoreModel:
    """A trained model, in evaluation mode, that knows its `.shape`, `.classes` and `.transform`.

    Args:
        path: folder of a run, of a checkpoint, of what `save` wrote, or of what diffusers wrote (which needs
            `pip install 'sde_gen[diffusers]'`); or a name on the Hugging Face hub, for which `sde_gen[hub]`.
        weights: of a run or checkpoint "ema" for the averaged weights, "model" for the last ones; or a number, the
            decay of another average that was kept (`trainer.ema`), or the relative length of one to be made of the
            run's snapshots (`trainer.posthoc_every`, Karras et al. 2024, arXiv:2312.02696).
        device: where to put it.
        trust: modules of your own whose classes may be named besides the library's.

    Raises:
        MissingInputError: nothing there.  CheckpointError: damaged, or it names a class that is not allowed.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"load: path must be the folder of a run or checkpoint, as text or Path, got {path!r}")
    if weights not in ("ema", "model") and (not isinstance(weights, int | float) or isinstance(weights, bool)):
        raise ConfigError(f"load: weights must be 'ema' or 'model', or a number, got {weights!r}")
    folder = Path(path).expanduser()
    if folder.is_file():
        raise ConfigError(f"load: {folder} is a file{_whose(folder)}")
    if not folder.is_dir():
        folder = _from_hub(folder)
    if is_diffusers(folder):
        return from_pretrained(folder).to(device)
    if _is_saved(folder):
        return load_saved(folder, trust).to(device)
    return load_model(find_checkpoint(folder)[0], weights=weights, device=device, trust=trust)


def load_saved(folder: Path, trust: Sequence[str] = ()) -> ScoreModel:
    """The model that `save` wrote into `folder`.

    Raises:
        CheckpointError: damaged, or it names a class that is not allowed.
    """
    try:
        config = json.loads(read_text(folder / CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / CONFIG} is damaged ({error}); save the model again") from error
    if not isinstance(config, dict) or has_interpolation(config):
        raise CheckpointError(f"{folder / CONFIG} does not describe a model as plain data; save the model again")
    tensors = read_tensors(folder / WEIGHTS, "save or load it again")
    check_size(config.get("network"), tensors, f"in {folder}")
    model = build_model(config, f"in {folder}", trust=trust, about=config.get("data"))
    load_weights(model, tensors, folder / WEIGHTS)
    return model.eval()


def save(model: ScoreModel, folder: str | os.PathLike[str]) -> Path:
    """Write a model as plain data: config.json, which says what it is made of, and model.safetensors.

    Returns:
        The folder, which `load` takes.

    Raises:
        ConfigError: a part that cannot be written down.  OutputError, WriteError: the folder cannot be written.
    """
    if not isinstance(model, ScoreModel) or model.network is None:
        raise ConfigError(f"save: model must be a ScoreModel with a network, got {type(model).__name__}")
    config = description(model)
    place = make_folder(Path(folder).expanduser(), "the folder of the model")
    publish(place / WEIGHTS, lambda temporary: save_tensors(temporary, model.state_dict()), "the weights")
    write_json(place / CONFIG, config, "the description of the model")
    return place


def description(model: ScoreModel) -> dict[str, Any]:
    """What a model is made of, as plain data.

    Raises:
        ConfigError: a network or another part that cannot be written down.
    """
    parts = {"network": model.network, "sde": model.trained_under, "parameterization": model.parameterization}
    config = {name: describe(part, name) for name, part in parts.items()}
    if model.perturbation != model.trained_under:
        config["under"] = describe(model.perturbation, "under")
    config["data"] = {
        "shape": list(model.shape),
        "classes": list(model.classes),
        "transform": None if model.transform is None else model.transform.to_dict(),
    }
    return config


def _whose(path: Path) -> str:
    """How a message goes on that says that a path is a file."""
    try:
        family = family_of(path)
    except SDEGenError:
        family = ""
    if family == "diffusers":
        return " of a network of diffusers; give the folder that holds it with its config.json and its scheduler"
    if family:
        return (f" of weights of {family}; make a run of it: python -m sde_gen.import_weights from={family}:{path} "
                "run=NAME, with network= and trust= for its class")  # fmt: skip
    return "; give the folder that it lies in"


def _is_saved(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file() and not (folder / "manifest.json").exists()


def _from_hub(name: Path) -> Path:
    """The folder that a name on the hub was fetched into."""
    missing = f"no folder {name}; give that of a run, a checkpoint or a saved model"
    if not _HUB_NAME.fullmatch(str(name)) or name.parent.exists():
        raise MissingInputError(missing)
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingInputError(f"{missing}; or for a model on the hub run pip install 'sde_gen[hub]'") from error
    try:
        found = Path(snapshot_download(str(name), allow_patterns=[CONFIG, WEIGHTS, INDEX]))
        return fetched(str(name)) if is_diffusers(found) else found
    except (OSError, ValueError) as error:  # of no network, no such name, no right to it
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MissingInputError(f"{missing}; nor can it be fetched from the hub ({reason})") from error
