"""From a configuration to objects: composing with Hydra, checking names and types, building what is allowed.

Importing this package imports neither torch nor Hydra.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sde_gen.config.compose import load_config as load_config
    from sde_gen.config.objects import build as build
    from sde_gen.config.restore import load_model as load_model

_HOME = {"build": "objects", "load_config": "compose", "load_model": "restore"}
__all__ = ["build", "load_config", "load_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sde_gen.config' has no attribute {name!r}")
    value = getattr(import_module(f"sde_gen.config.{_HOME[name]}"), name)
    globals()[name] = value
    return value
