"""A network whose forward wants its arguments by other names, or in another order."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from sde_gen import checks
from sde_gen.errors import ConfigError


class Called(nn.Module):
    """A module of research code as the library calls networks: network(x, c_noise, label=None) -> F.

    Args:
        network: the module; from a configuration, of a class in a module that is trusted.
        label: its name for labels, such as y (guided-diffusion, DiT, SiT) or class_labels (edm).
        one_hot: number of classes where it takes labels as rows of zeros and a one; 0: as numbers.
        null_label: the label of no class, told where none is given.
        learned_variance: whether it says twice its input in dimension 1, the second half being a variance.
        dropped: whether it says twice its input, and the second half is of no use.
        time_first: whether it is called network(t, x), as torchcfm does.
        whole: whether its times are whole numbers of type int64.

    Raises:
        ConfigError: what is no module.
    """

    def __init__(
        self,
        network: nn.Module,
        label: str = "y",
        one_hot: int = 0,
        null_label: int | None = None,
        learned_variance: bool = False,
        dropped: bool = False,
        time_first: bool = False,
        whole: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise ConfigError(f"Called: network must be a module, got {type(network).__name__}")
        self.network, self.label, self.null_label = network, label, null_label
        self.one_hot = checks.integer("Called", "one_hot", one_hot, low=0)
        self.learned_variance, self.dropped, self.time_first, self.whole = learned_variance, dropped, time_first, whole

    @property
    def noise_dtype(self) -> torch.dtype:
        """Of the number for the time: an index of hundreds is not rounded where the network is in half precision."""
        first = next((p.dtype for p in self.network.parameters() if p.is_floating_point()), torch.float32)
        return first if first == torch.float64 else torch.float32

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        told: dict[str, Any] = {}
        if label is None and self.null_label is not None:
            label = torch.full((len(x),), self.null_label, dtype=torch.int64, device=x.device)
        if label is not None:
            told[self.label] = one_hot(label, self.one_hot).to(x.dtype) if self.one_hot else label
        noise = noise.round().long() if self.whole else noise
        said = self.network(noise, x, **told) if self.time_first else self.network(x, noise, **told)
        return said[:, : x.shape[1]] if self.dropped else said
