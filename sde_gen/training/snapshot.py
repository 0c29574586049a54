"""What a checkpoint holds of a trainer, a trainer from what a checkpoint holds, and what all processes must share."""

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sde_gen.errors import CheckpointError
from sde_gen.training.checkpoint import Checkpoint, save_checkpoint
from sde_gen.training.faults import TrainingFault
from sde_gen.training.sharding import collected
from sde_gen.training.state import check_weights, load_weights, pack_optimizer, unpack_optimizer

if TYPE_CHECKING:
    from sde_gen.training.trainer import Trainer


def save_snapshot(trainer: "Trainer", folder: Path, held_out_loss: float | None) -> Path:
    """Publish a checkpoint of the trainer's step; every process must call it, process 0 writes.

    Raises:
        TrainingFault: the weights are not finite.  WriteError, OutputError: they could not be written.
    """
    state = {
        "seconds": trainer.seconds,
        "seed": trainer.seed,
        "ema_updates": trainer.ema.updates,
        "skipped": [trainer.faults.total, trainer.faults.in_a_row],
        "data": trainer.data.to_dict(),
        "conditional": trainer.conditional,
        "held_out_loss": held_out_loss,
        "metrics": trainer.last,
    }
    main, s = trainer.processes.is_main, trainer.settings
    tensors = {
        "model": collected(trainer.network.state_dict(), main),
        "ema": collected(trainer.ema.state_dict(), main),
        "optimizer": collected(pack_optimizer(trainer.optimizer, trainer.network), main),
    }

    def write() -> str:
        if not all(bool(t.isfinite().all()) for part in ("model", "ema") for t in tensors[part].values()):
            raise TrainingFault(trainer.step, (float("nan"), float("nan")), [], "weights", trainer.faults.in_a_row)
        return str(save_checkpoint(folder, trainer.step, tensors, trainer.config, state, s.keep_last, s.keep_best))

    return Path(trainer.processes.on_main(write))


def restore_snapshot(trainer: "Trainer", checkpoint: Checkpoint) -> None:
    """Weights, averaged weights, optimiser, step and counts of `checkpoint`, all or (if it does not fit) none.

    Raises:
        CheckpointError: it was made with other data, another seed or another network.
        ConfigError: another process has found another checkpoint.
    """
    state, path = checkpoint.state, checkpoint.path
    stored = state.get("data")
    if not isinstance(stored, dict) or stored.get("fingerprint") != trainer.data.fingerprint:
        raise CheckpointError(
            f"checkpoint {path} was trained on other data than {trainer.data.name} as it is now; "
            "restore the data, or start another run with run=NAME"
        )
    if state.get("seed") != trainer.seed:
        raise CheckpointError(
            f"checkpoint {path} was trained with seed={state.get('seed')}, not {trainer.seed}; "
            "repeat that seed, or start another run with run=NAME"
        )
    trainer.processes.agree({"checkpoint": json.dumps([checkpoint.step, checkpoint.digest])})
    skipped, in_a_row, ema_updates, seconds, last = _counts(checkpoint)
    weights, averages = checkpoint.tensors("model"), checkpoint.tensors("ema")
    # Imported weights come without an optimiser's state, and begin with a fresh one.
    moments = None if state.get("imported") else checkpoint.tensors("optimizer")
    # All is looked at before anything is changed.
    check_weights(trainer.network, weights, path)
    check_weights(trainer.network, averages, path)
    if moments is not None:
        unpack_optimizer(trainer.optimizer, trainer.network, moments, path)
    load_weights(trainer.network, weights, path)
    trainer.ema.load_state_dict(averages, ema_updates)
    trainer.step, trainer.seconds, trainer.last = checkpoint.step, seconds, last
    trainer.faults.total, trainer.faults.in_a_row = skipped, in_a_row


def _counts(checkpoint: Checkpoint) -> tuple[int, int, int, float, dict[str, Any]]:
    """Updates skipped in all and in a row, updates of the averages, seconds of training, last row of metrics."""
    state = checkpoint.state
    try:
        skipped, in_a_row = state.get("skipped", (0, 0))
        counts = [int(skipped), int(in_a_row), int(state.get("ema_updates", 0))]
        seconds, last = float(state.get("seconds", 0.0)), dict(state.get("metrics", {}))
        if min(counts) < 0 or not 0 <= seconds < math.inf:
            raise ValueError("a count is negative or endless")
    except (TypeError, ValueError, OverflowError) as error:
        where = checkpoint.path / "state.json"
        raise CheckpointError(f"{where} cannot be used ({error}); use another checkpoint") from error
    return counts[0], counts[1], counts[2], seconds, last


def agree_on_start(trainer: "Trainer") -> None:
    """Every process must have been started with the same settings, data and weights.

    Raises:
        ConfigError: another process was not.
    """
    if trainer.processes.world > 1:
        settings = [repr(trainer.settings), trainer.seed, trainer.conditional, repr(trainer.objective), trainer.config]
        trainer.processes.agree(
            {
                "settings": json.dumps(settings, sort_keys=True, default=str),
                "data": trainer.data.fingerprint,
                "weights": weights_digest(trainer.model.network),
            }
        )


def weights_digest(network: Any) -> str:
    """SHA-256 of all names and values of a network's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
