"""sde_gen: score-based generative models as one family of Gaussian perturbations.

    import sde_gen as sg

    model = sg.ScoreModel(network, sg.VP())
    loss = sg.DenoisingScoreMatching()(model, x0).mean()
    samples = sg.PredictorCorrector(steps=500)(model, (64, 1, 8, 8), seed=0).x

Names are loaded on first use (PEP 562), so that the commands' `--help` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "sde_gen.comparison": ("Comparison", "Finding", "Formulation", "Results"),
    "sde_gen.conditions": ("Condition", "Rows", "Whole"),
    "sde_gen.config": ("load_config",),
    "sde_gen.errors": (
        "BetweenNodesWarning",
        "CheckpointError",
        "ConfigError",
        "DataError",
        "LateStartWarning",
        "MissingInputError",
        "NonFiniteError",
        "OutputError",
        "PrecisionWarning",
        "SDEGenError",
        "SolverError",
        "WriteError",
    ),
    "sde_gen.likelihood": (
        "Likelihood",
        "VariationalBound",
        "decode",
        "encode",
        "interpolate",
        "log_likelihood",
        "variational_bound",
    ),
    "sde_gen.model": ("Prediction", "ScoreModel"),
    "sde_gen.networks": ("MLP", "UNet"),
    "sde_gen.objectives": ("DenoisingScoreMatching",),
    "sde_gen.oracles": ("EmpiricalData", "GaussianMixture", "Oracle"),
    "sde_gen.parameterizations": (
        "Coefficients",
        "DataPrediction",
        "EDMPreconditioning",
        "NoisePrediction",
        "Parameterization",
        "ScorePrediction",
        "VPrediction",
    ),
    "sde_gen.perturbations": (
        "DDPM",
        "EDM",
        "NCSN",
        "VE",
        "VP",
        "Chain",
        "Cosine",
        "FlowMatching",
        "Perturbation",
        "SubVP",
    ),
    "sde_gen.samplers": (
        "DDIM",
        "DEIS",
        "LMS",
        "PLMS",
        "AdamsBashforth",
        "AdaptiveSDE",
        "Ancestral",
        "AnnealedLangevin",
        "ArctanLambda",
        "ChainNodes",
        "Corrector",
        "DPMSolverPP2M",
        "DPMSolverPP3M",
        "EDMChurn",
        "EulerMaruyama",
        "ExponentialSDE",
        "GivenLambdas",
        "GivenTimes",
        "GridSampler",
        "Heun",
        "KarrasRho",
        "Langevin",
        "NoiseSource",
        "OneStepSampler",
        "PredictorCorrector",
        "ProbabilityFlow",
        "Quadratic",
        "Restart",
        "ReverseDiffusion",
        "SDEDPMSolverPP",
        "Sampler",
        "Samples",
        "SeededNoise",
        "ShiftedNoiseSource",
        "SingleStep",
        "StochasticHeun",
        "TimeGrid",
        "UniPC",
        "UniformLambda",
        "UniformTime",
    ),
    "sde_gen.tuning": ("Auto", "Choice", "Fitted", "fit_grid"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = [*_MODULE_OF, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:  # for type checkers; tests/test_public_names.py keeps the two lists equal
    from sde_gen.comparison import *  # noqa: F403
    from sde_gen.conditions import *  # noqa: F403
    from sde_gen.config import load_config as load_config
    from sde_gen.errors import *  # noqa: F403
    from sde_gen.likelihood import *  # noqa: F403
    from sde_gen.model import *  # noqa: F403
    from sde_gen.networks import *  # noqa: F403
    from sde_gen.objectives import *  # noqa: F403
    from sde_gen.oracles import *  # noqa: F403
    from sde_gen.parameterizations import *  # noqa: F403
    from sde_gen.perturbations import *  # noqa: F403
    from sde_gen.samplers import *  # noqa: F403
    from sde_gen.tuning import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(import_module(_MODULE_OF[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'sde_gen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
