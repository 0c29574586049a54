"""Data sets as tensors on the model's scale, each with the transform that leads back to raw data."""

from sde_gen.data.arrays import array_file
from sde_gen.data.dataset import Dataset, Description, Mixture
from sde_gen.data.digits import digits
from sde_gen.data.hugging_face import hub
from sde_gen.data.idx import fashion_mnist
from sde_gen.data.images import image_folder
from sde_gen.data.labels import label_of
from sde_gen.data.order import batch_indices, split_indices
from sde_gen.data.tables import csv_file
from sde_gen.data.toy import checkerboard, mixture, rings, swiss_roll, two_moons
from sde_gen.data.transform import Affine

__all__ = [
    "Affine",
    "Dataset",
    "Description",
    "Mixture",
    "array_file",
    "batch_indices",
    "checkerboard",
    "csv_file",
    "digits",
    "fashion_mnist",
    "hub",
    "image_folder",
    "label_of",
    "mixture",
    "rings",
    "split_indices",
    "swiss_roll",
    "two_moons",
]
