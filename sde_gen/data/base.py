"""The dataset object: tensors on the model's scale, and the transform that leads back to raw data."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sde_gen.data.order import split_indices
from sde_gen.data.transform import Affine
from sde_gen.errors import DataError

KINDS = ("image", "vector")


@dataclass(frozen=True, eq=False)
class Mixture:
    """The exact law of a Gaussian mixture, on the model's scale: sum_k weights_k N(means_k, covariances_k).

    Shapes: weights (K,), means (K, D), covariances (K, D, D); float64.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and held-out samples on the model's scale, with labels, and the way back to raw data.

    Args:
        name: short name, such as "digits".
        kind: "image" for samples of shape (C, H, W) in [-1, 1]; "vector" for samples of shape (D,), standardised.
        train: (N, *shape) float32, finite, N >= 1.
        test: (M, *shape) float32, finite, held out from training; M >= 1.
        transform: raw data to the model's scale and back.
        train_labels: (N,) int64 in 0..num_classes-1, or None.
        test_labels: (M,) int64, or None; both or none.
        num_classes: number of classes; 0: no labels.
        law: the exact law on the model's scale where it is known, else None.

    Raises:
        DataError: anything of the above that does not hold; a NaN is named with its sample.
    """

    name: str
    kind: str
    train: Tensor
    test: Tensor
    transform: Affine
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    num_classes: int = 0
    law: Mixture | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"{self.name}: kind must be one of {KINDS}, got {self.kind!r}")
        for part in ("train", "test"):
            self._check(part, getattr(self, part))
        if self.train.shape[1:] != self.test.shape[1:]:
            raise DataError(
                f"{self.name}: training and held-out samples must have one shape, "
                f"got {tuple(self.train.shape[1:])} and {tuple(self.test.shape[1:])}"
            )
        if (self.train_labels is None) != (self.test_labels is None) or (self.train_labels is None) != (
            self.num_classes == 0
        ):
            raise DataError(f"{self.name}: train_labels, test_labels and num_classes >= 1 go together, or none of them")
        for part in ("train", "test"):
            self._check_labels(part, getattr(self, part), getattr(self, f"{part}_labels"))

    def _check(self, part: str, samples: Tensor) -> None:
        dimensions = 4 if self.kind == "image" else 2
        if samples.dtype != torch.float32 or samples.dim() != dimensions or 0 in samples.shape:
            form = "(N, C, H, W)" if self.kind == "image" else "(N, D)"
            raise DataError(
                f"{self.name}: {part} must be a non-empty float32 tensor of shape {form}, "
                f"got {samples.dtype} {tuple(samples.shape)}"
            )
        finite = torch.isfinite(samples).flatten(1).all(1)
        if not bool(finite.all()):
            raise DataError(
                f"{self.name}: {part} sample {int(finite.logical_not().nonzero()[0])} is NaN or infinite; "
                "remove it or repair the data"
            )

    def _check_labels(self, part: str, samples: Tensor, labels: Tensor | None) -> None:
        if labels is None:
            return
        if labels.dtype != torch.int64 or labels.shape != samples.shape[:1]:
            raise DataError(
                f"{self.name}: {part}_labels must be int64 of shape ({samples.shape[0]},), "
                f"got {labels.dtype} {tuple(labels.shape)}"
            )
        if int(labels.min()) < 0 or int(labels.max()) >= self.num_classes:
            raise DataError(
                f"{self.name}: {part}_labels must lie in 0..{self.num_classes - 1}, "
                f"got values in {int(labels.min())}..{int(labels.max())}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) or (D,)."""
        return tuple(self.train.shape[1:])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the samples, the labels and the transform: equal for equal content."""
        digest = hashlib.sha256()
        head = {"kind": self.kind, "num_classes": self.num_classes, "transform": self.transform.to_dict()}
        digest.update(json.dumps(head, sort_keys=True).encode())
        for tensor in (self.train, self.test, self.train_labels, self.test_labels):
            if tensor is None:
                digest.update(b"none")
                continue
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            values = tensor.detach().cpu().contiguous().numpy()
            digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
        return digest.hexdigest()

    def to_dict(self) -> dict[str, object]:
        """What is stored with a model, as plain JSON values: all but the samples, the labels and the law."""
        return {
            "name": self.name,
            "kind": self.kind,
            "shape": list(self.shape),
            "num_classes": self.num_classes,
            "transform": self.transform.to_dict(),
            "fingerprint": self.fingerprint,
        }


def from_raw(
    name: str,
    kind: str,
    raw: Tensor,
    labels: Tensor | None,
    transform: Affine | None,
    held_out: int | float,
    seed: int,
    num_classes: int = 0,
    test_from: int | None = None,
) -> Dataset:
    """A Dataset from raw samples (N, *shape): split, then scaled; no transform: standardised by the training part.

    The samples from `test_from` on are held out; None: `held_out` and `seed` pick them.
    """
    if test_from is not None:
        everything = torch.arange(raw.shape[0])
        train, test = everything[:test_from], everything[test_from:]
    elif raw.shape[0] < 2:
        raise DataError(f"{name}: needs at least 2 samples, one of them held out, got {raw.shape[0]}")
    else:
        train, test = split_indices(raw.shape[0], held_out, seed)
    if transform is None:
        transform = standardising(raw[train])
    return Dataset(
        name,
        kind,
        transform.forward(raw[train]).to(torch.float32).contiguous(),
        transform.forward(raw[test]).to(torch.float32).contiguous(),
        transform,
        None if labels is None else labels[train],
        None if labels is None else labels[test],
        num_classes,
    )


def standardising(raw: Tensor) -> Affine:
    """The transform of (N, D) vectors to mean 0 and standard deviation 1 in each feature.

    A feature that is constant (up to float32 rounding) is only shifted to 0: its scale is 1.
    """
    values = raw.detach().to(torch.float64).numpy()
    mean, std = values.mean(0), values.std(0)
    constant = std <= 1e-7 * np.abs(mean) + np.finfo(np.float32).tiny
    scale = np.where(constant, 1.0, std)
    return Affine(tuple(map(float, mean)), tuple(map(float, scale)))


def class_labels(name: str, values: np.ndarray) -> tuple[Tensor, int]:
    """Labels 0..K-1 and K from any (N,) array of whole numbers or strings: the sorted distinct values are the classes.

    Whole numbers that already are 0..K-1 keep their value, also where some class is missing from the data.
    """
    if values.ndim != 1 or values.dtype.kind not in "iubUS":
        raise DataError(
            f"{name}: labels must be a one-dimensional list of whole numbers or strings, "
            f"got {values.dtype} of shape {values.shape}"
        )
    if values.dtype.kind in "iub" and values.size and values.min() >= 0 and values.max() < max(2 * values.size, 2):
        labels = values.astype(np.int64)
        return torch.from_numpy(labels), int(labels.max()) + 1
    classes, labels = np.unique(values, return_inverse=True)
    return torch.from_numpy(labels.astype(np.int64)), len(classes)
