r"""A lower bound of log p(x0) from the reverse process, with an error bar.

A chain has K terms and a prior term (Ho et al. 2020, arXiv:2006.11239; the terms: `sde_gen/bound_terms.py`):

.. math:: -\log p(x_0) \le KL(q(x_K|x_0) \| N(0, \sigma_K^2 I)) + \sum_{k=2}^K L_k - E\log p(x_0|x_1), \qquad
          KL = \tfrac12 e^{2\lambda_K} |x_0|^2 .

As K grows the sum becomes an integral (Kingma et al. 2021, arXiv:2107.00630, equation 17; with SNR = e^{2 lambda}):

.. math:: -\tfrac12 \int \frac{dSNR}{dt}\, E|x_0 - \hat x_0|^2 dt
          = \int_{\lambda_{least}}^{\lambda_{most}} E|\hat\epsilon - \epsilon|^2\, d\lambda ,

which depends on the formulation through the range of lambda alone. Its integrand is bounded by D and varies slowly,
so lambda is drawn uniformly, one draw in each of n equal parts.

**How tight.** With the exact score, the integral and the prior term of one x0 are exactly
:math:`E[\log q(x_1|x_0) - \log p_1(x_1)] + E[\log p_K(x_K) - \log N(x_K; 0, \sigma_K^2)]`, the first over
:math:`q(x_1|x_0)`, the second over :math:`q(x_K|x_0)`: what is lost is the prior mismatch, and what the decoder differs
from the true :math:`p(x_0|x_1)` (Song et al. 2021, arXiv:2101.09258).

**Less variance.** Where nothing can tell the noise, :math:`|\hat\epsilon - \epsilon|^2` is nearly
:math:`|\epsilon|^2`, whose mean D is known: :math:`c\,(|\epsilon|^2 - D)` is taken off, with c in [0, 1] read off the
neighbouring terms. It has mean zero, so nothing is biased; a single term may come out negative.

**Error bars.** Every draw is independent given x0. Where one draw is made of each term, the spread of a term is read
off its neighbours, whose expectations hardly differ once each is divided by its weight: a variance that is on average
too large rather than too small. The decoder is drawn twice.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_gen import bound_terms as bound
from sde_gen import checks
from sde_gen.conditions import Condition
from sde_gen.data.transform import Affine
from sde_gen.errors import ConfigError, DataError, NonFiniteError
from sde_gen.likelihood.inputs import refuse_guided
from sde_gen.likelihood.term_plans import Plan, chain_plan, continuous_plan, span_of, times_of
from sde_gen.model import Prediction, ScoreModel, evaluating
from sde_gen.perturbations import Chain
from sde_gen.rng import SeededNoise
from sde_gen.shapes import trailing

#: Draws of lambda for each sample, in continuous time.
_DRAWS = 128
#: Numbers given to the network at once, and the least and most rows.
_CHUNK_NUMBERS, _FEWEST, _MOST = 2**18, 16, 4096


@dataclass(frozen=True)
class VariationalBound:
    """A lower bound of log p for each sample.

    Attributes:
        log_prob: the bound in nats, (B,), float64: of the density of x, or of the probability of its levels.
        standard_error: of `log_prob` as an estimate of the bound's expectation, (B,); NaN where it cannot be told.
        prior: the prior term in nats, (B,).
        terms: (B, n) in nats: the decoder's -log p(x0|x1), then the terms of the steps in order of time; all of them
            and `prior` add up to -log_prob. Estimates from one draw, which may be negative. Where steps or lambdas are
            drawn, each term stands for its share of the sum.
        times: the times t at which the network was asked, (n,), or (B, n) where they are drawn.
        nfe: network calls made for each sample.
        dim: numbers in a sample.
        log_scale: log |d raw/d x| of a sample in nats, by which a density of raw data differs; 0 for levels.
    """

    log_prob: Tensor
    standard_error: Tensor
    prior: Tensor
    terms: Tensor
    times: Tensor
    nfe: int
    dim: int
    log_scale: float = 0.0

    @property
    def reconstruction(self) -> Tensor:
        """-log p(x0|x1) in nats, (B,)."""
        return self.terms[:, 0]

    @property
    def diffusion(self) -> Tensor:
        """Sum of the terms of the steps in nats, (B,)."""
        return self.terms[:, 1:].sum(1)

    @property
    def bits_per_dim(self) -> Tensor:
        """-log2 of the bound on the scale of the raw data, divided by D, (B,): an upper bound."""
        return (self.log_scale - self.log_prob) / (self.dim * math.log(2))

    @property
    def bits_per_dim_error(self) -> Tensor:
        """Standard error of `bits_per_dim`, (B,)."""
        return self.standard_error / (self.dim * math.log(2))


@torch.no_grad()
def variational_bound(
    model: ScoreModel,
    x: Tensor,
    *,
    transform: Affine | None = None,
    condition: Mapping[str, Any] | Condition | None = None,
    steps: int | None = None,
    terms: int | None = None,
    variance: str = "auto",
    lambdas: tuple[float, float] | None = None,
    seed: int = 0,
    first: int = 0,
    chunk: int | None = None,
) -> VariationalBound:
    """The variational bound of log p(x): that of a chain under a chain, in continuous time under an SDE.

    Args:
        model: under a chain, or a continuous perturbation.
        x: data on the model's scale, (B, *shape), finite.
        transform: how x was made from raw data, for bits per dimension; with `levels`, the bound is of the probability
            of the levels that x lies on (x must not be dequantised), else of a density.
        condition: keyword arguments of the network: tensors with a row for each sample, `Whole` what they share.
        steps: number of times, for a chain of fewer steps: of that many nodes, evenly spaced; under an SDE, of that
            many times evenly spaced in lambda. By default all nodes of a chain, and continuous time under an SDE.
        terms: number of steps (of a chain) or lambdas (in continuous time) drawn at random for each sample, >= 2. By
            default all steps, and 128 lambdas. The steps of a chain are drawn in proportion to their weights, one in
            each of `terms` equal parts.
        variance: of the steps of a chain: "small", "large" or "learned" as in `Ancestral`, or "auto", which is learned
            where the network has it, else small.
        lambdas: (least, most) half log-SNR of the bound, under an SDE; by default those of t_max and t_min, within what
            was trained.
        seed: whole number in [0, 2^64); the answer for sample i depends only on (model, x_i, seed, first + i).
        first: index of the first sample.
        chunk: most rows given to the network at once; by default chosen from their size.

    Raises:
        ConfigError: for values outside these ranges, or a learned variance that the network does not have.
        DataError: for data that is not finite, or not on the levels of the transform; it names the sample.
        NonFiniteError: if the network's answer is NaN or infinite.
    """
    where = "variational_bound"
    if not isinstance(model, ScoreModel):
        raise ConfigError(f"{where}: model must be a ScoreModel, got {type(model).__name__}")
    refuse_guided(where, model)
    _check_data(x, transform)
    checks.integer(where, "first", first, low=0)
    if chunk is not None:
        checks.integer(where, "chunk", chunk)
    if terms is not None:
        checks.integer(where, "terms", terms, low=2)
    checks.choice(where, "variance", variance, ("auto", *bound.VARIANCES))
    p, source = model.perturbation, SeededNoise(seed, first)
    discrete = isinstance(p, Chain) or steps is not None
    if discrete:
        times = times_of(model, steps, lambdas)
        variance = bound.chosen_variance(f"{where}: variance={variance!r}", variance, model)
        plan = chain_plan(model, times, terms, variance, x, source)
    else:
        if variance != "auto":
            raise ConfigError(f"{where}: variance={variance!r} is of a chain's steps; give steps=, or leave it out")
        plan = continuous_plan(model, span_of(model, lambdas), terms or _DRAWS, x, source)
    kept = _Evaluator(model, x, Condition.of(where, condition, len(x)), chunk or _rows(x), source)
    with evaluating(model):
        decoder, calls = _decoder(kept, plan, transform, variance if discrete else None)
        kls = kept.terms(plan, variance if discrete else None)
    each = torch.cat([decoder.mean(1, keepdim=True), kls], 1)
    at = torch.cat([plan.first.expand(len(plan.t), 1), plan.t], 1)
    _refuse_non_finite(each, at, first)
    prior = 0.5 * (2 * p.half_log_snr(plan.last)).exp().to(x.device) * x.double().flatten(1).square().sum(1)
    spread = decoder.diff(dim=1).square().squeeze(1) / 4 + _variance(kls, plan, variance, x[0].numel())
    levels = transform is not None and transform.levels is not None
    return VariationalBound(
        log_prob=-(prior + each.sum(1)),
        standard_error=spread.sqrt(),
        prior=prior,
        terms=each,
        times=at if plan.drawn else at[0],
        nfe=calls + plan.t.shape[1],
        dim=x[0].numel(),
        log_scale=0.0 if transform is None or levels else transform.log_scale(x.shape[1:]),
    )


# -- their values -----------------------------------------------------------------------------------------------------


class _Evaluator:
    """The model on many (sample, term) pairs at once, in chunks; noise is a function of (seed, sample, term)."""

    def __init__(self, model: ScoreModel, x: Tensor, condition: Condition, chunk: int, source: SeededNoise) -> None:
        self.model, self.x, self.condition, self.chunk, self.source = model, x, condition, chunk, source

    def predict(self, rows: slice, t: Tensor, noise: Tensor) -> Prediction:
        """Prediction for `rows` at times t (b, n) with noise (b, n, *shape), in b n rows."""
        p, n = self.model.perturbation, t.shape[1]
        alpha, sigma = (c.flatten().to(self.x.device) for c in (p.alpha(t), p.sigma(t)))
        x0 = self.x[rows].repeat_interleave(n, 0)
        a, b = (trailing(c.to(x0.dtype), x0.ndim) for c in (alpha, sigma))
        state, condition = a * x0 + b * noise.flatten(0, 1), self.condition[rows].repeated(n)
        return self.model.levels(alpha[None], sigma[None], state, condition).prediction(0, state)

    def noise(self, rows: slice, draws: list[tuple[int, int]]) -> Tensor:
        """(b, n, *shape): one draw for each (term, draw) of `draws`."""
        source = self.source.starting_at(self.source.first + rows.start)
        return torch.stack([source(self.x[rows], term, draw) for term, draw in draws], 1)

    def chunks(self, n: int) -> list[tuple[slice, slice]]:
        """(samples, columns) of each call of the network, for n columns."""
        wide = min(n, max(1, self.chunk // len(self.x)))
        tall = max(1, self.chunk // wide)
        whole = len(self.x)
        return [
            (slice(a, min(a + tall, whole)), slice(b, min(b + wide, n)))
            for a in range(0, whole, tall)
            for b in range(0, n, wide)
        ]

    def terms(self, plan: Plan, variance: str | None) -> Tensor:
        """(B, n) terms of the steps, float64."""
        p, n = self.model.perturbation, plan.t.shape[1]
        kl, error, drawn = torch.zeros(3, len(self.x), n, dtype=torch.float64, device=self.x.device)
        if not n:
            return kl
        self.model.warn_between_nodes(p.half_log_snr(plan.t))
        for rows, columns in self.chunks(n):
            b, width = rows.stop - rows.start, columns.stop - columns.start
            t, gain, gap = (
                (c if len(c) == 1 else c[rows])[:, columns].expand(b, width) for c in (plan.t, plan.gain, plan.gap)
            )
            noise = self.noise(rows, [(k, 0) for k in range(columns.start, columns.stop)])
            out = self.predict(rows, t, noise)
            error2 = (out.noise - noise.flatten(0, 1)).square()
            fraction = bound.fraction_of(variance or "small", out)
            wide, far = (trailing(c.flatten().to(error2.device).to(error2.dtype), error2.ndim) for c in (gain, gap))
            each = bound.step_kl(error2, wide, far, fraction)
            for total, part in ((kl, each), (error, error2), (drawn, noise.square())):
                total[rows, columns] = part.reshape(b, width, -1).sum(2, dtype=torch.float64)
        known = drawn - self.x[0].numel()  # of mean zero
        of_error = plan.of_error(variance).to(kl.device)
        return kl * plan.share.to(kl.device) - of_error * _predictable(error, drawn) * known


def _predictable(error: Tensor, drawn: Tensor) -> Tensor:
    """About what part of |eps|^2 is in |eps_hat - eps|^2, (B, n), from two neighbours on each side.

    For Gaussian data the error in a direction is A eps and something independent of eps, with mean square A: so the
    part is A^2. A draw's own numbers do not enter, so that the mean of what it multiplies stays zero.
    """
    top, bottom = torch.zeros_like(error), torch.zeros_like(error)
    for away in (1, 2):
        for total, each in ((top, error), (bottom, drawn)):
            total[:, away:] += each[:, :-away]
            total[:, :-away] += each[:, away:]
    return (top / bottom.clamp_min(1e-300)).clamp(0.0, 1.0).square()


def _decoder(kept: _Evaluator, plan: Plan, transform: Affine | None, variance: str | None) -> tuple[Tensor, int]:
    """-log p(x0|x1) on two draws, (B, 2), float64, and the network calls it took."""
    p, x, parts = kept.model.perturbation, kept.x, []
    levels = None if transform is None or transform.levels is None else transform
    for begin in range(0, len(x), max(1, kept.chunk // 2)):
        part = slice(begin, min(begin + max(1, kept.chunk // 2), len(x)))
        x0, noise = x[part].repeat_interleave(2, 0), kept.noise(part, [(0, 1), (0, 2)])
        z = noise.flatten(0, 1)
        if levels is not None and variance is None:
            nll = bound.level_posterior_nll(x0, z, math.exp(-float(p.half_log_snr(plan.first))), levels)
        else:
            out = kept.predict(part, plan.first.expand(len(noise), 2), noise)
            if levels is not None:
                fraction = bound.fraction_of(variance or "small", out)
                log_variance = bound.decoder_log_variance(p, plan.first, plan.second, fraction, x0)
                nll = bound.level_nll(x0, out.denoised, log_variance, levels)
            else:
                nll = bound.density_nll(p, plan.first, out.noise, z)
        parts.append(nll.flatten(1).sum(1, dtype=torch.float64).reshape(-1, 2))
    return torch.cat(parts), 0 if levels is not None and variance is None else 2


def _variance(terms: Tensor, plan: Plan, variance: str | None, dim: int) -> Tensor:
    """Variance of the sum of one draw of each term, (B,), from the differences of neighbours; NaN for a single one."""
    n = terms.shape[1]
    if n == 0:
        return terms.new_zeros(len(terms))
    if n == 1:
        return terms.new_full((len(terms),), math.nan)
    weight = torch.ones_like(plan.gain) if plan.drawn else plan.of_error(variance)
    weight, constant = weight.to(terms.device), plan.constant(variance, dim).to(terms.device)
    squares = ((terms - constant) / weight).diff(dim=1).square() / 2
    ends = torch.cat([squares[:, :1], (squares[:, 1:] + squares[:, :-1]) / 2, squares[:, -1:]], 1)
    return (ends * weight.square()).sum(1)


# -- what is refused --------------------------------------------------------------------------------------------------


def _rows(x: Tensor) -> int:
    return max(_FEWEST, min(_MOST, _CHUNK_NUMBERS // max(1, x[0].numel())))


def _check_data(x: Tensor, transform: Affine | None) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2 or not x.numel():
        what = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise DataError(f"variational_bound: x must be a floating tensor (B, *shape) with B >= 1, got {what}")
    bad = ~x.flatten(1).isfinite().all(1)
    if bool(bad.any()):
        raise DataError(f"variational_bound: sample {int(bad.nonzero()[0])} of x is NaN or infinite; remove it")
    if transform is None or transform.levels is None or transform.step is None:
        return
    wide = x.double()
    off = ((transform.inverse(wide) - transform.quantise(wide)).abs() > 1e-3 * transform.step).flatten(1).any(1)
    if bool(off.any()):
        raise DataError(
            f"variational_bound: sample {int(off.nonzero()[0])} of x is not on the {transform.levels} levels from "
            f"{transform.low:g} to {transform.high:g}; give data without dequantisation, or a transform without levels"
        )


def _refuse_non_finite(terms: Tensor, times: Tensor, first: int) -> None:
    bad = ~terms.isfinite()
    if bool(bad.any()):
        rows = bad.any(1).nonzero().flatten()
        column = int(bad[rows[0]].nonzero()[0])
        t = times[int(rows[0]) if len(times) > 1 else 0, column]
        raise NonFiniteError(column, float(t), [first + int(i) for i in rows], "term of the variational bound")
