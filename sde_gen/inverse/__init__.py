"""Inverse problems: what was measured, models of what is given it, and samplers that are right about it.

operators, image_operators       what is measured of a sample
measurement, linearised          an operator with its noise; the same near one point
particles, systems               TwistedSMC, which corrects what guidance guesses; what it returns
split_gibbs                      SplitGibbs, which alternates between model and observation
experts, mixture, tilted         products and mixtures of models, and a model times a function of yours
compared                         methods against exact posteriors
posterior                        a guided model, which every sampler takes; its solves in curvature
"""

from sde_gen.inverse.compared import PosteriorTable, compare_posteriors
from sde_gen.inverse.experts import Product
from sde_gen.inverse.image_operators import Blur, Downsample, Fourier, Grey
from sde_gen.inverse.mixture import Mixture
from sde_gen.inverse.operators import Composed, Mask, Matrix, Nonlinear, Operator, Reshape
from sde_gen.inverse.particles import TwistedSMC
from sde_gen.inverse.posterior import Posterior
from sde_gen.inverse.split_gibbs import SplitGibbs
from sde_gen.inverse.systems import Particles
from sde_gen.inverse.tilted import Tilted

__all__ = [
    "Blur",
    "Composed",
    "Downsample",
    "Fourier",
    "Grey",
    "Mask",
    "Matrix",
    "Mixture",
    "Nonlinear",
    "Operator",
    "Particles",
    "Posterior",
    "PosteriorTable",
    "Product",
    "Reshape",
    "SplitGibbs",
    "Tilted",
    "TwistedSMC",
    "compare_posteriors",
]
