r"""Langevin steps that are accepted or refused, so that they leave their target as it is, whatever their size.

A step proposes :math:`x' = x + e\,s(x) + \sqrt{2e}\,z`, s the score, and is taken with the probability min(1, a),

.. math:: \log a = \log\frac{p(x')}{p(x)} - \frac{|x - x' - e\,s(x')|^2 - |x' - x - e\,s(x)|^2}{4e} ,

which makes it reversible under p (MALA; Roberts & Tweedie 1996). Where no density is known, its logarithm's difference
is the line integral of the score, here by the trapezoid between the two points, whose scores are known anyway
(Sjoeberg et al. 2023, arXiv:2307.14012): exact for a Gaussian, off by O(|x' - x|^3) elsewhere.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sde_gen.model import Levels, combine
from sde_gen.oracles import Oracle
from sde_gen.samplers.noise import NoiseSource
from sde_gen.shapes import trailing

__all__ = ["langevin_chain", "log_acceptance"]


def log_acceptance(
    x: Tensor, score: Tensor, new: Tensor, new_score: Tensor, size: float, gain: Tensor | None
) -> Tensor:
    """log a of each row, (B,).

    Args:
        x, score: the state and the score there.
        new, new_score: those proposed.
        size: e > 0.
        gain: log p(new) - log p(x), (B,), or None where the density is not known.
    """
    moved = new - x
    if gain is None:
        gain = _dot(moved, score + new_score) / 2
    there, back = moved - size * score, -moved - size * new_score
    return gain - (_dot(back, back) - _dot(there, there)) / (4 * size)


def langevin_chain(
    levels: Levels, noise: NoiseSource, sizes: list[float], metropolis: bool = True
) -> Callable[[int, Tensor, int], tuple[Tensor, Tensor]]:
    """The moves (k, x, steps) -> (x, x0hat there) at the levels of a run: steps + 1 calls of the model.

    Args:
        levels: the model; that of an oracle knows its density.
        noise: the source; of step j draws 2 j for the proposal and 2 j + 1 for the decision.
        sizes: e at each level.
        metropolis: whether steps may be refused.
    """
    law = levels.model.law if metropolis and isinstance(levels.model, Oracle) else None
    of_x = ((levels.alpha * levels.skip - 1) / levels.sigma.square()).tolist()
    of_raw = (levels.alpha * levels.out / levels.sigma.square()).tolist()

    def at(k: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        raw = levels.raw(k, x)
        known = None if law is None else law.log_marginal(x, levels.alpha[k], levels.sigma[k])
        return raw, combine(x, of_x[k], raw, of_raw[k]), known

    def move(k: int, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        size = sizes[k]
        raw, score, density = at(k, x)
        for j in range(steps):
            new = torch.add(x, score, alpha=size).add_(noise(x, k, 2 * j), alpha=(2 * size) ** 0.5)
            new_raw, new_score, new_density = at(k, new)
            if not metropolis:
                x, raw, score = new, new_raw, new_score
                continue
            gain = None if density is None or new_density is None else new_density - density
            accept = log_acceptance(x, score, new, new_score, size, gain)
            # The first normal number of a sample's own draw, as a uniform one.
            uniform = torch.special.ndtr(noise(x, k, 2 * j + 1).flatten(1)[:, 0])
            taken = uniform.log() < accept
            keep = trailing(taken, x.ndim)
            x, raw, score = (torch.where(keep, a, b) for a, b in ((new, x), (new_raw, raw), (new_score, score)))
            if density is not None and new_density is not None:
                density = torch.where(taken, new_density, density)
        return x, combine(x, float(levels.skip[k]), raw, float(levels.out[k]))

    return move


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)
