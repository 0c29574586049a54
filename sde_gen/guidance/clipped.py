"""Models whose x0hat stays where the data are."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.conditions import Condition
from sde_gen.errors import ConfigError
from sde_gen.guidance.guided import Guided, GuidedLevels
from sde_gen.model import ScoreModel
from sde_gen.parameterizations import DataPrediction
from sde_gen.perturbations import Perturbation
from sde_gen.shapes import trailing


class Bounded(Guided):
    """A model whose x0hat is changed by `bounded`; noise, score and v follow from it."""

    no_density = ("a model whose x0hat is clipped is the denoiser of no data, so it has no likelihood; ask for that of "
                  "the model without the clip")  # fmt: skip

    def bounded(self, x0: Tensor) -> Tensor:
        """x0hat within its bounds, each sample by itself."""
        raise NotImplementedError

    def levels(
        self, alpha: Tensor, sigma: Tensor, like: Tensor, condition: Mapping[str, Any] | Condition | None = None
    ) -> "BoundedLevels":
        return BoundedLevels(self, alpha, sigma, like, self.told(condition, len(like)))


class BoundedLevels(GuidedLevels):
    """A model at some noise levels, its x0hat within bounds."""

    def __init__(self, model: Bounded, alpha: Tensor, sigma: Tensor, like: Tensor, condition: Condition) -> None:
        super().__init__(model, alpha, sigma, like, condition)
        self._bounded, self._base = model, model.base.levels(alpha, sigma, like, condition)

    def output(self, k: int, x: Tensor) -> Tensor:
        denoised, variance = self.asked(self._base, k, x)
        denoised = self._bounded.bounded(denoised)
        return denoised if variance is None else torch.cat([denoised, variance], 1)


class Clipped(Bounded):
    """A model whose x0hat is cut to [low, high] at every noise level, for data that have such a range.

    Args:
        model: the model, on the scale of its data.
        low, high: the range, such as -1 and 1 for images.

    Raises:
        ConfigError: unless low < high.
    """

    def __init__(self, model: ScoreModel, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(model, DataPrediction())
        self.low = checks.number("Clipped", "low", low)
        self.high = checks.number("Clipped", "high", high)
        if self.low >= self.high:
            raise ConfigError(f"Clipped: low must be less than high, got {self.low!r} and {self.high!r}")

    def under(self, perturbation: Perturbation) -> "Clipped":
        return Clipped(self.base.under(perturbation), self.low, self.high)

    def bounded(self, x0: Tensor) -> Tensor:
        return x0.clamp(self.low, self.high)

    def __repr__(self) -> str:
        return f"Clipped({self.base!r}, {self.low:g}, {self.high:g})"


class Thresholded(Bounded):
    """A model whose x0hat is scaled into [-1, 1] by a quantile of its own: dynamic thresholding.

    With s the quantile of |x0hat| within a sample, at least 1 and at most `most`, x0hat becomes clip(x0hat, -s, s)/s: a
    sample that strays is drawn back as a whole, not only cut flat. Saharia et al. 2022, arXiv:2205.11487.

    Args:
        model: the model, with data in [-1, 1].
        quantile: in (0, 1].
        most: upper bound of s, >= 1; 1 cuts to [-1, 1] as `Clipped` does. None: no bound.

    Raises:
        ConfigError: for values outside these.
    """

    def __init__(self, model: ScoreModel, quantile: float = 0.995, most: float | None = None) -> None:
        super().__init__(model, DataPrediction())
        self.quantile = checks.number("Thresholded", "quantile", quantile, low=0.0, high=1.0, open_low=True)
        self.most = None if most is None else checks.number("Thresholded", "most", most, low=1.0)

    def under(self, perturbation: Perturbation) -> "Thresholded":
        return Thresholded(self.base.under(perturbation), self.quantile, self.most)

    def bounded(self, x0: Tensor) -> Tensor:
        wide = x0.abs().flatten(1).to(torch.promote_types(x0.dtype, torch.float32))
        s = trailing(_quantile(wide, self.quantile).clamp(1.0, self.most).to(x0.dtype), x0.ndim)
        return torch.maximum(torch.minimum(x0, s), -s) / s

    def __repr__(self) -> str:
        return f"Thresholded({self.base!r}, quantile={self.quantile:g}, most={self.most})"


def _quantile(values: Tensor, q: float) -> Tensor:
    """The quantile of each row, linear between order statistics; torch's own refuses rows of 2^24 numbers and more."""
    place = q * (values.shape[1] - 1)
    low = int(place)
    rows = values.sort(1).values
    return torch.lerp(rows[:, low], rows[:, min(low + 1, values.shape[1] - 1)], place - low)
