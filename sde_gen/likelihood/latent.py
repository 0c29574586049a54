r"""Data to latent and back by the probability-flow ODE, which is a bijection.

The latent of a sample is the end of its trajectory at the most noise, where the law is nearly normal whatever the data,
so that points between two latents decode to data between the two. Song et al. 2021, arXiv:2011.13456, appendix D.3.
"""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.conditions import Condition
from sde_gen.errors import ConfigError
from sde_gen.likelihood.inputs import check_data, check_tolerances, lambda_interval, named
from sde_gen.model import ScoreModel, evaluating
from sde_gen.samplers.dormand_prince import dormand_prince
from sde_gen.samplers.flow import Flow, unit_curves
from sde_gen.samplers.sampler import Samples


def encode(
    model: ScoreModel,
    x: Tensor,
    *,
    rtol: float = 1e-6,
    atol: float = 1e-6,
    condition: Mapping[str, Any] | Condition | None = None,
    t_min: float | None = None,
    t_max: float | None = None,
    max_nfe: int = 10_000,
) -> Samples:
    """The latents of data: states at t_max of the trajectories that end in them.

    Args:
        model: any model, on any perturbation.
        x: data on the model's scale, (B, *shape), floating.
        rtol, atol: tolerances, > 0.
        condition: keyword arguments of the network: tensors with a row for each sample, `Whole` what they share.
        t_min, t_max: interval of times; by default all that the model was trained on.
        max_nfe: most network calls for any one sample.

    Raises:
        ConfigError, DataError: for bad arguments, or data that are not finite.
        SolverError, NonFiniteError: if a sample cannot be solved.
    """
    return _carry("encode", True, model, x, rtol, atol, condition, t_min, t_max, max_nfe)


def decode(
    model: ScoreModel,
    latent: Tensor,
    *,
    rtol: float = 1e-6,
    atol: float = 1e-6,
    condition: Mapping[str, Any] | Condition | None = None,
    t_min: float | None = None,
    t_max: float | None = None,
    max_nfe: int = 10_000,
) -> Samples:
    """The data of latents: the inverse of `encode` with the same interval. Arguments and errors as there."""
    return _carry("decode", False, model, latent, rtol, atol, condition, t_min, t_max, max_nfe)


def interpolate(
    model: ScoreModel,
    a: Tensor,
    b: Tensor,
    count: int = 8,
    *,
    rtol: float = 1e-6,
    atol: float = 1e-6,
    condition: Mapping[str, Any] | Condition | None = None,
) -> Samples:
    """`count` samples from data point a to data point b, along the great circle between their latents.

    Args:
        model: any model.
        a, b: one sample each, of one shape.
        count: number of samples >= 2, the two ends (as encoded and decoded) included.
        rtol, atol, condition: as for `encode`; tensors have one row, that of all samples.

    Raises:
        ConfigError: if a and b differ in shape; and as `encode`.
    """
    checks.integer("interpolate", "count", count, low=2)
    if a.shape != b.shape or a.ndim < 1:
        raise ConfigError(f"interpolate: a and b must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    told = Condition.of("interpolate", condition, None)
    ends = encode(model, torch.stack([a, b]), rtol=rtol, atol=atol, condition=told.tiled(2))
    weights = torch.linspace(0, 1, count, dtype=ends.x.dtype, device=ends.x.device)
    between = slerp(ends.x[0], ends.x[1], weights)
    made = decode(model, between, rtol=rtol, atol=atol, condition=told.tiled(count))
    return Samples(made.x, ends.nfe + made.nfe, ends.seconds + made.seconds)


def slerp(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Points (len(weights), *shape) on the great circle from a to b; straight where the two are nearly parallel."""
    cosine = (a * b).sum() / (a.norm() * b.norm()).clamp_min(torch.finfo(a.dtype).tiny)
    angle = cosine.clamp(-1, 1).acos()
    w = weights.reshape(-1, *(1,) * a.ndim)
    sine = angle.sin()
    if float(sine.abs()) < 1e-4:
        return torch.lerp(a[None], b[None], w)
    return ((1 - w) * angle).sin() / sine * a + (w * angle).sin() / sine * b


@torch.no_grad()
def _carry(
    where: str, forward: bool, model: ScoreModel, x: Tensor, rtol: float, atol: float,
    condition: Mapping[str, Any] | Condition | None, t_min: float | None, t_max: float | None, max_nfe: int,
) -> Samples:  # fmt: skip
    began = time.perf_counter()
    if not isinstance(model, ScoreModel):
        raise ConfigError(f"{where}: model must be a ScoreModel, got {type(model).__name__}")
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        raise ConfigError(f"{where}: needs a floating tensor of shape (B, *shape)")
    checks.integer(where, "max_nfe", max_nfe)
    check_tolerances(where, x, rtol, atol)
    check_data(where, x, None)
    begin, end, _, high = lambda_interval(where, model, t_min, t_max)
    model.warn_between_nodes(torch.tensor((begin + end) / 2, dtype=torch.float64))
    flow = Flow(model, Condition.of(where, condition, len(x)))
    to_u = float(unit_curves(torch.tensor(begin, dtype=torch.float64))[0])  # x is the data, not the state at t_min
    root = float(model.perturbation.size(high))
    with evaluating(model):
        u = x * to_u if forward else x / root
        ends = (begin, end) if forward else (end, begin)
        answer = dormand_prince(flow.slope, u, *ends, rtol=rtol, atol=atol, max_calls=max_nfe, keep_going=True)
    for error in answer.failed.values():
        raise named(error, model, begin, end)
    u = answer.u * root if forward else answer.u / to_u
    return Samples(u, int(answer.calls.max()) if len(x) else 0, time.perf_counter() - began, answer.calls)
