"""How a run is trained, as plain numbers."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from sde_gen.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Settings of a `Trainer`; the group `trainer=` of the command.

    Attributes:
        steps: optimiser steps in all, at least 1.
        batch_size: samples per step, over all processes, at least 1.
        accumulate: parts in which a process works through its share of a batch, one after the other, to save memory.
        learning_rate: of Adam, positive.
        warmup: steps over which the learning rate grows linearly from 0.
        schedule: "constant", or "cosine" (falls to 0 at `steps`, or at `max_seconds` if that comes first).
        clip: largest gradient norm; None switches clipping off.
        ema: decay of the averaged weights, in [0, 1).
        precision: "float32", or "bf16" (the network runs under autocast; weights stay float32).
        strategy: how several processes share the work: "ddp" (each has the whole network) or "fsdp" (weights, averages
            and optimiser state are sharded, for networks that do not fit).
        dequantise: add uniform noise of one level's width to discrete data, new at each step, for a network that learns
            a density over their cells, which likelihoods in bits per dimension need.
        compile: run the network through torch.compile.
        channels_last: memory layout of images, faster on CPUs and on most GPUs.
        max_seconds: time budget of training, resumed parts counted; saved and ended when it is spent. None: no limit.
        checkpoint_every: steps between checkpoints; 0 saves at the end only.
        keep_last: newest checkpoints kept; 0 keeps all.
        keep_best: checkpoints of the lowest held-out loss kept beside them; 0 keeps none and measures none.
        log_every: steps between rows of metrics.csv.
        eval_every: steps between held-out losses; 0 evaluates at the end only.
        preview_every: steps between pictures of samples; 0 draws one at the end only.
        preview_samples: samples in a picture; 0 draws none.
        preview_steps: sampler steps of a picture.
    """

    steps: int = 3000
    batch_size: int = 128
    accumulate: int = 1
    learning_rate: float = 1e-3
    warmup: int = 200
    schedule: Literal["constant", "cosine"] = "cosine"
    clip: float | None = 1.0
    ema: float = 0.999
    precision: Literal["float32", "bf16"] = "float32"
    strategy: Literal["ddp", "fsdp"] = "ddp"
    dequantise: bool = False
    compile: bool = False
    channels_last: bool = True
    max_seconds: float | None = None
    checkpoint_every: int = 1000
    keep_last: int = 3
    keep_best: int = 1
    log_every: int = 50
    eval_every: int = 1000
    preview_every: int = 0
    preview_samples: int = 64
    preview_steps: int = 50

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "preview_steps"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        counts = ("warmup", "checkpoint_every", "keep_last", "keep_best", "eval_every", "preview_every")
        for name in (*counts, "preview_samples"):
            _check(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        rate = self.learning_rate
        _check(math.isfinite(rate) and rate > 0, "learning_rate", rate, "a positive number such as 2e-4")
        _check(0 <= self.ema < 1, "ema", self.ema, "at least 0 and below 1, for example 0.999")
        for name in ("clip", "max_seconds"):
            value = getattr(self, name)
            _check(value is None or value > 0, name, value, "a positive number or null")
        _check(self.schedule in ("constant", "cosine"), "schedule", self.schedule, "constant or cosine")
        _check(self.strategy in ("ddp", "fsdp"), "strategy", self.strategy, "ddp or fsdp")
        _check(self.accumulate <= self.batch_size, "accumulate", self.accumulate, "at most trainer.batch_size")
        _check(self.precision in ("float32", "bf16"), "precision", self.precision, "float32 or bf16")

    def rate(self, step: int, seconds: float = 0.0) -> float:
        """Learning rate of the 0-based `step`: linear warm-up times the schedule.

        Under a time budget the cosine follows `seconds` (of training so far) where those are nearer to their end than
        the steps, so that it comes down in time; without a budget the rate depends on `step` alone.
        """
        rate = self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup))
        if self.schedule == "cosine":
            done = step / self.steps
            if self.max_seconds is not None:
                done = max(done, seconds / self.max_seconds)
            rate *= 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        return rate

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all settings."""
        return tuple(field.name for field in fields(cls))


def _check(condition: bool, name: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"trainer.{name}={value} must be {allowed}")
