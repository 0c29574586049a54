"""Samplers: one loop, one idea per file.

one_step            one combination of state, estimate and noise: Euler-Maruyama, reverse diffusion, ancestral, DDIM
multistep           exponential rules that remember estimates: Adams-Bashforth, UniPC; their names in named_multistep
limited             UniPC of all orders, each taken for what it is worth in a sample
singlestep          exponential rules with calls within the step: DPM-Solver 2S, 3S
heun                Heun's method, with churn
stochastic          exponential rules of the reverse SDE: SDE-DPM-Solver++, stochastic Heun
langevin, langevin_dynamics, metropolis    what moves a state at one level
predictor_corrector, restart               what combines rules
probability_flow, adaptive_sde             solvers that choose their own steps
"""

from sde_gen.samplers.adaptive_sde import AdaptiveSDE
from sde_gen.samplers.grid_sampler import GridSampler
from sde_gen.samplers.grids import (
    ArctanLambda,
    ChainNodes,
    GivenLambdas,
    GivenTimes,
    KarrasRho,
    Quadratic,
    TimeGrid,
    UniformLambda,
    UniformTime,
)
from sde_gen.samplers.heun import EDMChurn, Heun
from sde_gen.samplers.langevin import AnnealedLangevin, Corrector, Langevin
from sde_gen.samplers.langevin_dynamics import LangevinDynamics
from sde_gen.samplers.limited import LimitedUniPC
from sde_gen.samplers.multistep import AdamsBashforth, UniPC
from sde_gen.samplers.named_multistep import DEIS, LMS, PLMS, DPMSolverPP2M, DPMSolverPP3M
from sde_gen.samplers.noise import NoiseSource, SeededNoise, ShiftedNoiseSource
from sde_gen.samplers.one_step import DDIM, Ancestral, EulerMaruyama, OneStepSampler, ReverseDiffusion
from sde_gen.samplers.predictor_corrector import PredictorCorrector
from sde_gen.samplers.probability_flow import ProbabilityFlow
from sde_gen.samplers.restart import Restart
from sde_gen.samplers.sampler import Sampler, Samples
from sde_gen.samplers.singlestep import SingleStep
from sde_gen.samplers.stochastic import ExponentialSDE, SDEDPMSolverPP, StochasticHeun

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
    "LangevinDynamics",
    "LimitedUniPC",
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
