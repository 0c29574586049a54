"""How far a run has come, as plain data: the state of a checkpoint."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sde_gen.data import Dataset
from sde_gen.errors import CheckpointError
from sde_gen.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class Progress:
    """What a checkpoint's `state.json` says of a run.

    Attributes:
        step: optimiser steps done.
        seconds: of training, all parts together.
        seed: of everything.
        data: description of the data set, with its fingerprint and transform.
        conditional: whether the network is given labels.
        ema_updates: updates of the averaged weights.
        skipped: updates that were not made, in all, and of these the newest in a row.
        held_out_loss: of this step, where it was measured.
        metrics: the newest row of metrics.
        since_row: what the next row has so far: steps, those that count, sums of their losses and gradient norms.
        levels: the same by noise level: sums of losses and their numbers; nothing where there is nothing.
        blocks: the same by block: sums of gradient norms, and how many.
        imported: where the weights came from if they were not trained here; there is no optimiser state then.
    """

    step: int = 0
    seconds: float = 0.0
    seed: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    conditional: bool = False
    ema_updates: int = 0
    skipped: tuple[int, int] = (0, 0)
    held_out_loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    since_row: tuple[int, int, float, float] = (0, 0, 0.0, 0.0)
    levels: tuple[float, ...] = ()
    blocks: tuple[float, ...] = ()
    imported: Any = None

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {name: value for name, value in asdict(self).items() if name != "imported" or value is not None}

    @classmethod
    def of(cls, checkpoint: Checkpoint, seed: int, data: Dataset) -> "Progress":
        """What a checkpoint says, if it is of a run with this seed and data; older versions said less.

        Raises:
            CheckpointError: it is of another run, or damaged.
        """
        path = checkpoint.path
        known = {name: checkpoint.state[name] for name in cls.__dataclass_fields__ if name in checkpoint.state}
        stored = known.get("data")
        without = "imported" in checkpoint.state and isinstance(stored, Mapping) and not stored.get("fingerprint")
        if not without and (not isinstance(stored, Mapping) or stored.get("fingerprint") != data.fingerprint):
            raise CheckpointError(
                f"checkpoint {path} was trained on other data than {data.name} as it is now; "
                "restore the data, or start another run with run=NAME"
            )
        if known.get("seed") != seed:
            raise CheckpointError(
                f"checkpoint {path} was trained with seed={known.get('seed')}, not {seed}; "
                "repeat that seed, or start another run with run=NAME"
            )
        try:
            found = cls(**known)
            (total, in_a_row), (steps, good, losses, norms) = found.skipped, found.since_row
            counts = [int(n) for n in (found.ema_updates, total, in_a_row, steps, good)]
            if min(counts) < 0 or not 0 <= float(found.seconds) < math.inf:
                raise ValueError("a count is negative or endless")
            return replace(
                found, seconds=float(found.seconds), ema_updates=counts[0], skipped=(counts[1], counts[2]),
                metrics=dict(found.metrics), since_row=(counts[3], counts[4], float(losses), float(norms)),
                levels=tuple(float(n) for n in found.levels), blocks=tuple(float(n) for n in found.blocks),
            )  # fmt: skip
        except (TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{path / 'state.json'} cannot be used ({error}); use another checkpoint") from error
