"""What likelihoods and latents ask of their arguments."""

import math
import warnings

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.data.transform import Affine
from sde_gen.errors import ConfigError, DataError, NonFiniteError, PrecisionWarning, SDEGenError
from sde_gen.model import ScoreModel
from sde_gen.samplers.dormand_prince import SLOPE


def lambda_interval(
    where: str, model: ScoreModel, t_min: float | None, t_max: float | None
) -> tuple[float, float, float, float]:
    """lambda at the two ends, and the times there."""
    refuse_guided(where, model)
    p = model.perturbation
    low, high = model.times_within(p.t_min)
    for name, value in (("t_min", t_min), ("t_max", t_max)):
        if value is not None:
            checks.number(where, name, value, low=0.0, high=1.0)
    low, high = (low if t_min is None else float(t_min)), (high if t_max is None else float(t_max))
    if low >= high:
        raise ConfigError(f"{where}: t_min={low!r} must lie below t_max={high!r}")
    begin, end = float(p.half_log_snr(low)), float(p.half_log_snr(high))
    if not (math.isfinite(begin) and math.isfinite(end)):
        raise ConfigError(
            f"{where}: lambda is infinite at an end of [{low!r}, {high!r}] under {p}; "
            f"keep t_min and t_max within [{p.t_min!r}, {p.t_max!r}]"
        )
    return begin, end, low, high


def refuse_guided(where: str, model: ScoreModel) -> None:
    """Refuse a model that is the denoiser of no data, with the reason that it gives."""
    if model.no_density:
        raise ConfigError(f"{where}: {model.no_density}")


def check_tolerances(where: str, x: Tensor, rtol: float, atol: float) -> None:
    """Refuse tolerances that are not positive, and warn of those that rounding alone exceeds."""
    checks.number(where, "rtol", rtol, low=0.0, open_low=True)
    checks.number(where, "atol", atol, low=0.0, open_low=True)
    floor = 8 * torch.finfo(x.dtype).eps
    if rtol < floor and atol < floor:
        warnings.warn(
            f"{where}: rtol={rtol:g} and atol={atol:g} are below the rounding of {x.dtype} (about {floor:.1g}); "
            "convert x (and the network) to float64, or loosen them",
            PrecisionWarning,
            stacklevel=4,
        )


def check_data(where: str, x: Tensor, transform: Affine | None) -> None:
    """Refuse data that are not finite, or outside the range that their transform declares."""
    finite = x.flatten(1).isfinite().all(1)
    if not bool(finite.all()):
        index = int((~finite).nonzero()[0])
        raise DataError(f"{where}: sample {index} of x is NaN or infinite; remove it or repair the data")
    if transform is None:
        return
    transform.log_volume(tuple(x.shape[1:]))  # refuses another shape
    if transform.low is None or transform.high is None:
        return
    raw, slack = transform.inverse(x), 1e-4 * (transform.high - transform.low) + (transform.step or 0.0) / 2
    outside = ((raw < transform.low - slack) | (raw > transform.high + slack)).flatten(1).any(1)
    if bool(outside.any()):
        index = int(outside.nonzero()[0])
        values = raw[index].min(), raw[index].max()
        raise DataError(
            f"{where}: sample {index} has raw values from {float(values[0]):.4g} to {float(values[1]):.4g}, outside "
            f"[{transform.low:g}, {transform.high:g}] as its transform declares; scale x with transform.forward"
        )


def named(error: SDEGenError, model: ScoreModel, begin: float, end: float) -> SDEGenError:
    """The error with a time of the model's formulation in the place of the solver's lambda."""
    if not isinstance(error, NonFiniteError) or error.where != SLOPE:
        return error
    t = float(model.perturbation.time(min(max(error.t, min(begin, end)), max(begin, end))))
    return NonFiniteError(error.step, t, error.indices, SLOPE)
