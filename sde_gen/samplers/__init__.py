"""Samplers: one loop, one family of step rules per file."""

from sde_gen.samplers.adaptive_sde import AdaptiveSDE
from sde_gen.samplers.ancestral import DDIM, Ancestral
from sde_gen.samplers.arctan import ArctanLambda
from sde_gen.samplers.base import GridSampler, OneStepSampler
from sde_gen.samplers.churn import EDMChurn
from sde_gen.samplers.euler import EulerMaruyama, ReverseDiffusion
from sde_gen.samplers.grids import (
    ChainNodes,
    GivenLambdas,
    GivenTimes,
    KarrasRho,
    Quadratic,
    TimeGrid,
    UniformLambda,
    UniformTime,
)
from sde_gen.samplers.heun import Heun
from sde_gen.samplers.langevin import AnnealedLangevin, Corrector, Langevin
from sde_gen.samplers.multistep import DPMSolverPP2M
from sde_gen.samplers.noise import NoiseSource, SeededNoise, ShiftedNoiseSource
from sde_gen.samplers.ode import ProbabilityFlow
from sde_gen.samplers.predictor_corrector import PredictorCorrector
from sde_gen.samplers.restart import Restart
from sde_gen.samplers.sampler import Sampler, Samples
from sde_gen.samplers.sde_exponential import ExponentialSDE, SDEDPMSolverPP
from sde_gen.samplers.stochastic_heun import StochasticHeun

__all__ = [
    "DDIM",
    "AdaptiveSDE",
    "Ancestral",
    "AnnealedLangevin",
    "ArctanLambda",
    "ChainNodes",
    "Corrector",
    "DPMSolverPP2M",
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
    "StochasticHeun",
    "TimeGrid",
    "UniformLambda",
    "UniformTime",
]
