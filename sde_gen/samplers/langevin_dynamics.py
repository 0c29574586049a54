"""Langevin dynamics by itself: samples of p_t at one noise level, for a score that is known."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.checks import checked
from sde_gen.errors import ConfigError, NonFiniteError
from sde_gen.model import ScoreModel
from sde_gen.samplers.metropolis import langevin_chain
from sde_gen.samplers.sampler import Job, Sampler, Solved


@dataclass(frozen=True)
class LangevinDynamics(Sampler):
    r"""A Markov chain for each sample that ends on p_t, the law of noisy data at one time: no annealing.

    The step is :math:`x + e s(x) + \sqrt{2e}\, z`, s the model's score at t. With `metropolis` it is accepted or
    refused, so that p_t is left as it is whatever e (by the density of an oracle, else by the scores at both ends;
    `metropolis` tells how); without, the law is off by O(e). It crosses between modes only as fast as noise of size
    sqrt(2 e) does: for far modes anneal. Without `start` it begins at normal noise of the size of the state.

    Args:
        steps: Langevin steps n >= 1; n + 1 network calls.
        step_size: e > 0, in squared units of the state; about the square of the least standard deviation of p_t.
        t: the time whose law is the target; by default the lowest that samplers visit.
        metropolis: whether steps are accepted or refused.

    Raises:
        ConfigError: for values outside these, or a time without noise.
    """

    steps: int = checked(1000, low=1)
    step_size: float = checked(0.01, above=0.0)
    t: float | None = checked(None, low=0.0, high=1.0)
    metropolis: bool = checked(True)

    is_stochastic = True
    is_annealed = False

    def __post_init__(self) -> None:
        checks.fields(self)

    def times(self, model: ScoreModel) -> Tensor:
        low = model.times_within()[0]
        return torch.tensor([low if self.t is None else self.t], dtype=torch.float64)

    def solve(self, job: Job) -> Solved:
        p, x, times = job.model.perturbation, job.x, self.times(job.model)
        levels = job.model.levels(*p.curves(times), x, job.condition)
        if float(levels.sigma[0]) == 0:
            raise ConfigError("LangevinDynamics: the score is known where there is noise, and sigma = 0 at its time; "
                              "give t, a later one")  # fmt: skip
        time = float(times[0])
        if job.callback is not None:
            job.callback(0, time, x[: job.count])
        move = langevin_chain(levels, job.noise, [self.step_size], self.metropolis)
        x = move(0, x, self.steps)[0]
        bad = (~x[: job.count].flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            raise NonFiniteError(self.steps, time, [job.first + i for i in bad])
        if job.callback is not None:
            job.callback(1, time, x[: job.count])
        return x, levels.calls, None
