"""Comparing formulations, samplers and budgets: one run, tidy data, one report."""

from sde_gen.comparison.comparison import Comparison, Formulation
from sde_gen.comparison.findings import Finding
from sde_gen.comparison.results import Results

__all__ = ["Comparison", "Finding", "Formulation", "Results"]
