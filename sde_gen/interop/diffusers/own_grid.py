"""The rule and the times of a scheduler of diffusers, as one of the samplers here."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.errors import ConfigError
from sde_gen.interop.diffusers.library import library
from sde_gen.interop.diffusers.schedules import merged
from sde_gen.model import ScoreModel
from sde_gen.perturbations import Chain, FlowMatching, Perturbation
from sde_gen.samplers import (
    DDIM,
    DEIS,
    LMS,
    PLMS,
    Ancestral,
    DPMSolverPP2M,
    DPMSolverPP3M,
    GivenLambdas,
    GivenTimes,
    Heun,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
    Sampler,
    SDEDPMSolverPP,
    TimeGrid,
    UniPC,
)

#: Schedulers that visit whole indices; all others state their sigmas.
_BY_INDEX = ("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "PNDMScheduler")


def own_sampler(model: ScoreModel, steps: int = 50, *, image_tokens: int | None = None) -> Sampler:
    """The sampler that does what the scheduler does that a network of diffusers came with.

    One call of the network a step, at the times that the scheduler visits. What differs: where the steps do not divide
    the nodes, diffusers' DDIM and DDPM step from a node by K // steps, past the next one that they visit; here each
    step ends at the next. Clipping is the model's, `from_pretrained(..., clip="own")`, and noise follows from the
    clipped x0, as in DDIMScheduler.step(use_clipped_model_output=True). A scheduler of other rules than
    these samplers have (KDPM2, SA-Solver, DPM-Solver SDE) is refused: any sampler of the library runs the network.

    Args:
        model: what `from_pretrained`, `from_modules`, `sg.load` or a run of imported weights gives.
        steps: as the scheduler counts them, >= 1.
        image_tokens: for a scheduler with use_dynamic_shifting, how many patches a sample has; None: 4096.

    Raises:
        ConfigError: for a model without a scheduler, or one whose rule is none of the samplers.
        MissingInputError: diffusers is not installed.
    """
    steps = checks.integer("own_sampler", "steps", steps)
    given = scheduler_of(model)
    if given is None:
        raise ConfigError("own_sampler: the model came with no scheduler of diffusers; choose a sampler, such as "
                          "sg.DPMSolverPP2M(steps=20)")  # fmt: skip
    config = merged(given)
    name = str(config["_class_name"])
    if name == "ScoreSdeVeScheduler":
        corrector = Langevin(snr=float(config["snr"]), steps=int(config["correct_steps"]), norm="batch")
        return PredictorCorrector(predictor=ReverseDiffusion(), corrector=corrector, steps=steps)
    grid, denoise = own_grid(config, steps, model.trained_under, image_tokens)
    return _rule(name, config, grid, denoise)


def scheduler_of(model: ScoreModel) -> Mapping[str, Any] | None:
    """The settings of the scheduler that a model's network came with."""
    while (base := getattr(model, "base", None)) is not None:
        model = base
    return getattr(model.network, "scheduler", None)


def own_grid(
    config: Mapping[str, Any], steps: int, p: Perturbation, image_tokens: int | None = None
) -> tuple[TimeGrid, bool]:
    """The times that a scheduler visits, and whether its last step is onto clean data."""
    name = str(config["_class_name"])
    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    scheduler = getattr(library(), name)(**plain)
    if config.get("use_dynamic_shifting"):
        low, high = config.get("base_shift") or 0.5, config.get("max_shift") or 1.15
        few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        mu = low + (high - low) * ((image_tokens or many) - few) / (many - few)
        scheduler.set_timesteps(steps, mu=mu)
    else:
        scheduler.set_timesteps(steps)
    if name in _BY_INDEX and isinstance(p, Chain):
        index = _falling(scheduler.timesteps.double().clamp_min(0))
        clean = bool(config.get("set_alpha_to_one", name != "PNDMScheduler"))
        if not clean and float(index[-1]) > 0:
            index = torch.cat([index, index.new_zeros(1)])
        return GivenTimes(tuple(((index + 1) / p.length).tolist())), clean
    sigmas = _falling(scheduler.sigmas.double())
    denoise = float(sigmas[-1]) == 0
    sigmas = sigmas[sigmas > 0]
    if isinstance(p, FlowMatching):
        most = p.t_max if "Heun" in name else 1.0  # where a rule of second order has no finite coefficients
        return GivenTimes(tuple(_falling(sigmas.clamp_max(most)).tolist())), denoise
    # Their sigmas are float32, and may lie outside by a rounding.
    most = float(p.half_log_snr(p.t_min)) if isinstance(p, Chain) else float(p.half_log_snr(0.0))
    lambdas = (-sigmas.log()).clamp(float(p.half_log_snr(p.t_max)), most)
    return GivenLambdas(tuple(lambdas.unique().tolist())), denoise


def _falling(values: Tensor) -> Tensor:
    """Values in falling order, each once."""
    return values.unique().flip(0)


def _rule(name: str, config: Mapping[str, Any], grid: TimeGrid, denoise: bool) -> Sampler:
    order = int(config.get("solver_order") or 2)
    if name.startswith("DDPM"):
        kinds = {"fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large",
                 "fixed_large_log": "large", "learned_range": "learned"}  # fmt: skip
        kind = str(config.get("variance_type"))
        if kind not in kinds:
            raise ConfigError(f"own_sampler: variance_type={kind} of {name} is none of {', '.join(kinds)}")
        return Ancestral(variance=kinds[kind], grid=grid, denoise=denoise)
    if name == "EulerAncestralDiscreteScheduler":
        return Ancestral(grid=grid, denoise=denoise)
    if name.startswith(("DDIM", "Euler", "EDMEuler", "FlowMatchEuler")) and not config.get("stochastic_sampling"):
        return DDIM(grid=grid, denoise=denoise)
    if name in ("HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"):
        return Heun(grid=grid, denoise=denoise)
    if name == "LMSDiscreteScheduler":
        return LMS(grid=grid, denoise=denoise)
    if name == "PNDMScheduler" and config.get("skip_prk_steps"):
        return PLMS(grid=grid, denoise=denoise)
    if name == "DEISMultistepScheduler":
        return DEIS(order=order, grid=grid, denoise=denoise)
    if name == "UniPCMultistepScheduler":
        return UniPC(order=order, grid=grid, denoise=denoise)
    if "DPMSolverMultistep" in name and "Inverse" not in name:
        kind = config.get("algorithm_type") or "dpmsolver++"
        if order == 1 and kind.startswith("dpmsolver"):
            return DDIM(grid=grid, denoise=denoise)
        if kind == "sde-dpmsolver++" and order == 2:
            return SDEDPMSolverPP(grid=grid, denoise=denoise)
        if kind == "dpmsolver++" and order == 2:
            return DPMSolverPP2M(exact=config.get("solver_type") == "heun", grid=grid, denoise=denoise)
        if kind == "dpmsolver++" and order == 3:
            return DPMSolverPP3M(grid=grid, denoise=denoise)
    raise ConfigError(f"own_sampler: no sampler here has the rule of {name} with these settings; any other runs the "
                      "network, such as sg.DPMSolverPP2M(steps=20)")  # fmt: skip
