"""From data that are given, through noise, back to data."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.conditions import Condition
from sde_gen.errors import ConfigError
from sde_gen.guidance.guided import Guided
from sde_gen.model import Levels, ScoreModel
from sde_gen.perturbations import Perturbation
from sde_gen.rng import SeededNoise


class Edited(Guided):
    """A model whose samplers begin at less than the most noise, from data that are given. Meng et al. 2022 (SDEdit),
    arXiv:2108.01073.

        edited = sg.guidance.Edited(model, strength=0.5)
        x = sampler(edited, start=edited.start(x0, seed=0), seed=1).x

    Args:
        model: the model.
        strength: in (0, 1]: the share of the way from data to noise, a time of the process that the model was trained
            under; what is coarser than its noise stays.

    Raises:
        ConfigError: for a strength outside its range, or below the least noise that is sampled.
    """

    starts_late = True

    def __init__(self, model: ScoreModel, strength: float = 0.5) -> None:
        super().__init__(model)
        self.no_density = model.no_density
        self.strength = checks.number("Edited", "strength", strength, low=0.0, high=1.0, open_low=True)
        low, high = model.times_within()
        trained = model.trained_under
        half_log_snr = float(trained.half_log_snr(min(self.strength, trained.t_max)))
        self.time = high if half_log_snr <= float(self.perturbation.half_log_snr(high)) else self._at(half_log_snr)
        if self.time <= low:
            raise ConfigError(f"Edited: strength={self.strength:g} is less noise than samplers end at, t = {low:g}; "
                              "give more")  # fmt: skip

    def _at(self, half_log_snr: float) -> float:
        return float(self.perturbation.time(torch.tensor(half_log_snr, dtype=torch.float64)))

    def under(self, perturbation: Perturbation) -> "Edited":
        return Edited(self.base.under(perturbation), self.strength)

    def times_within(self, t_low: float | None = None) -> tuple[float, float]:
        return self.base.times_within(t_low)[0], self.time

    def start(self, x0: Tensor, seed: int = 0, first: int = 0) -> Tensor:
        """alpha x0 + sigma z at the time where samplers begin, shaped like x0; z of sample i depends on (seed, i).

        Args:
            x0: data, (B, *shape), on the model's scale.
            seed: whole number in [0, 2^64).
            first: index of the first sample.
        """
        return self.perturbation.perturb(
            x0, torch.tensor(self.time, dtype=torch.float64), SeededNoise(seed, first)(x0, -1, 0)
        )

    def levels(
        self, alpha: Tensor, sigma: Tensor, like: Tensor, condition: Mapping[str, Any] | Condition | None = None
    ) -> Levels:
        return self.base.levels(alpha, sigma, like, condition)

    def __repr__(self) -> str:
        return f"Edited({self.base!r}, strength={self.strength:g})"
