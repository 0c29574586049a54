r"""Averages of the weights whose length is chosen after training (Karras et al. 2024, arXiv:2312.02696).

The power-function average of exponent p = gamma + 1 at step t is

.. math:: s_t = (1 - 1/t)^p\, s_{t-1} + (1 - (1 - 1/t)^p)\, w_t
          = \sum_{i \le t} \Big[\Big(\frac it\Big)^p - \Big(\frac{i-1}t\Big)^p\Big] w_i ,

so that it grows with the run: its relative length, the standard deviation of i/t under these shares, is

.. math:: \sigma_{rel} = \frac{\sqrt p}{(p + 1)\sqrt{p + 2}} .

Of two such averages, of lengths 0.05 and 0.10, snapshots are kept while a run trains. Shares of an average of another
length are, by least squares, a sum of the snapshots' shares; the same sum of the snapshots is the average. Shares of a
snapshot add up to one, and those of the sum are held to it, so that a weight that never moved is exactly itself.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sde_gen import checks
from sde_gen.errors import CheckpointError
from sde_gen.training.checkpoint import Checkpoint, checkpoint_folders, read_checkpoint, save_checkpoint
from sde_gen.training.ema import EMA
from sde_gen.training.sharding import collected
from sde_gen.training.state import averages_of

LENGTHS = (0.05, 0.10)
_LONGEST = 1 / math.sqrt(12)  # p = 1, the plain mean of all steps
_WORST_FIT = 0.03  # of the shares' norm, what a sum of snapshots may be off
FOLDER = "averages"


class PowerEMA(EMA):
    """The power-function average of a network's weights.

    Args:
        module: the network that is trained.
        length: relative length in (0, 0.288].

    Raises:
        ConfigError: another length.
    """

    def __init__(self, module: nn.Module, length: float) -> None:
        super().__init__(module, decay=0.0, warmup=False)
        self.length, self._exponent = length, exponent(length)

    @property
    def label(self) -> str:
        """What a checkpoint calls it."""
        return f"power={self.length!r}"

    def next_decay(self) -> float:
        """(1 - 1/t)^p for the next step t."""
        return (1 - 1 / (self.updates + 1)) ** self._exponent


def exponent(length: float) -> float:
    """p of the power-function average of relative length `length`: the root of p / ((p + 1)^2 (p + 2)) = length^2.

    Raises:
        ConfigError: a length outside (0, 0.288], the last of which is the mean of all steps.
    """
    s = checks.number("a power-function average", "relative length", length, low=0.0, high=_LONGEST, open_low=True)
    low, high = 1.0, 2.0
    while relative_length(high) > s:
        low, high = high, 2 * high
    for _ in range(100):  # which is past the last digit
        middle = (low + high) / 2
        low, high = (middle, high) if relative_length(middle) > s else (low, middle)
    return low


def relative_length(p: float) -> float:
    """Standard deviation of i/t under the shares p (i/t)^(p-1)."""
    return math.sqrt(p / (p + 2)) / (p + 1)


class Snapshot(NamedTuple):
    """A power-function average of a step; also one that is asked for."""

    length: float
    step: int


def combination(kept: Sequence[Snapshot], wanted: Snapshot) -> tuple[Tensor, float]:
    """Factors of the kept averages whose sum is the wanted one, float64, and its misfit.

    Minimised is the squared difference of the shares of all steps; the misfit is its root, over the norm of the shares
    wanted.
    """
    all_of_them = [*kept, wanted]
    steps = sorted({snapshot.step for snapshot in all_of_them})
    powers = {length: exponent(length) for length in {snapshot.length for snapshot in all_of_them}}
    sums = {(a, b): dict(zip(steps, _overlaps(powers[a], powers[b], steps), strict=True))
            for a in powers for b in powers if a <= b}  # fmt: skip

    def product(one: Snapshot, other: Snapshot) -> float:
        early, late = sorted((one, other), key=lambda snapshot: snapshot.step)
        a, b = sorted((one.length, other.length))
        return sums[a, b][early.step] * (early.step / late.step) ** powers[late.length]

    count = len(kept)
    gram = torch.tensor([[product(a, b) for b in all_of_them] for a in all_of_them], dtype=torch.float64)
    scale = gram.diagonal().rsqrt()
    gram = gram * scale * scale[:, None]
    # Lagrange's equations of the least squares with factors that add up to one.
    system = torch.zeros(count + 1, count + 1, dtype=torch.float64)
    system[:count, :count], system[:count, count] = gram[:count, :count], scale[:count]
    system[count, :count] = scale[:count]
    right = torch.cat([gram[:count, count], scale[count:]])
    solution = torch.linalg.lstsq(system, right[:, None], driver="gelsd").solution[:count, 0]
    error = torch.cat([solution, -torch.ones(1, dtype=torch.float64)])
    misfit = float((error @ gram @ error).clamp_min(0).sqrt())
    return solution * scale[:count] / scale[count], misfit


def _overlaps(a: float, b: float, steps: Sequence[int]) -> Iterator[float]:
    """The inner product of the shares of two averages of one step, for each of the ascending `steps`."""
    total, last = 0.0, 0
    for step in steps:
        i = torch.arange(last + 1, step + 1, dtype=torch.float64)
        share = torch.expm1(a * torch.log1p(-1 / i)) * torch.expm1(b * torch.log1p(-1 / i))
        total = total * (last / step) ** (a + b) + float((share * (i / step) ** (a + b)).sum())
        last = step
        yield total


def averaged_weights(checkpoint: Checkpoint, average: float) -> dict[str, Tensor]:
    """The network's state with the weights averaged as asked for, as of the step of a checkpoint.

    Args:
        checkpoint: of a run.
        average: a decay that the run kept an average of (`trainer.ema`); or the relative length of a power-function
            average, of a run with `trainer.posthoc_every`.

    Raises:
        ConfigError: neither a decay that was kept nor a length.
        CheckpointError: the run kept no snapshots, or too few for this length.
    """
    first = checkpoint.config.get("trainer", {}).get("ema")
    if average in (first if isinstance(first, list | tuple) else [first])[:1]:
        return checkpoint.tensors("ema")
    stored = averages_of(checkpoint) if (checkpoint.path / "averages.safetensors").is_file() else {}
    if f"decay={average!r}" in stored:
        return checkpoint.tensors("model") | stored[f"decay={average!r}"]
    own = {name for name in stored if name.startswith("power=")}
    if not own:
        there = ", ".join(["ema", "model", *sorted(stored)])
        raise CheckpointError(
            f"checkpoint {checkpoint.path} has no average {average}, only {there}; an average of any length is made of "
            "the snapshots of a run with trainer.posthoc_every=N"
        )
    wanted = Snapshot(average, checkpoint.step)
    exponent(average)
    kept = {Snapshot(float(name.removeprefix("power=")), checkpoint.step): checkpoint for name in own}
    for folder in checkpoint_folders(checkpoint.path.parent / FOLDER):
        if int(folder.name.removeprefix("step_")) < checkpoint.step:
            found = read_checkpoint(folder)
            kept |= {Snapshot(s.length, found.step): found for s in list(kept) if s.step == checkpoint.step}
    factors, misfit = combination(list(kept), wanted)
    if misfit > _WORST_FIT:
        raise CheckpointError(
            f"the {len(kept)} snapshots of {checkpoint.path.parent} give an average of length {average} only to "
            f"{misfit:.0%}; take one nearer to {' or '.join(map(str, LENGTHS))}, or train with a smaller "
            "trainer.posthoc_every"
        )
    return _combined(checkpoint, kept, factors)


def _combined(checkpoint: Checkpoint, kept: Mapping[Snapshot, Checkpoint], factors: Tensor) -> dict[str, Tensor]:
    state = checkpoint.tensors("model")
    sums: dict[str, Tensor] = {}
    there: dict[str, dict[str, Tensor]] = {}
    source: Checkpoint | None = None
    for (snapshot, holder), factor in zip(kept.items(), factors.tolist(), strict=True):
        if holder is not source:
            source, there = holder, averages_of(holder)
        for name, tensor in there.get(f"power={snapshot.length!r}", {}).items():
            part = tensor.to(torch.complex128 if tensor.is_complex() else torch.float64) * factor
            sums[name] = sums[name] + part if name in sums else part
    return state | {name: tensor.to(state[name].dtype) for name, tensor in sums.items()}


def all_averages(module: nn.Module, decays: float | Sequence[float], posthoc: bool) -> tuple[EMA, ...]:
    """What a run keeps: an average for each decay, and with `posthoc` the two whose snapshots serve later."""
    listed = decays if isinstance(decays, Sequence) else (decays,)
    return (*(EMA(module, decay) for decay in listed), *(PowerEMA(module, length) for length in LENGTHS if posthoc))


def snapshot(averages: Sequence[EMA], keep: bool, copy: bool) -> dict[str, Tensor]:
    """The power-function averages among those of a run, as `sde_gen.training.sharding.collected` has them."""
    own = {name: t for average in averages if isinstance(average, PowerEMA) for name, t in average.averages().items()}
    return collected(own, keep, copy)


def save_snapshot(folder: Path, step: int, tensors: Mapping[str, Tensor]) -> Path:
    """Keep the power-function averages of a step beside the checkpoints in `folder`.

    Raises:
        WriteError, OutputError: they could not be written.
    """
    return save_checkpoint(folder / FOLDER, step, {"averages": tensors}, {}, {}, keep_last=0)
