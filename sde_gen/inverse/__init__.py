"""Inverse problems: what was measured, models of what is given it, and samplers that are right about it.

operators, image_operators       what is measured of a sample
measurement, linearised          an operator with its noise; the same near one point
posterior                        a guided model, which every sampler takes; its solves in curvature
"""

from sde_gen.inverse.image_operators import Blur, Downsample, Fourier, Grey
from sde_gen.inverse.operators import Composed, Mask, Matrix, Nonlinear, Operator, Reshape
from sde_gen.inverse.posterior import Posterior

__all__ = [
    "Blur",
    "Composed",
    "Downsample",
    "Fourier",
    "Grey",
    "Mask",
    "Matrix",
    "Nonlinear",
    "Operator",
    "Posterior",
    "Reshape",
]
