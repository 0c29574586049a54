"""Train a network, or continue a run: the work of `python -m sde_gen.train`."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from omegaconf import OmegaConf

from sde_gen.bars import ticking
from sde_gen.codecs.stored import keep_codec
from sde_gen.config import known_data
from sde_gen.config.launch import say
from sde_gen.config.objects import settings
from sde_gen.config.prepare import continued, differences, prepare
from sde_gen.config.restore import pick_device
from sde_gen.config.schema import LoggerSettings, TrainConfig
from sde_gen.config.typed import typed
from sde_gen.errors import CheckpointError, ConfigError
from sde_gen.files import remove_leftovers, write_text
from sde_gen.jobs.common import begin, notes_said, run_folder
from sde_gen.jobs.trackers import check_installed
from sde_gen.jobs.training_report import Report
from sde_gen.training import (
    Interrupted,
    RunDirectory,
    Trainer,
    newest_checkpoint,
    stop_on_signals,
)

_ROW_SECONDS = 5.0  # between two rows that are said, where there is no terminal


def run(config: Mapping[str, Any]) -> dict[str, float]:
    """Train as `config` says and return the last row of metrics.

    Raises:
        SDEGenError: one of its subclasses, before any long work where possible.
    """
    values, arguments = settings(config)
    cfg = continued(typed(TrainConfig, values), arguments)
    logger = typed(LoggerSettings, cfg.logger, "logger")
    check_installed(logger)
    pick_device(cfg.device)  # one that is not there is known before the data are read
    ready = prepare(cfg)
    if any(argument.startswith("data") for argument in arguments):  # also where a run is continued
        known_data.remember(cfg.data, ready.data.fingerprint)
    processes, device = begin(cfg)

    with ExitStack() as held:
        # Process 0 makes, locks and cleans the folder; the others are told where it is.
        folder = RunDirectory(processes.on_main(lambda: _take_folder(cfg, ready.data.name, held)))
        stop = held.enter_context(stop_on_signals())
        report = Report(folder, ready.settings.steps, logger, processes.is_main)
        with notes_said():
            trainer = Trainer(
                ready.model,
                ready.data,
                ready.objective,
                ready.settings,
                seed=cfg.seed,
                device=device,
                conditional=cfg.class_conditional,
                checkpoints=folder.checkpoints,
                config=ready.stored,
                stop=lambda: bool(stop),
                listeners=[report],
                processes=processes,
                optimizer=ready.optimizer,
            )
        _resume(trainer, folder, ready.stored)
        if ready.data.codec is not None:
            processes.on_main(lambda: keep_codec(ready.data.codec, folder.path))
        report.start(trainer)
        if processes.is_main:
            text = OmegaConf.to_yaml(OmegaConf.create(ready.stored))
            write_text(folder.config, text, "the run's configuration")
        try:
            with ticking(lambda: report.tick(trainer)):
                last = trainer.train()
        finally:
            report.close()
        if trainer.interrupted:
            raise Interrupted(
                f"stopped by {stop.reason or 'a signal to another process'} at step {trainer.step} of "
                f"{ready.settings.steps}, which is saved; run the same command with run={folder.path.name} to continue"
            )
        report.finish(trainer)
    return last


def _take_folder(cfg: TrainConfig, data_name: str, held: ExitStack) -> str:
    """The run's folder, locked as long as `held` is open, without what a killed run may have left."""
    label = str(cfg.sde.get("_target_", "run")).rpartition(".")[2].lower()
    folder = run_folder(cfg, f"{label}_{data_name}")
    held.enter_context(folder.locked())
    for place in (folder.checkpoints, folder.samples):  # its own is swept where it is made
        remove_leftovers(place)
    return str(folder.path)


def _resume(trainer: Trainer, folder: RunDirectory, config: Mapping[str, Any]) -> None:
    """Continue from the newest sound checkpoint of the run, if it has any."""
    found, skipped = newest_checkpoint(folder.checkpoints)
    for sentence in skipped:
        say(f"passed over: {sentence}")
    trainer.processes.agree({"checkpoint": found.digest if found else "none"})
    if found is None:
        if skipped:
            raise CheckpointError(
                f"run {folder.path} has checkpoints, but none is sound; move them away, or give another run=NAME"
            )
        return
    changed = differences(found.config, config)
    if refused := [str(change) for change in changed if change.matters]:
        raise ConfigError(
            f"run {folder.path} was started with other settings ({'; '.join(refused)}); "
            f"repeat those, take the stored ones with resume={folder.path.name}, or give another run=NAME"
        )
    trainer.resume(found)
    for change in changed:
        say(f"changed: {change}")
