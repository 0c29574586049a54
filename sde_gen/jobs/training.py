"""Train a network, or continue a run: the work of `python -m sde_gen.train`."""

import importlib.util
import time
from collections.abc import Mapping
from contextlib import ExitStack
from shlex import quote
from typing import Any

from omegaconf import OmegaConf
from tqdm import tqdm

from sde_gen import pictures
from sde_gen.bars import QUIET_SECONDS, draws_bars, ticking
from sde_gen.config import known_data
from sde_gen.config.launch import say
from sde_gen.config.objects import settings
from sde_gen.config.prepare import continued, differences, prepare
from sde_gen.config.restore import pick_device
from sde_gen.config.schema import LoggerSettings, TrainConfig
from sde_gen.config.typed import typed
from sde_gen.errors import CheckpointError, ConfigError, WriteError
from sde_gen.files import make_folder, remove_leftovers, write_text
from sde_gen.jobs.classes import columns_for, counts_of, cycled, occurring
from sde_gen.jobs.common import begin, run_folder, table
from sde_gen.samplers import DDIM
from sde_gen.training import (
    Interrupted,
    MetricsFile,
    RunDirectory,
    Trainer,
    newest_checkpoint,
    read_metrics,
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
    if logger.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("logger=tensorboard needs tensorboard; run pip install 'sde_gen[tensorboard]', or logger=csv")
    pick_device(cfg.device)  # one that is not there is known before the data are read
    ready = prepare(cfg)
    if any(argument.startswith("data") for argument in arguments):  # also where a run is continued
        known_data.remember(cfg.data, ready.data.fingerprint)
    processes, device = begin(cfg)

    with ExitStack() as held:
        # Process 0 makes, locks and cleans the folder; the others are told where it is.
        folder = RunDirectory(processes.on_main(lambda: _take_folder(cfg, ready.data.name, held)))
        stop = held.enter_context(stop_on_signals())
        report = _Report(folder, ready.settings.steps, logger.tensorboard, processes.is_main)
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


class _Report:
    """What the command shows and writes while a run trains."""

    def __init__(self, folder: RunDirectory, steps: int, tensorboard: bool, is_main: bool = True) -> None:
        self.folder, self.steps, self.tensorboard, self.is_main = folder, steps, tensorboard, is_main
        self._bar: Any = None
        self._events: Any = None
        self._said = 0.0

    def start(self, trainer: Trainer) -> None:
        """Say what is about to happen; open the files."""
        if not self.is_main:
            return
        parameters = sum(p.numel() for p in trainer.network.parameters())
        name = type(trainer.network).__name__
        say(f"run {self.folder.path}")
        say(
            f"{trainer.model.perturbation} on {trainer.data.name} ({trainer.data.size} samples of shape "
            f"{trainer.data.shape}), {name} with {parameters:,} parameters, on {trainer.device}"
            + (f", {trainer.processes.world} processes" if trainer.processes.world > 1 else "")
        )
        if trainer.conditional:
            say(counts_of(trainer.data.description))
        if trainer.step:
            say(f"continued from step {trainer.step}")
        self._metrics = MetricsFile(self.folder.metrics, trainer.step)
        if self._metrics.set_aside:
            say(f"{self.folder.metrics} could not be read, and is now {self._metrics.set_aside}")
        if self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(self.folder.tensorboard), purge_step=trainer.step or None)
        self._said = time.monotonic()
        if draws_bars():
            self._bar = tqdm(total=self.steps, initial=trainer.step, unit="step", dynamic_ncols=True)

    def __call__(self, event: str, trainer: Trainer, values: Mapping[str, Any]) -> None:
        """What the trainer tells."""
        if event == "preview":
            self._preview(trainer)  # in every process: a sharded network needs them all
        elif not self.is_main:
            return
        elif event == "save failed":
            say(f"not saved: {values['error']}; training goes on, and saving is tried again")
        elif event == "log":
            if not self._metrics.add(values):
                say(f"{self.folder.metrics} cannot be written; its rows wait")
            self._show(values)
            if self._events is not None:
                for key, value in values.items():
                    if key != "step":
                        self._events.add_scalar(key, value, int(values["step"]))

    def tick(self, trainer: Trainer) -> None:
        """Show where training is, between its rows; called from a thread of its own."""
        if self._bar is not None:
            self._bar.n = trainer.step
            self._bar.refresh()
        elif self.is_main and time.monotonic() - self._said >= QUIET_SECONDS:
            self._said = time.monotonic()
            say(f"step {trainer.step}/{self.steps}")

    def _show(self, row: Mapping[str, float]) -> None:
        if self._bar is not None:
            self._bar.update(int(row["step"]) - self._bar.n)
            self._bar.set_postfix({k: f"{row[k]:.4g}" for k in ("loss", "held_out_loss") if k in row}, refresh=False)
            return
        if "held_out_loss" not in row and time.monotonic() - self._said < _ROW_SECONDS:
            return
        self._said = time.monotonic()
        parts = [f"step {int(row['step'])}/{self.steps}"]
        shown = [key for key in ("loss", "held_out_loss", "steps_per_second") if key in row]
        parts += [f"{key.replace('_', ' ')} {row[key]:.4g}" for key in shown]
        say("  ".join(parts))

    def _preview(self, trainer: Trainer) -> None:
        """A picture of samples with the averaged weights."""
        s, data = trainer.settings, trainer.data
        if s.preview_samples == 0 or (data.kind in ("vector", "series") and not pictures.has_matplotlib()):
            return
        count = max(1024, s.preview_samples) if data.kind == "vector" else s.preview_samples
        chain = getattr(trainer.model.perturbation, "length", s.preview_steps)
        sampler = DDIM(steps=min(s.preview_steps, chain))
        condition = {}
        if trainer.conditional:
            condition["label"] = cycled(occurring(data.description), 0, count).to(trainer.device)
        with trainer.ema.applied():
            x = sampler(trainer.model, (count, *data.shape), seed=trainer.seed, condition=condition).x
        if not self.is_main:
            return
        columns = columns_for(len(occurring(data.description)), count) if condition else None
        picture = pictures.picture_of(x, data.test, columns)
        try:
            make_folder(self.folder.samples, "the folder of the pictures")
            pictures.save_image(picture, self.folder.samples / f"step_{trainer.step:08d}.png")
        except WriteError as error:
            say(f"no picture: {error}")  # a full disk ends a run for its checkpoints' sake only

    def close(self) -> None:
        """End the progress bar and the event file, whatever happened."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._events is not None:
            self._events.close()

    def finish(self, trainer: Trainer) -> None:
        """Last pictures, and a small table."""
        picture = self.folder.samples / f"step_{trainer.step:08d}.png"
        if trainer.processes.on_main(lambda: not picture.is_file()):
            self._preview(trainer)
        if not self.is_main:
            return
        if pictures.has_matplotlib():
            pictures.loss_curve(read_metrics(self.folder.metrics), self.folder.path / "loss.png")
        else:
            say("matplotlib is not installed, so there is no loss.png; run pip install 'sde_gen[plot]'")
        last = trainer.last
        rows = [("steps", f"{trainer.step}"), ("seconds", f"{trainer.seconds:.1f}")]
        rows += [(k.replace("_", " "), f"{last[k]:.5g}") for k in ("loss", "held_out_loss") if k in last]
        if trainer.faults.total:
            rows.append(("updates skipped", f"{trainer.faults.total} (loss or gradient not finite)"))
        if picture.is_file():
            rows.append(("samples", str(picture)))
        table(rows)
        root = self.folder.path.parent
        place = "" if root.name == "runs" and not root.is_absolute() else f" runs_dir={quote(str(root))}"
        say(f"next: python -m sde_gen.sample run={quote(self.folder.path.name)}{place}")
