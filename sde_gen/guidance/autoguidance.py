"""Away from a worse model of the same data."""

from torch import Tensor

from sde_gen.conditions import Condition
from sde_gen.errors import ConfigError
from sde_gen.guidance.extrapolation import Extrapolated
from sde_gen.guidance.guided import Scale
from sde_gen.model import Levels, ScoreModel
from sde_gen.parameterizations import DataPrediction
from sde_gen.perturbations import Perturbation


class Autoguidance(Extrapolated):
    """Guidance by a worse model of the same data, D_w = D_bad + w (D - D_bad). Karras et al. 2024, arXiv:2406.02507.

    Args:
        model: the good one.
        bad: the bad one, such as a smaller or a less trained one, moved to the perturbation of `model`; it is told the
            same condition.
        scale: w: 0 is the bad model, 1 the good one; a function of sigma/alpha makes a schedule.
        interval: (low, high] of sigma/alpha outside of which `model` alone counts. None: everywhere.
        rescale: as of `ClassifierFree`.

    Raises:
        ConfigError: for an argument of another kind or outside its range.
    """

    def __init__(
        self,
        model: ScoreModel,
        bad: ScoreModel,
        scale: Scale = 2.0,
        interval: tuple[float, float] | None = None,
        *,
        rescale: float = 0.0,
    ) -> None:
        if not isinstance(bad, ScoreModel):
            raise ConfigError(f"Autoguidance: bad must be a ScoreModel, got {type(bad).__name__}")
        alike = isinstance(model, ScoreModel) and model.parameterization == bad.parameterization
        super().__init__(model, scale, interval, rescale, None if alike else DataPrediction())
        self.bad = bad if bad.perturbation == model.perturbation else bad.under(model.perturbation)

    def under(self, perturbation: Perturbation) -> "Autoguidance":
        both = self.base.under(perturbation), self.bad.under(perturbation)
        return Autoguidance(*both, self.scale, self.interval, rescale=self.rescale)

    def times_within(self, t_low: float | None = None) -> tuple[float, float]:
        (low, high), (bad_low, bad_high) = self.base.times_within(t_low), self.bad.times_within(t_low)
        return max(low, bad_low), min(high, bad_high)

    def pair(self, alpha: Tensor, sigma: Tensor, like: Tensor, condition: Condition) -> tuple[Levels, Levels]:
        return self.base.levels(alpha, sigma, like, condition), self.bad.levels(alpha, sigma, like, condition)
