"""The one place where a configuration becomes objects.

A `_target_` is looked up in a closed list of exact names. Anything else is refused, unless the user names its module on
the command line with trust=[module]: a configuration that came with a checkpoint is data, not a program.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from sde_gen.config.typed import arguments, nearest
from sde_gen.errors import CheckpointError, ConfigError

_CLASSES = {
    "sde_gen": (
        "VP SubVP VE Cosine EDM FlowMatching DDPM NCSN "
        "NoisePrediction DataPrediction VPrediction ScorePrediction EDMPreconditioning DenoisingScoreMatching "
        "EulerMaruyama ReverseDiffusion Ancestral DDIM Heun AnnealedLangevin PredictorCorrector ProbabilityFlow "
        "DPMSolverPP2M Langevin "
        "DPMSolverPP3M AdamsBashforth UniPC DEIS LMS PLMS SingleStep Auto Fitted "
        "ExponentialSDE SDEDPMSolverPP StochasticHeun EDMChurn Restart AdaptiveSDE ArctanLambda "
        "UniformTime UniformLambda KarrasRho Quadratic ChainNodes GivenTimes GivenLambdas"
    ),
    "sde_gen.networks": "MLP UNet",
    "sde_gen.metrics": "NetworkFeatures Pixels efficientnet_lite0",
    "sde_gen.data": (
        "digits two_moons checkerboard swiss_roll rings mixture fashion_mnist image_folder array_file csv_file hub"
    ),
}

#: Every name that a configuration may build without the user's word for it.
TARGETS = frozenset(f"{module}.{name}" for module, names in _CLASSES.items() for name in names.split())


def build(node: Any, *, trust: Sequence[str] = (), where: str = "config", stored: bool = False, **given: Any) -> Any:
    """The object that `node` describes: a mapping with a `_target_` and its arguments, inner ones built first.

    Args:
        node: a mapping, plain or of OmegaConf; None gives None.
        trust: modules of the user's own whose classes may be built as well.
        where: how messages name the node, such as "sde".
        stored: whether the node came with a checkpoint; a target that is refused is then a `CheckpointError`.
        given: arguments that the configuration leaves to the program; those in `node` win.

    Raises:
        ConfigError: a target that is not on the list, an unknown argument, a value of another type or out of range.
    """
    node = plain(node)
    if node is None:
        return None
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise ConfigError(f"{where} must be a group with a _target_, got {node!r}")
    name = node["_target_"]
    for key in node:
        if key.startswith("_") and key != "_target_":
            raise ConfigError(f"{where}.{key} is not allowed; only _target_ and its arguments are")
    target = _find(name, trust, where, stored)
    title = name.rpartition(".")[2]
    values = {key: _inner(value, trust, f"{where}.{key}", stored) for key, value in node.items() if key != "_target_"}
    return target(**arguments(target, title, {**given, **values}, where))


def plain(node: Any) -> Any:
    """`node` as plain Python data, interpolations of an OmegaConf node resolved."""
    omegaconf = sys.modules.get("omegaconf")
    if omegaconf is not None and omegaconf.OmegaConf.is_config(node):
        return omegaconf.OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    return node


def _inner(value: Any, trust: Sequence[str], where: str, stored: bool) -> Any:
    if isinstance(value, Mapping) and "_target_" in value:
        return build(value, trust=trust, where=where, stored=stored)
    if isinstance(value, list):
        return [_inner(item, trust, f"{where}[{i}]", stored) for i, item in enumerate(value)]
    return value


def _find(name: str, trust: Sequence[str], where: str, stored: bool) -> Any:
    module, _, attribute = name.rpartition(".")
    if name not in TARGETS and module not in trust:
        advice = f"; add trust=[{module}] if it is your own module" if module else ""
        error = CheckpointError if stored else ConfigError
        raise error(f"{where}._target_={name} is not one of sde_gen's own classes{nearest(name, TARGETS)}{advice}")
    if name not in TARGETS and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a trusted module usually lies where the command is run
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{where}._target_={name} cannot be imported: {error}") from error
