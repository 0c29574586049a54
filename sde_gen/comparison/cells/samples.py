"""Cells that draw samples: with their distances, along the way from noise to data, and real ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_gen.comparison.cells.cell import Cell, Context, Result
from sde_gen.comparison.cells.models import OfModel, dtype_for, law_of
from sde_gen.config.objects import build
from sde_gen.errors import CheckpointError
from sde_gen.metrics import METRICS
from sde_gen.metrics.jackknife import points
from sde_gen.rng import keyed_generator
from sde_gen.samplers import ProbabilityFlow, Sampler


def measured(names: Sequence[str], x: Tensor, real: Tensor) -> dict[str, float | None]:
    """The metrics of samples `x` against held-out data `real`, each with its standard error over both sets.

    The real set and every random choice are the same for all cells.
    """
    a, b = points(x.float(), "samples"), points(real.float(), "held-out data")
    result: dict[str, float | None] = {}
    for name in names:
        found = METRICS[name].function(a, b, 0)
        result[name], result[f"{name}_standard_error"] = found.value, found.standard_error
    return result


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sampled(OfModel):
    """With a sampler as it is run, or the cell in which it is chosen by measurement."""

    sampler: Sampler | Cell
    seed: int

    def sampler_in(self, context: Context) -> Sampler:
        """The sampler; a chosen one is read."""
        if not isinstance(self.sampler, Cell):
            return self.sampler
        result = context.store.read(self.sampler)
        if result is None:
            raise CheckpointError(f"the sampler of cell {self.sampler.key} cannot be read; run the comparison again")
        return build(result["sampler_chosen"], trust=context.trust, where="sampler")

    def draw(self, context: Context, sampler: Sampler, count: int, callback: Any = None) -> Any:
        """Samples of the model."""
        model, shape = self.model(context), (count, *context.data.shape)
        return sampler(model, shape, seed=self.seed, dtype=dtype_for(model), device=context.device, callback=callback)


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnSamples(_Sampled):
    """Samples, their distances to held-out data, and the first `keep` of them for the report."""

    kind: ClassVar[str] = "samples"
    num_samples: int
    measures: tuple[str, ...]
    keep: int

    def compute(self, context: Context, stop: Callable[[], bool]) -> Result:
        """Calls, seconds and distances."""
        drawn = self.draw(context, self.sampler_in(context), self.num_samples)
        result = {"nfe": int(drawn.nfe), "seconds": drawn.seconds}
        result |= measured(self.measures, drawn.x, context.data.test[: self.num_samples])
        return result, {"x": drawn.x[: self.keep].float().cpu().numpy()} if self.keep else {}


@dataclass(frozen=True, kw_only=True, eq=False)
class Way(_Sampled):
    """States of a few samples along the way, divided by sqrt(alpha^2 + sigma^2), from the prior to the data."""

    kind: ClassVar[str] = "trace"
    count: int
    frames: int

    def compute(self, context: Context, stop: Callable[[], bool]) -> Result:
        """The states and their times."""
        sampler = self.sampler_in(context)
        total = len(sampler.times(self.model(context))) + 1
        if isinstance(sampler, ProbabilityFlow):  # each sample has its own steps: one set of times, by dense output
            sampler, total = replace(sampler, at=self.frames - 2), self.frames
        wanted = {round(k * (total - 1) / (self.frames - 1)) for k in range(self.frames)}
        kept: list[tuple[float, Tensor]] = []

        def keep(step: int, t: float, x: Tensor) -> None:
            if step in wanted or t == 0.0:
                kept.append((t, x.detach().double().cpu()))

        self.draw(context, sampler, self.count, keep)
        times = torch.tensor([t for t, _ in kept], dtype=torch.float64)
        size = self.perturbation.size(times)
        # The last state is the denoised estimate: data, whatever the size of the process at t = 0.
        size[-1] = 1.0 if float(times[-1]) == 0.0 else size[-1]
        states = torch.stack([x / s for (_, x), s in zip(kept, size, strict=True)]).float().numpy()
        return {"frames": len(kept)}, {"x": states, "t": times.numpy()}


@dataclass(frozen=True, kw_only=True, eq=False)
class RealSamples(Cell):
    """As many real samples: where a perfect sampler would stand, as the mean of some draws."""

    kind: ClassVar[str] = "real"
    data: str
    law: str
    """Digest."""
    draws: int
    seed: int
    num_samples: int
    measures: tuple[str, ...]
    keep: int

    def compute(self, context: Context, stop: Callable[[], bool]) -> Result:
        """The distances."""
        data, count = context.data, self.num_samples
        law = law_of(data)
        # A stream of its own: data that were drawn from the same law have seeds too.
        generator = keyed_generator(self.seed, 7)

        def draw() -> Tensor:
            if law.known:
                return law.exact.sample(count, seed=int(torch.randint(2**62, (), generator=generator)))
            return data.train[torch.randperm(len(data.train), generator=generator)[:count]]

        drawn = [draw() for _ in range(self.draws)]
        found = [measured(self.measures, x, data.test[:count]) for x in drawn]
        values = {m: [v for one in found if (v := one[m]) is not None] for m in self.measures}
        kept = {"x": drawn[0][: self.keep].float().numpy()} if self.keep else {}
        return {m: fmean(v) for m, v in values.items() if v}, kept
