"""What lies at a path, by the names in it; no weights are kept."""

import pickletools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sde_gen.errors import CheckpointError
from sde_gen.interop.diffusers.folders import CONFIG, INDEX, read_json
from sde_gen.interop.weight_files import read_file

#: Beginnings of the names of weights, and whose they are.
_FAMILIES = (
    ("score_sde", ("all_modules.",)),
    ("adm", ("input_blocks.0.0", "time_embed.0")),
    ("dit", ("x_embedder", "y_embedder")),
    ("ddp", ("init_conv", "time_mlp")),
    ("diffusers", ("down_blocks.", "time_embedding.")),
    ("compvis", ("model.diffusion_model.",)),
    ("ncsnv2", ("begin_conv", "res1.")),
)


def is_diffusers(folder: Path) -> bool:
    """Whether a folder is one that diffusers wrote."""
    if (folder / INDEX).is_file():
        return True
    try:
        return (folder / CONFIG).is_file() and "_class_name" in read_json(folder / CONFIG)
    except CheckpointError:
        return False


def family_of(path: Path) -> str:
    """Whose weights a file holds: score_sde, ncsnv2, adm, ddp, dit, edm, diffusers, compvis, or "".

    Raises:
        MissingInputError, CheckpointError: it cannot be read.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                return _by_names(file.keys())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
    if path.suffix == ".pkl":
        return "edm" if _is_persistent(path) else ""
    content = read_file(path)
    if isinstance(content, list | tuple):
        return "ncsnv2"
    return _of(content)


def _of(content: Any) -> str:
    if not isinstance(content, Mapping):
        return ""
    if "shadow_params" in (content["ema"] if isinstance(content.get("ema"), Mapping) else ()):
        return "score_sde"
    inner = content.get("model")
    if isinstance(inner, Mapping) and "betas" in inner:
        return "ddp"
    for key in ("ema", "model", "state_dict"):
        if isinstance(content.get(key), Mapping) and (found := _by_names(content[key])):
            return found
    return _by_names(content)


def _by_names(names: Iterable[Any]) -> str:
    bare = [str(name).removeprefix("module.").removeprefix("model.") for name in names] + [str(name) for name in names]
    for family, wanted in _FAMILIES:
        if all(any(name.startswith(part) for name in bare) for part in wanted):
            return family
    return ""


def _is_persistent(path: Path) -> bool:
    """Whether a pickle says that it holds objects with their source; its instructions are listed, none is followed."""
    try:
        with path.open("rb") as file:
            return any(isinstance(said, str) and "_reconstruct_persistent_obj" in said
                       for _, said, _ in pickletools.genops(file))  # fmt: skip
    except (ValueError, OSError):
        return False
