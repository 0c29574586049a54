"""Where training batches are read from when they are not just rows of one tensor."""

import hashlib
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from sde_gen.data.transform import Affine


class Source(ABC):
    """Training samples that are read where a batch needs them; `read` may be called from several threads at once.

    Attributes:
        shape: of one sample as it is read, before a window is cut out of it.
        labels: (N,) int64 as those of a `Dataset`, or None.
        digest: SHA-256, in hexadecimal, of the content.
    """

    shape: tuple[int, ...]
    labels: Tensor | None
    digest: str

    @abstractmethod
    def __len__(self) -> int:
        """Number of training samples N."""

    @abstractmethod
    def read(self, rows: Tensor) -> Tensor:
        """Samples `rows`, (B,) int64, as (B, *shape) float32 on the model's scale, in main memory.

        Raises:
            DataError: one cannot be read any more.
        """


class Held(Source):
    """Samples that are held in memory as they were stored, such as images larger than the windows cut out of them.

    Args:
        raw: (N, *shape), of any type.
        transform: to the model's scale.
        labels: see `Source`.
    """

    def __init__(self, raw: Tensor, transform: Affine, labels: Tensor | None) -> None:
        self._raw, self._transform, self.labels = raw, transform, labels
        self.shape = tuple(raw.shape[1:])
        self.digest = hashlib.sha256(np.ascontiguousarray(raw.numpy()).data.cast("B")).hexdigest()

    def __len__(self) -> int:
        return len(self._raw)

    def read(self, rows: Tensor) -> Tensor:
        """See `Source.read`."""
        return self._transform.forward(self._raw[rows]).to(torch.float32)
