"""Make a run of weights that come from somewhere else: the work of `python -m sde_gen.import_weights`.

Nothing that comes with the weights is executed, and what is written is a checkpoint like any other: safetensors, JSON
and a manifest. `weights=FILE` are those of a network that the settings describe; `from=FORMAT:PATH` says what the
network was shown and told as well.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sde_gen.config.launch import say
from sde_gen.config.objects import settings
from sde_gen.config.prepare import prepare
from sde_gen.config.restore import load_model, stored_data
from sde_gen.config.schema import ImportConfig
from sde_gen.config.typed import typed
from sde_gen.errors import ConfigError, OutputError
from sde_gen.interop.weight_files import find_weights, read_file
from sde_gen.jobs.common import diagnosed, run_folder
from sde_gen.jobs.origins import FORMATS, Origin, Parts, read_origin, write
from sde_gen.training.checkpoint import checkpoint_folders, read_checkpoint
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
    made = _described(cfg) if origin is None else read_origin(cfg, str(origin))
    tensors, stored, about, sources, codec = made
    folder = run_folder(cfg, f"imported_{about['name']}")
    with folder.locked():
        if checkpoint_folders(folder.checkpoints):
            raise OutputError(f"run {folder.path} has checkpoints already; give another name with run=NAME")
        path = write(folder.checkpoints, cfg.seed, tensors, stored, about, sources, codec)
    count = sum(tensor.numel() for tensor in tensors["model"].values())
    say(f"imported {count:,} numbers from {sources[0]} into {path}")
    if cfg.data is not None:
        _check(Path(path), cfg)
    say(f"next: python -m sde_gen.sample run={folder.path.name}, or train on with "
        f"resume={folder.path.name}{'' if cfg.data is not None else ' data=NAME'}")  # fmt: skip
    return str(path)


def _check(path: Path, cfg: ImportConfig) -> None:
    """Say whether the network is read as it was trained, by what it makes of held-out data."""
    checkpoint = read_checkpoint(path)
    data = stored_data(checkpoint, cfg.trust, cfg.data)
    diagnosed(load_model(checkpoint, trust=cfg.trust), data, bool(checkpoint.state.get("conditional")), cfg.seed)


def _described(cfg: ImportConfig) -> Origin:
    """Weights of a network that the settings describe."""
    source = Path(str(cfg.weights)).expanduser()
    content = read_file(source)
    ready = prepare(cfg if cfg.data is not None else replace(cfg, data={"_target_": "sde_gen.data.digits"}))
    network: Any = ready.model.network
    tensors: Parts = {}
    for part, key in (("model", cfg.key), ("ema", cfg.ema_key if cfg.ema_key is not None else cfg.key)):
        load_weights(network, find_weights(content, key, cfg.strip, source, network, cfg.add), source)
        tensors[part] = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    return tensors, ready.stored, ready.data.to_dict(), [source], ready.data.codec
