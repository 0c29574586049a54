r"""Split Gibbs: in turn a draw near the data given noise, and one near the observation.

With z = x + rho n, and the noise of the measurement split into that of z and the rest, :math:`R = \rho^2 AA^\top + R'`,

.. math:: x \mid z \sim p(x_0 \mid x_0 + \rho n = z), \qquad z \mid x, y \propto N(z; x, \rho^2 I)\, N(y; A z, R')

have, as soon as rho <= s/|A|, exactly :math:`p(x \mid y)` as the stationary law of x. The first is drawn by the
chain of `particles.py` from level rho on; the second is Gaussian. Larger rho, with R' = R, come first: there it is the
plug-and-play diffusion of Wu et al. 2024, arXiv:2405.18782, and not exact. Without gradients of the network; at small
noise it goes from mode to mode slowly.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.bars import shown
from sde_gen.checks import checked
from sde_gen.errors import ConfigError, NonFiniteError
from sde_gen.inverse.particles import middle_steps
from sde_gen.inverse.posterior import Posterior, PosteriorLevels
from sde_gen.model import ScoreModel
from sde_gen.samplers.grids import KarrasRho
from sde_gen.samplers.sampler import Job, Sampler, Solved

#: The largest rho to begin with, in units of the data's spread, and what of s/|A| is the smallest.
_FIRST, _LEAST = 10.0, 0.999


@dataclass(frozen=True)
class SplitGibbs(Sampler):
    """Split Gibbs sampler for a `Posterior` with a linear operator, which it asks for its parts and not its guidance.

    It calls the network (rounds + repeats) * steps times.

    Args:
        rounds: rounds while rho falls, evenly in its logarithm, from 10 times the data's spread to 0.999 s/|A|, >= 1.
        repeats: rounds at the last rho, whose stationary law is the posterior, >= 0.
        steps: of the chain in each round, >= 1, evenly in (sigma/alpha)^(1/7).

    Raises:
        ConfigError: for values outside these; when called, for any other model, an operator that is not linear, or one
            whose singular values are not known and that is too large to find them.
    """

    rounds: int = checked(60, low=1)
    repeats: int = checked(30, low=0)
    steps: int = checked(20, low=1)

    is_stochastic = True

    def __post_init__(self) -> None:
        checks.fields(self)

    def rhos(self, model: Posterior, norm: float) -> list[float]:
        """rho of each round, for the largest singular value of A in units of the noise."""
        first, last = (float((-model.perturbation.half_log_snr(t)).exp()) for t in self.times(model).tolist())
        low = max(_LEAST / norm, 1.5 * last)
        high = max(low, min(_FIRST * model.data_std, first))
        falling = torch.linspace(math.log(high), math.log(low), self.rounds, dtype=torch.float64).exp()
        return [*falling[:-1].tolist(), *[low] * (1 + self.repeats)]

    def levels_down(self, model: ScoreModel, rho: float) -> Tensor:
        """The times of the chain from sigma/alpha = rho on."""
        p = model.perturbation
        return KarrasRho().times(p, self.steps, float(self.times(model)[-1]), float(p.time(-math.log(rho))))

    def solve(self, job: Job) -> Solved:
        model, x, p = job.model, job.x, job.model.perturbation
        if not isinstance(model, Posterior) or not model.operator.is_linear:
            raise ConfigError(f"SplitGibbs: it samples a Posterior(model, ...) with a linear operator, got {model!r}")
        levels = model.levels(*p.curves(self.times(model)), x, job.condition)
        measured = levels.measured
        if measured.gram is None:
            raise ConfigError(
                f"SplitGibbs: the singular values of {model.operator!r} are not known; let it state gram(shape)"
            )
        rhos = self.rhos(model, float(measured.gram.values.max().sqrt()))
        exact = float(measured.gram.values.max()) * rhos[-1] ** 2 < 1
        x = x * (rhos[0] / float(p.curves(self.times(model)[0])[1]))
        plans, sums = {rho: self._plan(levels, rho, x) for rho in rhos}, []
        if job.callback is not None:
            job.callback(0, float(p.time(-math.log(rhos[0]))), x[: job.count])
        for i, rho in enumerate(shown(rhos, "SplitGibbs") if job.progress else rhos):
            first = i * (self.steps + 1)
            if i:
                split = exact and rho == rhos[-1]
                like = torch.empty((), dtype=torch.float64, device=x.device).expand(len(x), measured.size)
                x = measured.near(levels.y, x, rho, split, job.noise(x, first, 0), job.noise(like, first, 1)).to(
                    x.dtype
                )
            x = self._down(plans[rho], x, job, first + 1)
            sums.append(x.sum())
            if job.callback is not None:
                job.callback(i + 1, float(p.time(-math.log(rho))), x[: job.count])
        calls = sum(at.calls for at, *_ in plans.values())
        finite = torch.stack(sums).isfinite()
        if not bool(finite.all()):
            wrong, step = (~x[: job.count].flatten(1).isfinite().all(1)).nonzero()[:, 0], int((~finite).nonzero()[0])
            raise NonFiniteError(step, float(p.time(-math.log(rhos[step]))), [job.first + i for i in wrong.tolist()])
        return x, calls, None

    def _plan(self, levels: PosteriorLevels, rho: float, like: Tensor) -> tuple[Any, ...]:
        """The model itself at the times of a chain from rho on, and the coefficients of its steps."""
        p = levels.guided.perturbation
        times = self.levels_down(levels.guided, rho)
        alpha, sigma = p.curves(times)
        base = levels.guided.base.levels(alpha, sigma, like, levels.base.condition)
        return base, float(alpha[0]), *(c.tolist() for c in middle_steps(p, times))

    @staticmethod
    def _down(plan: tuple[Any, ...], z: Tensor, job: Job, first: int) -> Tensor:
        """x given z = x + rho n, by the chain."""
        base, scale, of_x, of_data, std = plan
        u = z * scale
        for k in range(len(of_x)):
            u = of_x[k] * u + of_data[k] * base.denoised(k, u) + std[k] * job.noise(u, first + k, 0)
        return base.denoised(len(of_x), u)
