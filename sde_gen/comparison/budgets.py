r"""From a budget of network calls to a sampler with that many steps, counted on a run and not on paper.

A matched grid visits the same half log-SNRs under every formulation, evenly spaced over the range that all of them
share; a native grid is the sampler's own.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_gen.errors import ConfigError
from sde_gen.model import ScoreModel
from sde_gen.oracles import GaussianMixture
from sde_gen.perturbations import Perturbation
from sde_gen.samplers import GivenLambdas, GridSampler, Sampler

_UNMATCHED = "chooses its own times; the grid is not matched"
#: Half log-SNRs at the two ends of a matched grid, ascending.
Range = tuple[float, float]


class Bought(NamedTuple):
    """A sampler with its steps set, the steps, and a word where they are not what the budget would buy."""

    sampler: Sampler
    steps: int | None
    note: str


def takes_budget(sampler: Sampler) -> bool:
    """Whether a budget decides this sampler's steps: those with steps of their own, or adaptive ones, keep them."""
    if getattr(sampler, "nfe", None) is not None:  # a number of calls is what it is told anyway
        return True
    if not isinstance(sampler, GridSampler) or sampler.steps is not None:
        return False
    return sampler.grid is None or sampler.grid.length is None


def common_range(models: list[ScoreModel]) -> Range:
    """The half log-SNRs that samplers visit under all of these models.

    Raises:
        ConfigError: they share none.
    """
    low, high = -float("inf"), float("inf")
    for model in models:
        first, last = model.times_within()
        p = model.perturbation
        low, high = max(low, float(p.half_log_snr(last))), min(high, float(p.half_log_snr(first)))
    if not low < high:
        raise ConfigError(f"grid=matched: the formulations share no noise levels (from {low:.3g} to {high:.3g})")
    return low, high


def matched(sampler: Sampler, steps: int, span: Range) -> Sampler:
    """`sampler` with `steps` steps on a grid even in lambda over `span`; unchanged if it takes no grid."""
    if not isinstance(sampler, GridSampler):
        return sampler
    n = steps + (0 if sampler.acts_on_last_time else 1)
    values = torch.linspace(*span, n, dtype=torch.float64).tolist() if n > 1 else [span[0]]
    return replace(sampler, steps=None, grid=GivenLambdas(tuple(values)))


def within_budget(sampler: Sampler, p: Perturbation, budget: int | None, span: Range | None) -> Bought:
    """`sampler` as it is run under `p`: with the most steps whose counted calls do not exceed the budget.

    Args:
        sampler: with its steps left open, or (budget None) as it is.
        p: the perturbation.
        budget: network calls for each sample.
        span: of a matched grid; None: the sampler's own grid.

    Raises:
        ConfigError: the sampler does not go with `p`, or the budget is too small for one step.
    """
    if budget is None:
        steps = getattr(sampler, "steps", None)
        if isinstance(sampler, GridSampler):
            visited = len(sampler.times(_PROBE.model(p)))
            steps = visited - (0 if sampler.acts_on_last_time else 1)
            sampler = sampler if span is None else matched(sampler, steps, span)
        return Bought(sampler, steps, "" if span is None or isinstance(sampler, GridSampler) else _UNMATCHED)
    if not isinstance(sampler, GridSampler):
        # Not tried out here: such a sampler may look for its steps for a while.
        return Bought(replace(sampler, nfe=budget), None, "" if span is None else _UNMATCHED)  # type: ignore[call-arg]

    def make(steps: int) -> Sampler:
        return replace(sampler, steps=steps) if span is None else matched(sampler, steps, span)

    def allowed(steps: int) -> bool:
        try:
            make(steps).times(_PROBE.model(p))
        except ConfigError:  # a chain has so many nodes and no more
            return False
        return True

    one = calls_of(make(1), p)
    if one > budget:
        raise ConfigError(f"a budget of {budget} network calls is below the {one} that one step needs")
    most = budget + 1 if allowed(budget + 1) else _last(allowed, 1, budget + 1, (budget + 1) // 2)
    slope = max(1, calls_of(make(2), p) - one) if most >= 2 else 1
    steps = _last(lambda n: calls_of(make(n), p) <= budget, 1, most + 1, min(most, 1 + (budget - one) // slope))
    all_there_are = steps == most < budget
    return Bought(make(steps), steps, f"all {steps} times there are; the budget allows more calls" * all_there_are)


def _last(fits: Callable[[int], bool], low: int, high: int, guess: int) -> int:
    """The largest number that fits, where `low` does and `high` does not; first tried at and beside `guess`."""
    tried = 0
    while high - low > 1:
        low, high = (guess, high) if fits(guess) else (low, guess)
        tried += 1
        near = low + 1 if low == guess else high - 1
        guess = near if tried < 3 else (low + high) // 2
    return low


def calls_of(sampler: Sampler, p: Perturbation) -> int:
    """Network calls of one sample, counted on a one-dimensional standard normal with exact scores.

    A sampler that fails numerically is counted all the same: its failure is for the cell to tell.
    """
    law = _Counting(*_STANDARD)
    try:
        sampler(law.model(p), (1, 1), seed=0, dtype=torch.float64)
    except ConfigError:
        raise
    except Exception:  # noqa: BLE001
        pass
    return law.calls


class _Counting(GaussianMixture):
    calls = 0

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, label: Any = None) -> Tensor:
        self.calls += 1
        return super().denoise(x, alpha, sigma, label)


_STANDARD = [1.0], [[0.0]], [[[1.0]]]
_PROBE = GaussianMixture(*_STANDARD)
