"""Images of another size: Lanczos, antialiased."""

import numpy as np
import torch
from torch import Tensor

from sde_gen.checks import integer
from sde_gen.data.transform import Affine
from sde_gen.errors import ConfigError

LARGEST = 2**14


def resized(where: str, raw: Tensor, image_size: int, transform: Affine | None) -> Tensor:
    """Raw images (N, C, H, W), the shorter side scaled to `image_size` and the central square cut out.

    The filter is Lanczos' of three lobes, stretched where images shrink so that nothing aliases; what it lets pass the
    range of the data is clipped, and levels are rounded to the nearest, so that bytes stay bytes.

    Raises:
        ConfigError: a size outside 1..16384; samples that are no images.
    """
    from PIL import Image, ImageOps

    size = integer(where, "image_size", image_size, high=LARGEST)
    if raw.ndim != 4:
        raise ConfigError(f"{where}: image_size is for images, not for samples of shape {tuple(raw.shape[1:])}")
    if raw.shape[2:] == (size, size):
        return raw
    out = torch.empty(*raw.shape[:2], size, size, dtype=raw.dtype if raw.dtype == torch.uint8 else torch.float32)
    for image, place in zip(raw.flatten(0, 1), out.flatten(0, 1), strict=True):
        plane = Image.fromarray(image.numpy().astype(np.uint8 if raw.dtype == torch.uint8 else np.float32))
        fitted = ImageOps.fit(plane, (size, size), method=Image.Resampling.LANCZOS)
        place.copy_(torch.from_numpy(np.array(fitted)))
    return out if transform is None or raw.dtype == torch.uint8 else transform.quantise(transform.forward(out))
