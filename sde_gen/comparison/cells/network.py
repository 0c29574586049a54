"""Training one network of a comparison: found in the cache, continued from its checkpoint, or trained."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sde_gen.comparison.cells.store import exclusive
from sde_gen.config.objects import build
from sde_gen.config.typed import typed
from sde_gen.data import Dataset
from sde_gen.model import ScoreModel
from sde_gen.training import Interrupted, Trainer, TrainerSettings, newest_checkpoint
from sde_gen.training.checkpoint import Checkpoint, remove_leftovers

#: Settings of the trainer that do not change what is learned.
FREE = (
    "checkpoint_every", "keep_last", "keep_best", "log_every", "eval_every",
    "preview_every", "preview_samples", "preview_steps",
)  # fmt: skip


def learned_from(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """All settings that decide what is learned, defaults included."""
    settings = typed(TrainerSettings, trainer, "trainer")
    return {name: getattr(settings, name) for name in TrainerSettings.names() if name not in FREE}


def train(
    config: Mapping[str, Any],
    data: Dataset,
    folder: Path,
    *,
    trainer: Mapping[str, Any],
    device: torch.device,
    trust: Sequence[str] = (),
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train the network of a "model" cell in `folder`, or go on where it was left, and say how it went.

    The network's first weights, the order of the data, and the times and noises of each step are functions of the
    cell's seed and so the same for every formulation.

    Raises:
        Interrupted: `stop` asked; what was done is saved.
    """
    p, parameterization, objective = (
        build(config[name], trust=trust, where=name) for name in ("perturbation", "parameterization", "objective")
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        network = build(config["network"], trust=trust, where="network")
    settings = typed(TrainerSettings, trainer, "trainer")
    stored = {name: config[name] for name in ("network", "parameterization", "objective", "seed")}
    stored |= {"sde": config["perturbation"], "trainer": dict(trainer)}
    with exclusive(folder):
        trained = Trainer(
            ScoreModel(network, p, parameterization),
            data,
            objective,
            settings,
            seed=config["seed"],
            device=device,
            checkpoints=folder / "checkpoints",
            config=stored,
            stop=stop,
        )
        remove_leftovers(folder / "checkpoints")
        found, _ = newest_checkpoint(folder / "checkpoints")
        if found is not None:
            trained.resume(found)
        last = dict(trained.last) if finished(found, settings) else trained.train()
        if not finished(newest_checkpoint(folder / "checkpoints")[0], settings):
            raise Interrupted(f"training stopped at step {trained.step} of {settings.steps}, which is saved")
    return {
        "steps": trained.step,
        "seconds": trained.seconds,
        "loss": last.get("loss"),
        "held_out_loss": last.get("held_out_loss"),
        "parameters": sum(weights.numel() for weights in network.parameters()),
    }


def finished(checkpoint: Checkpoint | None, settings: TrainerSettings) -> bool:
    """Whether a checkpoint is the end of its training: all steps done, or the time budget spent."""
    if checkpoint is None:
        return False
    spent = settings.max_seconds is not None and float(checkpoint.state.get("seconds", 0.0)) >= settings.max_seconds
    return checkpoint.step >= settings.steps or spent
