"""Comparing formulations, samplers and budgets: one run, tidy data, one report."""

from sde_gen.comparison.definition import Formulation
from sde_gen.comparison.findings import Finding
from sde_gen.comparison.study import Comparison, Results

__all__ = ["Comparison", "Finding", "Formulation", "Results"]
