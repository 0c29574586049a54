r"""Which terms of a variational bound are evaluated, and what each stands for.

Steps of a chain that are drawn at random are drawn in proportion to :math:`e^{2(\lambda_s-\lambda_t)} - 1`, which is
what their KL with a fixed variance is proportional to, but for an error that varies slowly; lambdas of the continuous
bound are drawn uniformly, for the same reason.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sde_gen import bound_terms as bound
from sde_gen import checks
from sde_gen.errors import ConfigError
from sde_gen.model import ScoreModel
from sde_gen.perturbations import Chain
from sde_gen.rng import SeededNoise


class Plan(NamedTuple):
    """Which terms are evaluated. Columns are terms; rows are samples, or one for all."""

    first: Tensor
    second: Tensor | None
    last: Tensor
    t: Tensor
    """Times, (rows, n)."""
    gain: Tensor
    gap: Tensor
    share: Tensor
    """What one draw of the term is multiplied by."""
    drawn: bool
    """Whether the times are drawn, and not the same for all samples."""

    def of_error(self, variance: str | None) -> Tensor:
        """Factor of the sum of (eps_hat - eps)^2 in a term, with a learned variance about that; (rows, n)."""
        return 0.5 * self.share * self.gain * ((-self.gap).exp() if variance == "large" else 1.0)

    def constant(self, variance: str | None, dim: int) -> Tensor:
        """What a term has besides, (rows, n); zero where it is drawn or learned."""
        if self.drawn or variance != "large":
            return torch.zeros_like(self.gain)
        return dim * self.share * bound.step_kl(torch.zeros_like(self.gain), self.gain, self.gap, 1.0)


def times_of(model: ScoreModel, steps: int | None, lambdas: tuple[float, float] | None) -> Tensor:
    """Times of a discrete bound, ascending, float64."""
    p = model.perturbation
    if steps is not None:
        checks.integer("variational_bound", "steps", steps, low=2)
    if not isinstance(p, Chain):
        least, most = span_of(model, lambdas)
        return p.time(torch.linspace(most, least, steps or 2, dtype=torch.float64))
    if lambdas is not None:
        raise ConfigError(f"variational_bound: lambdas are of continuous time, but the perturbation is {p}")
    low, high = model.times_within(p.t_min)
    nodes = p.nodes[(p.nodes > low - 1e-9) & (p.nodes < high + 1e-9)]
    if steps is None:
        return nodes
    if steps > len(nodes):
        raise ConfigError(f"variational_bound: steps={steps} of a chain of {len(nodes)} nodes; give at most that many")
    return nodes[torch.linspace(0, len(nodes) - 1, steps, dtype=torch.float64).round().long()]


def span_of(model: ScoreModel, lambdas: tuple[float, float] | None) -> tuple[float, float]:
    """(least, most) half log-SNR of a bound in continuous time."""
    p = model.perturbation
    low, high = model.times_within(p.t_min)
    if lambdas is None:
        return float(p.half_log_snr(high)), float(p.half_log_snr(low))
    if not isinstance(lambdas, tuple | list) or len(lambdas) != 2:
        raise ConfigError(f"variational_bound: lambdas must be two numbers (least, most), got {lambdas!r}")
    least, most = (checks.number("variational_bound", "lambdas", v) for v in lambdas)
    p.time(torch.tensor([least, most], dtype=torch.float64))  # refuses what the process never has
    if least >= most:
        raise ConfigError(f"variational_bound: lambdas must be (least, most) with least < most, got {lambdas!r}")
    return least, most


def chain_plan(
    model: ScoreModel, times: Tensor, terms: int | None, variance: str, x: Tensor, source: SeededNoise
) -> Plan:
    """The steps between ascending `times`: all of them, or `terms` draws for each sample."""
    p, s, t = model.perturbation, times[:-1], times[1:]
    gain = bound.mean_gain(p, s, t)
    gap = bound.log_variance_gap(p, s, t, model.trained_under if variance == "learned" else None)
    ends = (times[0], times[1] if len(times) > 1 else None, times[-1])
    if terms is None:
        return Plan(*ends, t[None], gain[None], gap[None], torch.ones_like(gain)[None], drawn=False)
    if not len(t):
        raise ConfigError(f"variational_bound: terms={terms} of a chain that has a single node")
    edges = (gain / gain.sum()).cumsum(0)
    index = torch.searchsorted(edges / edges[-1], stratified(x, terms, source)).clamp_max(len(t) - 1)
    share = gain.sum() / (terms * gain[index])
    return Plan(*ends, t[index], gain[index], gap[index], share, drawn=True)


def continuous_plan(model: ScoreModel, span: tuple[float, float], terms: int, x: Tensor, source: SeededNoise) -> Plan:
    """`terms` draws of lambda within `span` for each sample."""
    p, (least, most) = model.perturbation, span
    lam = most + stratified(x, terms, source) * (least - most)
    one = torch.ones(1, terms, dtype=torch.float64)
    ends = p.time(torch.tensor([most, least], dtype=torch.float64))
    # gain 2 and gap 0 make a KL of error2
    return Plan(ends[0], None, ends[1], p.time(lam), 2 * one, 0 * one, (most - least) / terms * one, drawn=True)


def stratified(x: Tensor, n: int, source: SeededNoise) -> Tensor:
    """Uniform numbers, one in each of n equal parts of [0, 1], for each sample, (B, n), float64, on the CPU."""
    z = source(torch.empty(len(x), n, dtype=torch.float64), -1, 0)
    return (torch.arange(n, dtype=torch.float64) + torch.special.ndtr(z)) / n
