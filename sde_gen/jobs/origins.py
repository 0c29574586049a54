"""Checkpoints of what other people's tools wrote: what FORMAT:PATH names, read and written as one of ours."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_gen.codecs import Codec, read_codec
from sde_gen.codecs.stored import keep_codec
from sde_gen.config.objects import build, describe
from sde_gen.config.schema import ImportConfig
from sde_gen.data import Affine, Dataset, Description
from sde_gen.errors import ConfigError
from sde_gen.files import sha256
from sde_gen.interop import Called, families, published_weights
from sde_gen.interop.diffusers import from_pretrained
from sde_gen.interop.diffusers.folders import fetched
from sde_gen.interop.weight_files import by_position
from sde_gen.model import ScoreModel
from sde_gen.training import newest_checkpoint, save_checkpoint
from sde_gen.training.state import load_weights

#: What `from=` may begin with.
FORMATS = ("diffusers", *families.FAMILIES)
_KINDS = {1: "vector", 2: "series", 3: "image", 4: "volume"}
Parts = dict[str, dict[str, Tensor]]


def resolved(checkpoint: str | None, runs_dir: str) -> str | None:
    """What `checkpoint=` names; diffusers:PATH is imported into `runs_dir`/.imported, where it is found again.

    Raises:
        SDEGenError: one of its subclasses, where it cannot be read.
    """
    kind, _, text = (checkpoint or "").partition(":")
    if kind not in FORMATS or not text:
        return checkpoint
    if kind != "diffusers":
        raise ConfigError(f"checkpoint={checkpoint} needs the class of its network; make a run of it first: python -m "
                          f"sde_gen.import_weights from={checkpoint} run=NAME")  # fmt: skip
    place = Path(text).expanduser() if Path(text).expanduser().is_dir() else fetched(text)
    digest = hashlib.sha256("".join(f"{p.name}{sha256(p)}" for p in _files(place)).encode()).hexdigest()[:16]
    folder = Path(runs_dir).expanduser() / ".imported" / digest
    found, _ = newest_checkpoint(folder)
    if found is None:
        loss = {"_target_": "sde_gen.DenoisingScoreMatching"}
        cfg = ImportConfig(sde={}, network={}, parameterization={}, objective=loss)
        write(folder, 0, *read_origin(cfg, f"diffusers:{place}"))
    return str(folder)


def write(
    checkpoints: Path,
    seed: int,
    tensors: Parts,
    stored: Mapping[str, Any],
    about: Mapping[str, Any],
    sources: list[Path],
    codec: Codec | None = None,
) -> Path:
    """The checkpoint of what was read, and the codec of its latents beside it."""
    files = {path.name: sha256(path) for path in sources}
    if codec is not None:
        keep_codec(codec, checkpoints.parent if checkpoints.name == "checkpoints" else checkpoints)
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


#: Weights, configuration, data, files, and the codec of latents.
Origin = tuple[Parts, dict[str, Any], dict[str, Any], list[Path], Codec | None]


def read_origin(cfg: ImportConfig, origin: str) -> Origin:
    """What `from=` names; a pipeline's vae is the codec of its latents.

    Raises:
        SDEGenError: one of its subclasses, naming the setting.
    """
    kind, _, text = origin.partition(":")
    if kind not in FORMATS or not text:
        raise ConfigError(f"from={origin} must be FORMAT:PATH with one of {', '.join(FORMATS)}")
    path, codec = Path(text).expanduser(), None
    if kind == "diffusers":
        path = path if path.is_dir() else fetched(text)
        codec = read_codec(path) if cfg.data is None and (path / "vae").is_dir() else None
        model = from_pretrained(path)
        tensors: Parts = {part: dict(_weights_of(model)) for part in ("model", "ema")}
        sources = list(_files(path))
    else:
        model, tensors = _of_family(cfg, kind, path)
        sources = [path]
    data = None if cfg.data is None else build(cfg.data, trust=cfg.trust, where="data")
    about = _about(cfg, model, data) if codec is None else decoded_into(codec, model)
    codec = data.codec if data is not None else codec
    stored = {
        "sde": describe(model.trained_under, "sde"),
        "parameterization": describe(model.parameterization, "parameterization"),
        "network": describe(model.network, "network"),
        **{name: getattr(cfg, name) for name in ("data", "objective", "trainer", "seed")},
        "class_conditional": bool(about["classes"]),
    }
    return tensors, stored, about, sources, codec


def decoded_into(codec: Codec, model: ScoreModel) -> dict[str, Any]:
    """What is known of latents whose data are not here: into what pictures they decode."""
    shape = tuple(codec.decode(torch.zeros(1, *model.shape)).shape[1:])
    pictures = Description("pictures", _KINDS[len(shape)], shape, Affine.to_unit(0, 255, 256), model.classes)
    return Description("latents", _KINDS[len(model.shape)], model.shape, codec.transform, model.classes,
                       codec=codec.digest, pixels=pictures).to_dict()  # fmt: skip


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
    if str(node.get("_target_")).startswith("sde_gen.networks."):
        node = published_weights.read_off(found.weights) | node
    network = build(node, trust=cfg.trust, where="network")
    named = published_weights.ours(kind, found.weights, network)
    if named is not None:  # one of ours, which is called as it is
        means = found.averaged or found.weights
        if isinstance(means, list | tuple):
            means = published_weights.averaged(kind, means, found.weights)
        load_weights(network, named, path)
        averages = published_weights.ours(kind, means, network)
        return ScoreModel(network, found.process, found.parameterization), {"model": named, "ema": averages or named}
    load_weights(network, found.weights, path)
    if isinstance(found.averaged, list | tuple):
        averaged = by_position(found.averaged, network, str(path))
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
            raise ConfigError(f"the network takes samples of shape {model.shape}, and {data.name} has {data.shape}; "
                              "give other data, or data=null")  # fmt: skip
        if model.classes and data.num_classes != len(model.classes):
            raise ConfigError(f"the network has {len(model.classes)} classes, and {data.name} has {data.num_classes}")
        about = data.to_dict()
        return (
            about
            if model.classes or cfg.class_conditional
            else {**about, "classes": [], "num_classes": 0, "counts": []}
        )
    shape = tuple(cfg.data_shape) if cfg.data_shape else model.shape
    if not shape or len(shape) not in _KINDS:
        raise ConfigError(
            "with data=null say what a sample is: data_shape=[3,32,32], and data_range=[0,255] for images"
        )
    transform = model.transform or Affine()
    if cfg.data_range:
        low, high = cfg.data_range
        levels = int(high - low) + 1 if float(low).is_integer() and float(high).is_integer() else None
        transform = Affine.to_unit(low, high, levels)
    made = Description("imported", _KINDS[len(shape)], tuple(shape), transform, model.classes)
    return made.to_dict()
