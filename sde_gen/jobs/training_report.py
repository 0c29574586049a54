"""What `python -m sde_gen.train` shows and writes while a run trains: lines, rows, pictures, a page."""

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from shlex import quote
from typing import Any

import torch
from tqdm import tqdm

from sde_gen import pictures
from sde_gen.bars import QUIET_SECONDS, draws_bars
from sde_gen.config.launch import say
from sde_gen.config.schema import LoggerSettings
from sde_gen.errors import SDEGenError, WriteError
from sde_gen.files import make_folder, write_text
from sde_gen.jobs.classes import columns_for, columns_of, counts_of, occurring
from sde_gen.jobs.common import table
from sde_gen.jobs.quality_record import COLUMNS, Quality, drawn
from sde_gen.jobs.trackers import Tracker, opened
from sde_gen.training import MetricsFile, RunDirectory, Trainer, read_metrics

_ROW_SECONDS = 5.0  # between two rows that are said, where there is no terminal
#: What the tables beside the metrics are called at a tracker.
_TRACKED = {"levels": "loss_at", "blocks": "grad_norm_of", "weighting": "learned_u_at", "quality": "quality"}


class Report:
    """What the command shows and writes while a run trains."""

    def __init__(self, folder: RunDirectory, steps: int, logger: LoggerSettings, is_main: bool = True) -> None:
        self.folder, self.steps, self.is_main, self._logger = folder, steps, is_main, logger
        self._bar: Any = None
        self._trackers: list[Tracker] = []
        self._said = 0.0
        self._page_due = 0.0
        self._quality: Quality | None = None

    def start(self, trainer: Trainer) -> None:
        """Say what is about to happen; open the files."""
        self._quality = Quality(trainer) if trainer.settings.eval_samples else None
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
        if trainer.data.columns:
            say(columns_of(trainer.data.description))
        if trainer.data.codec is not None and trainer.data.pixels is not None:
            real, z = trainer.data.pixels.test[:64], trainer.data.transform.inverse(trainer.data.test[:64])
            error, spread = (trainer.data.codec.decode(z.float()) - real).square().mean().sqrt(), real.std()
            say(f"latents of samples of shape {trainer.data.pixels.shape}; their codec's error on held-out ones is "
                f"{float(error):.3f}, root of the mean square, where these vary by {float(spread):.3f}")  # fmt: skip
        if trainer.step:
            say(f"continued from step {trainer.step}")
        self._metrics = MetricsFile(self.folder.metrics, trainer.step)
        parts = trainer.record.levels.names
        tables = {"levels": (self.folder.levels, parts), "blocks": (self.folder.gradients, trainer.record.blocks.names)}
        if trainer.weighting is not None:
            tables["weighting"] = (self.folder.weighting, parts)
        if self._quality is not None:
            tables["quality"] = (self.folder.quality, COLUMNS[1:])
        self._tables = {
            event: MetricsFile(path, trainer.step, ("step", *names)) for event, (path, names) in tables.items()
        }
        for file in (self._metrics, *self._tables.values()):
            if file.set_aside:
                say(f"{file.path} could not be read, and is now {file.set_aside}")
        self._trackers = opened(self._logger, self.folder, trainer.step, trainer.config)
        self._said = time.monotonic()
        if draws_bars():
            self._bar = tqdm(total=self.steps, initial=trainer.step, unit="step", dynamic_ncols=True)

    def __call__(self, event: str, trainer: Trainer, values: Mapping[str, Any]) -> None:
        """What the trainer tells."""
        if event == "preview":
            self._preview(trainer)  # in every process: a sharded network needs them all
        elif event == "log" and "held_out_loss" in values and self._quality is not None:
            self._measure(self._quality, trainer)
        if not self.is_main:
            return
        elif event == "save failed":
            say(f"not saved: {values['error']}; training goes on, and saving is tried again")
        elif event in _TRACKED:
            self._add(event, values, trainer.step)
        elif event == "log":
            if not self._metrics.add(values):
                say(f"{self.folder.metrics} cannot be written; its rows wait")
            self._show(values)
            self._track({name: value for name, value in values.items() if name != "step"}, trainer.step)
            if time.monotonic() >= self._page_due:
                self._write_page(trainer, running=True)

    def _add(self, table: str, values: Mapping[str, float], step: int) -> None:
        """A row of one of the tables beside the metrics."""
        self._tables[table].add(values)
        self._track({f"{_TRACKED[table]}/{name}": value for name, value in values.items() if name != "step"}, step)

    def _measure(self, quality: Quality, trainer: Trainer) -> None:
        try:
            row = quality.row(trainer)
        except SDEGenError as error:  # samples that are not finite, of weights that still may become better
            say(f"samples of step {trainer.step} are not compared: {error}")
            return
        if self.is_main:
            self._add("quality", row, trainer.step)

    def _track(self, values: Mapping[str, float], step: int) -> None:
        for tracker in self._trackers:
            tracker.add(values, step)

    def _write_page(self, trainer: Trainer, running: bool) -> None:
        """Write `training.html` again; not before a hundred times as long as it took has passed, and ten seconds."""
        began, folder, last = time.monotonic(), self.folder, trainer.last
        rate = last.get("steps_per_second", 0.0)
        facts = {
            "step": f"{trainer.step} of {self.steps}",
            "time": f"{trainer.seconds:.0f} s of training"
            + (f", about {(self.steps - trainer.step) / rate:.0f} s to go" if running and rate else ""),
            "throughput": f"{rate * trainer.settings.batch_size:.4g} samples/s",
            "memory": f"{_memory(trainer.device):.0f} MiB at most"
            + (" on the GPU" if trainer.device.type == "cuda" else ""),
            "model": f"{trainer.model.perturbation}, {type(trainer.network).__name__} with "
            f"{sum(p.numel() for p in trainer.network.parameters()):,} parameters, on {trainer.device}",
            "data": f"{trainer.data.name}, {trainer.data.size} samples of shape {trainer.data.shape}",
            "updates skipped": str(trainer.faults.total),
        }
        images = [f"samples/{path.name}" for path in sorted(folder.samples.glob("step_*.png"))]
        with suppress(SDEGenError):  # files that are gone, or a full disk, end a run for its checkpoints' sake only
            tables = {"metrics": read_metrics(folder.metrics)}
            tables |= {event: read_metrics(file.path, None) for event, file in self._tables.items()}
            page = pictures.training_page(folder.path.name, facts, tables, images, running)
            write_text(folder.page, page, "the run's page")
        self._page_due = time.monotonic() + max(10.0, 100 * (time.monotonic() - began))

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
        x = drawn(trainer, count)
        if not self.is_main:
            return
        classes = occurring(data.description) if trainer.conditional else ()
        columns = columns_for(len(classes), count) if classes else None
        real = data.test
        if data.codec is not None and data.pixels is not None:
            x, real = data.codec.decode(data.transform.inverse(x.cpu()).float()), data.pixels.test
        picture = pictures.picture_of(x, real, columns)
        try:
            make_folder(self.folder.samples, "the folder of the pictures")
            pictures.save_image(picture, self.folder.samples / f"step_{trainer.step:08d}.png")
        except WriteError as error:
            say(f"no picture: {error}")  # a full disk ends a run for its checkpoints' sake only

    def close(self) -> None:
        """End the progress bar and the trackers, whatever happened."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        while self._trackers:
            self._trackers.pop().close()

    def finish(self, trainer: Trainer) -> None:
        """Last pictures, and a small table."""
        picture = self.folder.samples / f"step_{trainer.step:08d}.png"
        if trainer.processes.on_main(lambda: not picture.is_file()):
            self._preview(trainer)
        if not self.is_main:
            return
        self._write_page(trainer, running=False)
        if pictures.has_matplotlib():
            pictures.loss_curve(read_metrics(self.folder.metrics), self.folder.path / "loss.png")
            pictures.loss_by_level(read_metrics(self.folder.levels, None), self.folder.path / "levels.png")
            pictures.norm_by_block(read_metrics(self.folder.gradients, None), self.folder.path / "gradients.png")
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


def _memory(device: torch.device) -> float:
    """The most that was used so far, in MiB: on a GPU by tensors, else by the process; NaN where nobody knows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # not on Windows
        return float("nan")
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return used / 2**20
