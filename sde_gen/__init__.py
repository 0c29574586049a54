"""sde_gen: score-based generative models as one family of Gaussian perturbations.

    import sde_gen as sg

    model = sg.ScoreModel(network, sg.VP())
    loss = sg.DenoisingScoreMatching()(model, x0).mean()
    samples = sg.PredictorCorrector(steps=500)(model, (64, 1, 8, 8), seed=0).x

Names are loaded on first use (PEP 562), so that the commands' `--help` does not wait for torch. Which there are follows
from the `__all__` of each room (`sde_gen.register`); rooms such as `sg.data` and `sg.metrics` are attributes too.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sde_gen.register import homes, path_of

__version__ = "0.1.0"

if TYPE_CHECKING:  # for type checkers; tests/test_public_names.py holds it to the register
    from sde_gen import data as data
    from sde_gen import guidance as guidance
    from sde_gen import interop as interop
    from sde_gen import inverse as inverse
    from sde_gen import metrics as metrics
    from sde_gen import networks as networks
    from sde_gen import pictures as pictures
    from sde_gen.comparison import *  # noqa: F403
    from sde_gen.conditions import *  # noqa: F403
    from sde_gen.config import load_config as load_config
    from sde_gen.conventions import *  # noqa: F403
    from sde_gen.diagnosis import *  # noqa: F403
    from sde_gen.errors import *  # noqa: F403
    from sde_gen.inverse import SplitGibbs as SplitGibbs
    from sde_gen.inverse import TwistedSMC as TwistedSMC
    from sde_gen.inverse import compare_posteriors as compare_posteriors
    from sde_gen.likelihood import *  # noqa: F403
    from sde_gen.loading import *  # noqa: F403
    from sde_gen.model import *  # noqa: F403
    from sde_gen.networks import *  # noqa: F403
    from sde_gen.objectives import *  # noqa: F403
    from sde_gen.oracles import *  # noqa: F403
    from sde_gen.parameterizations import *  # noqa: F403
    from sde_gen.perturbations import *  # noqa: F403
    from sde_gen.samplers import *  # noqa: F403
    from sde_gen.training import Trainer as Trainer
    from sde_gen.training import TrainerSettings as TrainerSettings
    from sde_gen.tuning import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return [*homes(), "__version__"]
    if name in homes():
        value = globals()[name] = getattr(import_module(homes()[name]), name)
        return value
    if not name.startswith("_") and path_of(f"sde_gen.{name}"):
        return import_module(f"sde_gen.{name}")
    raise AttributeError(f"module 'sde_gen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *homes()])
