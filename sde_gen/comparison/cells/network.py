"""Training one network of a comparison: found in the cache, continued from its checkpoint, or trained."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch

from sde_gen.comparison.cells.cell import Cell, Context, Result
from sde_gen.config.objects import build, describe
from sde_gen.files import locked, make_folder
from sde_gen.model import ScoreModel
from sde_gen.objectives import DenoisingScoreMatching
from sde_gen.parameterizations import Parameterization
from sde_gen.perturbations import Perturbation
from sde_gen.training import Interrupted, Trainer, TrainerSettings, newest_checkpoint
from sde_gen.training.checkpoint import Checkpoint

#: Settings of the trainer that do not change what is learned.
FREE = (
    "checkpoint_every", "keep_last", "keep_best", "async_save", "log_every", "eval_every", "eval_samples",
    "preview_every", "preview_samples", "preview_steps",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedNetwork(Cell):
    """A network trained under a formulation.

    The network's first weights, the order of the data, and the times and noises of each step are functions of the
    seed and so the same for every formulation.
    """

    kind: ClassVar[str] = "model"
    perturbation: Perturbation
    parameterization: Parameterization
    objective: DenoisingScoreMatching
    network: Mapping[str, Any]
    """As a configuration names it."""
    trainer: TrainerSettings
    seed: int
    data: str
    """Fingerprint."""
    device: str

    @property
    def config(self) -> dict[str, Any]:  # type: ignore[override]
        """Without the settings that do not change what is learned."""
        whole = super().config
        return whole | {"trainer": {name: v for name, v in whole["trainer"].items() if name not in FREE}}

    def compute(self, context: Context, stop: Callable[[], bool]) -> Result:
        """How its training went; the network itself is left in the store."""
        if not context.afresh:
            return self.train(context, context.store.model(self.key), stop), {}
        with TemporaryDirectory(prefix=".afresh-", dir=context.store.root) as folder:
            return self.train(context, Path(folder), stop), {}

    def train(self, context: Context, folder: Path, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """Train in `folder`, or go on where it was left, and say how it went.

        Raises:
            Interrupted: `stop` asked; what was done is saved.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = build(self.network, trust=context.trust, where="network")
        parts = {"sde": self.perturbation, "parameterization": self.parameterization, "objective": self.objective}
        stored = {name: describe(part, name) for name, part in parts.items()}
        stored |= {"network": dict(self.network), "seed": self.seed, "trainer": asdict(self.trainer)}
        checkpoints = folder / "checkpoints"
        make_folder(checkpoints, "the folder of a network")  # and sweep it
        with locked(folder, wait=True):
            trained = Trainer(
                ScoreModel(network, self.perturbation, self.parameterization),
                context.data,
                self.objective,
                self.trainer,
                seed=self.seed,
                device=torch.device(context.device),
                checkpoints=checkpoints,
                config=stored,
                stop=stop,
            )
            found, _ = newest_checkpoint(checkpoints)
            if found is not None:
                trained.resume(found)
            last = dict(trained.last) if finished(found, self.trainer) else trained.train()
            if not finished(newest_checkpoint(checkpoints)[0], self.trainer):
                raise Interrupted(f"training stopped at step {trained.step} of {self.trainer.steps}, which is saved")
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
