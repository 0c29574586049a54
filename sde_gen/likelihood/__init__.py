"""Likelihoods: exact log-densities by the probability-flow ODE, bounds, and the latents of data."""

from sde_gen.likelihood.latent import decode, encode, interpolate
from sde_gen.likelihood.ode import log_likelihood
from sde_gen.likelihood.result import Likelihood
from sde_gen.likelihood.variational import VariationalBound, variational_bound

__all__ = [
    "Likelihood",
    "VariationalBound",
    "decode",
    "encode",
    "interpolate",
    "log_likelihood",
    "variational_bound",
]
