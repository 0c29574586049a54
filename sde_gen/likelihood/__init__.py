"""Likelihoods of data under a model, and bounds of them."""

from sde_gen.likelihood.variational import VariationalBound, variational_bound

__all__ = ["VariationalBound", "variational_bound"]
