"""Models made of a model: guided towards a condition, away from a worse model, or held within bounds.

guided                  what they have in common
extrapolation           beyond one model as seen from another: classifier_free, autoguidance
classifier              towards what a classifier, or any log-likelihood, prefers
clipped                 x0hat within bounds

Each is a `ScoreModel`, which every sampler takes and `.under()` moves; likelihoods refuse them.
"""

from sde_gen.guidance.autoguidance import Autoguidance
from sde_gen.guidance.classifier import ClassifierGuidance
from sde_gen.guidance.classifier_free import ClassifierFree
from sde_gen.guidance.clipped import Clipped, Thresholded

__all__ = [
    "Autoguidance",
    "ClassifierFree",
    "ClassifierGuidance",
    "Clipped",
    "Thresholded",
]
