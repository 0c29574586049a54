r"""Denoising score matching: which times are drawn, and how the errors there are weighted.

At a time t with :math:`x_t = \alpha x_0 + \sigma\epsilon`, every regression target is a multiple of the noise error:
:math:`\hat x_0 - x_0 = -(\sigma/\alpha)(\hat\epsilon - \epsilon)` and :math:`score - target = -(\hat\epsilon -
\epsilon)/\sigma`. One loss serves all formulations,

.. math:: \ell(x_0) = w(t)\; |\hat\epsilon(x_t, t) - \epsilon|^2 / D ,

the mean over the D dimensions, with these weights (:math:`\rho = \sigma/\alpha`):

==============  ==========================  =========================================================================
weighting       w(t)                        meaning
==============  ==========================  =========================================================================
``simple``      1                           L_simple of Ho et al. 2020, arXiv:2006.11239
``score``       1                           sigma^2 |score - target|^2, Song & Ermon 2019, arXiv:1907.05600
``snr``         1                           (alpha/sigma)^2 |x0hat - x0|^2, Salimans & Ho 2022, arXiv:2202.00512
``likelihood``  g^2/sigma^2                 g^2 |score - target|^2, Song et al. 2021, arXiv:2101.09258
``min-snr``     min(1, gamma rho^2)         min(SNR, gamma) |x0hat - x0|^2, Hang et al. 2023, arXiv:2303.09556
``edm``         (rho^2 + sd^2)/sd^2         Karras et al. 2022, arXiv:2206.00364
``vlb``         below                       the variational bound itself, Ho et al. 2020; Kingma et al. 2021
``hybrid``      1, and below                L_simple and the bound of the variance, Nichol & Dhariwal 2021
==============  ==========================  =========================================================================

(The first three are one loss under three names.) Because :math:`g^2 = -2\lambda'\sigma^2`, the likelihood weight is
:math:`-2\lambda'(t)`: drawing t so that lambda is uniform makes it constant, which is the importance sampling that
keeps its variance finite near t = 0.

The weights are classes of `weightings.py`, the terms of the bound in `bound_terms.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.checks import checked
from sde_gen.conditions import NOTHING, Condition, Rows, gathered
from sde_gen.errors import ConfigError
from sde_gen.model import ScoreModel
from sde_gen.perturbations import Chain
from sde_gen.shapes import trailing
from sde_gen.weightings import EDMWeight, Hybrid, LikelihoodWeight, MinSNR, Simple, VariationalTerms, Weighting

__all__ = [
    "DenoisingScoreMatching",
]

WEIGHTINGS = ("simple", "score", "likelihood", "snr", "min-snr", "edm", "vlb", "hybrid")
_DROPPED = ("label", "vector", "tokens")  # what networks of the package are told
TIME_LAWS = ("auto", "uniform", "stratified", "log-normal", "importance", "nodes")


@dataclass(frozen=True)
class DenoisingScoreMatching:
    """Weighted denoising score matching, as per-sample losses.

    Args:
        weighting: "simple", "score", "likelihood", "snr", "min-snr", "edm", "vlb" or "hybrid"; see the table above.
            Or a `Weighting` of your own.
        times_law: law of the training times on [t_min, t_max]: "uniform"; "stratified" (uniform, one draw in each of B
            equal parts: less variance); "log-normal" (log(sigma/alpha) normal, as EDM); "importance" (lambda uniform,
            for "likelihood" and "vlb"); "nodes" (a chain's nodes, uniformly). "auto" takes "importance" for these two
            weightings, "nodes" for a chain, "log-normal" for edm, else "stratified". On a chain, "uniform" and
            "stratified" draw nodes and "importance" draws nodes in proportion to the weight, so that only nodes are
            trained.
        gamma: of "min-snr", > 0.
        sigma_data: of "edm", > 0.
        log_mean: mean of log(sigma/alpha) of "log-normal".
        log_std: standard deviation of log(sigma/alpha) of "log-normal", > 0.
        label_dropout: probability in [0, 1] with which a label is replaced by `num_classes` ("no label").
        condition_dropout: probability in [0, 1] with which a sample is told nothing: vectors and tokens are replaced by
            zeros, and a label by `num_classes`. One draw for all of them, and for label dropout.
        num_classes: number of classes, needed where labels are dropped.
        variance: of the reverse steps, for "vlb" on a chain: "small", "large", "learned", or "auto", which is learned
            where the network has it, else small.
        vlb_weight: gamma of "hybrid", > 0.
        levels: number of evenly spaced values from -1 to 1 that the data have (17 for digits, 256 for 8-bit images),
            for the first step of "vlb" and "hybrid" on a chain; None for continuous data, where that is a density.

    Raises:
        ConfigError: for values outside these ranges; and when used, for "hybrid" on a continuous process or with a
            network without a learned variance.
    """

    weighting: str | Weighting = "simple"
    times_law: str = checked("auto", choices=TIME_LAWS)
    gamma: float = checked(5.0, above=0.0)
    sigma_data: float = checked(0.5, above=0.0)
    log_mean: float = checked(-1.2)
    log_std: float = checked(1.2, above=0.0)
    label_dropout: float = checked(0.0, low=0.0, high=1.0)
    condition_dropout: float = checked(0.0, low=0.0, high=1.0)
    num_classes: int = checked(0, low=0)
    variance: str = checked("auto", choices=("auto", "small", "large", "learned"))
    vlb_weight: float = checked(0.001, above=0.0)
    levels: int | None = checked(None, low=2)

    def __post_init__(self) -> None:
        where = "DenoisingScoreMatching"
        checks.fields(self)
        if not isinstance(self.weighting, Weighting):
            checks.choice(where, "weighting", self.weighting, WEIGHTINGS)
        if self.weighting == "hybrid" and self.variance in ("small", "large"):
            raise ConfigError(f"{where}: weighting='hybrid' trains a learned variance, got variance={self.variance!r}")
        if self.label_dropout > 0 and self.num_classes == 0:
            raise ConfigError(f"{where}: label_dropout={self.label_dropout!r} needs num_classes >= 1")
        object.__setattr__(self, "_weight", self._weighting())
        if self.times_law == "importance" and not self._weight.by_importance:
            raise ConfigError(
                f"{where}: times_law='importance' is the importance sampling of weighting='likelihood' and 'vlb', "
                f"got weighting={self.weighting!r}; use 'uniform' or 'stratified'"
            )

    def _weighting(self) -> Weighting:
        if isinstance(self.weighting, Weighting):
            return self.weighting
        made = {
            "likelihood": LikelihoodWeight,
            "min-snr": lambda: MinSNR(self.gamma),
            "edm": lambda: EDMWeight(self.sigma_data),
            "vlb": lambda: VariationalTerms(self.variance, self.levels),
            "hybrid": lambda: Hybrid("learned", self.levels, self.vlb_weight),
        }
        return made.get(self.weighting, Simple)()

    _weight: ClassVar[Weighting]

    # -- the time law ------------------------------------------------------------------------------------------------

    def times(
        self,
        model: ScoreModel,
        batch: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draw `batch` training times, float64, (B,), on `device` (the model's by default).

        Raises:
            ConfigError: for a law that the perturbation does not have ("nodes" of a continuous process).
        """
        if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
            batch = checks.integer("times", "batch", batch)
        device = model.device if device is None else torch.device(device)
        law, p = self.law_for(model), model.perturbation
        # Drawn where the generator lives, so that one seed gives one answer; these are B numbers.
        home = generator.device if generator is not None else torch.device("cpu")
        if law == "log-normal":
            z = torch.randn(batch, dtype=torch.float64, generator=generator, device=home)
            return self._log_normal(model, z).to(device)
        u = torch.rand(batch, dtype=torch.float64, generator=generator, device=home)
        if law in ("stratified", "importance"):
            u = (torch.arange(batch, dtype=torch.float64, device=home) + u) / batch
        if isinstance(p, Chain):
            if law == "importance":
                edges = self._weight.weight(p, p.nodes).cumsum(0)
                index = torch.searchsorted(edges / edges[-1], u.cpu()).clamp_max(p.length - 1)
            else:
                index = (u.cpu() * p.length).long().clamp_max(p.length - 1)
            return p.nodes[index].to(device)
        if law == "importance":
            high, low = (float(p.half_log_snr(t)) for t in (p.t_min, p.t_max))
            return p.time((low + u * (high - low)).clamp(low, high)).clamp(p.t_min, p.t_max).to(device)
        return (p.t_min + u * (p.t_max - p.t_min)).to(device)

    def law_for(self, model: ScoreModel) -> str:
        """The time law that "auto" stands for with this model, or the law asked for.

        Raises:
            ConfigError: for a model that the law or the weighting does not go with.
        """
        is_chain = isinstance(model.perturbation, Chain)
        if self.times_law == "nodes" and not is_chain:
            raise ConfigError(
                f"DenoisingScoreMatching: times_law='nodes' needs a chain such as DDPM or NCSN, "
                f"but the perturbation is {model.perturbation}"
            )
        if not self._weight.is_one:
            self._weight.refuse(model)
        if self.times_law != "auto":
            return self.times_law
        return "nodes" if is_chain and not self._weight.by_importance else self._weight.law

    def _log_normal(self, model: ScoreModel, z: Tensor) -> Tensor:
        p = model.perturbation
        high, low = (float(p.half_log_snr(t)) for t in (p.t_min, p.t_max))
        t = p.time((-(self.log_mean + self.log_std * z)).clamp(low, high)).clamp(p.t_min, p.t_max)
        if isinstance(p, Chain):  # the nearest node
            t = (t * p.length).round().clamp(1, p.length) / p.length
        return t

    # -- the loss ----------------------------------------------------------------------------------------------------

    def weight(self, model: ScoreModel, t: Tensor) -> Tensor:
        """Factor of |eps_hat - eps|^2 at times drawn by `times`, float64.

        It is w(t), over the density of an importance-sampled t relative to the uniform law. For "vlb" with a learned
        variance it is that of the small variance, in proportion to which nodes are drawn.
        """
        return self._weight.factor(model.perturbation, t.to(torch.float64), self._mean_weight(model))

    def constant(self, model: ScoreModel, t: Tensor) -> Tensor:
        """What the loss adds to the weighted error at times drawn by `times`, float64.

        Zero, but for "vlb" on a chain with a fixed variance, where no network can change it (and where, at the first
        node of data on levels, the loss has another form altogether).
        """
        p, t, mean = model.perturbation, t.to(torch.float64), self._mean_weight(model)
        rest = self._weight.constant(p, t)
        return rest if mean is None else rest * mean.to(t.device) / self._weight.weight(p, t)

    def _mean_weight(self, model: ScoreModel) -> Tensor | None:
        """Mean of w under the uniform law of times, where they are importance-sampled; else None."""
        drawn_by_weight = self._weight.by_importance and self.law_for(model) == "importance"
        return self._weight.mean(model.perturbation) if drawn_by_weight else None

    def __call__(
        self,
        model: ScoreModel,
        x0: Tensor,
        condition: Mapping[str, Any] | Condition | None = None,
        *,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        **named: Any,
    ) -> Tensor:
        """Per-sample losses (B,), in the dtype of x0.

        Args:
            model: the model to train.
            x0: data, (B, *shape), floating.
            condition: keyword arguments of the network, such as `{"label": labels}`: tensors with a row for each
                sample, `Whole` what they share.
            t: times (B,) instead of drawn ones (as drawn by `times`: an importance weight is still divided out).
            noise: standard normal, shaped like x0, instead of a drawn one.
            generator: source of the draws; torch's global one by default.
            named: conditions as keywords, such as label=labels.

        Raises:
            ConfigError: if x0 is not a floating tensor with a batch dimension, or the shapes do not fit.
        """
        if not isinstance(x0, Tensor) or not x0.is_floating_point() or x0.ndim < 2:
            what = f"{x0.dtype} {tuple(x0.shape)}" if isinstance(x0, Tensor) else type(x0).__name__
            raise ConfigError(f"objective: x0 must be a floating tensor of shape (B, *shape), got {what}")
        told = NOTHING
        if condition or named or self.label_dropout or self.condition_dropout:
            given = gathered("objective", model.network, condition, named, self.__call__)
            told = self._dropped(Condition.of("objective", given, len(x0)), len(x0), generator)
        if t is None:
            t = self.times(model, x0.shape[0], generator=generator, device=x0.device)
        if noise is None:
            home = generator.device if generator is not None else x0.device
            noise = torch.randn(x0.shape, dtype=x0.dtype, device=home, generator=generator).to(x0.device)
        alpha, sigma = (c if c.ndim else c.expand(len(x0)) for c in model.perturbation.curves(t))
        if alpha.shape != x0.shape[:1] or noise.shape != x0.shape:
            raise ConfigError(f"objective: t must have shape ({len(x0)},) and noise must be shaped like x0, "
                              f"{tuple(x0.shape)}, got {tuple(alpha.shape)} and {tuple(noise.shape)}")  # fmt: skip
        a, s = (c.to(x0.dtype).to(x0.device).reshape(-1, *[1] * (x0.ndim - 1)) for c in (alpha, sigma))
        x = a * x0 + s * noise
        out = model.levels(alpha[None], sigma[None], x, told).prediction(0, x)
        if self._weight.is_one:
            return (out.noise - noise).square().flatten(1).mean(1)
        return self._weight.loss(model, out, x0, noise, t, self._mean_weight(model))

    def _dropped(self, condition: Condition, rows: int, generator: torch.Generator | None) -> Condition:
        if not (self.label_dropout or self.condition_dropout):
            return condition
        given = {name: condition.parts[name] for name in _DROPPED if condition.parts.get(name) is not None}
        parts = {name: torch.as_tensor(getattr(part, "value", part)) for name, part in given.items()}
        if self.label_dropout and "label" not in parts:
            raise ConfigError("objective: label_dropout needs condition={'label': labels}")
        if not parts:
            raise ConfigError(f"objective: condition_dropout needs a condition {', '.join(map(repr, _DROPPED))}")
        if "label" in parts and not self.num_classes:
            raise ConfigError("objective: condition_dropout of labels needs num_classes >= 1")
        device = next(iter(parts.values())).device
        home = generator.device if generator is not None else device
        drawn = torch.rand(rows, device=home, generator=generator).to(device)
        shares = {"label": max(self.label_dropout, self.condition_dropout)}
        for name, value in parts.items():
            drop = trailing(drawn < shares.get(name, self.condition_dropout), value.ndim)
            parts[name] = torch.where(drop, self.num_classes if name == "label" else 0, value)
        return Condition(condition.parts | {name: Rows(value) for name, value in parts.items()})
