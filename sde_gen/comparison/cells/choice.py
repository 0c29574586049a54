"""What a sampler that measures first chooses for a model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from sde_gen.comparison.cells.cell import Context, Result
from sde_gen.comparison.cells.models import OfModel
from sde_gen.config.objects import describe
from sde_gen.tuning import Auto


@dataclass(frozen=True, kw_only=True, eq=False)
class SamplerChoice(OfModel):
    """The choice, once for all seeds; and what it cost."""

    kind: ClassVar[str] = "choice"
    sampler: Auto

    def compute(self, context: Context, stop: Callable[[], bool]) -> Result:
        """The chosen sampler as plain data, its calls and error, calls and seconds of the calibration."""
        found = self.sampler.choose(self.model(context), context.data.shape)
        result = {"sampler_chosen": describe(found.sampler, "sampler"), "nfe": found.nfe, "error": found.error}
        return {**result, "calibration_nfe": found.calibration_nfe, "seconds": found.calibration_seconds}, {}
