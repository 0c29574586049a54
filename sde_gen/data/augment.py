"""Augmentation of training images: random flips and random windows, as functions of (seed, epoch, sample)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_gen import checks
from sde_gen.checks import checked
from sde_gen.errors import ConfigError

_HALF = 31  # bits of a word that choose a row, and as many a column


@dataclass(frozen=True)
class Augment:
    """What is done to an image each time that it is trained on; held-out images are not touched but for the window.

    Args:
        flip: left and right are exchanged with probability 1/2.
        crop: side of a square window, at least 1, whose place is drawn evenly among all; of held-out images it is the
            central one. None: the whole image.

    Raises:
        ConfigError: another value.
    """

    flip: bool = checked(False)
    crop: int | None = checked(None)

    def __post_init__(self) -> None:
        checks.fields(self, "data")

    @classmethod
    def of(cls, where: str, shape: tuple[int, ...], flip: bool, crop: int | None) -> "Augment | None":
        """The augmentation that a person asked for of samples of `shape`; None: of nothing.

        Raises:
            ConfigError: samples that are no images (C, H, W), or a window that is larger than they are.
        """
        found = cls(flip, crop)
        if found == cls():
            return None
        if len(shape) != 3:
            raise ConfigError(f"{where}: random_flip and random_crop are for images (C, H, W), not samples of {shape}")
        if crop is not None and crop > min(shape[1:]):
            raise ConfigError(
                f"{where}: random_crop must be at most the sides of the images, {shape[1]} x {shape[2]}, got {crop}; "
                "make them larger with image_size (data.image_size), or the window smaller"
            )
        return found

    def __call__(self, x: Tensor, words: Tensor) -> Tensor:
        """Images (B, C, H, W) as they are trained on.

        Args:
            x: the whole images, on any device.
            words: (B,) int64, uniform in [0, 2^63), one for each image: bit 0 says whether it is flipped, 31 bits give
                the row and 31 the column of the window.
        """
        flipped = (words & 1).bool()
        if self.crop is None:
            return torch.where(flipped[:, None, None, None], x.flip(-1), x) if self.flip else x
        side = torch.arange(self.crop, device=x.device)
        starts = ((words >> 1) & (2**_HALF - 1), words >> (_HALF + 1))
        places = (((start * (size - self.crop + 1)) >> _HALF)[:, None] + side
                  for start, size in zip(starts, x.shape[2:], strict=True))  # fmt: skip
        rows, columns = places
        if self.flip:
            columns = torch.where(flipped[:, None], columns.flip(1), columns)
        of, channels = (torch.arange(size, device=x.device) for size in x.shape[:2])
        return x[of[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None]]

    def central(self, x: Tensor) -> Tensor:
        """The central windows of images (N, C, H, W), of an odd rest the upper or left one."""
        if self.crop is None:
            return x
        top, left = ((size - self.crop) // 2 for size in x.shape[2:])
        return x[:, :, top : top + self.crop, left : left + self.crop]
