"""Samplers: one loop, one family of step rules per file."""

from sde_gen.samplers.adaptive_sde import AdaptiveSDE
from sde_gen.samplers.ancestral import DDIM, Ancestral
from sde_gen.samplers.arctan import ArctanLambda
from sde_gen.samplers.churn import EDMChurn
from sde_gen.samplers.deis import DEIS, LMS, PLMS
from sde_gen.samplers.dpm_solver import DPMSolverPP2M, DPMSolverPP3M
from sde_gen.samplers.euler import EulerMaruyama, ReverseDiffusion
from sde_gen.samplers.grid_sampler import GridSampler, OneStepSampler
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
from sde_gen.samplers.multistep import AdamsBashforth, UniPC
from sde_gen.samplers.noise import NoiseSource, SeededNoise, ShiftedNoiseSource
from sde_gen.samplers.predictor_corrector import PredictorCorrector
from sde_gen.samplers.probability_flow import ProbabilityFlow
from sde_gen.samplers.restart import Restart
from sde_gen.samplers.sampler import Sampler, Samples
from sde_gen.samplers.sde_exponential import ExponentialSDE, SDEDPMSolverPP
from sde_gen.samplers.singlestep import SingleStep
from sde_gen.samplers.stochastic_heun import StochasticHeun

__all__ = [
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
]
