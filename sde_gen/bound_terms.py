r"""The terms of the variational bound: what one reverse step costs, in nats.

A chain :math:`x_K \to \dots \to x_1 \to x_0` of Gaussian steps bounds the density of the data (Ho et al. 2020,
arXiv:2006.11239):

.. math:: -\log p(x_0) \le KL(q(x_K|x_0) \| p(x_K)) + \sum_{k \ge 2} KL(q(x_{k-1}|x_k,x_0) \| p(x_{k-1}|x_k))
          - E \log p(x_0|x_1) .

For a step t -> s the posterior q has variance :math:`\tilde\beta = b^2\sigma_s^2/\sigma_t^2`, and the model a variance
:math:`\tilde\beta\, r^f`, :math:`r = b^2/\tilde\beta = \sigma_t^2/\sigma_s^2`: f = 0 is "small", f = 1 is "large"
(:math:`b^2`, which is beta on a DDPM chain), and a network that learns it (Nichol & Dhariwal 2021,
arXiv:2102.09672) says f for every dimension. The means differ by :math:`c_0 (x_0 - \hat x_0)`, and
:math:`c_0^2/\tilde\beta = SNR_s - SNR_t`, so that in one dimension

.. math:: KL = \tfrac12 [f \log r + \mathrm{expm1}(-f \log r) + \mathrm{expm1}(2(\lambda_s - \lambda_t))\,
          r^{-f}\, (\hat\epsilon - \epsilon)^2] .

The last step is a decoder. Continuous data have a density,
:math:`p(x_0|x_1) = N(\hat x_0, \sigma_1^2/\alpha_1^2 I)`: the variance that is right for any smooth law as the noise
of the first step vanishes. Data on evenly spaced levels have probabilities, those that the Gaussian
:math:`N(\hat x_0, s^2)` gives to the level's interval; the first and last interval reach to infinity. Its variance is,
as in the papers, that of the step before it: log-variance :math:`(1-f)\log\tilde\beta_2 + f\log\sigma_1^2`, because
:math:`\tilde\beta_1 = 0`; f = 0 unless it is learned.
"""

import math

import torch
from torch import Tensor

from sde_gen.data.transform import Affine
from sde_gen.errors import ConfigError
from sde_gen.model import Prediction, ScoreModel
from sde_gen.perturbations import Chain, Perturbation
from sde_gen.shapes import trailing

VARIANCES = ("small", "large", "learned")

_LOG_TAU = math.log(2 * math.pi)
#: Standard deviations to the far edge of an outermost level: infinity, without its NaN gradients.
_FAR = 1e3


def chosen_variance(where: str, variance: str, model: ScoreModel) -> str:
    """The variance that is meant: "auto" is "learned" where the network has it, else "small".

    Raises:
        ConfigError: a learned variance asked of a network that has none.
    """
    if variance == "auto":
        return "learned" if model.learned_variance else "small"
    if variance == "learned" and not model.learned_variance:
        raise ConfigError(
            f"{where} needs a network with a learned variance, and this model's has none; build it with "
            "learned_variance=True (network=unet or mlp, network.learned_variance=true)"
        )
    return variance


def log_variance_gap(p: Perturbation, s: Tensor, t: Tensor, trained: Perturbation | None = None) -> Tensor:
    """log r = log(b^2/beta-tilde) = log(sigma_t^2/sigma_s^2) of the steps t -> s, float64; +inf at sigma_s = 0.

    Args:
        p: the formulation.
        s, t: times, s < t, float64.
        trained: for a learned variance, the formulation it was learned under, whose sigma at the same lambda is taken:
            so a learned variance goes to another formulation by the same change of variables as the mean.
    """
    if trained is None or trained == p:
        return 2 * (p.sigma(t).log() - p.sigma(s).log())
    least, most = (float(trained.half_log_snr(u)) for u in (1.0, 0.0))
    there = [trained.sigma(trained.time(p.half_log_snr(u).clamp(least, most))).log() for u in (s, t)]
    return 2 * (there[1] - there[0])


def mean_gain(p: Perturbation, s: Tensor, t: Tensor) -> Tensor:
    """expm1(2 (lambda_s - lambda_t)), float64: twice the weight of (eps_hat - eps)^2 in the KL of a step t -> s."""
    return torch.expm1(2 * (p.half_log_snr(s) - p.half_log_snr(t)))


def chain_steps(p: Chain, t: Tensor, trained: Perturbation | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(whether it is the first, gain, gap) of the steps of a chain that start at its nodes t, float64.

    The first step has gain 1 and gap 0, with which `step_kl` gives the part error2/2 of the decoder's density.
    """
    k = (t.to(torch.float64) * p.length).round()
    first, s, t = k <= 1, (k - 1).clamp_min(0) / p.length, k / p.length
    gain, gap = mean_gain(p, s, t), log_variance_gap(p, s, t, trained)
    return first, torch.where(first, 1.0, gain), torch.where(first, 0.0, gap)


def chain_weight(p: Chain, t: Tensor, large: bool) -> Tensor:
    """Factor of (eps_hat - eps)^2 in K times the KL of the steps that start at nodes t, with a fixed variance."""
    _, gain, gap = chain_steps(p, t)
    return 0.5 * p.length * gain * ((-gap).exp() if large else 1.0)


def fraction_of(variance: str, out: Prediction) -> Tensor | float:
    """f of a variance; that of the network, for "learned"."""
    learned = out.log_variance_fraction
    if variance == "learned" and learned is not None:
        return learned
    return 1.0 if variance == "large" else 0.0


def chain_terms(
    p: Chain,
    error2: Tensor,
    mean: Tensor,
    fraction: Tensor | float,
    x0: Tensor,
    t: Tensor,
    levels: int | None,
    trained: Perturbation | None = None,
) -> Tensor:
    """L_k of a chain in each dimension, in nats, shaped like x0; one node a sample.

    Args:
        p: the chain.
        error2: (eps_hat - eps)^2.
        mean: x0hat.
        fraction: f.
        x0: data; on evenly spaced levels from -1 to 1 if `levels` is given.
        t: nodes, (B,), float64.
        levels: number of levels, or None for continuous data.
        trained: the formulation that a learned variance was learned under.
    """
    like, node = x0, p.nodes[0]
    first, gain, gap = chain_steps(p, t, trained)

    def placed(c: Tensor) -> Tensor:
        return trailing(c.to(like.device).to(like.dtype if c.is_floating_point() else c.dtype), like.ndim)

    kl = step_kl(error2, placed(gain), placed(gap), fraction)
    if levels is None:
        # a first step has gap 0, so that no variance enters
        return kl + placed(first.to(gain.dtype) * float(density_constant(p, node)))
    log_variance = decoder_log_variance(p, node, p.nodes[1] if p.length > 1 else None, fraction, mean)
    nll = level_nll(x0, mean, log_variance, Affine.to_unit(-1.0, 1.0, levels))
    return torch.where(placed(first), nll.to(kl.dtype), kl)


def step_kl(error2: Tensor, gain: Tensor, gap: Tensor, fraction: Tensor | float) -> Tensor:
    """KL of a reverse step in each dimension, in nats.

    Args:
        error2: (eps_hat - eps)^2.
        gain: `mean_gain` of the step, broadcast against error2.
        gap: `log_variance_gap` of the step, likewise.
        fraction: f; 0 for "small", 1 for "large", or learned.
    """
    if not isinstance(fraction, Tensor) and not fraction:
        return 0.5 * gain * error2
    shift = fraction * gap
    return 0.5 * (shift + torch.expm1(-shift) + gain * torch.exp(-shift) * error2)


def decoder_log_variance(
    p: Perturbation, first: Tensor, second: Tensor | None, fraction: Tensor | float, like: Tensor
) -> Tensor:
    """Log-variance of the decoder of data on levels: (1 - f) log beta-tilde_2 + f log sigma_1^2; f = 0 unless learned.

    Args:
        p: the formulation.
        first, second: the two smallest times; without a second, it is log sigma_1^2.
        fraction: f.
        like: x0hat, for the dtype and device of the answer, which is a single number or shaped like it.
    """
    high = 2 * p.sigma(first).log()
    low = high if second is None else 2 * p.posterior(first, second)[2].log()
    low, high = (c.to(like.device).to(like.dtype) for c in (low, high))
    return torch.lerp(low, high, fraction) if isinstance(fraction, Tensor) else low


def density_constant(p: Perturbation, first: Tensor) -> Tensor:
    """-log N(0; 0, sigma_1^2/alpha_1^2) in one dimension, float64: what the decoder's density adds to error2/2."""
    return 0.5 * _LOG_TAU - p.half_log_snr(first)


def density_nll(p: Perturbation, first: Tensor, noise_hat: Tensor, noise: Tensor) -> Tensor:
    """-log N(x0; x0hat, sigma_1^2/alpha_1^2) on average, in each dimension, in nats.

    It is (eps_hat - eps)^2/2 and a constant; the part eps^2/2 of it is replaced by its mean 1/2, which takes most of
    the variance out where the noise is small.
    """
    return 0.5 * noise_hat.square() - noise_hat * noise + 0.5 + float(density_constant(p, first))


def level_nll(x: Tensor, mean: Tensor, log_variance: Tensor, transform: "Affine") -> Tensor:
    """-log of the probability that N(mean, variance) gives to the level x lies on, in each dimension, in nats.

    Args:
        x: data on the model's scale, exactly on the levels of `transform`.
        mean: x0hat, shaped like x.
        log_variance: broadcast against x.
        transform: with `levels`.
    """
    step = transform.step
    if step is None or transform.low is None or transform.high is None:
        raise ConfigError("level_nll: the transform has no levels")
    raw = transform.inverse(x)
    half = 0.5 * step
    wide = torch.promote_types(x.dtype, torch.float32)
    inverse = torch.exp(-0.5 * log_variance.to(wide))
    below, above = (((transform.forward(raw + h) - mean).to(wide) * inverse) for h in (-half, half))
    lowest, highest = raw < transform.low + half, raw > transform.high - half
    below = torch.where(lowest, above - _FAR, below)
    above = torch.where(highest, below + _FAR, above)
    return -_log_normal_mass(below, above)


def _log_normal_mass(a: Tensor, b: Tensor) -> Tensor:
    """log(Phi(b) - Phi(a)) for a < b, by whichever tail loses nothing."""
    flip = a + b > 0
    a, b = torch.where(flip, -b, a), torch.where(flip, -a, b)
    lower, upper = torch.special.log_ndtr(a), torch.special.log_ndtr(b)
    return upper + torch.log(-torch.expm1(lower - upper))


def level_posterior_nll(x0: Tensor, noise: Tensor, rho: float, transform: "Affine") -> Tensor:
    """-log p(level of x0 | x0 + rho noise), p proportional to q(x1 | level), in each dimension, in nats, float64.

    The decoder of Kingma et al. 2021 (arXiv:2107.00630), which asks no network. rho is sigma_1/alpha_1.
    """
    here, z = x0.double(), noise.double()
    total = torch.full_like(here, -math.inf)
    for k in range(transform.levels or 0):
        raw = (transform.low or 0.0) + k * (transform.step or 0.0)
        level = transform.forward(torch.full_like(here, raw))
        total = torch.logaddexp(total, -0.5 * (z + (here - level) / rho).square())
    return total + 0.5 * z.square()
