r"""The probability-flow ODE of any formulation in one variable and one scaling.

.. math:: \frac{du}{d\lambda} = \hat\alpha D - \hat\alpha^2 u, \qquad u = x/\sqrt{\alpha^2+\sigma^2}, \quad
          \hat\alpha^2 = \mathrm{sigmoid}(2\lambda),

where the state stays of the size of the data, the time scales are even, and a chain needs no times between its nodes.
Its right-hand side vanishes for standard normal data, so that what is integrated is only what differs from them. Song
et al. 2021, arXiv:2011.13456, section 4.3.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sde_gen.model import ScoreModel
from sde_gen.perturbations.base import _left


class Flow:
    """Right-hand side in (lambda, u) for the rows of a batch.

    Args:
        model: the model; its perturbation does not matter, only its network.
        condition: keyword arguments of the network.
        batch: number of samples; tensors of `condition` with as many rows are cut along with them.
    """

    def __init__(self, model: ScoreModel, condition: Mapping[str, Any], batch: int) -> None:
        self.model, self.condition, self.batch = model, condition, batch

    def denoised(self, u: Tensor, half_log_snr: Tensor, rows: Tensor | None) -> Tensor:
        """x0hat at one lambda a row; `rows` are the samples meant, None for all."""
        alpha = torch.sigmoid(2 * half_log_snr).sqrt()
        sigma = torch.sigmoid(-2 * half_log_snr).sqrt()
        return self.model.predict(u, alpha, sigma, self._condition(rows)).denoised

    def slope(self, u: Tensor, half_log_snr: Tensor, rows: Tensor | None) -> Tensor:
        """du/dlambda at one lambda a row."""
        alpha2 = torch.sigmoid(2 * half_log_snr)
        scale, pull = (_left(c.to(u.dtype), u.ndim) for c in (alpha2.sqrt(), alpha2))
        return scale * self.denoised(u, half_log_snr, rows) - pull * u

    def _condition(self, rows: Tensor | None) -> dict[str, Any]:
        if rows is None:
            return dict(self.condition)
        return {k: v[rows] if isinstance(v, Tensor) and v.ndim and len(v) == self.batch else v
                for k, v in self.condition.items()}  # fmt: skip
