r"""The sampler for a budget of calls that needs no measurement: one family, its noise levels from the number of calls.

Estimates bend where data take shape, within a few units of :math:`\lambda = 0` for data of about unit size. With few
calls what matters is to find the mode, at more noise; with more, the steps go after the details, and the last level
follows the error down. N calls are placed with the density

.. math:: \frac{1}{e^{(\lambda-c)/w} + e^{-(\lambda-c)/b}}, \qquad c = e - 0.1 - \frac{6}{N}, \quad
          w = 1.5 + \frac{8}{N}, \qquad \lambda_N = 2.1\,\log(N - 1.5) - 1.3 ,

with w above and b = 1.06 below the centre, and e = 1/2 up to 3 dimensions, falling with their logarithm to 0 at 8:
where there are more, modes are told apart at more noise. The rule is `LimitedUniPC`, which decides in each sample how
far orders above the least are to be trusted. The levels are in lambda alone, so that they are the same under every
formulation; a network is asked within the levels of its training, and one trained on a chain at nodes.

What a network says has features of its own at all noise, and at much noise its error is amplified. With fewer than 9
calls it begins below that; with more, which are enough to follow these features, the levels are spread wider: with
b = max(1.8, 1 + N/20) and w = 1.5 + max(8/N, N/50), around a centre that is up to 1/4 lower.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from sde_gen.model import ScoreModel
from sde_gen.perturbations import Chain
from sde_gen.samplers.grid_sampler import GridSampler
from sde_gen.samplers.grids import GivenLambdas
from sde_gen.samplers.limited import LimitedUniPC

#: Calls from which there are enough to resolve most of what happens, of an exact score and of a network.
_MANY, _MANY_NETWORK = 16, 9
#: The least order, the highest and the limit: of an exact score with fewer calls than that, and otherwise.
_FEW_RULE, _MANY_RULE = (2, 4, 0.5), (3, 5, 0.25)
#: Half log-SNR that a network begins at with few calls, where the state has 1 % of the data in it.
_FIRST = -4.5


def uncalibrated(model: ScoreModel, nfe: int, shape: Sequence[int]) -> LimitedUniPC:
    """The rule of this module with `nfe` network calls for a model, and samples of a shape."""
    least, order, limit = _FEW_RULE if is_exact(model) and nfe < _MANY else _MANY_RULE
    return LimitedUniPC(least=least, order=order, limit=limit, grid=levels(model, nfe, nfe, shape))


def begun(x: Tensor, model: ScoreModel, sampler: GridSampler) -> Tensor:
    """A state of the model's first time as one of the sampler's, if that begins later: noise of its size."""
    p, first, own = model.perturbation, model.times_within()[1], float(sampler.times(model)[0])
    return x * float(p.sigma(own) / p.sigma(first)) if own < first - 1e-9 else x


def is_exact(model: ScoreModel) -> bool:
    """Whether no network answers, neither its own nor that of the model it guides."""
    base = getattr(model, "base", None)
    return model.network is None if base is None else is_exact(base)


def levels(
    model: ScoreModel, nfe: int, n: int, shape: Sequence[int], later: float = 0.0, wider: float = 1.0,
    deeper: float = 0.0, share: float = 0.0, measured: Callable[[np.ndarray], np.ndarray] | None = None,
) -> GivenLambdas:  # fmt: skip
    """n half log-SNRs, from the most noise down to what `nfe` calls can follow.

    The numbers were found by a search over thirteen mixtures and finite data sets of 2 to 64 dimensions at 5, 10, 20
    and 50 calls, and, for networks, on six of other ages, sizes and trainings; then looked at on others.

    Args:
        shape: of one sample.
        later, wider, deeper: added to the centre, by which both widths are multiplied, added to the last level.
        share, measured: another density, and the share in which the logarithm of the density is its.
    """
    p, high = model.perturbation, model.times_within()[1]
    exact = is_exact(model)
    low = 0.0 if exact else model.times_within(p.t_min)[0]  # an exact score is known all the way
    first, least = float(p.half_log_snr(high)), float(p.half_log_snr(low))
    before, after = 1.06, 1.5 + 8 / nfe
    if not exact and nfe >= _MANY_NETWORK:
        before, after = max(1.8, 1 + min(nfe, 100) / 20), 1.5 + max(8 / nfe, min(nfe, 100) / 50)
        later -= min((nfe - 8) / 16, 0.25)
    elif not exact and first < _FIRST < least:
        first = _FIRST
    last = min(max(2.1 * math.log(max(nfe - 1.5, 0.5)) - 1.3 + deeper, first + 1.0), least)
    fine = np.linspace(first, last, 4097)
    if exact:
        later += 0.5 * min(max(math.log(8 / math.prod(shape)) / math.log(8 / 3), 0.0), 1.0)
    at = fine - (later - 0.1 - 6 / nfe)
    density = 1 / (np.exp(at / (wider * after)) + np.exp(-at / (wider * before)))
    if measured is not None:
        density = density ** (1 - share) * measured(fine) ** share
    mass = np.concatenate([[0.0], (density[1:] + density[:-1]).cumsum()])
    lam = torch.from_numpy(np.interp(np.linspace(0.0, mass[-1], n), mass, fine))
    trained = model.trained_under
    if not exact and isinstance(trained, Chain) and n <= trained.length:
        nodes = trained.half_log_snr(trained.nodes).flip(0)
        nodes = nodes[(nodes >= first - 1e-9) & (nodes <= least + 1e-9)]
        if n <= len(nodes):
            place = torch.arange(n)
            nearest = (lam[:, None] - nodes).abs().argmin(1) - place
            lam = nodes[nearest.cummax(0).values.clamp(max=len(nodes) - n) + place]
    return GivenLambdas(tuple(lam.tolist()))
