"""The training loop: warm-up, clipping, averaged weights, checkpoints, on one process or many.

Data order, times, noise and dropout of step k are functions of (seed, k), so that a resumed run needs no state of a
random generator and goes on bit for bit. The loop waits for the device only where it writes a row of metrics.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_gen.data import Dataset
from sde_gen.distributed import Processes, Pulse, talking
from sde_gen.errors import ConfigError, SDEGenError, TrainingFault
from sde_gen.model import ScoreModel, evaluating
from sde_gen.objectives import DenoisingScoreMatching
from sde_gen.rng import check_seed
from sde_gen.training.batches import Batches, data_set_of
from sde_gen.training.block_norms import NormByBlock
from sde_gen.training.bookkeeping import MOST_IN_A_ROW, Record
from sde_gen.training.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from sde_gen.training.levels import learned_weighting
from sde_gen.training.optimizers import Factory, make_optimizer
from sde_gen.training.posthoc import all_averages, save_snapshot, snapshot
from sde_gen.training.progress import Progress
from sde_gen.training.saving import Saver, Task
from sde_gen.training.settings import TrainerSettings
from sde_gen.training.sharding import Parallel, training_mode
from sde_gen.training.state import check_trainable, packed, unpack, weights_digest
from sde_gen.training.update import Update

Listener = Callable[[str, "Trainer", Mapping[str, Any]], None]


class Trainer:
    """Trains the network of `model` in place.

        trainer = sg.Trainer(sg.ScoreModel(sg.MLP(2), sg.VP()), x)     # x: (N, 2), on the model's scale
        trainer.train()["held_out_loss"]
        with trainer.ema.applied():                                    # the averaged weights
            samples = sg.DDIM(steps=20)(trainer.model, (64, 2), seed=0).x

    With `checkpoints="folder"`, `trainer.resume()` goes on from the newest one there, bit for bit.

    Args:
        model: a `ScoreModel` whose network is a torch module; moved to `device`.
        data: training and held-out samples on the model's scale, or a tensor of them, (N, *shape), a tenth of which
            (1,024 at most) is held out.
        objective: per-sample losses; denoising score matching by default.
        settings: see `TrainerSettings`.
        seed: of everything random, whole number in [0, 2^64).
        device: where to train; by default where the model is.
        conditional: whether the network is given the labels of `data`, and what else it says of its samples.
        checkpoints: folder for checkpoints; None saves nothing.
        config: plain data that is stored with each checkpoint.
        stop: asked before each step; true saves and ends training.
        listeners: called as `listener(event, trainer, values)` with "log" (a row of metrics), "levels" (mean loss by
            half log-SNR), "blocks" (mean gradient norm by block), "weighting" (a learned one, by half log-SNR),
            "checkpoint", "save failed" and "preview". What one cannot write (an `OSError`) does not end training.
        processes: of the job, from `sde_gen.distributed.start`; one by default.
        retry_seconds: pause between tries of the last save.
        optimizer: makes a torch optimiser of groups of parameters, instead of the one that the settings name.

    Attributes:
        step: optimiser steps done.
        seconds: of training, all parts together.
        network: the network that is trained.
        ema: its averaged weights; `with trainer.ema.applied():` puts them into the network.
        averages: all that are kept, `ema` first.
        weighting: of the noise levels, where it is learned.
        optimizer: of `settings.optimizer`, or what `optimizer` made.
        record: of the steps since the last row of metrics.
        faults: how many updates were skipped because a loss or gradient was not finite.
        last: the newest row of metrics.
        interrupted: whether `stop` ended training before its last step.

    Raises:
        ConfigError: a network without parameters, or with what a checkpoint cannot hold; labels asked for that the
            data does not have; more processes or parts than samples in a batch; processes that do not agree.
    """

    def __init__(
        self,
        model: ScoreModel,
        data: Dataset | Tensor,
        objective: DenoisingScoreMatching | None = None,
        settings: TrainerSettings | None = None,
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
        conditional: bool = False,
        checkpoints: str | os.PathLike[str] | None = None,
        config: Mapping[str, Any] | None = None,
        stop: Callable[[], bool] = lambda: False,
        listeners: Sequence[Listener] = (),
        processes: Processes | None = None,
        retry_seconds: float = 1.0,
        optimizer: Factory | None = None,
    ) -> None:
        self.settings = s = TrainerSettings() if settings is None else settings
        self.processes = processes = Processes() if processes is None else processes
        network = check_trainable(model.network)
        self.data = data = data if isinstance(data, Dataset) else data_set_of(data)
        if conditional and data.train_labels is None and not data.train_told:
            raise ConfigError(f"Trainer: the data set {data.name} has no labels, so a network cannot be given them")
        s.check_parts(processes.world)
        self.model, self.objective = model, DenoisingScoreMatching() if objective is None else objective
        self.seed, self.conditional = check_seed(seed), conditional
        self.device = model.device if device is None else torch.device(device)
        self.checkpoints, self.config = None if checkpoints is None else Path(checkpoints), dict(config or {})
        self.stop, self.listeners, self._retry_seconds = stop, tuple(listeners), retry_seconds
        self.step, self.seconds, self.interrupted = 0, 0.0, False
        self.last: dict[str, float] = {}
        if processes.world > 1:
            told = [repr(s), self.seed, conditional, repr(self.objective), self.config]
            processes.agree({
                "settings": json.dumps(told, sort_keys=True, default=str),
                "data": data.fingerprint,
                "weights": weights_digest(network),
            })  # fmt: skip
        self.batches = Batches(
            data, self.objective, model, size=s.batch_size, share=processes.rows(s.batch_size), seed=self.seed,
            accumulate=s.accumulate, device=self.device, conditional=conditional, channels_last=s.channels_last,
            dequantise=s.dequantise,
        )  # fmt: skip
        self._parallel = Parallel(model, self.batches, self.objective, s, processes, self.device)
        self.network = network
        self.optimizer = make_optimizer(s.optimizer, network, s.weight_decay, self.device, optimizer)
        self.weighting = learned_weighting(self.optimizer, self.device, processes) if s.learned_weighting else None
        self._update = Update(self.optimizer, s.clip, self.device, processes.world == 1)
        self.averages = all_averages(network, s.ema, posthoc=s.posthoc_every > 0)
        self.ema = self.averages[0]
        blocks = NormByBlock(network, self._update.params)
        self.record = Record(s.log_every, self.batches, processes, self.device, model.perturbation, blocks)
        self.faults = self.record.faults
        self._saver = Saver(processes, s.async_save, self._tell)
        self._held_out: tuple[int, float] = (-1, math.nan)  # step, loss
        self._logged = (time.monotonic(), 0)

    # -- running -----------------------------------------------------------------------------------------------------

    def train(self) -> dict[str, float]:
        """Train up to `settings.steps`, the time budget, or until `stop()`; save; return the last row of metrics.

        A run that `stop` ended writes no row, and goes on from its checkpoint as if it had not been stopped.

        Raises:
            TrainingFault: the losses or gradients of three steps in a row were NaN or infinite.
            WriteError: three saves in a row failed, of a full disk for example.
            ProcessLostError: another process of the job is gone.
        """
        s, pulse = self.settings, Pulse(self.processes)
        began, start = time.monotonic() - self.seconds, self.step
        self._logged = (time.monotonic(), self.step)
        with training_mode(self.network), self._saver.running():
            stop, self.seconds = pulse.exchange(bool(self.stop()), self.seconds)
            if self.record.since_row[0]:
                self._log_if_due()  # what an interruption left to write
            while self.step < s.steps and not stop and not self._budget_spent():
                with talking():
                    self.update()
                if self._update.bad_in_a_row >= MOST_IN_A_ROW:
                    self.record.read(self.step)
                stop, self.seconds = pulse.exchange(bool(self.stop()), time.monotonic() - began)
                if _due(self.step, s.posthoc_every):
                    self._snapshot()
                if self.step >= s.steps or stop:
                    break  # the end does all of the following
                self._log_if_due()
                if _due(self.step, s.log_every):
                    self._saver.settle(wait=False)
                if _due(self.step, s.checkpoint_every) or (self._saver.failed and _due(self.step, s.log_every)):
                    self._save_later()
                if _due(self.step, s.preview_every):
                    self._tell("preview", {})
                if self.processes.world == 1:
                    self.seconds = time.monotonic() - began
            pulse.close()
            self.interrupted = stop and self.step < s.steps
            if self.step > start:
                if not self.interrupted:
                    self._log(held_out=not stop)
                if self.processes.world == 1:
                    self.seconds = time.monotonic() - began
                while not self._save_later(measure=not stop, wait=True):
                    time.sleep(self._retry_seconds)
        return dict(self.last)

    def _budget_spent(self) -> bool:
        return self.settings.max_seconds is not None and self.seconds >= self.settings.max_seconds

    def update(self) -> None:
        """One optimiser step, on the batch of this step."""
        scale = self.processes.world / self.settings.batch_size  # gradients are averaged over the processes
        record, parallel = self.record, self._parallel
        row = record.losses[record.count]
        for part in self.batches.parts(self.step):
            with nullcontext() if parallel.plain else parallel.surroundings(self.step, part.rows):
                losses = self.objective(
                    parallel.model, part.x0, part.condition, t=part.t, noise=part.noise, generator=part.generator
                )
                trained = losses
                if self.weighting is not None:
                    trained = self.weighting(losses, self.model.perturbation.half_log_snr(part.t))  # type: ignore[arg-type]
                loss = trained.sum() * scale
                if not self._update.checked_here:
                    # The factor is 1, and NaN where the loss is not finite: then so is the gradient, in all processes.
                    loss = loss * (1 + 0 * loss.detach())
                loss.backward()
            row[part.rows].copy_(losses.detach())
        record.times.append(self.batches.drawn)
        record.norms[record.count].copy_(self._update(self.settings.rate(self.step, self.seconds), row))
        record.each.append(self._update.norms)
        record.count += 1
        for average in self.averages:
            average.update()
        self.step += 1

    # -- what is measured --------------------------------------------------------------------------------------------

    def _log_if_due(self) -> None:
        s, k = self.settings, self.step
        if any(_due(k, every) for every in (s.log_every, s.checkpoint_every, s.eval_every)):
            self._log(held_out=_due(k, s.eval_every))

    def _log(self, held_out: bool = False) -> None:
        self.record.read(self.step)
        measured = self.record.row(self.settings.batch_size)
        row: dict[str, float] = {"step": self.step, "seconds": round(self.seconds, 3)}
        row["learning_rate"] = self.settings.rate(max(0, self.step - 1), self.seconds)
        then, step = self._logged
        if measured:
            row |= measured
            row["steps_per_second"] = round((self.step - step) / max(1e-9, time.monotonic() - then), 3)
        if held_out:
            row["held_out_loss"] = self.evaluate()
        if measured or held_out:
            self.last = {**self.last, **row}
            self._tell("log", row)
        for event, columns in self.record.tables(self.weighting).items():
            self._tell(event, {"step": self.step} | columns)
        self._logged = (time.monotonic(), self.step)  # what listeners do is no part of a step

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss of the averaged weights on (at most 1,024) held-out samples, at the same times and noise always.

        Every process computes all of it, which needs no messages and gives each the same number.
        """
        total, count = 0.0, 0
        with evaluating(self.network), self.ema.applied(), self._parallel.precision():
            for part in self.batches.held_out():
                losses = self.objective(self.model, part.x0, part.condition, generator=part.generator)
                total, count = total + float(losses.sum(dtype=torch.float64)), count + len(losses)
        self._held_out = (self.step, total / count)
        return total / count

    def _tell(self, event: str, values: Mapping[str, Any]) -> None:
        for listener in self.listeners:
            try:
                listener(event, self, values)
            except SDEGenError:
                raise
            except OSError:  # a terminal that is gone, a full disk: the work is worth more than a line about it
                continue

    # -- saving and resuming -----------------------------------------------------------------------------------------

    def _save_later(self, measure: bool = True, wait: bool = False) -> bool:
        """Save in the background; whether none failed. A full disk is told, and an error the third time in a row."""
        if self.checkpoints is None:
            return True
        if measure and self.settings.keep_best and self._held_out[0] != self.step:
            self.evaluate()  # the best checkpoint is known by it
        self._saver.begin("checkpoint", self._writing(self.checkpoints, copy=self._saver.apart))
        if wait:
            self._saver.settle()
        return not self._saver.failed

    def progress(self) -> Progress:
        """How far the run has come, as a checkpoint states it."""
        self.record.read(self.step)
        return Progress(
            self.step, self.seconds, self.seed, self.data.to_dict(), self.conditional, self.ema.updates,
            (self.faults.total, self.faults.in_a_row),
            self._held_out[1] if self._held_out[0] == self.step else None, self.last, *self.record.state(),
        )  # fmt: skip

    def save(self) -> Path | None:
        """Publish a checkpoint of this step; None without a folder for them. Every process must call it; one writes.

        Raises:
            TrainingFault: the weights are not finite.  WriteError, OutputError: they could not be written.
        """
        if self.checkpoints is None:
            return None
        path = self.processes.on_main(self._writing(self.checkpoints))
        self._tell("checkpoint", {"path": path})
        return path

    def _writing(self, folder: Path, copy: bool = False) -> Task:
        """What process 0 has to do for a checkpoint of this step, of a copy of its state if it is not done at once."""
        state, step, in_a_row, s = self.progress().to_dict(), self.step, self.faults.in_a_row, self.settings
        tensors = packed(self.network, self.averages, self.optimizer, self.weighting, self.processes.is_main, copy)

        def write() -> Path:
            if not all(bool(t.isfinite().all()) for part in ("model", "ema") for t in tensors[part].values()):
                raise TrainingFault(step, (float("nan"), float("nan")), [], "weights", in_a_row)
            return save_checkpoint(folder, step, tensors, self.config, state, s.keep_last, s.keep_best)

        return write

    def _snapshot(self) -> None:
        """Keep the power-function averages of this step; one that is not written costs the fit, not the run."""
        if self.checkpoints is not None:
            folder, step = self.checkpoints, self.step
            tensors = snapshot(self.averages, self.processes.is_main, copy=self._saver.apart)
            self._saver.begin("averages", lambda: save_snapshot(folder, step, tensors))

    def resume(self, checkpoint: Checkpoint | None = None) -> Checkpoint | None:
        """Continue from `checkpoint`, by default the newest sound one of this trainer's folder; which, if there is one.

        Weights, averaged weights, optimiser, step and counts are taken, all or (if it does not fit) none.

        Raises:
            CheckpointError: it was made with other data, another seed or another network.
            ConfigError: another process has found another checkpoint.
        """
        if checkpoint is None and self.checkpoints is not None:
            checkpoint, _ = newest_checkpoint(self.checkpoints)
        self.processes.agree({"checkpoint": "none" if checkpoint is None else checkpoint.digest})
        if checkpoint is None:
            return None
        found = Progress.of(checkpoint, self.seed, self.data)
        unpack(checkpoint, found, self.network, self.averages, self.optimizer, self.weighting)
        self.step, self.seconds, self.last = found.step, found.seconds, dict(found.metrics)
        self.faults.total, self.faults.in_a_row = found.skipped
        self.record.restore(found.since_row, found.levels, found.blocks)
        return checkpoint


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
