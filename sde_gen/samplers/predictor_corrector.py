"""Predictor-corrector sampling: a corrector's moves at each time, then a predictor's step to the next.

The order at each time is that of the original, corrector first. The last time gets its corrector moves too and ends in
the denoised estimate. Song et al. 2021, arXiv:2011.13456.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sde_gen.errors import ConfigError
from sde_gen.perturbations import Perturbation
from sde_gen.samplers.grid_sampler import GridSampler, Run, Step
from sde_gen.samplers.grids import TimeGrid
from sde_gen.samplers.langevin import AnnealedLangevin, Corrector, Langevin
from sde_gen.samplers.one_step import ReverseDiffusion
from sde_gen.samplers.restart import Restart


@dataclass(frozen=True)
class PredictorCorrector(GridSampler):
    """Predictor-corrector sampler.

    With `denoise=True` and a one-call predictor, `steps=N` and M corrector steps call the network N (M + 1) times.

    Args:
        predictor: a fixed-step sampler whose rule takes the step; None leaves the state as it is ("corrector only").
        corrector: a `Corrector`; None is the predictor alone. By default `Langevin(snr=0.05)`: the 0.16 of the paper is
            that of VE on CIFAR-10, and on small data less is better.

    Raises:
        ConfigError: if a predictor has steps or a grid of its own, or an argument is of the wrong kind.
    """

    predictor: GridSampler | None = field(default_factory=ReverseDiffusion)
    corrector: Corrector | None = field(default_factory=lambda: Langevin(snr=0.05))

    default_steps = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        p, c = self.predictor, self.corrector
        if p is not None and (
            not isinstance(p, GridSampler) or isinstance(p, PredictorCorrector | AnnealedLangevin | Restart)
        ):
            raise ConfigError(
                "PredictorCorrector: predictor must be a sampler with a step rule such as ReverseDiffusion(), or None, "
                f"got {p!r}"
            )
        if p is not None and (p.steps is not None or p.grid is not None):
            raise ConfigError(
                "PredictorCorrector: set steps and grid on the PredictorCorrector, not on its predictor "
                f"{type(p).__name__}"
            )
        if c is not None and not isinstance(c, Corrector):
            raise ConfigError(
                f"PredictorCorrector: corrector must be a Corrector such as Langevin() or None, got {c!r}"
            )
        if p is None and c is None:
            raise ConfigError("PredictorCorrector: give a predictor, a corrector, or both; got neither")

    @property
    def order(self) -> float | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The predictor's order without a corrector; None with one, whose own bias does not fall with more steps."""
        return self.predictor.order if self.predictor is not None and self.corrector is None else None

    @property
    def is_stochastic(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.corrector is not None or (self.predictor is not None and self.predictor.is_stochastic)

    @property
    def is_finite_without_signal(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.predictor is not None and self.predictor.is_finite_without_signal

    def grid_for(self, perturbation: Perturbation) -> TimeGrid:
        return self.grid or (self.predictor or ReverseDiffusion()).grid_for(perturbation)

    def stepper(self, run: Run) -> Step:
        predict = None if self.predictor is None else self.predictor.stepper(run)
        move = None if self.corrector is None else self.corrector.mover(run)

        def step(k: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
            if move is not None:
                x = move(k, x)
            return (x, memory) if predict is None else predict(k, x, memory)

        return step

    def last_stepper(self, run: Run) -> Step | None:
        denoise = super().last_stepper(run)
        if denoise is None or self.corrector is None:
            return denoise
        move, last = self.corrector.mover(run), len(run.times) - 1
        return lambda k, x, memory: denoise(k, move(last, x), memory)
