"""scikit-learn's handwritten digits, which come with the library."""

import torch

from sde_gen.data.dataset import Dataset
from sde_gen.data.making import from_raw
from sde_gen.data.transform import Affine


def digits(
    *,
    image_size: int | None = None,
    random_flip: bool = False,
    random_crop: int | None = None,
    held_out: int | float = 360,
    seed: int = 0,
) -> Dataset:
    """1,797 scans of handwritten digits (scikit-learn `load_digits`): images (1, 8, 8), raw values 0..16, ten classes.

    Args:
        image_size: another size, by Lanczos' filter; None: 8.
        random_flip: see `image_folder`.
        random_crop: see `image_folder`.
        held_out: how many samples to hold out (360 leave 1,437 for training), or a fraction in (0, 1).
        seed: picks the held-out samples.

    Raises:
        ConfigError: an argument outside its range.
    """
    from sklearn.datasets import load_digits  # imported here: it takes a second, and only this data set needs it

    pixels, target = load_digits(return_X_y=True)
    raw = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8)
    labels = torch.tensor(target, dtype=torch.int64)
    images = {"image_size": image_size, "random_flip": random_flip, "random_crop": random_crop}
    return from_raw("digits", "image", raw, labels, Affine.to_unit(0, 16, 17), held_out, seed, "0123456789", **images)
