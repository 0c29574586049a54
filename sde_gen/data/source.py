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
        workers: threads that read batches before they are asked for; 0: they are read when they are.
    """

    shape: tuple[int, ...]
    labels: Tensor | None
    digest: str
    workers: int = 0

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples N."""

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
        """See `Source`."""
        return len(self._raw)

    def read(self, rows: Tensor) -> Tensor:
        """See `Source.read`."""
        return self._transform.forward(self._raw[rows]).to(torch.float32)


class Part(Source):
    """Some samples of another source, in their order.

    Args:
        whole: the source.
        indices: (N,) int64, which of its samples these are.
    """

    def __init__(self, whole: Source, indices: Tensor) -> None:
        self._whole, self._indices = whole, indices
        self.shape, self.workers = whole.shape, whole.workers
        self.labels = None if whole.labels is None else whole.labels[indices]
        self.digest = hashlib.sha256(whole.digest.encode() + indices.numpy().astype("<i8").tobytes()).hexdigest()

    def __len__(self) -> int:
        """See `Source`."""
        return len(self._indices)

    def read(self, rows: Tensor) -> Tensor:
        """See `Source.read`."""
        return self._whole.read(self._indices[rows])
