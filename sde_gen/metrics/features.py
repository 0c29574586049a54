"""What a feature-based metric looks at: the points themselves, or what a network makes of images."""

import abc
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sde_gen import checks
from sde_gen.checks import checked
from sde_gen.errors import ConfigError, DataError
from sde_gen.metrics.jackknife import points

_BATCH = 128
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which pretrained networks expect


class Features(abc.ABC):
    """Features of points; `name` is part of the name of every metric that uses them."""

    name: str

    @abc.abstractmethod
    def __call__(self, x: Any) -> Tensor:
        """Features (n, d) in float64 of points (n, ...), images being (n, C, H, W) in [-1, 1]."""


@dataclass(frozen=True)
class Pixels(Features):
    """The points themselves, flattened: pixels of images, coordinates of vectors."""

    name = "pixels"

    def __call__(self, x: Any) -> Tensor:
        """`x` flattened."""
        return points(x)


@dataclass(frozen=True, eq=False)
class NetworkFeatures(Features):
    """What a network says of images.

    Args:
        module: `module(images) -> Tensor (n, ...)`, or a list or tuple that begins with it; averaged over any axes
            beyond the second. It is run in evaluation mode (and left in its own), in batches, on the device of its
            parameters.
        name: of the features, such as "resnet18"; it becomes part of the names of the distances.
        size: side in pixels to which images are enlarged (bilinear, antialiased); None leaves them.
        values: what the network is given: "unit" in [0, 1], "signed" in [-1, 1], "bytes" uint8 in 0..255, or
            "imagenet", [0, 1] standardised by ImageNet's mean and deviation.
        channels: 3 repeats grey images; None leaves them.

    Raises:
        ConfigError: a module that cannot be called, size < 1, other values or channels.
        DataError: when called, for points that are not images.
    """

    module: Any
    name: str
    size: int | None = checked(None, low=1)
    values: Literal["unit", "signed", "bytes", "imagenet"] = checked(
        "unit", choices=("unit", "signed", "bytes", "imagenet")
    )
    channels: Literal[3] | None = 3

    def __post_init__(self) -> None:
        if not callable(self.module):
            raise ConfigError(f"features: module must be a network, got {type(self.module).__name__}")
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"features: name must be a word that tells which features these are, got {self.name!r}")
        checks.fields(self, "features")
        if self.channels not in (3, None):
            raise ConfigError(f"features: channels={self.channels!r} must be 3 or null")

    @torch.no_grad()
    def __call__(self, x: Any) -> Tensor:
        """Features of images (n, C, H, W) in [-1, 1]; values outside are cut off."""
        images = torch.as_tensor(x).detach()
        if images.ndim != 4 or not images.is_floating_point():
            raise DataError(
                f"the features {self.name} are of images (n, C, H, W), got points of shape {tuple(images.shape)}; "
                "use features=pixels"
            )
        points(images)  # refuses NaN, and a set without points
        device, modes = torch.device("cpu"), dict[nn.Module, bool]()
        if isinstance(self.module, nn.Module):
            modes = {m: m.training for m in self.module.modules()}
            device = next((p.device for p in self.module.parameters()), device)
            self.module.eval()
        try:
            found = torch.cat([self._of(part.to(device)) for part in images.split(_BATCH)])
        finally:
            for module, mode in modes.items():
                module.training = mode
        return points(found, f"features {self.name}")

    def _of(self, images: Tensor) -> Tensor:
        images = images.float().clamp(-1, 1)
        if self.channels == 3 and images.shape[1] != 3:
            images = images[:, :1].expand(-1, 3, -1, -1)
        if self.size is not None:
            images = nn.functional.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        unit = (images.clamp(-1, 1) + 1) / 2
        if self.values == "imagenet":
            mean, std = (torch.tensor(v, device=unit.device).reshape(1, 3, 1, 1) for v in (_MEAN, _STD))
            given = (unit - mean) / std
        else:
            given = {"unit": unit, "signed": 2 * unit - 1, "bytes": (255 * unit).round().to(torch.uint8)}[self.values]
        found = self.module(given)
        found = found[0] if isinstance(found, list | tuple) else found
        found = found.flatten(2).mean(2) if found.ndim > 2 else found
        if found.ndim != 2 or len(found) != len(images):
            raise ConfigError(
                f"features {self.name}: the network must return (n, d) for n images, got {tuple(found.shape)}"
            )
        return found.double().cpu()
