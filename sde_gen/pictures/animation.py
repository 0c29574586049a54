"""The reverse process as an animation."""

from pathlib import Path

from torch import Tensor

from sde_gen import pictures
from sde_gen.model import ScoreModel

_FRAMES = 60  # of an animation, at most
_IMAGES = 36  # in a frame, at most


class Frames:
    """States of a sampler, each divided by the standard deviation of a datum of unit size there; use it as a callback.

    Args:
        model: that is sampled.
    """

    def __init__(self, model: ScoreModel) -> None:
        self._model, self._every = model, 1
        self._states: list[tuple[float, Tensor]] = []

    def __call__(self, step: int, t: float, x: Tensor) -> None:
        """Keep every n-th state; n doubles whenever there are too many."""
        if step % self._every == 0 or t == 0.0:
            p = self._model.perturbation
            size = (float(p.alpha(t)) ** 2 + float(p.sigma(t)) ** 2) ** 0.5
            kept = _IMAGES if x.ndim == 4 else len(x)
            self._states.append((t, (x[:kept] / max(size, 1e-12)).float().cpu()))
        if len(self._states) > 2 * _FRAMES:
            self._states = self._states[::2]
            self._every *= 2

    def save(self, path: Path) -> None:
        """Write them as an animated GIF, the last state included.

        Raises:
            WriteError, OutputError: it could not be written.
        """
        states = self._states[:: max(1, len(self._states) // _FRAMES)]
        if states[-1] is not self._states[-1]:
            states = [*states, self._states[-1]]
        images = states[-1][1].ndim == 4
        limits = None if images else pictures.limits_of([state for _, state in states])
        drawn = [
            pictures.image_grid(state) if images else pictures.scatter({f"t = {t:.3f}": state}, limits)
            for t, state in states
        ]
        pictures.save_animation(drawn, path)
