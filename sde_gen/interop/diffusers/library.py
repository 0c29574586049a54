"""The door to diffusers: imported when it is asked for, and only classes on a closed list are taken from it."""

import inspect
import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch

from sde_gen import checks
from sde_gen.errors import CheckpointError, ConfigError, MissingInputError

#: Networks that can be called here.
NETWORKS = (
    "UNet2DModel", "UNet2DConditionModel", "UNet1DModel", "DiTTransformer2DModel", "PixArtTransformer2DModel",
    "SD3Transformer2DModel", "FluxTransformer2DModel",
)  # fmt: skip
#: Codecs of latents.
CODECS = ("AutoencoderKL", "AutoencoderTiny")
#: Settings of a network that are counts of parts, and how many there may be; all other numbers are widths.
_COUNTS, _MOST_PARTS, _WIDEST = ("layers", "blocks", "depth"), 512, 2**22
_MOST_NUMBERS = 10**11


def library() -> Any:
    """The module diffusers.

    Raises:
        MissingInputError: it is not installed.
    """
    try:
        return import_module("diffusers")
    except ImportError as error:
        raise MissingInputError(
            f"this needs diffusers, which cannot be imported ({error}); run pip install 'sde_gen[diffusers]'"
        ) from error


def network_class(name: object, among: Sequence[str] = NETWORKS) -> Any:
    """The class of diffusers called `name`, one of those on a closed list.

    Raises:
        CheckpointError: it is not on the list.
    """
    if name not in among:
        raise CheckpointError(f"the network's class {name!r} is not one that sde_gen runs: {', '.join(among)}")
    return getattr(library(), str(name))


def parameters(cls: Any) -> Mapping[str, Any]:
    """Names and defaults of what a class of diffusers is made with."""
    given = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return {p.name: p.default for p in given if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def checked_config(name: str, config: Mapping[str, Any], among: Sequence[str] = NETWORKS) -> dict[str, Any]:
    """The settings of a network, none of them unknown or of an absurd size.

    Raises:
        CheckpointError, ConfigError: naming the setting.
    """
    cls = network_class(name, among)
    known = parameters(cls)
    for key, value in config.items():
        if key not in known:
            near = checks.nearest(str(key), known)
            raise ConfigError(f"{name} has no setting {key!r}" + (f"; did you mean {near!r}?" if near else ""))
        _check_size(name, key, value)
    count = size(cls, config)
    if count > _MOST_NUMBERS:
        raise CheckpointError(
            f"{name} with these settings holds {count:.3g} numbers; up to {_MOST_NUMBERS:.0e} are built"
        )
    return dict(config)


def size(cls: Any, config: Mapping[str, Any]) -> int:
    """How many numbers a network holds, without making room for them."""
    try:
        with torch.device("meta"):
            return sum(math.prod(tensor.shape) for tensor in cls(**config).state_dict().values())
    except (ValueError, TypeError, RuntimeError, IndexError, KeyError, AttributeError, ZeroDivisionError,
            NotImplementedError, OverflowError, MemoryError, AssertionError, ImportError) as error:  # fmt: skip
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(f"{cls.__name__} cannot be built with these settings: {reason}") from error


def _check_size(name: str, key: str, value: Any, level: int = 0) -> None:
    if isinstance(value, list | tuple):
        if len(value) > _MOST_PARTS or level > 3:
            raise CheckpointError(f"{name}: {key} lists {len(value)} parts; up to {_MOST_PARTS} are built")
        for item in value:
            _check_size(name, key, item, level + 1)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        most = _MOST_PARTS if any(part in key for part in _COUNTS) else _WIDEST
        if not abs(value) <= most and not (isinstance(value, float) and key.endswith(("scale", "clamp"))):
            raise CheckpointError(f"{name}: {key}={value} is no size that is built; up to {most} is")
