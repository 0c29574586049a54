r"""The probability-flow ODE of any formulation in one variable and one scaling.

.. math:: \frac{du}{d\lambda} = \hat\alpha D - \hat\alpha^2 u, \qquad u = x/\sqrt{\alpha^2+\sigma^2}, \quad
          \hat\alpha^2 = \mathrm{sigmoid}(2\lambda),

where the state stays of the size of the data, the time scales are even, and a chain needs no times between its nodes.
Its right-hand side vanishes for standard normal data, so that what is integrated is only what differs from them. Song
et al. 2021, arXiv:2011.13456, section 4.3.
"""

import torch
from torch import Tensor

from sde_gen.conditions import Condition
from sde_gen.errors import ConfigError
from sde_gen.model import ScoreModel
from sde_gen.shapes import trailing


def unit_curves(half_log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) of u at lambda, alpha^2 + sigma^2 = 1, in the dtype of lambda."""
    return torch.sigmoid(2 * half_log_snr).sqrt(), torch.sigmoid(-2 * half_log_snr).sqrt()


class Flow:
    """Right-hand side in (lambda, u) for the rows of a batch.

    Args:
        model: the model; its perturbation does not matter, only its network.
        condition: what the network is told of the samples of the batch.

    Attributes:
        products: vector-Jacobian products of the network made so far.
    """

    def __init__(self, model: ScoreModel, condition: Condition) -> None:
        self.model, self.condition, self._looked, self.products = model, condition, False, 0

    def denoised(self, u: Tensor, half_log_snr: Tensor, rows: Tensor | None) -> Tensor:
        """x0hat at one lambda a row; `rows` are the samples meant, None for all."""
        return self._denoised(u, *unit_curves(half_log_snr), rows)

    def slope(self, u: Tensor, half_log_snr: Tensor, rows: Tensor | None) -> Tensor:
        """du/dlambda at one lambda a row."""
        alpha, sigma = unit_curves(half_log_snr)
        scale, pull = (trailing(c.to(u.dtype), u.ndim) for c in (alpha, torch.sigmoid(2 * half_log_snr)))
        return scale * self._denoised(u, alpha, sigma, rows) - pull * u

    def _denoised(self, u: Tensor, alpha: Tensor, sigma: Tensor, rows: Tensor | None) -> Tensor:
        condition = self.condition if rows is None or not self.condition else self.condition[rows]
        levels = self.model.levels(alpha[None], sigma[None], u, condition)
        denoised = levels.denoised(0, u)
        self.products += levels.products
        if levels.is_cut and not self._looked:
            # A network that says nothing of its input has no gradient either, and is as it should be.
            self._looked, moved = True, u.detach() + 0.1 * (1 + u.detach().abs())
            if not torch.equal(levels.raw(0, u), levels.raw(0, moved)):
                raise ConfigError(
                    "the network's output carries no gradient, which the divergence of the flow is made of; remove "
                    "torch.no_grad, .detach() or a compiled inference mode from its forward"
                )
        return denoised
