"""Distances between two sets of samples, and calibration of posteriors. They know nothing of diffusion."""

from sde_gen.metrics.calibrated import Calibration, Coverage, calibration, ranks
from sde_gen.metrics.efficientnet import efficientnet_lite0
from sde_gen.metrics.features import Features, NetworkFeatures, Pixels
from sde_gen.metrics.inception import dinov2, inception
from sde_gen.metrics.jackknife import Cut, Estimate, Measure, measure
from sde_gen.metrics.manifold import DensityCoverage, PrecisionRecall, density_coverage, precision_recall
from sde_gen.metrics.sample_distances import (
    energy_distance,
    frechet_distance,
    kernel_distance,
    maximum_mean_discrepancy,
    sliced_wasserstein,
)
from sde_gen.metrics.statistics import Statistics
from sde_gen.metrics.summary import METRICS, Metric, MetricResult, check_sizes, summary
from sde_gen.metrics.two_sample import ClassifierTest, classifier_accuracy, classifier_two_sample

__all__ = [
    "METRICS",
    "Calibration",
    "ClassifierTest",
    "Coverage",
    "Cut",
    "DensityCoverage",
    "Estimate",
    "Features",
    "Measure",
    "Metric",
    "MetricResult",
    "NetworkFeatures",
    "Pixels",
    "PrecisionRecall",
    "Statistics",
    "calibration",
    "check_sizes",
    "classifier_accuracy",
    "classifier_two_sample",
    "density_coverage",
    "dinov2",
    "efficientnet_lite0",
    "energy_distance",
    "frechet_distance",
    "inception",
    "kernel_distance",
    "maximum_mean_discrepancy",
    "measure",
    "precision_recall",
    "ranks",
    "sliced_wasserstein",
    "summary",
]
