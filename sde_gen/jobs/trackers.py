"""Where metrics go besides the run's own files: TensorBoard, Weights & Biases, trackio, MLflow, each where asked for.

Nothing leaves the machine unasked: W&B writes an offline run (`wandb sync` sends it) unless WANDB_MODE says otherwise,
trackio a database of its own, MLflow one in the run's folder unless MLFLOW_TRACKING_URI names a server.
"""

import hashlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from sde_gen.config.schema import LoggerSettings
from sde_gen.errors import ConfigError
from sde_gen.training import RunDirectory

KINDS = ("tensorboard", "wandb", "trackio", "mlflow")


class Tracker(Protocol):
    """Takes numbers of a step; a run that goes on goes on there too."""

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


def check_installed(settings: LoggerSettings) -> None:
    """Refuse a logger whose package is missing, before any work is done.

    Raises:
        ConfigError: naming it and what to install.
    """
    for kind in KINDS:
        if getattr(settings, kind) and importlib.util.find_spec(kind) is None:
            raise ConfigError(f"logger={kind} needs {kind}; run pip install 'sde_gen[{kind}]', or logger=csv")


def opened(settings: LoggerSettings, folder: RunDirectory, step: int, config: Mapping[str, Any]) -> list[Tracker]:
    """The trackers that are asked for, told of the run's name and settings; `step` is where it goes on."""
    made: list[Tracker] = []
    if settings.tensorboard:
        made.append(_TensorBoard(folder, step))
    if settings.wandb:
        made.append(_WandB(settings.project, folder, config))
    if settings.trackio:
        made.append(_Trackio(settings.project, folder, config))
    if settings.mlflow:
        made.append(_MLflow(settings.project, folder, config))
    return made


class _TensorBoard:
    def __init__(self, folder: RunDirectory, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder.tensorboard), purge_step=step or None)

    def add(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Run:
    """A run of a library that takes rows, as W&B and those that follow it do."""

    _run: Any

    def add(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _WandB(_Run):
    def __init__(self, project: str, folder: RunDirectory, config: Mapping[str, Any]) -> None:
        wandb: Any = importlib.import_module("wandb")
        self._run = wandb.init(
            project=project, name=folder.path.name, id=_identity(folder), resume="allow", dir=str(folder.path),
            config=dict(config), mode=os.environ.get("WANDB_MODE", "offline"),
        )  # fmt: skip


class _Trackio(_Run):
    def __init__(self, project: str, folder: RunDirectory, config: Mapping[str, Any]) -> None:
        trackio: Any = importlib.import_module("trackio")
        self._run = trackio.init(project=project, name=_identity(folder), config=dict(config), resume="allow")


class _MLflow:
    def __init__(self, project: str, folder: RunDirectory, config: Mapping[str, Any]) -> None:
        mlflow: Any = importlib.import_module("mlflow")
        place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder.path / 'mlflow.db').resolve()}"
        self._client = client = mlflow.MlflowClient(place)
        found = client.get_experiment_by_name(project)
        experiment = client.create_experiment(project) if found is None else found.experiment_id
        known = client.search_runs([experiment], f"tags.sde_gen = '{_identity(folder)}'")
        if known:
            self._id = known[0].info.run_id
            return
        tags = {"sde_gen": _identity(folder)}
        self._id = client.create_run(experiment, run_name=folder.path.name, tags=tags).info.run_id
        for name, value in _flat(config):
            client.log_param(self._id, name, value)

    def add(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _identity(folder: RunDirectory) -> str:
    """A run's name, and what tells it from one of the same name elsewhere; the same when it goes on."""
    return f"{folder.path.name}-{hashlib.sha256(str(folder.path.resolve()).encode()).hexdigest()[:8]}"


def _flat(config: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value
