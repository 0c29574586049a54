r"""A network under a perturbation: what it says about a noisy state, in whichever terms it is asked.

One network call gives :math:`\hat x_0 = c_{skip} x + c_{out} F`; noise, score and v are linear in (x, F) too:

.. math:: \hat\epsilon = (x - \alpha\hat x_0)/\sigma, \quad
          \nabla\log p = -\hat\epsilon/\sigma, \quad \hat v = \alpha\hat\epsilon - \sigma\hat x_0 .

Their coefficients are formed in float64 before they meet the state, so that a network that predicts noise is asked for
noise without a detour through data and back.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sde_gen.errors import BetweenNodesWarning, ConfigError
from sde_gen.parameterizations import Coefficients, NoisePrediction, Parameterization
from sde_gen.perturbations.base import Perturbation
from sde_gen.perturbations.discrete import Chain
from sde_gen.shapes import float64, trailing

__all__ = [
    "Prediction",
    "ScoreModel",
]


class Prediction:
    """What a model says about (x, t), each quantity computed on first use from the one network call.

    Attributes:
        denoised: x0hat, the mean of the data given x.
        noise: eps = (x - alpha x0hat)/sigma.
        score: grad log p_t(x) = -eps/sigma.
        v: alpha eps - sigma x0hat.
        log_variance_fraction: where the log-variance of a reverse step lies between its two bounds, 0 at the
            posterior's ("small") and 1 at b^2 ("large"); not cut to [0, 1]. None unless the network has a learned
            variance. Nichol & Dhariwal 2021, arXiv:2102.09672.

    All are shaped like x and in its dtype. At sigma = 0, where they have no value, noise, v and score are not finite.
    """

    def __init__(
        self,
        x: Tensor,
        raw: Tensor,
        alpha: Tensor,
        sigma: Tensor,
        skip: Tensor,
        out: Tensor,
        variance: Tensor | None = None,
    ) -> None:
        self._x, self._raw, self._variance = x, raw, variance
        self._alpha, self._sigma, self._skip, self._out = alpha, sigma, skip, out

    def _combine(self, of_x: Tensor, of_raw: Tensor) -> Tensor:
        x, raw = self._x, self._raw
        return trailing(of_x.to(x.dtype), x.ndim) * x + trailing(of_raw.to(x.dtype), x.ndim) * raw

    @property
    def _noise_coefficients(self) -> tuple[Tensor, Tensor]:
        return (1 - self._alpha * self._skip) / self._sigma, -self._alpha * self._out / self._sigma

    @cached_property
    def denoised(self) -> Tensor:
        """x0hat."""
        return self._combine(self._skip, self._out)

    @cached_property
    def noise(self) -> Tensor:
        """eps."""
        return self._combine(*self._noise_coefficients)

    @cached_property
    def score(self) -> Tensor:
        """grad log p_t(x)."""
        of_x, of_raw = self._noise_coefficients
        return self._combine(-of_x / self._sigma, -of_raw / self._sigma)

    @cached_property
    def v(self) -> Tensor:
        """alpha eps - sigma x0hat."""
        of_x, of_raw = self._noise_coefficients
        return self._combine(
            self._alpha * of_x - self._sigma * self._skip, self._alpha * of_raw - self._sigma * self._out
        )

    @cached_property
    def log_variance_fraction(self) -> Tensor | None:
        """(1 + second half of the network's output)/2."""
        return None if self._variance is None else 0.5 * (1 + self._variance)


def wrong_shape(raw: Tensor, x: Tensor) -> ConfigError:
    """What to say of a network whose output is not shaped like its input."""
    hint = ""
    if raw.ndim == x.ndim >= 2 and raw.shape[1] == 2 * x.shape[1]:
        hint = "; a network whose second half is a learned variance says so with an attribute learned_variance = True"
    return ConfigError(
        f"the network must return the shape of its input, {tuple(x.shape)}, got {tuple(raw.shape)}{hint}"
    )


def halves(raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """F and the second half of the output of a network with a learned variance, views of it, each shaped like x.

    Raises:
        ConfigError: for an output that is not twice as wide as x in its dimension 1.
    """
    if x.ndim < 2 or raw.shape != (x.shape[0], 2 * x.shape[1], *x.shape[2:]):
        raise ConfigError(
            f"a network with learned_variance = True must return twice its input in dimension 1, "
            f"for {tuple(x.shape)}, got {tuple(raw.shape)}"
        )
    return raw[:, : x.shape[1]], raw[:, x.shape[1] :]


class ScoreModel(nn.Module):
    """Network + perturbation + parameterization.

    Args:
        network: `network(x, c_noise, **condition) -> Tensor shaped like x`, a module or any callable; it is given the
            scaled state c_in x, (B, *shape), and c_noise, (B,), float32. One with an attribute learned_variance = True
            returns twice as much in dimension 1: what is predicted, then the variance of a reverse step.
        perturbation: the formulation the network is (to be) trained under.
        parameterization: what its raw output means; noise by default.

    Calling it, `model(x, t, **condition)`, with x (B, *shape) and t () or (B,) in [0, 1], returns a `Prediction`.

    Raises:
        ConfigError: if an argument is of the wrong kind, or the shape of t does not fit x.

    Warns:
        BetweenNodesWarning: when a network trained on a chain is asked between its nodes.
    """

    def __init__(
        self,
        network: Callable[..., Tensor] | None,
        perturbation: Perturbation,
        parameterization: Parameterization | None = None,
    ) -> None:
        super().__init__()
        if network is not None and not callable(network):
            raise ConfigError(f"ScoreModel: network must be a module or a callable, got {type(network).__name__}")
        if not isinstance(perturbation, Perturbation):
            raise ConfigError(
                f"ScoreModel: perturbation must be a Perturbation such as VP(), got {type(perturbation).__name__}"
            )
        parameterization = NoisePrediction() if parameterization is None else parameterization
        if not isinstance(parameterization, Parameterization):
            raise ConfigError("ScoreModel: parameterization must be a Parameterization such as NoisePrediction(), got "
                              f"{type(parameterization).__name__}")  # fmt: skip
        self.network = network
        self.perturbation = perturbation
        self.parameterization = parameterization
        self.trained_under = perturbation

    # -- asked by users ----------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, t: Tensor | float, **condition: Any) -> Prediction:
        if not x.is_floating_point() or x.ndim < 1:
            raise ConfigError(f"model(x, t): x must be a floating tensor (B, *shape), got {x.dtype} {tuple(x.shape)}")
        u, _, _ = float64(t, "t")
        if u.ndim > 1 or (u.ndim == 1 and u.shape[0] != x.shape[0]):
            raise ConfigError(f"model(x, t): t must have shape () or ({x.shape[0]},) for x of shape {tuple(x.shape)}, "
                              f"got {tuple(u.shape)}")  # fmt: skip
        alpha, sigma = self.perturbation.alpha(u), self.perturbation.sigma(u)
        if isinstance(self.trained_under, Chain):
            self._warn_between_nodes(self.perturbation.half_log_snr(u))
        return self.predict(x, alpha.to(x.device), sigma.to(x.device), condition)

    def under(self, perturbation: Perturbation) -> "ScoreModel":
        """The same network under another formulation: an exact change of variables, no copy.

        A state x of the new process B with (alpha_B, sigma_B) is the state x alpha_A/alpha_B of the trained process A
        at the time where lambda_A = lambda_B; since the parameterization's coefficients are homogeneous, evaluating
        them at (alpha_B, sigma_B) is that change of variables.
        """
        other = ScoreModel(self.network, perturbation, self.parameterization)
        other.trained_under = self.trained_under
        other.train(self.training)
        return other

    # -- the range of times ------------------------------------------------------------------------------------------

    def times_within(self, t_low: float | None = None) -> tuple[float, float]:
        """(t_low, t_high) that samplers use: the perturbation's range, cut to the noise levels that were trained.

        Args:
            t_low: lower end to use instead of the perturbation's `t_sample`.
        """
        p, trained = self.perturbation, self.trained_under
        low, high = (p.t_sample if t_low is None else t_low), p.t_max
        if self.network is not None and trained != p:
            most, least = float(trained.half_log_snr(trained.t_min)), float(trained.half_log_snr(trained.t_max))
            if float(p.half_log_snr(high)) < least:
                high = float(p.time(least))
            if float(p.half_log_snr(low)) > most:
                low = float(p.time(most))
        return low, high

    # -- asked by samplers, objectives, likelihoods ------------------------------------------------------------------

    def predict(self, x: Tensor, alpha: Tensor, sigma: Tensor, condition: Mapping[str, Any]) -> Prediction:
        """Prediction at a noise level given by float64 (alpha, sigma) of shape () or (B,), not by a time."""
        c = self.coefficients(alpha, sigma)
        if not self.learned_variance:
            return Prediction(x, self.raw(x, alpha, sigma, c, condition), alpha, sigma, c.skip, c.out)
        raw, variance = halves(self._output(x, c, condition), x)
        return Prediction(x, raw, alpha, sigma, c.skip, c.out, variance)

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        """The parameterization's coefficients at (alpha, sigma)."""
        return self.parameterization.coefficients(alpha, sigma)

    def raw(self, x: Tensor, alpha: Tensor, sigma: Tensor, c: Coefficients, condition: Mapping[str, Any]) -> Tensor:
        """F(c_in x, c_noise), in the dtype of x: the network's output without a learned variance."""
        raw = self._output(x, c, condition)
        return halves(raw, x)[0] if self.learned_variance else raw

    def _output(self, x: Tensor, c: Coefficients, condition: Mapping[str, Any]) -> Tensor:
        """All that the network says: the one place where it is called (samplers have their own)."""
        if self.network is None:
            raise ConfigError(
                "ScoreModel: this model has no network; give one, or use an oracle's .model(perturbation)"
            )
        noise = c.noise.to(torch.float32).to(x.device)
        scaled = trailing(c.input.to(x.dtype), x.ndim) * x
        return self.call_network(scaled, noise if noise.ndim else noise.expand(x.shape[0]), condition)

    def call_network(self, scaled: Tensor, noise: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """The network's output in its own precision, returned in the dtype of `scaled`."""
        dtype = self.network_dtype
        network = self.network
        if dtype is None or dtype == scaled.dtype:
            raw = network(scaled, noise, **condition)  # pyright: ignore[reportOptionalCall]
        else:
            raw = network(scaled.to(dtype), noise, **condition)  # pyright: ignore[reportOptionalCall]
        if raw.shape != scaled.shape and not self.learned_variance:  # else `halves` looks at the shape
            raise wrong_shape(raw, scaled)
        return raw if raw.dtype == scaled.dtype else raw.to(scaled.dtype)

    @property
    def learned_variance(self) -> bool:
        """Whether the network says, in a second half of its output, what the variance of a reverse step is."""
        return bool(getattr(self.network, "learned_variance", False))

    @property
    def network_dtype(self) -> torch.dtype | None:
        """Dtype of the network's first floating parameter, None if it has none."""
        if isinstance(self.network, nn.Module):
            for parameter in self.network.parameters():
                if parameter.is_floating_point():
                    return parameter.dtype
        return None

    @property
    def device(self) -> torch.device:
        """Device of the network's first parameter, the CPU if it has none."""
        parameter = next(self.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def _warn_between_nodes(self, half_log_snr: Tensor) -> None:
        chain = self.trained_under
        if self.network is None or not isinstance(chain, Chain) or half_log_snr.device.type != "cpu":
            return
        nodes = chain.half_log_snr(chain.nodes).flip(0)  # ascending in lambda
        asked = half_log_snr.detach().reshape(-1)
        after = torch.searchsorted(nodes, asked).clamp_max(len(nodes) - 1)
        before = (after - 1).clamp_min(0)
        gap = torch.minimum((nodes[after] - asked).abs(), (nodes[before] - asked).abs())
        # A time given in float32 is off its node by up to 1e-4 of the spacing.
        if bool((gap > 1e-3 * (nodes[after] - nodes[before]) + 1e-6).any()):
            warnings.warn(
                f"the network was trained on the {chain.length} nodes of {chain} and is asked between them; "
                "it interpolates in lambda, which its training did not check",
                BetweenNodesWarning,
                stacklevel=3,
            )
