r"""Models for the pipelines of diffusers.

A network depends on the half log-SNR alone, so every formulation is a variance-preserving chain with
:math:`\bar\alpha_k = 1/(1 + e^{-2\lambda_k})`, which schedulers of diffusers take as `trained_betas`.
"""

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sde_gen import checks
from sde_gen.config.objects import describe
from sde_gen.errors import ConfigError
from sde_gen.files import make_folder
from sde_gen.interop.diffusers.library import library
from sde_gen.interop.diffusers.schedules import meaning, merged
from sde_gen.interop.diffusers.wrapper import Network
from sde_gen.model import ScoreModel
from sde_gen.parameterizations import DataPrediction, NoisePrediction
from sde_gen.perturbations import Chain

#: Half log-SNR up to which a float32 table of alpha_bar still says what sigma^2 is, to 1 %.
_CLEANEST = 6.0
#: A model that is sampled down to less noise than this loses what it was made for.
_TOO_CLEAN = 8.0
_PIPELINES = {"DDIM": "DDIMPipeline", "DDPM": "DDPMPipeline"}


def save_pretrained(
    model: ScoreModel, folder: str | os.PathLike[str], *, scheduler: str = "DDIM", nodes: int = 1000
) -> Path:
    """Write a model as a folder that `DDIMPipeline.from_pretrained(folder)` loads, and `from_pretrained` here.

    A network of diffusers that is told the index of a node is written as itself, and needs no sde_gen on the other
    side; any other needs sde_gen installed there, and no remote code.

    Args:
        model: with a network that can be written down.
        folder: where; made if it is not there.
        scheduler: "DDIM" or "DDPM". The folder's scheduler serves for any other of a discrete chain: give its
            `trained_betas` to the class.
        nodes: of the table of betas for a continuous formulation, evenly in its time; a chain has its own. Noise below
            exp(-6) of the signal is left out, because tables of diffusers are float32.

    Returns:
        The folder.

    Raises:
        ConfigError: a model without a network, or one whose noise levels do not fit in such a table (`SubVP`).
        MissingInputError: diffusers is not installed.
    """
    pipeline = to_pipeline(model, scheduler=scheduler, nodes=nodes)
    place = make_folder(Path(folder).expanduser(), "the folder of the pipeline")
    pipeline.save_pretrained(str(place), safe_serialization=True)
    return place


def to_pipeline(model: ScoreModel, *, scheduler: str = "DDIM", nodes: int = 1000) -> Any:
    """A DDIMPipeline or DDPMPipeline of diffusers with the model's network; see `save_pretrained`.

    Raises:
        ConfigError: as there.  MissingInputError: diffusers is not installed.
    """
    if not isinstance(model, ScoreModel) or model.network is None:
        raise ConfigError("to_pipeline: model must be a ScoreModel with a network (of a guided or clipped one, its "
                          f".base), got {type(model).__name__}")  # fmt: skip
    if scheduler not in _PIPELINES:
        raise ConfigError(f"to_pipeline: scheduler must be one of {', '.join(_PIPELINES)}, got {scheduler!r}")
    nodes = checks.integer("to_pipeline", "nodes", nodes, low=2)
    theirs = library()
    cls = getattr(theirs, f"{scheduler}Scheduler")
    lambdas = _lambdas(model, nodes)
    log_bar = logsigmoid(2 * lambdas)
    betas = -torch.expm1(torch.diff(log_bar, prepend=log_bar.new_zeros(1)))
    settings: dict[str, Any] = {
        "num_train_timesteps": len(betas),
        "trained_betas": betas.tolist(),
        "clip_sample": False,
    }
    if model.learned_variance and scheduler == "DDPM":
        settings["variance_type"] = "learned_range"
    plain = _as_it_is(model)
    if plain is not None:
        network, own = plain
        settings["prediction_type"] = own["prediction_type"]
        kept = {
            "beta_schedule",
            "beta_start",
            "beta_end",
            "trained_betas",
            "rescale_betas_zero_snr",
            "num_train_timesteps",
        }
        settings |= {key: value for key, value in own.items() if key in kept}
    else:
        network = import_module("sde_gen.interop.diffusers.exported").SdeGenNetwork(**_described(model, lambdas)).eval()
        network.held.load_state_dict(model.state_dict())
        network.to(model.network_dtype or torch.float32)
        settings["prediction_type"] = network.config.prediction_type
    return getattr(theirs, _PIPELINES[scheduler])(unet=network, scheduler=cls(**settings))


def _lambdas(model: ScoreModel, nodes: int) -> Tensor:
    """Half log-SNRs of the nodes, falling."""
    p = model.perturbation
    low, high = model.times_within()
    most = float(p.half_log_snr(low))
    if most > _TOO_CLEAN:
        raise ConfigError(
            f"to_pipeline: {p} goes down to a noise of {torch.tensor(-most).exp():.1e} of the signal, whose square is "
            "lost in the float32 tables of diffusers; export the same network under another formulation, such as "
            "model.under(sg.VP())"
        )
    if isinstance(p, Chain):
        return p.half_log_snr(p.nodes)
    low = float(p.time(_CLEANEST)) if most > _CLEANEST else low
    return p.half_log_snr(torch.linspace(low, high, nodes, dtype=torch.float64))


def _as_it_is(model: ScoreModel) -> tuple[Any, dict[str, Any]] | None:
    """The network and the scheduler of a model that diffusers itself can hold; None for any other."""
    network = model.network
    if not isinstance(network, Network) or network.scheduler is None or model.perturbation != model.trained_under:
        return None
    config = merged(network.scheduler)
    said = meaning(config, is_flux=network.name.startswith("Flux"))
    same = said.process == model.perturbation and said.parameterization == model.parameterization
    if not same or "prediction_type" not in config or not isinstance(said.process, Chain):
        return None
    return network.inner, config


def _described(model: ScoreModel, lambdas: Tensor) -> dict[str, Any]:
    parts = {"network": model.network, "sde": model.trained_under, "parameterization": model.parameterization}
    described = {name: describe(part, name) for name, part in parts.items()}
    if model.perturbation != model.trained_under:
        described["under"] = describe(model.perturbation, "under")
    transform = None if model.transform is None else model.transform.to_dict()
    described["data"] = {"shape": list(model.shape), "classes": list(model.classes), "transform": transform}
    kinds = {NoisePrediction: "epsilon", DataPrediction: "sample"}
    shape = model.shape if len(model.shape) == 3 else (None, None, None)
    channels = shape[0]
    return {
        "model": described,
        "half_log_snr": lambdas.tolist(),
        "prediction_type": kinds.get(type(model.parameterization), "v_prediction"),
        "sample_size": None if channels is None else list(shape[1:]) if shape[1] != shape[2] else shape[1],
        "in_channels": channels,
        "out_channels": channels if channels is None else channels * (1 + model.learned_variance),
        "num_class_embeds": len(model.classes) or None,
    }
