"""The two public problems of the convergence table: mixtures whose exact score, flow and samples are known."""

import torch
from torch import Tensor

import sde_gen as sg
from sde_gen.conditions import NOTHING
from sde_gen.perturbations import Perturbation
from sde_gen.samplers.dormand_prince import dormand_prince
from sde_gen.samplers.flow import Flow

#: Where the exact flow is stopped and denoised: sigma/alpha = 3e-7, far below the width of any mode.
LAST_LAMBDA = 15.0


def plane(seed: int = 0) -> sg.GaussianMixture:
    """2-D, 16 modes of unequal weight, place, size and shape."""
    g = torch.Generator().manual_seed(seed)
    weights = torch.rand(16, generator=g, dtype=torch.float64) + 0.2
    means = 4 * torch.rand(16, 2, generator=g, dtype=torch.float64) - 2
    return sg.GaussianMixture(weights, means, _covariances(16, 2, 0.05, 0.3, g))


def space(seed: int = 0) -> sg.GaussianMixture:
    """64-D, 8 anisotropic modes: standard deviations from 0.02 to 1 along random axes."""
    g = torch.Generator().manual_seed(seed)
    weights = torch.rand(8, generator=g, dtype=torch.float64) + 0.2
    means = torch.randn(8, 64, generator=g, dtype=torch.float64)
    return sg.GaussianMixture(weights, means, _covariances(8, 64, 0.02, 1.0, g))


def random_mixture(seed: int) -> sg.GaussianMixture:
    """Another of the same kind: 2 to 64 dimensions, 3 to 24 modes, widths and distances drawn too."""
    g = torch.Generator().manual_seed(1000 + seed)
    dim = (2, 3, 8, 32)[seed % 4]
    count = int(torch.randint(3, 25, (), generator=g))
    low = 0.02 * 5 ** float(torch.rand((), generator=g))
    weights = torch.rand(count, generator=g, dtype=torch.float64) + 0.2
    means = (1 + float(torch.rand((), generator=g))) * torch.randn(count, dim, generator=g, dtype=torch.float64)
    return sg.GaussianMixture(weights, means, _covariances(count, dim, low, 8 * low, g))


def _covariances(count: int, dim: int, low: float, high: float, g: torch.Generator) -> Tensor:
    """Random rotations of diagonal matrices whose standard deviations are log-uniform in [low, high]."""
    axes = torch.linalg.qr(torch.randn(count, dim, dim, generator=g, dtype=torch.float64)).Q
    u = torch.rand(count, dim, generator=g, dtype=torch.float64)
    deviations = low * (high / low) ** u
    return axes @ torch.diag_embed(deviations.square()) @ axes.mT


PROBLEMS = {"2-D, 16 modes": plane, "64-D, 8 modes": space}


def exact_flow(law: sg.GaussianMixture, p: Perturbation, x: Tensor, t: float, end: float | None = None) -> Tensor:
    """Solution of the probability-flow ODE from x at time t, to noise level 0 or to time `end`, to about 1e-9."""
    flow = Flow(law.model(p), NOTHING)

    begin = float(p.half_log_snr(t))
    last = LAST_LAMBDA if end is None else float(p.half_log_snr(end))
    u = x / float(p.alpha(t) ** 2 + p.sigma(t) ** 2) ** 0.5
    u = dormand_prince(flow.slope, u, begin, last, rtol=1e-11, atol=1e-11, max_calls=1_000_000).u
    if end is not None:
        return u * float(p.alpha(end) ** 2 + p.sigma(end) ** 2) ** 0.5
    return flow.denoised(u, torch.tensor(last, dtype=torch.float64), None)
