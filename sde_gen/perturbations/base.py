r"""Gaussian perturbation kernels: two curves, and everything that follows from them.

A perturbation takes data :math:`x_0` to noise through

.. math:: p(x_t | x_0) = N(\alpha(t) x_0, \sigma(t)^2 I), \qquad t \in [0, 1].

A subclass states :math:`\log\alpha(t)` and :math:`\sigma(t)^2`; that is all a new formulation takes:

    @dataclass(frozen=True)
    class Polynomial(Perturbation):
        power: float = checked(2.0, above=0.0)

        def log_alpha(self, t):
            return -2 * t**self.power

        def variance(self, t):
            return -torch.expm1(2 * self.log_alpha(t))

The rest is derived here, once:

====================  =====================================================================
half log-SNR          :math:`\lambda = \log\alpha - \log\sigma`, strictly decreasing in t
drift, diffusion      :math:`f = d\log\alpha/dt`, :math:`g^2 = d\sigma^2/dt - 2 f \sigma^2`
transition s -> t     :math:`a = \alpha_t/\alpha_s`,
                      :math:`b^2 = \sigma_t^2 - a^2\sigma_s^2 = -\sigma_t^2\,\mathrm{expm1}(2(\lambda_t - \lambda_s))`
posterior             :math:`p(x_s | x_t, x_0)` by Bayes: mean
                      :math:`(a \sigma_s^2 x_t + \alpha_s b^2 x_0)/\sigma_t^2`,
                      variance :math:`b^2\sigma_s^2/\sigma_t^2`
====================  =====================================================================

Both forms of :math:`b^2` are equal; the second has no cancellation when s is close to t. Derivatives are taken by
automatic differentiation of the stated curves in float64, so they cannot disagree with them. The unified view is
that of Song et al. 2021 (arXiv:2011.13456) and Kingma et al. 2021 (arXiv:2107.00630).
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.errors import ConfigError

#: Bisection steps of the generic inverse; on logit(t) in [-50, 50] they reach the spacing of float64.
_BISECTIONS = 64
#: A time next to 0 whose fourth power is no 0.
_EDGE = 1e-60


def float64(value: Tensor | float, name: str) -> tuple[Tensor, torch.dtype, torch.device]:
    """`value` in float64, with the dtype and device the answer is due in.

    Raises:
        ConfigError: for what is no real number or tensor of them.
    """
    try:
        given = torch.as_tensor(value, dtype=torch.float64 if isinstance(value, float) else None)  # float32 by default
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{name} must be a real number or tensor, got {value!r}") from error
    if given.is_complex() or given.dtype == torch.bool:
        raise ConfigError(f"{name} must be a real number or tensor, got dtype {given.dtype}")
    dtype = given.dtype if isinstance(value, Tensor) and given.is_floating_point() else torch.float64
    device = given.device
    if device.type == "mps":  # no float64 there; these tensors hold one number a sample
        given = given.cpu()
    return given.to(torch.float64), dtype, device


def _slope(curve: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Derivative of an element-wise curve at t."""
    differentiable = torch.is_grad_enabled() and t.requires_grad
    with torch.inference_mode(False), torch.enable_grad():
        try:
            u = t if differentiable else t.detach().clone().requires_grad_()
        except RuntimeError:  # inside a transform such as vmap, which loads many modules: not the usual way
            return torch.func.vjp(curve, t)[1](torch.ones_like(t))[0]
        value = curve(u)
        if not value.requires_grad:  # a constant curve
            return torch.zeros_like(t)
        return torch.autograd.grad(value.sum(), u, create_graph=differentiable)[0]


class Perturbation(abc.ABC):
    """A Gaussian perturbation kernel p(x_t | x_0) = N(alpha(t) x_0, sigma(t)^2 I), t in [0, 1].

    Subclasses are frozen dataclasses of plain numbers, so they hash, compare and print. They state `log_alpha(t)` and
    `variance(t)`, and may state `half_log_snr(t)` and its inverse `time(half_log_snr)` where a closed form is more
    accurate or faster: each with float64 tensors of any shape in and out, t within [0, 1].

    All other methods, and these two when they are called, take t as a number
    or a tensor of any shape and floating dtype, work in float64 inside, and answer in the same shape and dtype. Times
    outside [0, 1] or NaN raise `ConfigError` (checked for CPU tensors only: on a GPU the check would force a
    synchronisation).

    Attributes:
        t_min: smallest time the model is asked for, in training and likelihoods.
        t_sample: time at which samplers stop by default, before the final denoising step.
        t_max: largest time the model is asked for; below 1 only where alpha(1) = 0 makes f and g infinite at t = 1.
        is_chain: whether the process is defined on K nodes only.
    """

    t_min: ClassVar[float] = 1e-5
    t_sample: ClassVar[float] = 1e-3
    t_max: ClassVar[float] = 1.0
    is_chain: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # What a subclass states of these two works in float64; who calls them goes through the checks below.
        super().__init_subclass__(**kwargs)
        # A curve stated anew leaves the closed forms of the old curve behind.
        anew = any(
            name in cls.__dict__ and not getattr(getattr(super(cls, cls), name), "__isabstractmethod__", False)
            for name in ("log_alpha", "variance")
        )
        for name in ("half_log_snr", "time"):
            if name in cls.__dict__:
                setattr(cls, f"_{name}", cls.__dict__[name])
                delattr(cls, name)
            elif anew:
                setattr(cls, f"_{name}", getattr(Perturbation, f"_{name}"))

    def __post_init__(self) -> None:
        checks.fields(self)

    # -- the two curves, float64 in and out -------------------------------------------------------------------------

    @abc.abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha(t), float64 in and out."""

    @abc.abstractmethod
    def variance(self, t: Tensor) -> Tensor:
        """sigma(t)^2, float64 in and out, stated without cancellation (1 - exp(y) as -expm1(y))."""

    # -- derived, float64 in and out ----------------------------------------------------------------------------------

    def _half_log_snr(self, t: Tensor) -> Tensor:
        return self.log_alpha(t) - 0.5 * self.variance(t).log()

    def _time(self, half_log_snr: Tensor) -> Tensor:
        """Inverse of lambda(t) by bisection on logit(t); a subclass may state a closed form instead."""
        low = torch.full_like(half_log_snr, -50.0)
        high = torch.full_like(half_log_snr, 50.0)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            later = self._half_log_snr(middle.sigmoid()) > half_log_snr  # lambda falls with t: the root lies later
            low, high = torch.where(later, middle, low), torch.where(later, high, middle)
        return (0.5 * (low + high)).sigmoid()

    def _rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """f(t) and g(t)^2."""
        f = _slope(self.log_alpha, t)
        g2 = _slope(self.variance, t) - 2 * f * self.variance(t)
        return f, g2.clamp_min(0.0)

    def _transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """a and b^2 of p(x_t | x_s)."""
        a = (self.log_alpha(t) - self.log_alpha(s)).exp()
        b2 = -self.variance(t) * torch.expm1(2 * (self._half_log_snr(t) - self._half_log_snr(s)))
        same = s == t  # inf - inf at the ends
        return torch.where(same, 1.0, a), torch.where(same, 0.0, b2)

    # -- public -------------------------------------------------------------------------------------------------------

    def alpha(self, t: Tensor | float) -> Tensor:
        """Scale of the data, alpha(t) >= 0."""
        return self._map(lambda u: self.log_alpha(u).exp(), t)

    def sigma(self, t: Tensor | float) -> Tensor:
        """Standard deviation of the noise, sigma(t) >= 0."""
        return self._map(lambda u: self.variance(u).sqrt(), t)

    def size(self, t: Tensor | float) -> Tensor:
        """sqrt(alpha(t)^2 + sigma(t)^2): what a state is of data of unit size, 1 where variance is preserved."""
        return self._map(lambda u: (self.log_alpha(u).exp().square() + self.variance(u).sqrt().square()).sqrt(), t)

    def curves(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(alpha(t), sigma(t)) in float64, whatever the dtype of t."""
        u = t if isinstance(t, Tensor) and t.dtype == torch.float64 else float64(t, "t")[0]
        self._check(u)
        return self.log_alpha(u).exp(), self.variance(u).sqrt()

    def half_log_snr(self, t: Tensor | float) -> Tensor:
        """lambda(t) = log(alpha/sigma), strictly decreasing; +inf where sigma = 0 and -inf where alpha = 0."""
        return self._map(self._half_log_snr, t)

    def time(self, half_log_snr: Tensor | float) -> Tensor:
        """t(lambda), the inverse of `half_log_snr`.

        Args:
            half_log_snr: number or tensor within [lambda(1), lambda(0)] (up to rounding of its dtype).

        Raises:
            ConfigError: for a NaN or a lambda that the process never has (CPU tensors only; clamped on a GPU).
        """
        lam, dtype, device = float64(half_log_snr, "half_log_snr")
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device=lam.device)
        most, least = self._half_log_snr(ends)
        if lam.device.type == "cpu":
            slack = 8 * torch.finfo(dtype).eps * (1 + lam.abs().nan_to_num(posinf=0.0, neginf=0.0))
            wrong = ~((lam <= most + slack) & (lam >= least - slack))
            if bool(wrong.any()):
                raise ConfigError(
                    f"{self}: half log-SNR {lam[wrong].flatten()[0].item():.6g} never occurs; "
                    f"it lies in [{least.item():.6g}, {most.item():.6g}]"
                )
        inside = self._time(lam.clamp(torch.nan_to_num(least), torch.nan_to_num(most)))
        t = torch.where(lam >= most, 0.0, torch.where(lam <= least, 1.0, inside)).clamp(0.0, 1.0)
        return t.to(dtype).to(device)

    def drift(self, t: Tensor | float) -> Tensor:
        """f(t) = d log alpha / dt of the forward SDE dx = f x dt + g dw; -inf where alpha = 0."""
        return self._map(lambda u: self._rates(u)[0], t)

    def diffusion(self, t: Tensor | float) -> Tensor:
        """g(t) >= 0 of the forward SDE, g^2 = d sigma^2/dt - 2 f sigma^2; inf where alpha = 0."""
        return self._map(lambda u: self._rates(u)[1].sqrt(), t)

    def slopes(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(d alpha/dt, d sigma/dt) in float64, at the ends their limits: what a velocity dx/dt is made of."""
        u = float64(t, "t")[0]
        self._check(u)
        u = u.clamp(_EDGE, 1 - torch.finfo(u.dtype).eps / 2)  # next to where a logarithm or a root has no slope
        return _slope(lambda v: self.log_alpha(v).exp(), u), _slope(lambda v: self.variance(v).sqrt(), u)

    def transition(self, s: Tensor | float, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(a, b) of the forward kernel p(x_t | x_s) = N(a x_s, b^2 I), s <= t.

        Raises:
            ConfigError: if some s > t (CPU tensors only).
        """
        (s64, t64), dtype, device = self._pair(s, t)
        a, b2 = self._transition(s64, t64)
        return a.to(dtype).to(device), b2.sqrt().to(dtype).to(device)

    def posterior(self, s: Tensor | float, t: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """(c_t, c_0, std) of p(x_s | x_t, x_0) = N(c_t x_t + c_0 x_0, std^2 I), s <= t.

        Raises:
            ConfigError: if some s > t (CPU tensors only).
        """
        (s64, t64), dtype, device = self._pair(s, t)
        c_t, c_0, variance = self._posterior(s64, t64)
        return c_t.to(dtype).to(device), c_0.to(dtype).to(device), variance.sqrt().to(dtype).to(device)

    def _posterior(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b2 = self._transition(s, t)
        share = torch.where(s == t, 0.0, b2 / self.variance(t))  # the part of the variance at t that is newer than s
        c_t = torch.where(s == t, 1.0, a * self.variance(s) / self.variance(t))
        c_0 = self.log_alpha(s).exp() * share
        return c_t, c_0, share * self.variance(s)

    def perturb(self, x0: Tensor, t: Tensor | float, noise: Tensor) -> Tensor:
        """x_t = alpha(t) x0 + sigma(t) noise, in the dtype of x0.

        Args:
            x0: data, (B, *shape).
            t: time, shape () or (B,).
            noise: standard normal, shaped like x0.

        Raises:
            ConfigError: if the shapes do not fit.
        """
        curves = self.curves(t)
        shape = curves[0].shape
        if len(shape) > 1 or (len(shape) == 1 and shape != x0.shape[:1]):
            batch = tuple(x0.shape[:1])
            raise ConfigError(f"perturb: t must have shape () or {batch} for x0 of shape {tuple(x0.shape)}, "
                              f"got {tuple(shape)}")  # fmt: skip
        if noise.shape != x0.shape:
            raise ConfigError(f"perturb: noise must be shaped like x0, {tuple(x0.shape)}, got {tuple(noise.shape)}")
        alpha, sigma = (c.to(x0.dtype).to(x0.device).reshape(shape + (1,) * (x0.ndim - len(shape))) for c in curves)
        return alpha * x0 + sigma * noise

    @property
    def prior_std(self) -> float:
        """Standard deviation of the prior N(0, prior_std^2 I) that samplers start from: sigma(t_max)."""
        return float(self.sigma(self.t_max))

    # -- plumbing -----------------------------------------------------------------------------------------------------

    def _map(self, function: Callable[[Tensor], Tensor], t: Tensor | float) -> Tensor:
        u, dtype, device = float64(t, "t")
        self._check(u)
        return function(u).to(dtype).to(device)

    def _check(self, t: Tensor) -> None:
        if t.device.type != "cpu" or torch.compiler.is_compiling():
            return
        wrong = ~((t >= 0) & (t <= 1))
        try:
            any_wrong = bool(wrong.any())
        except RuntimeError:  # under vmap values cannot be read
            return
        if any_wrong:
            raise ConfigError(f"{self}: t must lie in [0, 1], got {t[wrong].flatten()[0].item():.6g}")

    def _pair(self, s: Tensor | float, t: Tensor | float) -> tuple[tuple[Tensor, Tensor], torch.dtype, torch.device]:
        if isinstance(s, Tensor) and isinstance(t, Tensor) and s.dtype == t.dtype == torch.float64:
            s64, t64, dtype, device = s, t, s.dtype, t.device if t.device.type != "cpu" else s.device
        else:
            s64, s_dtype, s_device = float64(s, "s")
            t64, t_dtype, t_device = float64(t, "t")
            dtype = torch.promote_types(
                s_dtype if isinstance(s, Tensor) else t_dtype, t_dtype if isinstance(t, Tensor) else s_dtype
            )
            device = t_device if t_device.type != "cpu" else s_device
        home = "cpu" if device.type == "mps" else device
        s64, t64 = torch.broadcast_tensors(s64.to(home), t64.to(home))
        self._check(s64)
        self._check(t64)
        if t64.device.type == "cpu" and bool((s64 > t64).any()):
            raise ConfigError(f"{self}: transition(s, t) and posterior(s, t) run from s to a later t, got s > t")
        return (s64, t64), dtype, device
