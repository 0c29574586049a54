"""What measures a model to choose a sampler for it: a fine reference, a search, solvers fitted number by number."""

from sde_gen.tuning.auto import Auto, Choice
from sde_gen.tuning.fitted import Fitted
from sde_gen.tuning.fitted_steps import FittedSteps
from sde_gen.tuning.grid import fit_grid

__all__ = ["Auto", "Choice", "Fitted", "FittedSteps", "fit_grid"]
