r"""A network under a perturbation: what it says about a noisy state, in whichever terms it is asked.

One network call gives :math:`\hat x_0 = c_{skip} x + c_{out} F`; noise, score and v are linear in (x, F) too:

.. math:: \hat\epsilon = (x - \alpha\hat x_0)/\sigma, \quad
          \nabla\log p = -\hat\epsilon/\sigma, \quad \hat v = \alpha\hat\epsilon - \sigma\hat x_0 .

Their coefficients are formed in float64 before they meet the state, so that a network that predicts noise is asked for
noise without a detour through data and back.

There is one door to the network, `ScoreModel.levels`: the model at given noise levels for a given batch. `model(x, t)`
is levels of one level; a sampler opens it once for all of its grid; an oracle, or a model that guides another, answers
with levels of its own.
"""

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

from sde_gen.conditions import NOTHING, Condition, gathered
from sde_gen.errors import BetweenNodesWarning, ConfigError
from sde_gen.parameterizations import NoisePrediction, Parameterization
from sde_gen.perturbations import Chain, Perturbation
from sde_gen.shapes import halves, tensor_of, trailing

__all__ = [
    "Levels",
    "Prediction",
    "ScoreModel",
    "combine",
    "evaluating",
]

#: What stands for alpha = 0 or sigma = 0 in the coefficients of noise, score and v, which have limits there.
_TINY = 1e-150
#: Coefficients beyond this are those of such an end.
_HUGE = 1e30


@dataclass(repr=False, eq=False)
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

    All are shaped like x and in its dtype. Where alpha or sigma is 0, what the network predicts is what it predicted;
    what cannot follow from that (the score at sigma = 0 from data or noise) is large or infinite, and the exact one for
    a mixture of Gaussians.
    """

    _x: Tensor
    _raw: Tensor
    _alpha: Tensor
    _sigma: Tensor
    _skip: Tensor
    _out: Tensor
    _variance: Tensor | None = None

    def _combine(self, of_x: Tensor, of_raw: Tensor) -> Tensor:
        x, raw = self._x, self._raw
        if of_x.device.type == "cpu" and float(torch.maximum(of_x.abs(), of_raw.abs()).detach().max()) > _HUGE:
            # Where alpha or sigma is 0: no overflow before the difference is formed, and nothing times 0 is NaN.
            scale = (torch.maximum(of_x.abs(), of_raw.abs()) / _HUGE).clamp(1.0, torch.finfo(x.dtype).max)
            part = Prediction(x, raw, *[self._alpha] * 4)._combine(of_x / scale, of_raw / scale)
            return part * trailing(scale.to(x.dtype).to(x.device), x.ndim)
        a, b = of_x.to(x.dtype).to(x.device), of_raw.to(x.dtype).to(x.device)
        if a.ndim:
            a, b = (c.reshape(-1, *[1] * (x.ndim - 1)) for c in (a, b))
        return a * x + b * raw

    @cached_property
    def _of_noise(self) -> tuple[Tensor, Tensor]:
        return (1 - self._alpha * self._skip) / self._sigma, -self._alpha * self._out / self._sigma

    @cached_property
    def denoised(self) -> Tensor:
        """x0hat."""
        return self._combine(self._skip, self._out)

    @cached_property
    def noise(self) -> Tensor:
        """eps."""
        return self._combine(*self._of_noise)

    @cached_property
    def score(self) -> Tensor:
        """grad log p_t(x)."""
        of_x, of_raw = self._of_noise
        return self._combine(-of_x / self._sigma, -of_raw / self._sigma)

    @cached_property
    def v(self) -> Tensor:
        """alpha eps - sigma x0hat."""
        of_x, of_raw = self._of_noise
        return self._combine(
            self._alpha * of_x - self._sigma * self._skip, self._alpha * of_raw - self._sigma * self._out
        )

    @cached_property
    def log_variance_fraction(self) -> Tensor | None:
        """(1 + second half of the network's output)/2."""
        return None if self._variance is None else 0.5 * (1 + self._variance)

    def __repr__(self) -> str:
        x, learned = self._x, "" if self._variance is None else ", .log_variance_fraction"
        return f"Prediction of .denoised, .noise, .score, .v{learned}, each {x.dtype} {tuple(x.shape)}"


class Levels:
    """A model at K noise levels, for one batch: x0hat = skip[k] x + out[k] raw(k, x).

    The network gets memory of its own (it may work in place, or keep what it is given), until its first call has shown
    that it does neither; from then on it may be handed the state itself.

    Args:
        model: the model.
        alpha, sigma: float64, (K,), or (K, B) with a value for each sample.
        like: a tensor with the shape, dtype and device of the states, (B, *shape).
        condition: what the network is told besides.

    Attributes:
        skip, out: coefficients of x and of the raw output in x0hat, shaped like alpha.
        calls: network calls made so far, those of `at` included.
        products: vector-Jacobian products of the network made so far, which guidance takes.
        is_cut: whether an output carried no gradient where its input did.
    """

    def __init__(self, model: "ScoreModel", alpha: Tensor, sigma: Tensor, like: Tensor, condition: Condition) -> None:
        self.model, self.alpha, self.sigma, self.condition = model, alpha, sigma, condition
        c = self.coefficients = model.parameterization.coefficients(alpha, sigma)
        self.skip, self.out = c.skip, c.out
        network = model.network
        self.learned_variance = bool(getattr(network, "learned_variance", False))
        if not self.learned_variance:
            self.raw = self.output
        self._like, self.calls, self.products, self._first, self.is_cut = like, 0, 0, self, False
        # One number a level, read without asking a device or cutting a gradient.
        self._single = alpha.ndim == 1 and alpha.device.type == "cpu" and not alpha.requires_grad
        if self._single:
            self._floats = self.skip.tolist(), self.out.tolist()
        if network is None:
            return
        weights = network.parameters() if isinstance(network, nn.Module) else ()
        dtype = next((w.dtype for w in weights if w.is_floating_point()), None)
        self._cast = dtype if dtype is not None and dtype != like.dtype else None
        wanted = getattr(network, "noise_dtype", None) or dtype or torch.float32
        noise = c.noise.to(wanted).to(like.device)
        if self._single:
            # alpha^2 + sigma^2 = 1 up to rounding needs no scaling, and is spared it.
            self._input: list[Any] = [1.0 if abs(v - 1) < 1e-12 else v for v in c.input.tolist()]
        else:
            scales = c.input.to(like.dtype).to(like.device)
            scales = scales.reshape(scales.shape + (1,) * (like.ndim - 1)) if scales.ndim > 1 else scales
            self._input = list(scales.unbind(0))
        self._noise = (noise[:, None] if noise.ndim == 1 else noise).expand(len(noise), len(like)).unbind(0)
        self._arguments: dict[str, Any] = {} if condition is NOTHING else condition.arguments
        self._harmless: bool | None = None  # whether the network may be handed the state itself; None: not known yet

    def at(self, alpha: Tensor, sigma: Tensor) -> "Levels":
        """The same model at other levels; its calls are counted here."""
        other = type(self)(self.model, alpha, sigma, self._like, self.condition)
        other._first = self._first
        return other

    def counted(
        self, levels: "Levels", say: Callable[[int, Tensor], Tensor], k: int, x: Tensor, rows: int = 1
    ) -> Tensor:
        """`say(k, x)` of the levels of another model, whose calls and products count here, `rows` times a sample."""
        before = levels.calls, levels.products
        said = say(k, x)
        self._first.calls += rows * (levels.calls - before[0])
        self._first.products += rows * (levels.products - before[1])
        return said

    def output(self, k: int, x: Tensor) -> Tensor:
        """All that the network says at level k, in the dtype of x: the one place where it is called."""
        if self.model.network is None:
            raise ConfigError(
                "ScoreModel: this model has no network; give one, or use an oracle's .model(perturbation)"
            )
        self._first.calls += 1
        scale, noise = self._input[k], self._noise[k]
        handed = x if self._single and scale == 1.0 else x * scale
        if self._cast is not None:
            handed = handed.to(self._cast)
        if self._harmless:
            before = handed._version
            raw = self.model.network(handed, noise, **self._arguments)
            if handed._version != before:
                raise ConfigError("ScoreModel: the network changed its input in place, which its first call did not; "
                                  "clone the input in its forward")  # fmt: skip
        else:
            raw = self._tried(handed.clone() if handed is x else handed, noise.clone())
        if not isinstance(raw, Tensor) or raw.shape != x.shape or self.learned_variance:
            raw = tensor_of(raw, x, self.learned_variance)
        if x.requires_grad and not raw.requires_grad and torch.is_grad_enabled():
            self.is_cut = True
        return raw if raw.dtype == x.dtype else tensor_of(raw, x, self.learned_variance).to(x.dtype)

    def _tried(self, handed: Tensor, noise: Tensor) -> Any:
        """A call with memory of its own, which shows whether the network works in place or keeps its input."""
        copy, network = self.condition if self.condition is NOTHING else self.condition.copied(), self.model.network
        arguments = self._arguments if copy is NOTHING else copy.arguments
        if self._harmless is False or handed.is_inference() or torch.compiler.is_compiling():
            return network(handed, noise, **arguments)  # pyright: ignore[reportOptionalCall]
        watched = [handed, noise] if copy is NOTHING else [handed, noise, *copy.tensors()]
        before = [tensor._version for tensor in watched]
        raw = network(handed, noise, **arguments)  # pyright: ignore[reportOptionalCall]
        self._harmless = before == [tensor._version for tensor in watched]
        if not (isinstance(raw, Tensor) and raw.untyped_storage().data_ptr() == handed.untyped_storage().data_ptr()):
            kept = weakref.ref(handed)
            del handed, watched
            self._harmless = self._harmless and kept() is None
        return raw

    def raw(self, k: int, x: Tensor) -> Tensor:
        """F at level k, in the dtype of x; a learned variance is dropped."""
        raw = self.output(k, x)
        return halves(raw, x)[0] if self.learned_variance else raw

    def denoised(self, k: int, x: Tensor, out: Tensor | None = None) -> Tensor:
        """x0hat at level k."""
        if not self._single:
            return self.prediction(k, x).denoised
        raw, (skip, of_raw) = self.raw(k, x), self._floats
        return torch.mul(x, skip[k], out=out).add_(raw, alpha=of_raw[k])

    def prediction(self, k: int, x: Tensor) -> Prediction:
        """All that follows from one call at level k."""
        raw, variance = self.output(k, x), None
        if self.learned_variance:
            raw, variance = halves(raw, x)
        return Prediction(x, raw, self.alpha[k], self.sigma[k], self.skip[k], self.out[k], variance)


def combine(x: Tensor, a: float, y: Tensor, b: float, out: Tensor | None = None) -> Tensor:
    """a x + b y in two element-wise operations, without touching x or y (a network may return its input)."""
    return torch.mul(x, a, out=out).add_(y, alpha=b)


class ScoreModel(nn.Module):
    """Network + perturbation + parameterization.

    Args:
        network: `network(x, c_noise, **condition) -> Tensor shaped like x`, a module or any callable; it is given the
            scaled state c_in x, (B, *shape), and c_noise, (B,), in its own dtype (float32 without parameters, and for
            one with an attribute noise_dtype, in that). It may also return an object with an attribute `sample`. One
            with an attribute learned_variance = True returns twice as much in dimension 1: what is predicted, then the
            variance of a reverse step.
        perturbation: the formulation the network is (to be) trained under.
        parameterization: what its raw output means; noise by default.

    Attributes:
        shape: of one sample; () where it is not known.
        classes: names of the classes of its labels, in the order of their numbers; () where there are none.
        transform: from raw data to the model's scale and back, or None.
        given: what the model itself holds with a row for each sample, such as observations; samplers cut it with the
            batch, as they do a condition.
        no_density: why likelihoods refuse it: a guided model is the denoiser of no data. Empty for all others.
        starts_late: whether sampling begins from given data, noised in part, and not from noise.
        always_labelled: whether each sample had a label in training, so that it knows nothing of "no label".

    Calling it, `model(x, t, condition={...})` or `model(x, t, label=...)`, with x (B, *shape) and t () or (B,) in
    [0, 1], returns a `Prediction`.

    Raises:
        ConfigError: if an argument is of the wrong kind, or the shape of t does not fit x.

    Warns:
        BetweenNodesWarning: when a network trained on a chain is asked between its nodes.
    """

    given: Condition = NOTHING
    no_density: str = ""
    starts_late: bool = False
    always_labelled: bool = False

    def __init__(
        self,
        network: Callable[..., Any] | None,
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
        self.shape: tuple[int, ...] = ()
        self.classes: tuple[str, ...] = ()
        self.transform: Any = None

    # -- asked by users ----------------------------------------------------------------------------------------------

    def forward(
        self, x: Tensor, t: Tensor | float, condition: Mapping[str, Any] | Condition | None = None, **named: Any
    ) -> Prediction:
        if not isinstance(x, Tensor):
            x = torch.as_tensor(x)
        if not x.is_floating_point() or x.ndim < 1:
            raise ConfigError(f"model(x, t): x must be a floating tensor (B, *shape), got {x.dtype} {tuple(x.shape)}")
        alpha, sigma = self.perturbation.curves(t)
        if alpha.ndim > 1 or (alpha.ndim == 1 and len(alpha) != len(x)):
            raise ConfigError(f"model(x, t): t must have shape () or ({x.shape[0]},) for x of shape {tuple(x.shape)}, "
                              f"got {tuple(alpha.shape)}")  # fmt: skip
        if self.network is not None and isinstance(self.trained_under, Chain):
            self.warn_between_nodes(alpha.log() - sigma.log())
        if condition or named:
            told = gathered("model(x, t)", self.network, condition, named, self.forward)
            condition = Condition.of("model(x, t)", told, len(x))
        return self.levels(alpha.clamp_min(_TINY)[None], sigma.clamp_min(_TINY)[None], x, condition).prediction(0, x)

    def under(self, perturbation: Perturbation) -> "ScoreModel":
        """The same network under another formulation: an exact change of variables, no copy.

        A state x of the new process B with (alpha_B, sigma_B) is the state x alpha_A/alpha_B of the trained process A
        at the time where lambda_A = lambda_B; since the parameterization's coefficients are homogeneous, evaluating
        them at (alpha_B, sigma_B) is that change of variables.
        """
        other = ScoreModel(self.network, perturbation, self.parameterization)
        other.trained_under, other.training = self.trained_under, self.training
        other.shape, other.classes, other.transform = self.shape, self.classes, self.transform
        other.always_labelled = self.always_labelled
        return other

    # -- asked by samplers, objectives, likelihoods ------------------------------------------------------------------

    def levels(
        self, alpha: Tensor, sigma: Tensor, like: Tensor, condition: Mapping[str, Any] | Condition | None = None
    ) -> Levels:
        """The model at noise levels (K,), or (K, B) with one for each sample, float64, for states like `like`."""
        if not isinstance(condition, Condition):
            condition = Condition.of("model", condition, len(like)) if condition else NOTHING
        return Levels(self, alpha, sigma, like, condition)

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

    def warn_between_nodes(self, half_log_snr: Tensor) -> None:
        """Warn if a network that was trained on a chain is asked between its nodes (looked at on the CPU only)."""
        chain = self.trained_under
        if self.network is None or not isinstance(chain, Chain) or half_log_snr.device.type != "cpu":
            return
        if chain.is_between(half_log_snr.detach().reshape(-1)):
            warnings.warn(
                f"the network was trained on the {chain.length} nodes of {chain} and is asked between them; "
                "it interpolates in lambda, which its training did not check",
                BetweenNodesWarning,
                stacklevel=3,
            )

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

    def __repr__(self) -> str:
        network, trained = self.network, self.trained_under
        count = sum(p.numel() for p in self.parameters())
        what = getattr(network, "__name__", type(network).__name__) + (f" of {count:,} parameters" if count else "")
        told = [what, f"predicts {self.parameterization}", f"under {self.perturbation}"]
        told += [f"trained under {trained}"] if trained != self.perturbation else []
        told += [f"samples of shape {self.shape}"] if self.shape else []
        told += [f"{len(self.classes)} classes"] if self.classes else []
        return f"{type(self).__name__}({', '.join(told)})"


# -- what a call leaves as it was ------------------------------------------------------------------------------------

#: Modules that somebody holds in evaluation mode, how many do, and the mode to go back to.
_HELD: dict[int, list[Any]] = {}
_LOCK = RLock()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the time of a block; afterwards every submodule has the mode it had.

    Any number of threads may share a model, or its network: it goes back when the last of them is done.
    """
    modules = list(model.modules())
    with _LOCK:
        for module in modules:
            held = _HELD.setdefault(id(module), [0, module.training, module])
            held[0] += 1
            module.training = False
    try:
        yield
    finally:
        with _LOCK:
            for module in modules:
                held = _HELD[id(module)]
                held[0] -= 1
                if not held[0]:
                    module.training = held[1]
                    del _HELD[id(module)]
