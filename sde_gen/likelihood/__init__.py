"""Likelihoods: exact log-densities by the probability-flow ODE, bounds, and the latents of data."""

from sde_gen.likelihood.latent import decode, encode, interpolate
from sde_gen.likelihood.ode import log_likelihood
from sde_gen.likelihood.result import Likelihood

__all__ = ["Likelihood", "decode", "encode", "interpolate", "log_likelihood"]
