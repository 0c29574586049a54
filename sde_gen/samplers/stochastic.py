r"""Exponential integrators of the reverse SDE: its linear part and its noise exactly, the denoiser by a polynomial.

With :math:`y = x/\alpha` the reverse equation of any :math:`\eta \ge 0` runs up in :math:`\lambda` as

.. math:: dy = c\,(D - y)\,d\lambda + \eta\sqrt{2}\,e^{-\lambda}\,dw, \qquad c = 1 + \eta^2,

under every formulation. Its noise is additive, so the step from t to s, :math:`h = \lambda_s - \lambda_t`, is

.. math:: x_s = \frac{\sigma_s}{\sigma_t} e^{-\eta^2 h} x_t
          + \alpha_s \int_0^h c\,e^{-c(h-u)} D(\lambda_t + u)\,du + \sigma_s\sqrt{1 - e^{-2\eta^2 h}}\;z .

A polynomial in the place of D needs the moments :math:`M_m(z) = z\int_0^1 e^{-z(1-v)} v^m\,dv` at :math:`z = ch`
alone: :math:`M_0 = 1 - e^{-z}` and :math:`M_m = 1 - \frac{m}{z} M_{m-1}`. At eta = 0 this is DPM-Solver++, at eta = 1
and first order ancestral sampling. Lu et al. 2022 (arXiv:2211.01095); Gonzalez et al. 2023 (arXiv:2305.14267).

The noise of a step enters D only at its end. A straight line through the last two estimates delivers its effect one
step late, but in full, which keeps weak order 2. A parabola cannot do better: from order 3 on a weak scheme must also
know how the noise was spread within the step.

`StochasticHeun` is the two-stage Runge-Kutta method of weak order 2 in the same variables. The noise is additive, for
which Heun's scheme with one Gaussian a step is already of weak order 2 (Kloeden & Platen 1992, section 15.1); the
linear part and the noise are exact, and the denoiser is the straight line between its values at the start and at the
end of a first-order step:

.. math:: \hat x_s = a\,x_t + \alpha_s M_0 D_t + b\,z, \qquad x_s = \hat x_s + \alpha_s M_1\,[D(\hat x_s, s) - D_t],

with a, b as above and the same z in both.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_gen.checks import checked
from sde_gen.errors import ConfigError
from sde_gen.model import combine
from sde_gen.perturbations import Perturbation
from sde_gen.samplers.grid_sampler import GridSampler, Run, Step, estimate, require_finite
from sde_gen.samplers.grids import ArctanLambda
from sde_gen.samplers.one_step import OneStepSampler

#: A step this many times as long as the one before does not extrapolate, nor does one half as many times use a
#: parabola: so far beyond the values known, a polynomial through them amplifies their noise.
_LONGEST = 3.0


def moments(z: Tensor, count: int) -> list[Tensor]:
    """M_m(z) = z int_0^1 exp(-z (1-v)) v^m dv for m = 0 ... count-1 and z >= 0, by series below 1."""
    small, big = z.clamp(max=1.0), z.clamp(min=1.0)
    found: list[Tensor] = []
    for m in range(count):
        series = torch.ones_like(z)
        for k in range(18, 0, -1):
            series = 1 - small / (m + k + 1) * series
        direct = -torch.expm1(-big) if m == 0 else 1 - m / big * found[-1]
        found.append(torch.where(z < 1, small / (m + 1) * series, direct))
    return found


def linear_and_noise(p: Perturbation, t: Tensor, s: Tensor, eta: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(h, factor of x, standard deviation of the noise) of the steps t -> s, with one eta or one for each."""
    h, sigma_t, sigma_s = p.half_log_snr(s) - p.half_log_snr(t), p.sigma(t), p.sigma(s)
    eta = torch.as_tensor(eta, dtype=h.dtype)
    fade = torch.where(eta > 0, eta**2 * h, 0.0)  # 0 times inf, onto sigma = 0, is 0 here
    return h, sigma_s / sigma_t * torch.exp(-fade), sigma_s * (-torch.expm1(-2 * fade)).sqrt()


@dataclass(frozen=True)
class ExponentialSDE(OneStepSampler):
    """Exponential reverse-SDE step: x0hat held for the step, everything else exact; weak order 1.

    x_s = (sigma_s/sigma_t) e^(-eta^2 h) x_t + alpha_s (1 - e^(-(1+eta^2) h)) x0hat + sigma_s sqrt(1 - e^(-2 eta^2 h)) z

    Args:
        eta: strength of the noise, >= 0: 0 is DDIM, 1 is `Ancestral()`, larger stirs more.

    Raises:
        ConfigError: for eta out of range.
    """

    eta: float = checked(1.0, low=0.0)

    default_steps = 100
    default_grid = ArctanLambda()
    is_finite_without_signal = True

    @property
    def is_stochastic(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.eta > 0

    def coefficients(self, p: Perturbation, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, of_x, std = linear_and_noise(p, t, s, self.eta)
        return of_x, p.alpha(s) * -torch.expm1(-(1 + self.eta**2) * h), std


@dataclass(frozen=True)
class SDEDPMSolverPP(GridSampler):
    """SDE-DPM-Solver++, multistep: x0hat by the polynomial through its last `order` values, one call a step.

    The first steps have fewer values and are of lower order, and so are those more than 3 times (for order 3, 1.5
    times) as long as one before.

    Args:
        solver_order: 1, 2 or 3: values of x0hat in the polynomial.
        eta: strength of the noise, > 0; 1 is the reverse SDE. With few steps less is better: see the documentation.
        s_tmin, s_tmax: levels sigma/alpha between which noise is added, 0 <= s_tmin <= s_tmax; s_tmax may be infinite.
            A step that begins outside is one of the probability-flow ODE, so the marginals are kept.

    Attributes:
        order: weak order: 1 or 2, and 2 for solver_order = 3 too (see the module).

    Raises:
        ConfigError: for values outside these.
    """

    solver_order: int = checked(2, low=1, high=3)
    eta: float = checked(1.0, above=0.0)
    s_tmin: float = checked(0.0, low=0.0)
    s_tmax: float = checked(math.inf, low=0.0, infinite=True)

    is_stochastic = True
    default_steps = 20
    default_grid = ArctanLambda()
    is_finite_without_signal = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.s_tmin > self.s_tmax:
            raise ConfigError(f"SDEDPMSolverPP: s_tmin={self.s_tmin} must not be above s_tmax={self.s_tmax}")

    @property
    def order(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return float(min(self.solver_order, 2))

    def strength(self, half_log_snr: Tensor) -> Tensor:
        """eta of the steps that begin at these levels."""
        rho = torch.exp(-half_log_snr)
        return ((rho >= self.s_tmin) & (rho <= self.s_tmax)).to(rho) * self.eta

    def weights(self, h: Tensor, eta: Tensor) -> Tensor:
        """Weights (3, N) of the last three values of x0hat, newest first, in the integral over each of N steps."""
        flat, linear, square = moments((1 + eta**2) * h, 3)
        of = torch.zeros(3, len(h), dtype=h.dtype)
        of[0] = flat
        plain = torch.where(torch.isinf(h), 0.0, h)  # onto sigma = 0: x0hat itself
        if self.solver_order >= 2 and len(h) > 1:
            now, before = plain[1:], h[:-1]
            line = torch.where(now <= _LONGEST * before, now * linear[1:] / before, 0.0)
            of[0, 1:] += line
            of[1, 1:] -= line
        if self.solver_order == 3 and len(h) > 2:
            now, before, first = plain[2:], h[1:-1], h[:-2]
            bend = now * (now * square[2:] + before * linear[2:]) / (before + first)
            bend = torch.where(now <= _LONGEST / 2 * torch.minimum(before, first), bend, 0.0)
            of[0, 2:] += bend / before
            of[1, 2:] -= bend / before + bend / first
            of[2, 2:] += bend / first
        return of

    def stepper(self, run: Run) -> Step:
        p, e, times = run.perturbation, run.levels, run.times
        eta = self.strength(p.half_log_snr(times[:-1]))
        h, decay, std = linear_and_noise(p, times[:-1], times[1:], eta)
        weights = self.weights(h, eta) * e.alpha[1:]
        require_finite(self, p, times[:-1], decay, std, weights)
        scale, keep = estimate(e.skip, e.out)
        for j in range(1, 3):  # estimates are kept divided by the scale of their own time
            weights[j, j:] *= scale[: max(0, len(h) - j)]
        weights[0] *= scale[:-1]
        of_x, of_z = decay.tolist(), std.tolist()
        of_d = weights[: self.solver_order].T.tolist()
        raw, noise, scratch, kept = e.raw, run.draw, run.buffers(), self.solver_order

        def step(k: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
            # The oldest estimate is not needed again: the newest takes its place.
            old, free = ((), None) if memory is None else memory
            d, new = keep(k, x, raw(k, x), free), scratch[x is scratch[0]]
            if of_z[k]:
                new = torch.mul(noise(x, k, 0, new), of_z[k], out=new).add_(x, alpha=of_x[k])
            else:
                new = torch.mul(x, of_x[k], out=new)
            known = (d, *old)
            for value, weight in zip(known, of_d[k], strict=False):
                new.add_(value, alpha=weight)
            return new, (known[: kept - 1], known[kept - 1] if len(known) == kept else None)

        return step


@dataclass(frozen=True)
class StochasticHeun(GridSampler):
    """Stochastic Heun method: a first-order step, corrected by the denoiser found at its end; two calls a step.

    With `denoise=True`, `steps=N` calls the network 2N - 1 times.

    Args:
        eta: strength of the noise, >= 0; 1 is the reverse SDE.

    Raises:
        ConfigError: for eta out of range.
    """

    eta: float = checked(1.0, low=0.0)

    order = 2.0
    default_steps = 20
    default_grid = ArctanLambda()
    is_finite_without_signal = True

    @property
    def is_stochastic(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.eta > 0

    def stepper(self, run: Run) -> Step:
        p, e, times = run.perturbation, run.levels, run.times
        h, decay, std = linear_and_noise(p, times[:-1], times[1:], self.eta)
        flat, linear = moments((1 + self.eta**2) * h, 2)
        require_finite(self, p, times[:-1], decay, std)
        of_x, of_z, of_d = decay.tolist(), std.tolist(), (e.alpha[1:] * flat).tolist()
        # Onto sigma = 0 the first-order step lands on x0hat, and the denoiser there would change nothing.
        turn = torch.where(e.sigma[1:] > 0, e.alpha[1:] * linear, 0.0).tolist()
        denoised, noise, states = e.denoised, run.draw, run.buffers()

        def step(k: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
            d = denoised(k, x)
            new = combine(x, of_x[k], d, of_d[k], states[x is states[0]])
            if of_z[k]:
                new.add_(noise(x, k, 0), alpha=of_z[k])
            if turn[k]:
                change = denoised(k + 1, new).sub_(d)
                new.add_(change, alpha=turn[k])
            return new, None

        return step
