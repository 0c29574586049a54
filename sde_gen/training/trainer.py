"""The training loop: Adam, warm-up, clipping, averaged weights, checkpoints.

Data order, times, noise and dropout of step k are functions of (seed, k), so that a resumed run needs no state of a
random generator and goes on bit for bit. The loop waits for the device only where it writes a row of metrics.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_gen.data import Dataset, batch_indices
from sde_gen.errors import CheckpointError, ConfigError, NonFiniteError
from sde_gen.model import ScoreModel
from sde_gen.objectives import DenoisingScoreMatching
from sde_gen.rng import check_seed, keyed_generator
from sde_gen.training.checkpoint import Checkpoint, save_checkpoint
from sde_gen.training.ema import EMA
from sde_gen.training.settings import TrainerSettings
from sde_gen.training.state import global_draws, load_weights, pack_optimizer, unpack_optimizer

# Third key of the generators of a step: one stream for each kind of draw.
_TIMES, _NOISE, _DROPOUT, _HELD_OUT = range(4)
_ON_DEVICE_BYTES = 2**31  # data sets up to this size live on the device
_HELD_OUT_SAMPLES = 1024

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
        listeners: called as listener(event, trainer, values) with the events "log" (a row of metrics), "checkpoint"
            (`path`) and "preview" (time to draw samples).

    Attributes:
        step: optimiser steps done.
        seconds: seconds of training so far, earlier parts of a resumed run included.
        ema: the averaged weights; `with trainer.ema.applied():` puts them into the network.
        last: the newest row of metrics.

    Raises:
        ConfigError: a model without parameters, labels asked for that the data does not have.
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
    ) -> None:
        self.settings = settings = TrainerSettings() if settings is None else settings
        if not isinstance(model.network, nn.Module) or not any(p.requires_grad for p in model.network.parameters()):
            raise ConfigError("Trainer: the model's network has no parameters to train; give a torch module that has")
        if conditional and data.train_labels is None:
            raise ConfigError(f"Trainer: the data set {data.name} has no labels, so a network cannot be given them")
        self.model, self.data, self.objective = model, data, objective
        self.seed, self.device, self.conditional = check_seed(seed), torch.device(device), conditional
        self.checkpoints, self.config, self.stop = checkpoints, dict(config or {}), stop
        self.listeners = tuple(listeners)
        self.step, self.seconds = 0, 0.0
        self.last: dict[str, float] = {}
        self.network: nn.Module = model.network.to(self.device)
        if settings.channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if settings.compile:
            self.network.compile()
        self._params = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(
            self._params, lr=settings.learning_rate, fused=self.device.type in ("cpu", "cuda")
        )
        self.ema = EMA(self.network, settings.ema)
        home = self.device if data.train.nbytes <= _ON_DEVICE_BYTES else torch.device("cpu")
        self._train = data.train.to(home)
        self._labels = data.train_labels.to(home) if conditional and data.train_labels is not None else None
        self._dropout = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in self.network.modules())
        # Filled on the device, read when a row is due: per-sample losses and gradient norms since the last row.
        self._losses = torch.zeros(settings.log_every, settings.batch_size, device=self.device)
        self._norms = torch.zeros(settings.log_every, device=self.device)
        self._pending = 0
        self._logged_at = time.monotonic()

    # -- running -----------------------------------------------------------------------------------------------------

    def train(self) -> dict[str, float]:
        """Train up to `settings.steps`, the time budget, or until `stop()`; save; return the last row of metrics.

        Raises:
            NonFiniteError: a loss or gradient became NaN or infinite; nothing of that is saved.
        """
        s = self.settings
        began = time.monotonic() - self.seconds
        self._logged_at = time.monotonic()
        self.network.train()
        start = self.step
        while self.step < s.steps and not self.stop() and not self._budget_spent():
            self._one_step()
            self.step += 1
            self.seconds = time.monotonic() - began
            if self.step >= s.steps:
                break  # the end does all of the following
            if _due(self.step, s.log_every) or _due(self.step, s.eval_every):
                self._log(held_out=_due(self.step, s.eval_every))
            if _due(self.step, s.checkpoint_every):
                self.save()
            if _due(self.step, s.preview_every):
                self._tell("preview", {})
            self.seconds = time.monotonic() - began
        if self.step > start:
            self._log(held_out=not self.stop())
            self.seconds = time.monotonic() - began
            self.save()
        return dict(self.last)

    def _budget_spent(self) -> bool:
        return self.settings.max_seconds is not None and self.seconds >= self.settings.max_seconds

    def _one_step(self) -> None:
        s, k = self.settings, self.step
        x0, condition = self._batch(k)
        t, noise = self._draws(k, x0)
        dropout = global_draws(self.seed, k, _DROPOUT, device=self.device) if self._dropout else nullcontext()
        with self._precision(), dropout:
            losses = self.objective(
                self.model, x0, condition, t=t, noise=noise, generator=keyed_generator(self.seed, k, _DROPOUT, 1)
            )
            losses.mean().backward()
        if s.clip is None:
            norm = nn.utils.get_total_norm([p.grad for p in self._params if p.grad is not None], foreach=True)
        else:
            norm = nn.utils.clip_grad_norm_(self._params, s.clip, foreach=True)
        for group in self.optimizer.param_groups:
            group["lr"] = s.rate(k, self.seconds)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        self._losses[self._pending].copy_(losses.detach())
        self._norms[self._pending].copy_(norm)
        self._pending += 1

    def _batch(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        indices = batch_indices(len(self._train), self.settings.batch_size, step, self.seed)
        if self._train.device.type != "cpu":
            indices = self._send(indices)
        x0 = self._send(self._train[indices])
        if self.settings.channels_last and x0.ndim == 4:
            x0 = x0.contiguous(memory_format=torch.channels_last)
        if self._labels is None:
            return x0, {}
        return x0, {"label": self._send(self._labels[indices])}

    def _send(self, tensor: Tensor) -> Tensor:
        """`tensor` on the device, without waiting for what the device is doing."""
        if tensor.device.type == "cpu" and self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def _draws(self, step: int, x0: Tensor) -> tuple[Tensor, Tensor]:
        # Times are few and are drawn on the host; noise is drawn where it is used.
        times = keyed_generator(self.seed, step, _TIMES)
        t = self.objective.times(self.model, len(x0), generator=times, device="cpu")
        noise = keyed_generator(self.seed, step, _NOISE, device=self.device)
        return self._send(t), torch.randn(x0.shape, generator=noise, device=self.device)

    def _precision(self) -> AbstractContextManager[object]:
        if self.settings.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    # -- what is measured --------------------------------------------------------------------------------------------

    def _log(self, held_out: bool = False) -> None:
        losses, norms = self._check_finite()
        now = time.monotonic()
        row: dict[str, float] = {"step": self.step, "seconds": round(self.seconds, 3)}
        row["learning_rate"] = self.settings.rate(max(0, self.step - 1), self.seconds)
        if len(losses):
            row["loss"] = float(losses.mean(dtype=torch.float64))
            row["grad_norm"] = float(norms.mean(dtype=torch.float64))
            row["steps_per_second"] = round(len(losses) / max(1e-9, now - self._logged_at), 3)
        if held_out:
            row["held_out_loss"] = self.evaluate()
        self._logged_at = time.monotonic()
        if len(row) > 3:
            self.last = {**self.last, **row}
            self._tell("log", row)

    def _check_finite(self) -> tuple[Tensor, Tensor]:
        """Losses and norms since the last look, on the host; the first step that was not finite is an error."""
        count, self._pending = self._pending, 0
        losses, norms = self._losses[:count].cpu(), self._norms[:count].cpu()
        bad = ~(losses.isfinite().all(1) & norms.isfinite())
        if bool(bad.any()):
            place = int(bad.nonzero()[0])
            step = self.step - count + place
            samples = (~losses[place].isfinite()).nonzero().flatten()
            t, _ = self._draws(step, self._batch(step)[0])
            indices = batch_indices(len(self._train), self.settings.batch_size, step, self.seed)[samples]
            worst = t[samples].min() if len(samples) else t.min()
            where = "training loss" if len(samples) else "gradient"
            raise NonFiniteError(step, float(worst), indices.tolist(), where)
        return losses, norms

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss of the averaged weights on (at most 1,024) held-out samples, at the same times and noise always."""
        data, size, total = self.data.test[:_HELD_OUT_SAMPLES], self.settings.batch_size, 0.0
        labels = self.data.test_labels
        self.network.eval()
        with self.ema.applied(), self._precision():
            for block, first in enumerate(range(0, len(data), size)):
                x0 = data[first : first + size].to(self.device)
                condition = {}
                if self.conditional and labels is not None:
                    condition = {"label": labels[first : first + size].to(self.device)}
                generator = keyed_generator(self.seed, block, _HELD_OUT)
                losses = self.objective(self.model, x0, condition, generator=generator)
                total += float(losses.sum(dtype=torch.float64))
        self.network.train()
        return total / len(data)

    def _tell(self, event: str, values: Mapping[str, Any]) -> None:
        for listener in self.listeners:
            listener(event, self, values)

    # -- saving and resuming -----------------------------------------------------------------------------------------

    def save(self) -> Path | None:
        """Publish a checkpoint of this step; None without a folder for them."""
        self._log()
        if self.checkpoints is None:
            return None
        state = {
            "seconds": self.seconds,
            "seed": self.seed,
            "ema_updates": self.ema.updates,
            "data": self.data.to_dict(),
            "conditional": self.conditional,
            "metrics": self.last,
        }
        tensors = {
            "model": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": pack_optimizer(self.optimizer, self.network),
        }
        path = save_checkpoint(self.checkpoints, self.step, tensors, self.config, state, self.settings.keep_last)
        self._tell("checkpoint", {"path": path})
        return path

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from `checkpoint`: weights, averaged weights, optimiser, step and seconds.

        Raises:
            CheckpointError: it was made with other data, another seed or another network.
        """
        state = checkpoint.state
        stored = state.get("data")
        if not isinstance(stored, dict) or stored.get("fingerprint") != self.data.fingerprint:
            raise CheckpointError(
                f"checkpoint {checkpoint.path} was trained on other data than {self.data.name} as it is now; "
                "restore the data, or start another run with run=NAME"
            )
        if state.get("seed") != self.seed:
            raise CheckpointError(
                f"checkpoint {checkpoint.path} was trained with seed={state.get('seed')}, not {self.seed}; "
                "repeat that seed, or start another run with run=NAME"
            )
        load_weights(self.network, checkpoint.tensors("model"), checkpoint.path)
        self.ema.load_state_dict(checkpoint.tensors("ema"), int(state.get("ema_updates", 0)))
        unpack_optimizer(self.optimizer, self.network, checkpoint.tensors("optimizer"), checkpoint.path)
        self.step, self.seconds = checkpoint.step, float(state.get("seconds", 0.0))
        self.last = dict(state.get("metrics", {}))


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
