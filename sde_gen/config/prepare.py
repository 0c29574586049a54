"""What a training run is made of, from its configuration; and the configuration of a run that is to be continued."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sde_gen.config import known_data
from sde_gen.config.objects import build, find_target
from sde_gen.config.restore import find_checkpoint, resolved_network
from sde_gen.config.schema import RunConfig, TrainConfig
from sde_gen.config.signatures import defaults
from sde_gen.config.typed import typed
from sde_gen.data import Dataset
from sde_gen.errors import ConfigError
from sde_gen.model import ScoreModel
from sde_gen.objectives import DenoisingScoreMatching
from sde_gen.rng import check_seed
from sde_gen.training import TrainerSettings
from sde_gen.training.checkpoint import CODEC, MANIFEST, has_interpolation
from sde_gen.training.optimizers import Factory, own_target
from sde_gen.training.run_folder import run_path

#: What is stored of a configuration: all that decides what is computed.
_STORED = ("sde", "data", "parameterization", "objective", "trainer", "network", "seed", "class_conditional")
#: Settings that may differ when a run is continued; all others change what is computed. Where the data lie does not:
#: that they are the same is seen by their fingerprint.
_FREE = frozenset({"data.path", "data.root", "data.codec", "data.source", "data.workers"}) | frozenset(
    f"trainer.{name}"
    for name in (
        *("steps", "max_seconds", "compile", "accumulate", "checkpoint_activations", "strategy"),
        *("checkpoint_every", "keep_last", "keep_best", "async_save"),
        *("log_every", "eval_every", "eval_samples", "preview_every", "preview_samples", "preview_steps"),
    )
)


@dataclass(frozen=True)
class Prepared:
    """A training run, ready to start."""

    model: ScoreModel
    data: Dataset
    objective: DenoisingScoreMatching
    settings: TrainerSettings
    stored: dict[str, Any]
    """The configuration as plain data, as checkpoints hold it."""
    optimizer: Factory | None = None
    """Of the user's own, where the settings name one."""


def prepare(cfg: RunConfig) -> Prepared:
    """Everything that `cfg` names, built and checked, before anything is written.

    Raises:
        SDEGenError: one of its subclasses, naming the setting.
    """
    settings = typed(TrainerSettings, cfg.trainer, "trainer")
    check_seed(cfg.seed)
    stored = (
        isinstance(cfg, TrainConfig) and cfg.resume is not None
    )  # then the configuration came with a checkpoint, and is data
    perturbation = build(cfg.sde, trust=cfg.trust, where="sde", stored=stored)
    parameterization = build(cfg.parameterization, trust=cfg.trust, where="parameterization", stored=stored)
    data = build(cfg.data, trust=cfg.trust, where="data", stored=stored)
    if data is None:
        raise ConfigError(
            "data=null: what to train on is not known, as of a run that was imported without its data; add data=NAME, "
            "such as data=digits, or data=image_folder data.path=FOLDER"
        )
    if not stored:
        known_data.remember(cfg.data, data.fingerprint)
    given = {"num_classes": data.num_classes} if cfg.class_conditional else {}
    objective = build(cfg.objective, trust=cfg.trust, where="objective", stored=stored, **given)
    node = resolved_network(cfg.network, data, cfg.class_conditional)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        network = build(node, trust=cfg.trust, where="network", stored=stored)
    model = ScoreModel(network, perturbation, parameterization)
    objective.law_for(model)  # a law of times that does not go with the perturbation is refused here
    kept = {name: getattr(cfg, name) for name in _STORED} | {"network": node}
    if has_interpolation(kept):
        raise ConfigError(
            "a setting holds the text ${, which a checkpoint's configuration may not; choose another name"
        )
    return Prepared(model, data, objective, settings, kept, _own_optimizer(settings, cfg.trust, stored))


def _own_optimizer(settings: TrainerSettings, trust: Sequence[str], stored: bool) -> Factory | None:
    choice = settings.optimizer
    target = own_target(choice)
    if target is None or isinstance(choice, str):
        return None
    made = find_target(target, trust, "trainer.optimizer", stored)
    return partial(made, **{key: value for key, value in choice.items() if key != "_target_"})


def continued(cfg: TrainConfig, overrides: Sequence[str]) -> TrainConfig:
    """`cfg` for resume=RUN: what the run's newest sound checkpoint holds, with the settings of the command on top.

    Args:
        cfg: the configuration as composed; returned as it is without `resume`.
        overrides: the arguments of the command, which say what of it was asked for.

    Raises:
        MissingInputError: there is no such run.  CheckpointError: none of its checkpoints is sound.
    """
    if cfg.resume is None:
        return cfg
    if cfg.run is not None:
        raise ConfigError("give run=NAME or resume=RUN, not both")
    text, root = str(cfg.resume), Path(cfg.runs_dir).expanduser()
    path = Path(text).expanduser() if "/" in text or text in (".", "..") else run_path(root, text)
    path = path.resolve()
    if (path / MANIFEST).is_file():
        home = path.parent.parent if path.parent.name == "checkpoints" else path
        raise ConfigError(
            f"resume={text} is a checkpoint, in which no training may go on; give its run, resume={home}, which "
            "continues from its newest checkpoint"
        )
    path = path.parent if path.name == "checkpoints" else path
    checkpoint, _ = find_checkpoint(path)
    values: dict[str, Any] = {name: checkpoint.config[name] for name in _STORED if name in checkpoint.config}
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0].partition("@")[0]
        first, *rest = key.split(".")
        if first in _STORED:
            values[first] = _grafted(values.get(first), getattr(cfg, first), rest)
    node = values.get("data")
    if (
        isinstance(node, Mapping)
        and "codec" in node
        and (path / CODEC).is_dir()
        and not any(override.startswith("data.codec=") for override in overrides)
    ):
        values["data"] = {**node, "codec": str(path / CODEC)}
    known = {field.name for field in fields(cfg)}
    return replace(cfg, **{name: value for name, value in values.items() if name in known}, run=path.name,
                   runs_dir=str(path.parent))  # fmt: skip


def _grafted(old: Any, new: Any, keys: Sequence[str]) -> Any:
    """`old` with what `new` holds at `keys`."""
    if not keys or not isinstance(old, Mapping) or not isinstance(new, Mapping) or keys[0] not in new:
        return new
    return {**old, keys[0]: _grafted(old.get(keys[0]), new[keys[0]], keys[1:])}


@dataclass(frozen=True)
class Difference:
    """A setting that is not what it was when the run was started."""

    name: str
    old: Any
    new: Any

    @property
    def matters(self) -> bool:
        """Whether it changes what is computed, and so may not change within a run."""
        return self.name not in _FREE and not (self.name == "data" and self.old is None)  # imported without any

    def __str__(self) -> str:
        return f"{self.name} was {self.old}, is {self.new}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> list[Difference]:
    """Every setting of `new` that is not what it is in `old`, where one that is younger than `old` has its default."""
    result = []
    if where == "trainer.":
        old = {name: value for name, value in asdict(TrainerSettings()).items() if name in new} | dict(old)
    target = new.get("_target_")
    if isinstance(target, str) and target == old.get("_target_"):
        old = {name: value for name, value in defaults(target).items() if name in new} | dict(old)
    for key in [*old, *(key for key in new if key not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            result += differences(a, b, f"{where}{key}.")
        elif (list(a) if isinstance(a, tuple) else a) != (list(b) if isinstance(b, tuple) else b):
            result.append(Difference(f"{where}{key}", a, b))
    return result
