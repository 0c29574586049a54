"""Distances between two sets of samples. They know nothing of diffusion."""

from sde_gen.metrics.distances import energy_distance, maximum_mean_discrepancy, sliced_wasserstein
from sde_gen.metrics.two_sample import classifier_accuracy

__all__ = ["classifier_accuracy", "energy_distance", "maximum_mean_discrepancy", "sliced_wasserstein"]
