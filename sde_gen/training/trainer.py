"""The training loop: Adam, warm-up, clipping, averaged weights, checkpoints, on one process or many.

Data order, times, noise and dropout of step k are functions of (seed, k), so that a resumed run needs no state of a
random generator and goes on bit for bit. The loop waits for the device only where it writes a row of metrics.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sde_gen.data import Dataset
from sde_gen.distributed import Processes, Pulse, talking
from sde_gen.errors import ConfigError, SDEGenError, WriteError
from sde_gen.model import ScoreModel
from sde_gen.objectives import DenoisingScoreMatching
from sde_gen.rng import check_seed
from sde_gen.training.batches import DROPOUT, Batches
from sde_gen.training.bookkeeping import Record
from sde_gen.training.checkpoint import Checkpoint
from sde_gen.training.ema import EMA
from sde_gen.training.faults import MOST_IN_A_ROW
from sde_gen.training.held_out import held_out_loss
from sde_gen.training.settings import TrainerSettings
from sde_gen.training.sharding import Parallel
from sde_gen.training.snapshot import agree_on_start, restore_snapshot, save_snapshot
from sde_gen.training.state import global_draws
from sde_gen.training.update import Update

_MOST_FAILED_SAVES = 3

Listener = Callable[[str, "Trainer", Mapping[str, Any]], None]


class Trainer:
    """Trains the network of `model` in place.

    Args:
        model: a `ScoreModel` whose network is a torch module; moved to `device`.
        data: training and held-out samples on the model's scale.
        objective: per-sample losses; denoising score matching.
        settings: see `TrainerSettings`.
        seed: of everything random, whole number in [0, 2^64).
        device: where to train.
        conditional: whether the network is given the labels of `data`.
        checkpoints: folder for checkpoints; None saves nothing.
        config: stored with each checkpoint, plain data.
        stop: asked before each step; true saves and ends.
        listeners: called as listener(event, trainer, values), in every process, with the events "log" (a row of
            metrics), "checkpoint" (`path`), "save failed" (`error`) and "preview" (time to draw samples).
        processes: of the job; each works on its share of every batch. Process 0 writes.
        retry_seconds: pause before a failed save is tried again at the end of training.

    Attributes:
        step: optimiser steps done, skipped ones included.
        seconds: seconds of training so far, earlier parts of a resumed run included.
        ema: the averaged weights; `with trainer.ema.applied():` puts them into the network.
        optimizer: Adam.
        faults: how many updates were skipped because a loss or gradient was not finite.
        last: the newest row of metrics.
        interrupted: whether `stop` ended training before its last step.

    Raises:
        ConfigError: a model without parameters, labels asked for that the data does not have, more processes or parts
            than samples in a batch, processes that do not agree on settings, data or weights.
    """

    def __init__(
        self,
        model: ScoreModel,
        data: Dataset,
        objective: DenoisingScoreMatching,
        settings: TrainerSettings | None = None,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        conditional: bool = False,
        checkpoints: Path | None = None,
        config: Mapping[str, Any] | None = None,
        stop: Callable[[], bool] = lambda: False,
        listeners: Sequence[Listener] = (),
        processes: Processes | None = None,
        retry_seconds: float = 1.0,
    ) -> None:
        self.settings = s = TrainerSettings() if settings is None else settings
        self.processes = processes = Processes() if processes is None else processes
        if not isinstance(model.network, nn.Module) or not any(p.requires_grad for p in model.network.parameters()):
            raise ConfigError("Trainer: the model's network has no parameters to train; give a torch module that has")
        if conditional and data.train_labels is None:
            raise ConfigError(f"Trainer: the data set {data.name} has no labels, so a network cannot be given them")
        if s.batch_size < processes.world * s.accumulate:
            raise ConfigError(
                f"trainer.batch_size={s.batch_size} is too small for {processes.world} processes with "
                f"trainer.accumulate={s.accumulate}; it must be at least {processes.world * s.accumulate}"
            )
        self.model, self.data, self.objective = model, data, objective
        self.seed, self.device, self.conditional = check_seed(seed), torch.device(device), conditional
        self.checkpoints, self.config, self.stop = checkpoints, dict(config or {}), stop
        self.listeners, self._retry_seconds = tuple(listeners), retry_seconds
        self.step, self.seconds = 0, 0.0
        self.last: dict[str, float] = {}
        self.interrupted = False
        agree_on_start(self)
        sharded = s.strategy == "fsdp" and processes.world > 1
        self.network: nn.Module = model.network if sharded else model.network.to(self.device)
        if s.channels_last and not sharded:  # shards are contiguous
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if s.compile:
            self.network.compile()
        self._parallel = Parallel(model, processes, s.strategy, self.device)
        self._params = [p for p in self.network.parameters() if p.requires_grad]
        self._update = Update(self._params, s.clip, self.device, processes.world == 1)
        self.optimizer = self._update.optimizer
        self.ema = EMA(self.network, s.ema)
        share = processes.rows(s.batch_size)
        self.batches = Batches(
            data, objective, model, size=s.batch_size, share=share, accumulate=s.accumulate, seed=self.seed,
            device=self.device, conditional=conditional, channels_last=s.channels_last, dequantise=s.dequantise,
        )  # fmt: skip
        self._dropout = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in self.network.modules())
        self._record = Record(s.log_every, self.batches, processes, self.device)
        self.faults = self._record.faults
        self._failed_saves = 0
        self._held_out: tuple[int, float] | None = None
        self._logged = (time.monotonic(), 0)

    # -- running -----------------------------------------------------------------------------------------------------

    def train(self) -> dict[str, float]:
        """Train up to `settings.steps`, the time budget, or until `stop()`; save; return the last row of metrics.

        Raises:
            TrainingFault: the losses or gradients of three steps in a row were NaN or infinite.
            WriteError: three saves in a row failed, of a full disk for example.
            ProcessLostError: another process of the job is gone.
        """
        s, pulse = self.settings, Pulse(self.processes)
        began = time.monotonic() - self.seconds
        self._logged = (time.monotonic(), self.step)
        self.network.train()
        start = self.step
        stop, self.seconds = pulse.exchange(bool(self.stop()), self.seconds)
        while self.step < s.steps and not stop and not self._budget_spent():
            with talking():
                self._one_step()
            self.step += 1
            if self._update.bad_in_a_row >= MOST_IN_A_ROW:
                self._record.read(self.step)
            stop, self.seconds = pulse.exchange(bool(self.stop()), time.monotonic() - began)
            if self.step >= s.steps or stop:
                break  # the end does all of the following
            row_due = _due(self.step, s.log_every)
            if row_due or _due(self.step, s.eval_every):
                self._log(held_out=_due(self.step, s.eval_every))
            if _due(self.step, s.checkpoint_every) or (row_due and self._failed_saves):
                if s.keep_best:
                    self._measure()
                self._save_or_later()
            if _due(self.step, s.preview_every):
                self._tell("preview", {})
            if self.processes.world == 1:
                self.seconds = time.monotonic() - began
        pulse.close()
        self.interrupted = stop and self.step < s.steps
        if self.step > start:
            self._log(held_out=not stop)
            if self.processes.world == 1:
                self.seconds = time.monotonic() - began
            if s.keep_best and not stop:
                self._measure()
            while not self._save_or_later():
                time.sleep(self._retry_seconds)
        return dict(self.last)

    def _budget_spent(self) -> bool:
        return self.settings.max_seconds is not None and self.seconds >= self.settings.max_seconds

    def _one_step(self) -> None:
        s, k = self.settings, self.step
        scale = self.processes.world / s.batch_size  # gradients are averaged over the processes
        row = self._record.losses()
        for part in self.batches.parts(k):
            last = part.rows.stop == len(row)
            with self._parallel.backward_of(last), self._precision(), self._dropout_of(k, part.rows.start):
                losses = self.objective(
                    self._parallel.model, part.x0, part.condition, t=part.t, noise=part.noise, generator=part.generator
                )
                loss = losses.sum() * scale
                if not self._update.checked_here:
                    # The factor is 1, and NaN where the loss is not finite: then so is the gradient, in all processes.
                    loss = loss * (1 + 0 * loss.detach())
                loss.backward()
            row[part.rows].copy_(losses.detach())
        norm = self._update(s.rate(k, self.seconds), row)
        self.ema.update()
        self._record.close(norm)

    def _dropout_of(self, step: int, first: int) -> AbstractContextManager[object]:
        if not self._dropout:
            return nullcontext()
        keys = (step, DROPOUT) if self.batches.share.start + first == 0 else (step, DROPOUT, 2, first + 1)
        return global_draws(self.seed, *keys, device=self.device)

    def _precision(self) -> AbstractContextManager[object]:
        if self.settings.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    # -- what is measured --------------------------------------------------------------------------------------------

    def _log(self, held_out: bool = False) -> None:
        measured = self._record.row(self.step, self.settings.batch_size)
        row: dict[str, float] = {"step": self.step, "seconds": round(self.seconds, 3)}
        row["learning_rate"] = self.settings.rate(max(0, self.step - 1), self.seconds)
        (then, step), self._logged = self._logged, (time.monotonic(), self.step)
        if measured:
            row |= measured
            row["steps_per_second"] = round((self.step - step) / max(1e-9, self._logged[0] - then), 3)
        if held_out:
            row["held_out_loss"] = self.evaluate()
            self._logged = (time.monotonic(), self.step)
        if measured or held_out:
            self.last = {**self.last, **row}
            self._tell("log", row)

    def evaluate(self) -> float:
        """Mean loss of the averaged weights on (at most 1,024) held-out samples, at the same times and noise always.

        Every process computes all of it, which needs no messages and gives each the same number.
        """
        s = self.settings
        self.network.eval()
        with self.ema.applied(), self._precision():
            loss = held_out_loss(
                self.model, self.data, self.objective, size=s.batch_size, seed=self.seed, device=self.device,
                conditional=self.conditional, dequantise=s.dequantise,
            )  # fmt: skip
        self.network.train()
        self._held_out = (self.step, loss)
        return loss

    def _measure(self) -> None:
        """The held-out loss of this step, by which the best checkpoint is known, unless it has just been taken."""
        if self.checkpoints is not None and (self._held_out is None or self._held_out[0] != self.step):
            self.evaluate()

    def _tell(self, event: str, values: Mapping[str, Any]) -> None:
        for listener in self.listeners:
            listener(event, self, values)

    # -- saving and resuming -----------------------------------------------------------------------------------------

    def _save_or_later(self) -> bool:
        """`save()`; whether it succeeded. A full disk is told, and is an error the third time in a row."""
        try:
            self.save()
        except SDEGenError as error:
            if error.exit_code != WriteError.exit_code:
                raise
            self._failed_saves += 1
            if self._failed_saves >= _MOST_FAILED_SAVES:
                raise
            self._tell("save failed", {"error": str(error)})
            return False
        self._failed_saves = 0
        return True

    def save(self) -> Path | None:
        """Publish a checkpoint of this step; None without a folder for them.

        Raises:
            TrainingFault: the weights are not finite.  WriteError, OutputError: they could not be written.
        """
        self._log()
        if self.checkpoints is None:
            return None
        measured = self._held_out is not None and self._held_out[0] == self.step
        path = save_snapshot(self, self.checkpoints, self._held_out[1] if measured and self._held_out else None)
        self._tell("checkpoint", {"path": path})
        return path

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from `checkpoint`: weights, averaged weights, optimiser, step and seconds.

        Raises:
            CheckpointError: it was made with other data, another seed or another network.
        """
        restore_snapshot(self, checkpoint)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
