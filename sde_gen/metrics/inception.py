"""Features of networks that papers compare images by; their weights come from their own projects, when asked for."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import nn

from sde_gen.errors import DataError, MissingInputError
from sde_gen.metrics.features import NetworkFeatures

#: What the features of FID are called, here and in files of statistics.
INCEPTION = "inception-v3"


def inception(weights: str | None = None) -> NetworkFeatures:
    """The 2,048 numbers of the Inception network of FID, as torch-fidelity has it: that of Heusel et al. (2017),
    arXiv:1706.08500, with its resizing to 299 pixels; `pip install 'sde_gen[fid]'`.

    Args:
        weights: a file of its weights; None: torch-fidelity fetches it once (95 MB) and keeps it.

    Raises:
        MissingInputError: torch-fidelity is not installed, or the weights cannot be fetched.
        DataError: the file is not that of this network.
    """
    library = _library(
        lambda: import_module("torch_fidelity.feature_extractor_inceptionv3"), "torch-fidelity", "inception"
    )
    make = library.FeatureExtractorInceptionV3
    module = _made("inception", lambda: make("inception-v3-compat", ["2048"], feature_extractor_weights_path=weights))
    return NetworkFeatures(_First(module), INCEPTION, size=None, values="bytes")


def dinov2(
    model: str = "vit_large_patch14_dinov2.lvd142m", size: int = 224, pretrained: bool = True
) -> NetworkFeatures:
    """The class token of DINOv2, ViT-L/14 (1,024 numbers), as timm has it; `pip install 'sde_gen[fid]'`.

    Stein et al. (2023), arXiv:2306.04675, found the Fréchet distance of these closer to what people see than FID.
    Images are enlarged bilinearly to 224 pixels; theirs are by Pillow's bicubic filter, so numbers differ a little.

    Args:
        model: its name in timm.
        size: side in pixels, a multiple of 14.
        pretrained: False leaves random weights, for trying.

    Raises:
        MissingInputError: timm is not installed, or the weights cannot be fetched.
    """
    timm = _library(lambda: import_module("timm"), "timm", "dinov2")
    module = _made("dinov2", lambda: timm.create_model(model, pretrained=pretrained, num_classes=0, img_size=size,
                                                       global_pool="token"))  # fmt: skip
    return NetworkFeatures(module, model.partition(".")[0].replace("_", "-"), size=size, values="imagenet")


class _First(nn.Module):
    """The first of what a module returns."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.inner = module

    def forward(self, x: Any) -> Any:
        return self.inner(x)[0]


def _library(load: Callable[[], Any], package: str, features: str) -> Any:
    try:
        return load()
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch raises the latter
        raise MissingInputError(f"features={features} needs {package}, which cannot be imported ({error}); run pip "
                                "install 'sde_gen[fid]', or use features=efficientnet-lite0") from error  # fmt: skip


def _made(features: str, make: Any) -> Any:
    try:
        return make()
    except OSError as error:  # of no network, no such file, no room
        raise MissingInputError(f"the weights of features={features} cannot be had: {error}") from error
    except (RuntimeError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"the weights of features={features} cannot be used: {reason}") from error
