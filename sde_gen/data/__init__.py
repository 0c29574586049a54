"""Data sets as tensors on the model's scale, each with the transform that leads back to raw data."""

from sde_gen.data.arrays import array_file
from sde_gen.data.augment import Augment
from sde_gen.data.cifar import cifar10
from sde_gen.data.dataset import Dataset, Description, Mixture
from sde_gen.data.digits import digits
from sde_gen.data.hugging_face import hub
from sde_gen.data.idx import fashion_mnist
from sde_gen.data.images import image_folder
from sde_gen.data.labels import label_of
from sde_gen.data.order import batch_indices, batch_words, split_indices
from sde_gen.data.source import Source
from sde_gen.data.tables import csv_file
from sde_gen.data.toy import checkerboard, mixture, rings, swiss_roll, two_moons
from sde_gen.data.transform import Affine

__all__ = [
    "Affine",
    "Augment",
    "Dataset",
    "Description",
    "Mixture",
    "Source",
    "array_file",
    "batch_indices",
    "batch_words",
    "checkerboard",
    "cifar10",
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
