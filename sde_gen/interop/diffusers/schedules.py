r"""What the settings of a scheduler of diffusers say about a network: its process, what it predicts, what it is told.

================================================  ====================================  ===========================
scheduler                                         process                               the network is told
================================================  ====================================  ===========================
DDPM, DDIM, PNDM, LMS, Euler, Heun, KDPM2, DPM-   `DDPM`, or `Table` for other betas    index K t - 1, linear in
Solver, DEIS, UniPC, SA-Solver and their kin                                            lambda between nodes
EDMEuler, EDMDPMSolverMultistep                   `EDM`                                 log(sigma)/4
CosineDPMSolverMultistep                          `EDM`                                 (2/pi) atan(sigma)
FlowMatchEuler, FlowMatchHeun, flow_prediction    `FlowMatching`                        K t; t for Flux
ScoreSdeVe                                        `VE`                                  sigma
================================================  ====================================  ===========================

Betas are computed in float64 from the scheduler's settings; its own tables are float32.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_gen.conventions import Convention
from sde_gen.errors import CheckpointError, ConfigError
from sde_gen.interop.diffusers.library import library, parameters
from sde_gen.parameterizations import (
    DataPrediction,
    EDMPreconditioning,
    NoisePrediction,
    Parameterization,
    ScorePrediction,
    VelocityPrediction,
    VPrediction,
)
from sde_gen.perturbations import DDPM, EDM, VE, Chain, FlowMatching, Perturbation, Table

#: Schedulers of a variance-preserving chain.
DISCRETE = (
    "DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler",
    "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler", "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler",
)  # fmt: skip
_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "CosineDPMSolverMultistepScheduler")
KNOWN = (*DISCRETE, *_FLOW, *_EDM, "ScoreSdeVeScheduler")
#: Schedulers of networks that are consistency functions or were distilled.
_NO_SCORE = ("CMStochasticIterativeScheduler", "ConsistencyDecoderScheduler", "LCMScheduler", "TCDScheduler",
             "SCMScheduler", "FlowMatchLCMScheduler")  # fmt: skip
#: Schedulers whose zero terminal SNR keeps an alpha_bar of 2^-24, because they divide by it.
_NOT_QUITE_ZERO = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler",
                   "UniPCMultistepScheduler", "DPMSolverMultistepInverseScheduler")  # fmt: skip
#: Schedulers that tell the network whole numbers also between nodes.
_ROUNDS = ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DPMSolverMultistepInverseScheduler",
           "DEISMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler")  # fmt: skip
_BETWEEN = ("use_karras_sigmas", "use_lu_lambdas")
_PREDICTS: dict[str, Callable[[Convention], Parameterization]] = {
    "epsilon": NoisePrediction,
    "sample": DataPrediction,
    "v_prediction": VPrediction,
}
_MOST_NODES = 100_000
_LARGEST_BETA = 0.999


class Meaning(NamedTuple):
    """What a network is."""

    process: Perturbation
    parameterization: Parameterization


def merged(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a scheduler, with the defaults of its class for those that are not given.

    Raises:
        CheckpointError: a scheduler that is not known, or numbers that cannot be.
    """
    name = given.get("_class_name")
    if name in _NO_SCORE:
        raise CheckpointError(f"{name}: a consistency function is not a score; call its network through DataPrediction "
                              "with DDIM(steps=1)")  # fmt: skip
    if name not in KNOWN:
        raise CheckpointError(f"the scheduler {name!r} is not one that sde_gen knows: {', '.join(KNOWN)}")
    known = parameters(getattr(library(), str(name)))
    config = {**known, **{key: value for key, value in given.items() if key in known}, "_class_name": name}
    for key in ("num_train_timesteps", "trained_betas"):
        value = config.get(key)
        count = len(value) if isinstance(value, list | tuple) else value
        if count is not None and not (
            isinstance(count, int) and not isinstance(count, bool) and 1 <= count <= _MOST_NODES
        ):
            raise CheckpointError(f"{name}: {key}={value!r} is no number of nodes; 1 to {_MOST_NODES} are allowed")
    return config


def meaning(config: Mapping[str, Any], *, is_flux: bool = False, rounded: bool | None = None) -> Meaning:
    """What a network is that was trained with a scheduler of these settings (those of `merged`).

    Args:
        config: the settings.
        is_flux: of a network that is told t where others are told K t.
        rounded: whether the network is told whole indices also between nodes; None: if its scheduler does so.

    Raises:
        CheckpointError: settings that no formulation here has.
    """
    name, told = str(config["_class_name"]), config.get("prediction_type", "epsilon")
    try:
        if name == "ScoreSdeVeScheduler":
            ve = VE(float(config["sigma_min"]), float(config["sigma_max"]))
            return Meaning(ve, ScorePrediction(Convention(ve, "sigma"), of="score"))
        if name in _EDM:
            return _karras(name, config, told)
        if name in _FLOW or config.get("use_flow_sigmas") or told == "flow_prediction":
            return _flow(name, config, is_flux)
        chain = chain_of(config)
        if told not in _PREDICTS:
            raise CheckpointError(f"{name}: prediction_type={told!r} is not known; there are "
                                  f"{', '.join(_PREDICTS)}, flow_prediction")  # fmt: skip
        if config.get("variance_type") == "learned":
            raise CheckpointError(f"{name}: variance_type=learned is a logarithm without bounds, which no sampler here "
                                  "takes; learned_range is read")  # fmt: skip
        if rounded is None:
            rounded = name in _ROUNDS and any(config.get(key) for key in _BETWEEN)
        convention = Convention(chain, "index", rounded=rounded)
        if config.get("timestep_type") == "continuous":
            convention = Convention(chain, "half_log_snr", scale=-0.25)
        return Meaning(chain, _PREDICTS[told](convention))
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: its settings are of no use: {error}") from error


def _karras(name: str, config: Mapping[str, Any], told: object) -> Meaning:
    p = EDM(float(config["sigma_min"]), float(config["sigma_max"]), float(config.get("rho") or 7.0))
    if told not in ("epsilon", "v_prediction"):
        raise CheckpointError(f"{name}: prediction_type={told!r} is not known; there are epsilon, v_prediction")
    convention = Convention(p, "atan", scale=2 / math.pi) if name.startswith("Cosine") else None
    sign = 1 if told == "epsilon" else -1
    return Meaning(p, EDMPreconditioning(float(config["sigma_data"]), convention, sign))


def _flow(name: str, config: Mapping[str, Any], is_flux: bool) -> Meaning:
    if config.get("invert_sigmas"):
        raise CheckpointError(f"{name}: invert_sigmas=true counts time from noise to data, which is not read")
    p = FlowMatching()
    scale = 1.0 if is_flux else float(config["num_train_timesteps"])
    return Meaning(p, VelocityPrediction(Convention(p, "t", scale=scale)))


def chain_of(config: Mapping[str, Any]) -> Chain:
    """The chain of a scheduler's betas."""
    name, kind = str(config["_class_name"]), config.get("beta_schedule", "linear")
    k, given = int(config["num_train_timesteps"]), config.get("trained_betas")
    low, high = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    chain: Chain
    ours = {"linear": "linear", "scaled_linear": "quadratic", "sigmoid": "sigmoid"}
    if given is not None:
        chain = Table.from_betas(given)
    elif kind in ours:
        chain = DDPM(k, ours[kind], low * k / 1000, high * k / 1000)
    elif kind == "squaredcos_cap_v2":
        chain = DDPM(k, "cosine")
    elif kind in _ALPHA_BARS:
        chain = Table.from_betas(_betas(_ALPHA_BARS[kind], k))
    else:
        raise CheckpointError(f"{name}: beta_schedule={kind!r} is not known; there are "
                              f"{', '.join((*ours, 'squaredcos_cap_v2', *_ALPHA_BARS))}, trained_betas")  # fmt: skip
    if config.get("rescale_betas_zero_snr"):
        chain = Table.zero_terminal_snr(chain)
        last = -24 * math.log(2)
        if name in _NOT_QUITE_ZERO and last < chain.log_alpha_bar[-2]:
            chain = Table((*chain.log_alpha_bar[:-1], last))
    return chain


def _laplace(u: Tensor) -> Tensor:
    """Where log(alpha_bar^2/(1 - alpha_bar^2)) has a Laplace law. Hang et al. 2024, arXiv:2407.03297."""
    log_snr = 0.5 * torch.sign(u - 0.5) * torch.log(1 - (1 - 2 * u).abs() + 1e-6)
    return torch.sigmoid(log_snr).sqrt()


_ALPHA_BARS: dict[str, Callable[[Tensor], Tensor]] = {"exp": lambda u: (-12 * u).exp(), "laplace": _laplace}


def _betas(alpha_bar: Callable[[Tensor], Tensor], k: int) -> Tensor:
    bars = alpha_bar(torch.arange(k + 1, dtype=torch.float64) / k)
    return (1 - bars[1:] / bars[:-1]).clamp_max(_LARGEST_BETA)
