"""How a run is trained, as plain numbers."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sde_gen import checks
from sde_gen.checks import checked
from sde_gen.errors import ConfigError
from sde_gen.training.optimizers import checked_choice

SCHEDULES = ("constant", "cosine", "inverse-sqrt")


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Settings of a `Trainer`; the group `trainer=` of the command.

    Attributes:
        steps: optimiser steps in all, at least 1.
        batch_size: samples per step, over all processes, at least 1.
        accumulate: parts in which a process works through its share of a batch, one after the other, to save memory.
        optimizer: "adam", "adamw", "muon" (for matrices, with Adam for the rest), "sgd", "rmsprop", "radam" or another
            of `torch.optim`; or a mapping of its name in `_target_` and its arguments.
        learning_rate: of the optimiser, positive.
        weight_decay: of matrices and kernels, not of biases and gains; None: 0.01 for "adamw" and "muon", else 0.
        warmup: steps over which the learning rate grows linearly from 0.
        schedule: "constant"; "cosine" (falls to 0 at `steps`, or at `max_seconds` if that comes first); or
            "inverse-sqrt" (falls as sqrt(decay_after/step), see `rate`).
        decay_after: steps after which "inverse-sqrt" begins to fall; None: `warmup`.
        clip: largest gradient norm; None switches clipping off.
        learned_weighting: divide the loss at each noise level by a learned e^u, and add u, so that all levels pull
            alike (EDM2's; see `sde_gen.training.levels`). Metrics are of the loss before that.
        ema: decay of the averaged weights, in [0, 1); a list keeps several averages, the first of which is used unless
            another is asked for.
        posthoc_every: steps between snapshots of two averages, of which one of any length is made after training (see
            `sde_gen.training.posthoc`); 0 keeps none. A 60th of `steps` is often enough.
        precision: "float32", or "bf16" (the network runs under autocast; weights stay float32).
        strategy: how several processes share the work: "ddp" (each has the whole network) or "fsdp" (weights, averages
            and optimiser state are sharded, for networks that do not fit).
        dequantise: add uniform noise of one level's width to discrete data, new at each step, for a network that learns
            a density over their cells, which likelihoods in bits per dimension need.
        compile: run the network through torch.compile, which takes a minute at the first step, and again for held-out
            losses and pictures. Where torch finds no compiler that works, a warning says so and it runs as it is.
        checkpoint_activations: keep only what enters each block of the network, and compute its inside again in the
            backward pass: less memory for about a third more time, the very same gradients.
        channels_last: memory layout of images, faster on CPUs and on most GPUs.
        max_seconds: time budget of training, resumed parts counted; saved and ended when it is spent. None: no limit.
        checkpoint_every: steps between checkpoints; 0 saves at the end only.
        keep_last: newest checkpoints kept; 0 keeps all.
        keep_best: checkpoints of the lowest held-out loss kept beside them; 0 keeps none and measures none.
        async_save: write checkpoints while training goes on, which waits for the copy of its state alone; until it is
            written the copy takes as much memory of the host as its files take of the disk.
        log_every: steps between rows of metrics.csv.
        eval_every: steps between held-out losses; 0 evaluates at the end only.
        eval_samples: samples that the command draws at each evaluation, from the same noise, and compares with
            held-out data; 0 draws none.
        preview_every: steps between pictures of samples; 0 draws one at the end only.
        preview_samples: samples in a picture; 0 draws none.
        preview_steps: sampler steps of a picture, and of those samples.

    Raises:
        ConfigError: a value outside its range.
    """

    steps: int = checked(3000)
    batch_size: int = checked(128)
    accumulate: int = checked(1)
    optimizer: str | Mapping[str, Any] = "adam"
    learning_rate: float = checked(1e-3, above=0)
    weight_decay: float | None = checked(None, low=0)
    warmup: int = checked(200, low=0)
    schedule: Literal["constant", "cosine", "inverse-sqrt"] = checked("cosine", choices=SCHEDULES)
    decay_after: int | None = checked(None)
    clip: float | None = checked(1.0, above=0, infinite=True)
    learned_weighting: bool = checked(False)
    ema: float | tuple[float, ...] = 0.999
    posthoc_every: int = checked(0, low=0)
    precision: Literal["float32", "bf16"] = checked("float32", choices=("float32", "bf16"))
    strategy: Literal["ddp", "fsdp"] = checked("ddp", choices=("ddp", "fsdp"))
    dequantise: bool = checked(False)
    compile: bool = checked(False)
    checkpoint_activations: bool = checked(False)
    channels_last: bool = checked(True)
    max_seconds: float | None = checked(None, above=0, infinite=True)
    checkpoint_every: int = checked(1000, low=0)
    keep_last: int = checked(3, low=0)
    keep_best: int = checked(1, low=0)
    async_save: bool = checked(True)
    log_every: int = checked(50)
    eval_every: int = checked(1000, low=0)
    eval_samples: int = checked(0, low=0)
    preview_every: int = checked(0, low=0)
    preview_samples: int = checked(64, low=0)
    preview_steps: int = checked(50)

    def __post_init__(self) -> None:
        checks.fields(self, "trainer")
        object.__setattr__(self, "optimizer", checked_choice(self.optimizer))
        several = self.ema if isinstance(self.ema, list | tuple) else (self.ema,)
        decays = tuple(checks.number("trainer", "ema", d, low=0.0, high=1.0, open_high=True) for d in several)
        if not decays or len(set(decays)) < len(decays):
            raise ConfigError(f"trainer: ema must be a decay or several different ones, got {self.ema!r}")
        object.__setattr__(self, "ema", decays if isinstance(self.ema, list | tuple) else decays[0])
        if self.decay_after is not None and self.schedule != "inverse-sqrt":
            raise ConfigError(
                f"trainer: decay_after goes with schedule='inverse-sqrt', but schedule is {self.schedule!r}"
            )
        if self.accumulate > self.batch_size:
            raise ConfigError(
                f"trainer: accumulate must be at most batch_size ({self.batch_size}), got {self.accumulate}"
            )

    def rate(self, step: int, seconds: float = 0.0) -> float:
        r"""Learning rate of the 0-based `step`: linear warm-up times the schedule.

        At step t of T, "constant" is 1, "cosine" :math:`(1 + \cos(\pi t/T))/2`, and "inverse-sqrt"
        :math:`1/\sqrt{\max(t/t_0, 1)}` with :math:`t_0` = `decay_after`: with the warm-up's length that of Vaswani et
        al. 2017 (arXiv:1706.03762), with a longer one that of EDM2 (Karras et al. 2024, arXiv:2312.02696).

        Under a time budget the cosine follows `seconds` (of training so far) where those are nearer to their end than
        the steps, so that it comes down in time; without a budget the rate depends on `step` alone.
        """
        rate = self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup))
        if self.schedule == "cosine":
            done = step / self.steps
            if self.max_seconds is not None:
                done = max(done, seconds / self.max_seconds)
            rate *= 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        elif self.schedule == "inverse-sqrt":
            rate /= math.sqrt(max(1.0, (step + 1) / (self.decay_after or max(1, self.warmup))))
        return rate

    def check_parts(self, processes: int) -> None:
        """Refuse what does not go round among several processes.

        Raises:
            ConfigError: more processes times parts than samples in a batch; a learned weighting of a sharded network.
        """
        if self.learned_weighting and self.strategy == "fsdp" and processes > 1:
            raise ConfigError("trainer.learned_weighting=true does not go with trainer.strategy=fsdp; use ddp")
        if self.batch_size < processes * self.accumulate:
            raise ConfigError(
                f"trainer.batch_size={self.batch_size} is too small for {processes} processes with "
                f"trainer.accumulate={self.accumulate}; it must be at least {processes * self.accumulate}"
            )

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all settings."""
        return tuple(field.name for field in dataclasses.fields(cls))
