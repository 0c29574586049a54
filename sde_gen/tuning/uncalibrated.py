r"""The sampler for a budget of calls that needs no measurement: one family, its noise levels from the number of calls.

Estimates bend where data take shape, within a few units of :math:`\lambda = 0` for data of about unit size, and the
more calls there are, the further down the last noise level has to follow the error:

.. math:: \lambda_N = \mathrm{LAST} + \mathrm{DEEPER}\,\log(N/5),

with times even in arctan(exp(-(lambda - CENTRE)/WIDTH)) above it. The levels are in lambda alone, so that they are the
same under every formulation; a network is asked within the levels of its training, and one trained on a chain at nodes.
"""

import math

import torch

from sde_gen.model import ScoreModel
from sde_gen.perturbations import Chain
from sde_gen.samplers.grid_sampler import GridSampler
from sde_gen.samplers.grids import ArctanLambda, GivenLambdas
from sde_gen.samplers.multistep import UniPC

#: Chosen on five mixtures and two trained networks, and looked at on others.
CENTRE, WIDTH, LAST, DEEPER = 0.5, 2.0, 1.75, 1.95
#: Calls below which estimates of the data are extrapolated more safely than velocities, and from which order 4 pays, of
#: an exact score and of a network, whose estimates are less smooth.
_DATA, _DATA_NETWORK, _ORDER4, _ORDER4_NETWORK = 8, 20, 16, 40
#: Half log-SNR that a network begins at: with more noise it is asked for what it amplifies its error by, and the
#: state has 1 % of the data in it here.
_FIRST = -4.5


def uncalibrated(model: ScoreModel, nfe: int) -> GridSampler:
    """The rule of this module with `nfe` network calls for a model."""
    if nfe < (_DATA if model.network is None else _DATA_NETWORK):
        return UniPC(order=3, grid=levels(model, nfe, nfe))
    order = order_for(model, nfe)
    return UniPC(order=order, prediction="velocity", grid=levels(model, nfe, nfe - (order == 4)))  # its start-up's call


def order_for(model: ScoreModel, nfe: int) -> int:
    """The order of a velocity rule that pays with so many calls."""
    return 3 if nfe < (_ORDER4 if model.network is None else _ORDER4_NETWORK) else 4


def levels(
    model: ScoreModel, nfe: int, n: int, centre: float = CENTRE, width: float = WIDTH, deeper: float = 0.0
) -> GivenLambdas:
    """n half log-SNRs, from the most noise down to what `nfe` calls can follow, and `deeper` in lambda."""
    p, high = model.perturbation, model.times_within()[1]
    low = 0.0 if model.network is None else model.times_within(p.t_min)[0]  # an exact score is known all the way
    first, least = float(p.half_log_snr(high)), float(p.half_log_snr(low))
    if model.network is not None and first < _FIRST < least:
        first, high = _FIRST, float(p.time(_FIRST))
    wanted = min(max(LAST + DEEPER * math.log(nfe / 5) + deeper, first + 1.0), least)
    lam = p.half_log_snr(ArctanLambda(centre, width).times(p, n, float(p.time(wanted)), high))
    trained = model.trained_under
    if model.network is not None and isinstance(trained, Chain) and n <= trained.length:
        nodes = trained.half_log_snr(trained.nodes).flip(0)
        nodes = nodes[(nodes >= first - 1e-9) & (nodes <= least + 1e-9)]
        if n <= len(nodes):
            place = torch.arange(n)
            nearest = (lam[:, None] - nodes).abs().argmin(1) - place
            lam = nodes[nearest.cummax(0).values.clamp(max=len(nodes) - n) + place]
    return GivenLambdas(tuple(lam.tolist()))
