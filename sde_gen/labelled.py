"""Classes of the components of a mixture, and the laws that guidance towards a class aims at."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.errors import ConfigError
from sde_gen.rng import keyed_generator

#: Draws proposed at once, and in all for each draw that is wanted.
_AT_ONCE, _MOST = 2**14, 10**5


class Labelled:
    """A mixture whose components may belong to classes.

    Attributes:
        labels: the class of each component, (K,), int64, or None.
        num_classes: how many there are; the label of that number says none.
    """

    weights: Tensor

    def _classed(self, labels: Any) -> Tensor:
        """Keeps the labels and returns the logarithms of the weights: within each class, of all in the last row.

        (C + 1, K); -inf where there is none.
        """
        count, self.labels, self.num_classes = len(self.weights), None, 0
        if labels is None:
            return self.weights.log()[None]
        given = checks.integers("GaussianMixture", "labels", getattr(labels, "tolist", lambda: labels)(), low=0)
        if len(given) != count or set(given) != set(range(max(given) + 1)):
            raise ConfigError(f"GaussianMixture: labels must name a class for each of {count} components, 0, 1, ... "
                              f"without a gap, got {list(given)}")  # fmt: skip
        self.labels, self.num_classes = torch.tensor(given), max(given) + 1
        classes = torch.arange(self.num_classes + 1)[:, None]
        inside = torch.where((self.labels == classes) | (classes == self.num_classes), self.weights, 0.0)
        return (inside / inside.sum(1, keepdim=True)).log()

    def of_class(self, labels: int | Sequence[int]) -> Any:
        """The law of a class, or of several together: p(x | c), a `GaussianMixture`.

        Raises:
            ConfigError: for a class that it has not.
        """
        return self._of(self._inside(labels))

    def tilt(self, labels: int | Sequence[int], w: float) -> "TiltedMixture":
        """The law p(x) p(c|x)^w that guidance towards a class, or several, aims at: its log-density and exact draws.

        Args:
            labels: a class, or several together.
            w: >= 0; 0 is the mixture itself, 1 that of the class; between and beyond it is no mixture.

        Raises:
            ConfigError: for a class that it has not, or a negative w.
        """
        return TiltedMixture(self, self.of_class(labels), float(self.weights[self._inside(labels)].sum()), w)

    def _of(self, inside: Tensor) -> Any:
        """The law of some components, given as (K,) of truth values."""
        raise NotImplementedError

    def _inside(self, labels: int | Sequence[int]) -> Tensor:
        if self.labels is None:
            raise ConfigError("GaussianMixture: its components have no classes; give labels= when it is made")
        named = [labels] if isinstance(labels, int) else labels
        wanted = checks.integers("GaussianMixture", "labels", named, low=0, high=self.num_classes - 1)
        return torch.isin(self.labels, torch.tensor(wanted))


def read_label(label: Any, num_classes: int, rows: int, device: torch.device) -> Tensor:
    """A class for all states or for each of them, () or (B,), int64; `num_classes` is none.

    Raises:
        ConfigError: for anything else.
    """
    found = torch.as_tensor(label, device=device)
    whole = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    if not whole or found.shape not in ((), (rows,)) or bool(((found < 0) | (found > num_classes)).any()):
        raise ConfigError(f"GaussianMixture: label must be 0..{num_classes - 1}, or {num_classes} for none, of shape "
                          f"() or ({rows},), got {found.dtype} {tuple(found.shape)}")  # fmt: skip
    return found.to(torch.int64)


class TiltedMixture:
    r"""The law :math:`p(x)\,p(c|x)^w` up to a constant, made by `GaussianMixture.tilt`.

    It is a mixture for w = 0 and 1 alone; exact draws there are for every w >= 0, by rejection from p(x | c), or from
    p(x) for w < 1.
    """

    def __init__(self, law: Any, of_class: Any, share: float, w: float) -> None:
        self._law, self._class = law, of_class
        self.share, self.w = share, checks.number("GaussianMixture.tilt", "w", w, low=0.0)

    def log_class(self, x: Tensor) -> Tensor:
        """log p(c | x), (B,), float64."""
        return math.log(self.share) + self._class.log_prob(x) - self._law.log_prob(x)

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) + w log p(c | x), (B,), float64: the log-density up to a constant."""
        return self._law.log_prob(x) + self.w * self.log_class(x)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n >= 1 independent exact draws, (n, D), float64.

        Raises:
            ConfigError: if almost no proposal is accepted.
        """
        checks.integer("TiltedMixture.sample", "n", n)
        proposal, power = (self._law, self.w) if self.w < 1 else (self._class, self.w - 1)
        kept: list[Tensor] = []
        for turn in range(1 + n * _MOST // _AT_ONCE):
            generator = keyed_generator(seed, 1, turn, 0)
            x = proposal.sample(_AT_ONCE, int(torch.randint(2**62, (), generator=generator)))
            u = torch.rand(len(x), dtype=torch.float64, generator=generator)
            kept.append(x[u.log() < power * self.log_class(x).clamp_max(0.0)])
            if sum(map(len, kept)) >= n:
                return torch.cat(kept)[:n]
        raise ConfigError(f"TiltedMixture.sample: fewer than one proposal in {_MOST} is accepted for w={self.w:g}; "
                          "take a smaller w")  # fmt: skip
