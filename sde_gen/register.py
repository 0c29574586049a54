"""What the package exports, read from the `__all__` of its rooms without importing any of them.

The one register of names: a class in the `__all__` of its room is an attribute of `sde_gen`, a choice of the command
line and a target of a configuration by that fact.
"""

import os
from functools import cache

#: Rooms whose every name is an attribute of `sde_gen`, and rooms that are namespaces of their own, with the names that
#: are attributes of `sde_gen` all the same.
ROOMS = (
    "comparison", "conditions", "conventions", "errors", "likelihood", "loading", "model", "networks", "objectives",
    "oracles", "parameterizations", "perturbations", "samplers", "tuning",
)  # fmt: skip
SINGLE = {
    "Trainer": "training", "TrainerSettings": "training", "load_config": "config", "SplitGibbs": "inverse",
    "TwistedSMC": "inverse", "compare_posteriors": "inverse",
}  # fmt: skip

_PACKAGE = os.path.dirname(os.path.abspath(__file__))


def path_of(module: str) -> str | None:
    """The source file of a module of the package, such as "sde_gen.samplers"; None: there is no such module."""
    base = os.path.join(os.path.dirname(_PACKAGE), *module.split("."))
    return next((path for path in (f"{base}.py", os.path.join(base, "__init__.py")) if os.path.isfile(path)), None)


@cache
def exports(room: str) -> tuple[str, ...]:
    """The `__all__` of a room, a literal list in its source; () where there is none."""
    path = path_of(f"sde_gen.{room}")
    if path is None:
        return ()
    with open(path, encoding="utf-8") as source:
        _, _, after = source.read().partition("\n__all__ = [")
    return tuple(after.partition("]")[0].split('"')[1::2])


@cache
def homes() -> dict[str, str]:
    """Every public name of `sde_gen` and the module that exports it."""
    return {name: f"sde_gen.{room}" for room in ROOMS for name in exports(room)} | {
        name: f"sde_gen.{room}" for name, room in SINGLE.items()
    }
