r"""How well each noise level is learned: the loss by half log-SNR, and weights that are learned from it.

With times drawn at random a mean over a batch hides which levels it is made of. Losses are sorted into equal parts of
the range of lambda = log(alpha/sigma), after the fact: the times of a step are known to the host anyway, the losses
when a row of metrics is due, so that the step itself does nothing more.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sde_gen.distributed import Processes
from sde_gen.perturbations import Perturbation

PARTS = 16


class LossByLevel:
    """Sums of the losses of some steps in parts of the range of lambda.

    Args:
        perturbation: whose range from t_max to t_min is divided.

    Attributes:
        names: of the parts, their middles with three digits, from noise to data.
        sums, counts: of the losses since the last row, (PARTS,), float64.
    """

    def __init__(self, perturbation: Perturbation) -> None:
        self._perturbation = perturbation
        low, high = (float(perturbation.half_log_snr(t)) for t in (perturbation.t_max, perturbation.t_min))
        self._edges = torch.linspace(low, high, PARTS + 1, dtype=torch.float64)
        self._middles = (self._edges[1:] + self._edges[:-1]) / 2
        self.names = tuple(f"{middle:.2f}" for middle in self._middles.tolist())
        self.sums, self.counts = torch.zeros(2, PARTS, dtype=torch.float64)

    def sorted(self, losses: Tensor, times: Tensor) -> Tensor:
        """Sums and numbers of losses (steps, samples) in each part, (steps, 2, PARTS), float64."""
        place = torch.bucketize(self._perturbation.half_log_snr(times), self._edges[1:-1])
        sums = torch.zeros(len(losses), 2, PARTS, dtype=torch.float64)
        sums[:, 0].scatter_add_(1, place, losses.double())
        sums[:, 1].scatter_add_(1, place, torch.ones_like(losses, dtype=torch.float64))
        return sums

    def add(self, sums: Tensor) -> None:
        """Count one step more, (2, PARTS); in the order of the steps, so that a stopped run has the same sums."""
        self.sums += sums[0]
        self.counts += sums[1]

    def row(self) -> dict[str, float]:
        """Mean loss of each part that was met since the last row, and begin anew."""
        met = zip(self.names, self.sums.tolist(), self.counts.tolist(), strict=True)
        found = {name: total / count for name, total, count in met if count}
        self.restore(())
        return found

    @torch.no_grad()
    def learned(self, weighting: "LearnedWeighting") -> dict[str, float]:
        """u of a weighting that is learned, in the middle of each part."""
        u = weighting.log_scale(self._middles.to(weighting.amplitudes.device))
        return dict(zip(self.names, u.tolist(), strict=True))

    def state(self) -> tuple[float, ...]:
        """Sums and counts as plain data."""
        return (*self.sums.tolist(), *self.counts.tolist()) if bool(self.counts.any()) else ()

    def restore(self, state: tuple[float, ...]) -> None:
        """Go on from what `state` gave."""
        both = torch.tensor(state or [0.0] * 2 * PARTS, dtype=torch.float64).view(2, PARTS)
        self.sums, self.counts = both[0].clone(), both[1].clone()


class LearnedWeighting(nn.Module):
    r"""The loss at each noise level over a learned :math:`e^{u(\lambda)}`, plus u.

    .. math:: \ell'(\lambda) = \ell(\lambda)\, e^{-u(\lambda)} + u(\lambda)

    is least where :math:`e^u` is the mean loss of that level, so that all levels pull alike, whatever the weighting
    of the objective (Kendall et al. 2018, arXiv:1705.07115; Karras et al. 2024, arXiv:2312.02696, equation 20). Here
    :math:`u(\lambda) = n^{-1/2} \sum_i a_i \sqrt2 \cos(2\pi(f_i\lambda/4 + \phi_i))`, with fixed frequencies at the
    quantiles of a standard normal, fixed phases, and a, zero to begin with, trained with the network.

    Args:
        features: n.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, features: int = 128) -> None:
        super().__init__()
        i = torch.arange(features, dtype=torch.float64)
        self.register_buffer("frequencies", torch.special.ndtri((i + 0.5) / features), persistent=False)
        self.register_buffer("phases", (i * (math.sqrt(5) - 1) / 2) % 1, persistent=False)
        self.amplitudes = nn.Parameter(torch.zeros(features))

    def log_scale(self, half_log_snr: Tensor) -> Tensor:
        """u, shaped like `half_log_snr`."""
        x = half_log_snr.double()[..., None] / 4
        angle = 2 * math.pi * (self.frequencies * x + self.phases)
        waves = angle.cos().to(self.amplitudes.dtype) * math.sqrt(2 / len(self.amplitudes))
        return waves @ self.amplitudes

    def forward(self, losses: Tensor, half_log_snr: Tensor) -> Tensor:
        """Losses (B,) at levels (B,) as they are trained on."""
        u = self.log_scale(half_log_snr).to(losses.dtype)
        return losses * torch.exp(-u) + u


def learned_weighting(optimizer: torch.optim.Optimizer, device: torch.device, processes: Processes) -> LearnedWeighting:
    """A weighting whose parameters the optimiser of the network moves as well, without decay; one of all processes."""
    weighting = LearnedWeighting().to(device)
    if processes.world > 1:  # of each part of a batch: what the parts add up to is then the mean as well
        weighting.amplitudes.register_hook(lambda grad: processes.sum(grad) / processes.world)
    optimizer.add_param_group({"params": list(weighting.parameters()), "weight_decay": 0.0, "matrices": False})
    return weighting


def of_levels(row: Mapping[str, float]) -> tuple[list[float], list[float]]:
    """Lambdas and losses of a row of `levels.csv`, from noise to data."""
    pairs = sorted((float(name), value) for name, value in row.items() if name != "step")
    return [level for level, _ in pairs], [loss for _, loss in pairs]
