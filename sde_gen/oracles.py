r"""Models without a network: the exact answer, for data whose law is known.

For data with density :math:`p_0`, the marginal is :math:`p_t(x) = \int p_0(x_0) N(x; \alpha x_0, \sigma^2 I)\,dx_0`
and the best denoiser is the posterior mean :math:`D(x, t) = E[x_0 | x_t = x]`; the score follows from it by Tweedie's
formula, :math:`\nabla\log p_t(x) = (\alpha D - x)/\sigma^2`. Both are finite sums for a mixture of Gaussians

.. math:: p_t = \sum_k w_k N(\alpha\mu_k,\; \alpha^2\Sigma_k + \sigma^2 I), \qquad
          D = \sum_k r_k(x)\,[\mu_k + \alpha\Sigma_k(\alpha^2\Sigma_k + \sigma^2 I)^{-1}(x - \alpha\mu_k)]

and for a finite data set (every covariance zero). All sums are formed in float64.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks as check
from sde_gen.conditions import NOTHING, Condition
from sde_gen.errors import ConfigError
from sde_gen.labelled import Labelled, read_label
from sde_gen.model import Levels, Prediction, ScoreModel
from sde_gen.parameterizations import DataPrediction
from sde_gen.perturbations.base import Perturbation
from sde_gen.rng import keyed_generator
from sde_gen.shapes import trailing

__all__ = [
    "EmpiricalData",
    "GaussianMixture",
    "Oracle",
]

#: Pairs (state, data point) held at once by `EmpiricalData`, times the dimension: about 64 MiB of float64.
_LARGEST_TABLE = 2**23
#: sigma below which a state is taken for the data itself.
_NO_NOISE = 1e-140


class Oracle(ScoreModel):
    """A `ScoreModel` that knows the law of the data: exact score, denoiser and log-density.

    Made by `GaussianMixture.model(perturbation)` or `EmpiricalData.model(perturbation)`.
    """

    def __init__(self, law: "GaussianMixture | EmpiricalData", perturbation: Perturbation) -> None:
        super().__init__(None, perturbation, DataPrediction())
        self.law = law

    def under(self, perturbation: Perturbation) -> "Oracle":
        """The exact model of the same data under another perturbation."""
        return Oracle(self.law, perturbation)

    def levels(
        self, alpha: Tensor, sigma: Tensor, like: Tensor, condition: Mapping[str, Any] | Condition | None = None
    ) -> "OracleLevels":
        told = Condition.of("model", condition, len(like)) if condition else NOTHING
        names = [name for name in told.parts if name != "label" or not self.law.num_classes]
        if names:
            raise ConfigError(f"an oracle takes no condition, got {', '.join(map(repr, names))}; a GaussianMixture "
                              "with labels takes label")  # fmt: skip
        return OracleLevels(self, alpha, sigma, like, told)

    def log_prob(self, x: Tensor, t: Tensor | float, label: Any = None) -> Tensor:
        """Exact log p_t(x), or log p_t(x | label), in nats, float64, (B,). Not finite at sigma = 0 of a finite set."""
        alpha, sigma = (c.to(x.device) for c in self.perturbation.curves(t))
        told = [] if label is None else [read_label(label, self.law.num_classes, len(x), x.device)]
        return self.law.log_marginal(x.to(torch.float64), alpha, sigma, *told)


class OracleLevels(Levels):
    """Exact denoisers at some noise levels; every call counts as one of a network."""

    def __init__(self, model: Oracle, alpha: Tensor, sigma: Tensor, like: Tensor, condition: Condition) -> None:
        super().__init__(model, alpha, sigma, like, condition)
        self._law = model.law
        self._there = [c.to(like.device).unbind(0) for c in (alpha, sigma)]
        self._label: list[Any] = []  # or the one label
        if condition.arguments.get("label") is not None:
            self._label = [read_label(condition.arguments["label"], self._law.num_classes, len(like), like.device)]

    def output(self, k: int, x: Tensor) -> Tensor:
        self._first.calls += 1
        alpha, sigma = self._there
        return self._law.denoise(x.to(torch.float64), alpha[k], sigma[k], *self._label).to(x.dtype)

    def prediction(self, k: int, x: Tensor) -> Prediction:
        found = super().prediction(k, x)
        end = self.sigma[k] <= _NO_NOISE
        if isinstance(self._law, GaussianMixture) and bool(end.any()):
            # (alpha D - x)/sigma^2 is 0/0 there, and the score of the data is known.
            alpha, sigma = self._there
            score = self._law.score_marginal(x.to(torch.float64), alpha[k], sigma[k], *self._label).to(x.dtype)
            here = trailing(end.to(x.device), x.ndim)
            nothing = torch.zeros_like(x)
            for name, value in (("score", score), ("noise", nothing), ("v", nothing)):
                setattr(found, name, torch.where(here, value, getattr(found, name)))
        return found


class GaussianMixture(Labelled):
    """Mixture of Gaussians with full covariances in any dimension; one component makes a Gaussian.

    Args:
        weights: (K,), positive; normalised to sum to one.
        means: (K, D).
        covariances: (K, D, D), symmetric positive definite.
        labels: the class of each component, (K,), whole numbers from 0; its models then take a condition `label`, a
            class or `num_classes` for none. None: there are no classes.

    Tensors (or nested lists), taken in float64.

    Raises:
        ConfigError: if shapes do not fit, a weight is not positive, or a covariance is not symmetric positive definite.
    """

    def __init__(self, weights: Any, means: Any, covariances: Any, labels: Any = None) -> None:
        w, mu, cov = (torch.as_tensor(v, dtype=torch.float64).detach().cpu() for v in (weights, means, covariances))
        if w.ndim != 1 or mu.ndim != 2 or cov.shape != (*mu.shape, mu.shape[-1]) or len(w) != len(mu) or not mu.numel():
            raise ConfigError(
                "GaussianMixture: weights (K,), means (K, D) and covariances (K, D, D) do not fit together, got "
                f"{tuple(w.shape)}, {tuple(mu.shape)} and {tuple(cov.shape)}"
            )
        if not bool((w > 0).all() and w.isfinite().all() and mu.isfinite().all() and cov.isfinite().all()):
            raise ConfigError("GaussianMixture: weights must be positive, and weights, means and covariances finite")
        scale = cov.abs().amax((-2, -1), keepdim=True)
        if bool(((cov - cov.mT).abs() > 1e-9 * scale).any()):
            raise ConfigError("GaussianMixture: every covariance must be symmetric")
        values, vectors = torch.linalg.eigh(0.5 * (cov + cov.mT))
        if bool((values <= 0).any()):
            raise ConfigError(
                f"GaussianMixture: every covariance must be positive definite, got an eigenvalue of {values.min():.3g}"
            )
        self.weights, self.means, self.covariances = w / w.sum(), mu, cov
        self._log_weights = self._classed(labels)
        self._values, self._vectors = values, vectors  # (K, D), (K, D, D) with eigenvectors in columns
        self._placed: dict[torch.device, tuple[Tensor, ...]] = {}

    @property
    def dim(self) -> int:
        """D."""
        return self.means.shape[1]

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n >= 1 independent samples, (n, D), float64."""
        check.integer("GaussianMixture.sample", "n", n)
        generator = keyed_generator(seed, 0, 0, 0)
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.dim, dtype=torch.float64, generator=generator)
        spread = torch.einsum("ndk,nk->nd", self._vectors[component], self._values[component].sqrt() * z)
        return self.means[component] + spread

    def log_prob(self, x: Tensor) -> Tensor:
        """log p_0(x) in nats, float64, (B,)."""
        one = torch.ones((), dtype=torch.float64, device=x.device)
        return self.log_marginal(x.to(torch.float64), one, torch.zeros_like(one))

    def responsibilities(self, x: Tensor) -> Tensor:
        """Probability of each component given x, float64, (B, K)."""
        one = torch.ones((), dtype=torch.float64, device=x.device)
        return self._joint(x.to(torch.float64), one, torch.zeros_like(one), None)[0].softmax(-1)

    def score(self, x: Tensor) -> Tensor:
        """grad log p_0(x), float64, (B, D)."""
        one = torch.ones((), dtype=torch.float64, device=x.device)
        return self.score_marginal(x.to(torch.float64), one, torch.zeros_like(one))

    def model(self, perturbation: Perturbation) -> Oracle:
        """The exact `ScoreModel` of this law under a perturbation."""
        return Oracle(self, perturbation)

    def condition(self, operator: Any, y: Any, noise_std: Any) -> "Conditioned":
        r"""The exact law given y = A x + noise: a mixture again, with the evidence p(y).

        With :math:`S_k = A\Sigma_k A^\top + R` and :math:`K_k = \Sigma_k A^\top S_k^{-1}`, component k has the mean
        :math:`\mu_k + K_k(y - A\mu_k)`, the covariance :math:`(I - K_kA)\Sigma_k` and a weight in proportion to
        :math:`w_k N(y; A\mu_k, S_k)`, whose sum is p(y).

        Args:
            operator: A, a matrix (m, D) or a linear operator of `sde_gen.inverse`.
            y: one observation, m numbers; what an operator reads as such.
            noise_std: of each number, > 0; a vector (m,), or a covariance R (m, m).

        Raises:
            ConfigError: for shapes that do not fit, or noise that is not positive.
        """
        a, seen = operator, torch.as_tensor(y, dtype=torch.float64).detach().cpu()
        if hasattr(operator, "matrix"):
            a, seen = operator.matrix((self.dim,)), operator.read(seen[None], (self.dim,))
        a, seen = torch.as_tensor(a, dtype=torch.float64).detach().cpu(), seen.reshape(-1)
        noise = torch.as_tensor(noise_std, dtype=torch.float64).detach().cpu()
        if a.ndim != 2 or a.shape != (len(seen), self.dim) or (noise.ndim and set(noise.shape) != {len(seen)}):
            raise ConfigError(
                f"GaussianMixture.condition: operator (m, {self.dim}), y (m,) and noise_std (), (m,) or (m, m) do not "
                f"fit together, got {tuple(a.shape)}, {tuple(seen.shape)} and {tuple(noise.shape)}"
            )
        r = noise if noise.ndim == 2 else torch.diag(noise.square().expand(len(seen)))
        if bool(torch.linalg.cholesky_ex(r)[1]) or (noise.ndim < 2 and bool((noise <= 0).any())):
            raise ConfigError(f"GaussianMixture.condition: noise_std must be positive (definite), got {noise_std!r}")
        factor = torch.linalg.cholesky(a @ self.covariances @ a.T + r)
        error = (seen - self.means @ a.T)[..., None]
        gain = torch.cholesky_solve(a @ self.covariances, factor).mT  # K
        whitened = torch.linalg.solve_triangular(factor, error, upper=False)
        log_normal = -0.5 * whitened.square().sum((1, 2)) - factor.diagonal(dim1=1, dim2=2).log().sum(1)
        joint = self.weights.log() + log_normal - 0.5 * len(seen) * _LOG_TAU
        rest = torch.eye(self.dim, dtype=torch.float64) - gain @ a
        covariances = rest @ self.covariances @ rest.mT + gain @ r @ gain.mT  # a sum of squares, whatever is rounded
        # A component that is ruled out keeps its place, with a weight that no draw will meet.
        weights = joint.softmax(0).clamp_min(1e-300)
        means = self.means + (gain @ error)[..., 0]
        return Conditioned(weights, means, 0.5 * (covariances + covariances.mT), joint.logsumexp(0), self.labels)

    def log_marginal(self, x: Tensor, alpha: Tensor, sigma: Tensor, label: Any = None) -> Tensor:
        """log of the density of alpha x0 + sigma z at x, (B,)."""
        return torch.logsumexp(self._joint(x, alpha, sigma, label)[0], -1)

    def score_marginal(self, x: Tensor, alpha: Tensor, sigma: Tensor, label: Any = None) -> Tensor:
        """Gradient of `log_marginal`, shaped like x: -sum_k r_k (alpha^2 Sigma_k + sigma^2 I)^-1 (x - alpha mu_k)."""
        joint, centred, variance = self._joint(x, alpha, sigma, label)
        return -(joint.softmax(-1)[..., None] * centred / variance).flatten(1) @ self._on(x.device)[3].T

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, label: Any = None) -> Tensor:
        """E[x0 | alpha x0 + sigma z = x], shaped like x."""
        joint, centred, variance = self._joint(x, alpha, sigma, label)
        means, values, axes = self._on(x.device)[1:4]
        share = joint.softmax(-1)
        posterior = trailing(alpha, 3) * values / variance * centred  # in each component's own axes
        return share @ means + (share[..., None] * posterior).flatten(1) @ axes.T

    def _joint(self, x: Tensor, alpha: Tensor, sigma: Tensor, label: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        """log w_k N(x; k), (B, K); x - alpha mu in the axes of each component, (B, K, D); variances along them."""
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ConfigError(f"GaussianMixture: states must have shape (B, {self.dim}), got {tuple(x.shape)}")
        weights, _, values, axes, places = self._on(x.device)
        a, s = trailing(alpha, 3), trailing(sigma, 3)
        variance = a.square() * values + s.square()
        centred = (x @ axes).unflatten(1, values.shape) - a * places
        normal = -0.5 * ((centred.square() / variance).sum(-1) + variance.log().sum(-1) + self.dim * _LOG_TAU)
        return weights[-1 if label is None else label] + normal, centred, variance

    def _of(self, inside: Tensor) -> "GaussianMixture":
        return GaussianMixture(self.weights[inside], self.means[inside], self.covariances[inside])

    def _on(self, device: torch.device) -> tuple[Tensor, ...]:
        if device not in self._placed:
            # The axes of all components side by side, (D, K D), and the means in them: one product instead of K.
            axes = self._vectors.permute(1, 0, 2).reshape(self.dim, -1)
            places = torch.einsum("kdi,kd->ki", self._vectors, self.means)
            parts = (self._log_weights, self.means, self._values, axes, places)
            self._placed[device] = tuple(part.to(device) for part in parts)
        return self._placed[device]


class Conditioned(GaussianMixture):
    """A mixture given an observation, made by `GaussianMixture.condition`.

    Attributes:
        log_evidence: log p(y) in nats, (), float64; of all observations, where it was conditioned several times.
    """

    def __init__(self, weights: Any, means: Any, covariances: Any, log_evidence: Any, labels: Any = None) -> None:
        super().__init__(weights, means, covariances, labels)
        self.log_evidence = torch.as_tensor(log_evidence, dtype=torch.float64)

    def condition(self, operator: Any, y: Any, noise_std: Any) -> "Conditioned":
        further = super().condition(operator, y, noise_std)
        further.log_evidence = further.log_evidence + self.log_evidence
        return further


class EmpiricalData:
    """A finite data set as a law: its exact score under any perturbation (which memorises the data).

    Args:
        data: (N, *shape), any floating dtype, N >= 1; all points have weight 1/N.

    Raises:
        ConfigError: if data is empty or not finite.
    """

    def __init__(self, data: Any) -> None:
        points = torch.as_tensor(data, dtype=torch.float64).detach()
        if points.ndim < 2 or not points.numel() or not bool(points.isfinite().all()):
            raise ConfigError(
                f"EmpiricalData: data must be finite, of shape (N, *shape) with N >= 1, got {tuple(points.shape)}"
            )
        self.data, self.num_classes = points, 0
        self._placed: dict[torch.device, Tensor] = {}

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n >= 1 points drawn with replacement, (n, *shape), float64."""
        check.integer("EmpiricalData.sample", "n", n)
        index = torch.randint(len(self.data), (n,), generator=keyed_generator(seed, 0, 0, 0))
        return self.data.cpu()[index]

    def model(self, perturbation: Perturbation) -> Oracle:
        """The exact `ScoreModel` of this law under a perturbation."""
        return Oracle(self, perturbation)

    def log_marginal(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """log of the density of alpha x0 + sigma z at x, (B,)."""
        points, rows = self._flat(x)
        parts = []
        for row, a, s in self._chunks(rows, alpha, sigma, points):
            exponent = -0.5 * self._distances(row, a, points) / s.square()
            constant = points.shape[1] * (s.log() + 0.5 * _LOG_TAU).reshape(-1) + math.log(len(points))
            parts.append(torch.logsumexp(exponent, -1) - constant)
        return torch.cat(parts)

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | alpha x0 + sigma z = x], shaped like x: a softmax over the data; its nearest point at sigma = 0."""
        points, rows = self._flat(x)
        parts = []
        for row, a, s in self._chunks(rows, alpha, sigma, points):
            distance = self._distances(row, a, points)
            excess = distance - distance.amin(-1, keepdim=True)  # so that 0/0 at sigma = 0 concerns only the nearest
            exponent = torch.where(excess == 0, 0.0, -0.5 * excess / s.square())
            parts.append(exponent.softmax(-1) @ points)
        return torch.cat(parts).reshape(x.shape)

    def _flat(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[1:] != self.data.shape[1:]:
            raise ConfigError(
                f"EmpiricalData: states must have shape (B, {', '.join(map(str, self.data.shape[1:]))}), "
                f"got {tuple(x.shape)}"
            )
        if x.device not in self._placed:
            self._placed[x.device] = self.data.to(x.device).flatten(1)
        return self._placed[x.device], x.flatten(1)

    @staticmethod
    def _distances(rows: Tensor, alpha: Tensor, points: Tensor) -> Tensor:
        """|x - alpha x_i|^2 from the differences themselves: |x|^2 + |y|^2 - 2xy would cancel near a data point."""
        if alpha.numel() == 1:
            return torch.cdist(rows, alpha * points, compute_mode="donot_use_mm_for_euclid_dist").square()
        return (rows[:, None, :] - alpha[..., None] * points).square().sum(-1)

    @staticmethod
    def _chunks(rows: Tensor, alpha: Tensor, sigma: Tensor, points: Tensor) -> Any:
        size = max(1, _LARGEST_TABLE // points.numel())
        for first in range(0, len(rows), size):
            part = slice(first, first + size)
            yield rows[part], *(c.reshape(-1, 1)[part] if c.ndim else c.reshape(1, 1) for c in (alpha, sigma))


_LOG_TAU = math.log(2 * math.pi)
