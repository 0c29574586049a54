"""Make a run of weights that come from somewhere else: the work of `python -m sde_gen.import_weights`.

The only place where a file of torch's own format is read, and only tensors are taken from it: unpickling anything else
is refused (`weights_only=True`). What is written is a checkpoint like any other: safetensors, JSON and a manifest.
"""

import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sde_gen.config.launch import say
from sde_gen.config.objects import settings
from sde_gen.config.prepare import Prepared, prepare
from sde_gen.config.schema import ImportConfig
from sde_gen.config.typed import typed
from sde_gen.errors import CheckpointError, MissingInputError, OutputError
from sde_gen.files import sha256
from sde_gen.jobs.common import run_folder
from sde_gen.training import save_checkpoint
from sde_gen.training.checkpoint import checkpoint_folders
from sde_gen.training.state import load_weights


def run(config: Mapping[str, Any]) -> str:
    """Import as `config` says and return the checkpoint's folder.

    Raises:
        MissingInputError: no such file.  CheckpointError: it cannot be read safely, or does not fit the network.
        OutputError: the run has checkpoints already, or cannot be made.
    """
    values = dict(settings(config)[0])
    origin = values.pop("from", None)
    cfg = typed(ImportConfig, values)
    if (cfg.weights is None) == (origin is None):
        raise ConfigError("give weights=FILE, of a network that the settings describe, or from=FORMAT:PATH with one of "
                          f"{', '.join(FORMATS)}")  # fmt: skip
    tensors, stored, about, sources = _described(cfg) if origin is None else read_origin(cfg, str(origin))
    folder = run_folder(cfg, f"imported_{about['name']}")
    with folder.locked():
        if checkpoint_folders(folder.checkpoints):
            raise OutputError(f"run {folder.path} has checkpoints already; give another name with run=NAME")
        path = write(folder.checkpoints, cfg.seed, tensors, stored, about, sources)
    count = sum(tensor.numel() for tensor in tensors["model"].values())
    say(f"imported {count:,} numbers from {sources[0]} into {path}")
    say(f"next: python -m sde_gen.sample run={folder.path.name}, or train on with resume={folder.path.name}")
    return str(path)


def write(
    checkpoints: Path, seed: int, tensors: Parts, stored: Mapping[str, Any], about: Mapping[str, Any], sources: list[Path]
) -> Path:
    """The checkpoint of what was read."""
    files = {path.name: sha256(path) for path in sources}
    return save_checkpoint(
        checkpoints, 0, tensors, stored,
        {
            "seconds": 0.0,
            "seed": seed,
            "ema_updates": 0,
            "data": dict(about),
            "conditional": bool(stored.get("class_conditional")),
            "metrics": {},
            "imported": {"file": sources[0].name, "sha256": sha256(sources[0]), "files": files},
        },
    )  # fmt: skip


def _described(cfg: ImportConfig) -> tuple[Parts, dict[str, Any], dict[str, Any], list[Path]]:
    """Weights of a network that the settings describe."""
    source = Path(str(cfg.weights)).expanduser()
    content = read_file(source)
    ready = prepare(cfg if cfg.data is not None else replace(cfg, data={"_target_": "sde_gen.data.digits"}))
    network: Any = ready.model.network
    tensors: Parts = {}
    for part, key in (("model", cfg.key), ("ema", cfg.ema_key if cfg.ema_key is not None else cfg.key)):
        load_weights(network, find_weights(content, key, cfg.strip, source, cfg.add), source)
        tensors[part] = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    return tensors, ready.stored, ready.data.to_dict(), [source]


def read_origin(cfg: ImportConfig, origin: str) -> tuple[Parts, dict[str, Any], dict[str, Any], list[Path]]:
    """Weights, configuration, data and files of what `from=` names.

    Raises:
        SDEGenError: one of its subclasses, naming the setting.
    """
    kind, _, text = origin.partition(":")
    if kind not in FORMATS or not text:
        raise ConfigError(f"from={origin} must be FORMAT:PATH with one of {', '.join(FORMATS)}")
    path = Path(text).expanduser()
    if kind == "diffusers":
        model = from_pretrained(path if path.exists() else text)
        tensors: Parts = {part: dict(_weights_of(model)) for part in ("model", "ema")}
        sources = list(_files(path)) if path.is_dir() else []
    else:
        model, tensors = _of_family(cfg, kind, path)
        sources = [path]
    data = None if cfg.data is None else build(cfg.data, trust=cfg.trust, where="data")
    about = _about(cfg, model, data)
    stored = {
        "sde": describe(model.trained_under, "sde"),
        "parameterization": describe(model.parameterization, "parameterization"),
        "network": describe(model.network, "network"),
        **{name: getattr(cfg, name) for name in ("data", "objective", "trainer", "seed")},
        "class_conditional": bool(about["classes"]),
    }
    return tensors, stored, about, sources


def _weights_of(model: ScoreModel) -> Iterator[tuple[str, Tensor]]:
    network: Any = model.network
    yield from network.state_dict().items()


def _files(folder: Path) -> Iterator[Path]:
    """The files of a folder of diffusers that say what the network is."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in (".json", ".safetensors", ".bin"))
    yield from sorted(found, key=lambda p: p.suffix == ".json")


def _of_family(cfg: ImportConfig, kind: str, path: Path) -> tuple[ScoreModel, Parts]:
    """A network of research code, whose class is named by network= and trusted by trust=."""
    p = build(cfg.sde, trust=cfg.trust, where="sde")
    asked = build(cfg.parameterization, trust=cfg.trust, where="parameterization")
    found = families.read(kind, path, p, asked, rescaled=cfg.rescaled)
    node = dict(cfg.network)
    if node.get("_target_") == "auto":
        name, given = families.built_from(kind, path)
        told = f"; the file names {name}" if name else ""
        if not name or len(cfg.trust) != 1:
            raise ConfigError(f"from={kind} needs the class of the network: network._target_=MODULE.CLASS and its "
                              f"arguments, with trust=[MODULE]{told}")  # fmt: skip
        node = {"_target_": f"{cfg.trust[0]}.{name}", **given}
    network = build(node, trust=cfg.trust, where="network")
    load_weights(network, found.weights, path)
    if isinstance(found.averaged, list | tuple):
        averaged = by_position(found.averaged, network, found.weights, path)
    else:
        averaged = found.averaged or found.weights
    given = {name: value for name, value in found.called.items() if value}
    called = Called(network, **given)
    called.described = {"_target_": "sde_gen.interop.Called", "network": node, **given}  # type: ignore[assignment]
    tensors = {part: {f"network.{name}": value for name, value in weights.items()}
               for part, weights in (("model", network.state_dict()), ("ema", averaged))}  # fmt: skip
    return ScoreModel(called, found.process, found.parameterization), tensors


def _about(cfg: ImportConfig, model: ScoreModel, data: Dataset | None) -> dict[str, Any]:
    """What is known of the data: those that are given, or their shape and range."""
    if data is not None:
        if model.shape and data.shape != model.shape:
            raise ConfigError(f"the network takes samples of shape {model.shape}, and {data.name} has {data.shape}; give "
                              "other data, or data=null")  # fmt: skip
        if model.classes and data.num_classes != len(model.classes):
            raise ConfigError(f"the network has {len(model.classes)} classes, and {data.name} has {data.num_classes}")
        about = data.to_dict()
        return about if model.classes or cfg.class_conditional else {**about, "classes": [], "num_classes": 0, "counts": []}
    shape = tuple(cfg.data_shape) if cfg.data_shape else model.shape
    if not shape or len(shape) not in _KINDS:
        raise ConfigError("with data=null say what a sample is: data_shape=[3,32,32], and data_range=[0,255] for images")
    transform = model.transform or Affine()
    if cfg.data_range:
        low, high = cfg.data_range
        levels = int(high - low) + 1 if float(low).is_integer() and float(high).is_integer() else None
        transform = Affine.to_unit(low, high, levels)
    made = Description("imported", _KINDS[len(shape)], tuple(shape), transform, model.classes)
    return made.to_dict()
