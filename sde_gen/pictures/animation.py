"""The forward process as a strip of pictures, the reverse process as an animation."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.model import ScoreModel
from sde_gen.perturbations import Perturbation
from sde_gen.pictures.animated import save_animation
from sde_gen.pictures.drawing import image_grid
from sde_gen.pictures.lines import series, series_range, slices
from sde_gen.pictures.plots import limits_of, picture_of, scatter

if TYPE_CHECKING:
    from PIL.Image import Image

_FRAMES = 60  # of an animation, at most
_IMAGES = 36  # in a frame, at most


class Frames:
    """States of a sampler, each divided by the standard deviation of a datum of unit size there; use it as a callback.

    Args:
        model: that is sampled.
        seen: what a state is drawn as, such as what latents decode into; itself by default.
    """

    def __init__(self, model: ScoreModel, seen: Callable[[Tensor], Tensor] | None = None) -> None:
        self._model, self._every, self._seen = model, 1, seen or (lambda x: x)
        self._states: list[tuple[float, Tensor]] = []

    def __call__(self, step: int, t: float, x: Tensor) -> None:
        """Keep every n-th state; n doubles whenever there are too many."""
        if step % self._every == 0 or t == 0.0:
            p = self._model.perturbation
            size = float(p.size(t))
            kept = _IMAGES if x.ndim > 3 else len(x)
            self._states.append((t, (x[:kept] / max(size, 1e-12)).float().cpu()))
        if len(self._states) > 2 * _FRAMES:
            self._states = self._states[::2]
            self._every *= 2

    def save(self, path: Path) -> None:
        """Write them as an animation, a .gif or .mp4, the last state included.

        Raises:
            MissingInputError: an MP4 without imageio-ffmpeg.
            WriteError, OutputError: it could not be written.
        """
        states = self._states[:: -max(1, len(self._states) // _FRAMES)][::-1]
        save_animation(_drawn([(f"t = {t:.3f}", self._seen(state)) for t, state in states]), path)


def _drawn(states: Sequence[tuple[str, Tensor]]) -> list["Image"]:
    """Each state as a picture, all on one scale."""
    every = [state for _, state in states]
    if every[0].ndim > 3:
        return [picture_of(state) for state in every]
    if every[0].ndim == 3:
        span = series_range(every)
        return [series({title: state}, span) for title, state in states]
    limits = limits_of(every)
    return [scatter({title: state}, limits) for title, state in states]


def forward_strip(perturbation: Perturbation, data: Tensor, seed: int = 0, columns: int = 9) -> "Image":
    """The forward process: the same few samples at times from 0 to the prior, left to right.

    Each state is divided by sqrt(alpha^2 + sigma^2), so that processes that grow can be seen on one scale.

    Args:
        perturbation: the process.
        data: (N, C, H, W), of which the first 6 are drawn, a volume's slices, series (N, C, L), or (N, D).
        seed: of the noise, the same at all times.
        columns: number of times, at least 2.
    """
    checks.integer("forward_strip", "columns", columns, low=2)
    data = data.detach().double().cpu()
    kept = slices(data[:1])[0] if data.ndim == 5 else data[:6] if data.ndim == 4 else data
    noise = torch.randn(kept.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    last, states = perturbation.t_max, {}
    for k in range(columns):
        t = last * k / (columns - 1)
        size = float(perturbation.size(t))
        states[f"t = {t:.2f}"] = perturbation.perturb(kept, t, noise) / max(size, 1e-12)
    if kept.ndim == 4:
        return image_grid(torch.stack(list(states.values()), dim=1).flatten(0, 1), columns=columns)
    if kept.ndim == 3:
        return series(states, series_range([kept, noise]))
    return scatter(states, limits=limits_of([kept, noise]))
