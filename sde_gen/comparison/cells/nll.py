"""How likely a model finds held-out data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from sde_gen.comparison.cells.cell import Context, Result
from sde_gen.comparison.cells.models import OfModel, dtype_for, law_of
from sde_gen.errors import SolverError
from sde_gen.likelihood import log_likelihood
from sde_gen.oracles import GaussianMixture


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOutLikelihood(OfModel):
    """Negative log-likelihood of held-out points, with its standard error over the points.

    `nll` is in nats a dimension on the model's scale; `bits_per_dim` of the raw data where it has levels, which are
    then spread out by uniform noise, the same for all models.
    """

    kind: ClassVar[str] = "likelihood"
    points: int
    steps: int | None
    probes: int
    seed: int

    def compute(self, context: Context, stop: Callable[[], bool]) -> Result:
        """Means over the points.

        Raises:
            SolverError: a point could not be integrated.
        """
        data, model = context.data, self.model(context)
        test, levels = data.test[: self.points], data.transform.levels is not None
        x = data.transform.dequantise(test, seed=0) if levels else test
        found = log_likelihood(
            model, x.to(device=model.device, dtype=dtype_for(model)), probes=self.probes, steps=self.steps,
            seed=self.seed, transform=data.transform if levels else None,
        )  # fmt: skip
        if found.failed:
            index, error = next(iter(found.failed.items()))
            raise SolverError(f"{len(found.failed)} of {len(x)} points could not be integrated; point {index}: {error}")
        size, (mean, error) = x[0].numel(), found.mean()
        result = {"nll": -mean / size, "nll_standard_error": error / size, "nfe": int(found.nfe)}
        if levels:
            result["bits_per_dim"], result["bits_per_dim_standard_error"] = found.mean_bits_per_dim()
        law = law_of(data)
        if law.known and isinstance(law.exact, GaussianMixture):
            result["nll_exact"] = float((-law.exact.log_prob(test.double()) / size).mean())
        return result, {}
