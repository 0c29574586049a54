"""The dataset object: tensors on the model's scale, and the transform that leads back to raw data."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sde_gen.checks import choice, integer, integers
from sde_gen.data.augment import Augment
from sde_gen.data.columns import Column
from sde_gen.data.labels import label_of
from sde_gen.data.source import Source
from sde_gen.data.transform import Affine
from sde_gen.errors import DataError

#: What samples of each kind look like.
KINDS = {"image": ("C", "H", "W"), "vector": ("D",), "series": ("C", "L"), "volume": ("C", "D", "H", "W")}
_MOST_CLASSES = 2**20  # a description that claims more is a damaged one


@dataclass(frozen=True, eq=False)
class Mixture:
    """The exact law of a Gaussian mixture, on the model's scale: sum_k weights_k N(means_k, covariances_k).

    Shapes: weights (K,), means (K, D), covariances (K, D, D); float64.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor


@dataclass(frozen=True)
class Description:
    """What is known of a data set without its samples; checkpoints keep it.

    Args:
        name: short name.
        kind: "image", "vector", "series" or "volume".
        shape: shape of one sample.
        transform: raw data to the model's scale and back.
        classes: names of the classes; the place of a name is its label.
        counts: training samples of each class, () where that is not known.
        unlabelled: training samples without a label; None where that is not known.
        columns: of a table, the columns that its features belong to.
        fingerprint: `Dataset.fingerprint`, "" where that is not known.
        codec: digest of what the samples are latents of, "" where they are none.
        pixels: what latents decode into.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    transform: Affine
    classes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    fingerprint: str = ""
    unlabelled: int | None = None
    columns: tuple[Column, ...] = ()
    codec: str = ""
    pixels: "Description | None" = None

    @property
    def num_classes(self) -> int:
        """Number of classes; 0: no labels."""
        return len(self.classes)

    def label_of(self, word: object, where: str = "label") -> int:
        """The label of the class that a person calls `word` ("Trouser", "3", 3): `sde_gen.data.label_of`."""
        return label_of(self.classes, word, self.counts, where)

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values; `from_dict` gives back an equal description."""
        return {
            **{name: getattr(self, name) for name in ("name", "kind", "num_classes", "fingerprint", "unlabelled")},
            **{name: list(getattr(self, name)) for name in ("shape", "classes", "counts")},
            "columns": [column.to_dict() for column in self.columns],
            "transform": self.transform.to_dict(),
            **({} if self.pixels is None else {"codec": self.codec, "pixels": self.pixels.to_dict()}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "Description":
        """The description that `to_dict` wrote; where it is without class names they are "0", "1", ...

        Raises:
            DataError: an entry that is missing or not what it should be.
        """
        try:
            given: dict[str, Any] = dict(values)
            shape = integers("data", "shape", given["shape"])
            count = integer("data", "num_classes", given["num_classes"], low=0, high=_MOST_CLASSES)
            classes = tuple(given.get("classes") or map(str, range(count)))
            counts = integers("data", "counts", given.get("counts") or (), low=0)
            unlabelled = given.get("unlabelled")
            unlabelled = None if unlabelled is None else integer("data", "unlabelled", unlabelled, low=0)
            texts = [given["name"], choice("data", "kind", given["kind"], tuple(KINDS)), given.get("fingerprint", "")]
            if not all(isinstance(text, str) for text in (*texts, *classes)):
                raise ValueError("a name is not text")
            if len(shape) != len(KINDS[texts[1]]) or len(set(classes)) != count or len(counts) not in (0, count):
                raise ValueError(f"shape {shape}, {count} classes, {len(set(classes))} names, {len(counts)} counts")
            columns = tuple(Column.from_dict(column) for column in given.get("columns") or ())
            if columns and (sum(column.width for column in columns),) != shape:
                raise ValueError(f"shape {shape}, but columns of {sum(column.width for column in columns)} features")
            transform = Affine.from_dict(given["transform"])
            pixels = None if given.get("pixels") is None else cls.from_dict(given["pixels"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"the description of the data cannot be used ({type(error).__name__}: {error})") from None
        known = (texts[0], texts[1], shape, transform, classes, counts, texts[2], unlabelled, columns)
        return cls(*known, str(given.get("codec", "")), pixels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and held-out samples on the model's scale, with labels, and the way back to raw data.

    Args:
        name: short name, such as "digits".
        kind: "image" for samples of shape (C, H, W) in [-1, 1]; "vector" for samples of shape (D,), "series" for
            (C, L), "volume" for (C, D, H, W), all standardised.
        train: (N, *shape) float32, finite, N >= 1.
        test: (M, *shape) float32, finite, held out from training; M >= 1.
        transform: raw data to the model's scale and back.
        train_labels: (N,) int64 in 0..num_classes-1, or None; -1 for a sample without a label, which becomes
            num_classes, as networks have it.
        test_labels: (M,) int64, or None; both or none.
        num_classes: number of classes; 0: no labels.
        law: the exact law on the model's scale where it is known, else None.
        classes: names of the classes as they stand in the data, label k is the k-th; without them "0", "1", ...
        columns: of a table, the columns that its features belong to.
        augment: what is done to training images each time.
        source: where training batches are read from instead of `train`, which is then what of them is held in memory
            for whoever compares: central windows, or the first of samples that are streamed.
        codec: of latents, what encodes and decodes them: `sde_gen.codecs.Codec`.
        pixels: of latents, the data that they were made of, sample by sample.
        train_told: what a network is told of training samples besides labels, by the names of its arguments:
            {"vector": (N, size)} or {"tokens": (N, T, size)}, float32; zeros are nothing.
        test_told: the same of the held-out samples.

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
    classes: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    augment: Augment | None = None
    source: Source | None = None
    codec: Any = None
    pixels: "Dataset | None" = None
    train_told: Mapping[str, Tensor] = field(default_factory=dict)
    test_told: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"{self.name}: kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        classes = tuple(map(str, self.classes or range(self.num_classes)))
        object.__setattr__(self, "classes", classes)
        object.__setattr__(self, "num_classes", self.num_classes or len(classes))
        if len(set(classes)) != self.num_classes:
            raise DataError(f"{self.name}: {self.num_classes} classes need as many different names, got {classes}")
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
        if self.train_told.keys() != self.test_told.keys() or (self.train_told and self.source is not None):
            raise DataError(
                f"{self.name}: train_told and test_told must name the same, {sorted(self.train_told)} and "
                f"{sorted(self.test_told)}, and go with samples that are held in memory"
            )
        for name, told in self.train_told.items():
            self._check_told(name, told, self.test_told[name])

    def _check_told(self, name: str, train: Tensor, test: Tensor) -> None:
        for part, told, samples in (("train", train, self.train), ("test", test, self.test)):
            if told.dtype != torch.float32 or told.dim() < 2 or told.shape != (len(samples), *train.shape[1:]):
                raise DataError(
                    f"{self.name}: {part}_told[{name!r}] must be float32 of shape ({len(samples)}, ...), as long for "
                    f"each sample, got {told.dtype} {tuple(told.shape)}"
                )
            if not bool(told.isfinite().all()):
                raise DataError(f"{self.name}: {part}_told[{name!r}] has values that are NaN or infinite")

    def _check(self, part: str, samples: Tensor) -> None:
        form = ("N", *KINDS[self.kind])
        if samples.dtype != torch.float32 or samples.dim() != len(form) or 0 in samples.shape:
            raise DataError(
                f"{self.name}: {part} must be a non-empty float32 tensor of shape ({', '.join(form)}), "
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
        if int(labels.min()) < -1 or int(labels.max()) > self.num_classes:
            raise DataError(
                f"{self.name}: {part}_labels must lie in 0..{self.num_classes - 1}, or be -1 for no label, "
                f"got values in {int(labels.min())}..{int(labels.max())}"
            )
        object.__setattr__(self, f"{part}_labels", torch.where(labels < 0, self.num_classes, labels))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) or (D,)."""
        return tuple(self.train.shape[1:])

    @property
    def size(self) -> int:
        """Number of training samples."""
        return len(self.train if self.source is None else self.source)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the samples, the labels and the transform: equal for equal content.

        Of latents it is that of what they were made of, and of the codec: they are rounded as a machine does it.
        """
        digest = hashlib.sha256()
        head: dict[str, Any] = {"kind": self.kind, "num_classes": self.num_classes}
        if self.pixels is not None:
            head["latents of"] = [self.pixels.fingerprint, self.codec.digest, self.transform == self.codec.transform]
            return hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()
        head["transform"] = self.transform.to_dict()
        if self.augment is not None:
            head["augment"] = asdict(self.augment)
        if self.source is not None:
            head["source"] = self.source.digest
        digest.update(json.dumps(head, sort_keys=True).encode())
        for tensor in (self.train, self.test, self.train_labels, self.test_labels):
            if tensor is None:
                digest.update(b"none")
                continue
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            values = tensor.detach().cpu().contiguous().numpy()
            digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
        for part in (self.train_told, self.test_told):
            for name, told in sorted(part.items()):
                digest.update(f"{name}{tuple(told.shape)}".encode())
                digest.update(told.detach().cpu().contiguous().numpy().astype("<f4", copy=False).tobytes())
        return digest.hexdigest()

    @cached_property
    def description(self) -> Description:
        """All but the samples, the labels and the law."""
        counts = tuple(self.class_counts().values())
        loose = self.size - sum(counts) if counts else None
        head = (self.name, self.kind, self.shape, self.transform, self.classes)
        pixels = None if self.pixels is None else self.pixels.description
        codec = "" if self.codec is None else self.codec.digest
        return Description(*head, counts, self.fingerprint, loose, self.columns, codec, pixels)

    def class_counts(self) -> dict[str, int]:
        """Training samples of each class; those without a label are what is missing to the number of samples."""
        labels = self.train_labels if self.source is None else self.source.labels
        if labels is None:
            return {}
        counts = torch.bincount(labels.cpu(), minlength=self.num_classes).tolist()
        return dict(zip(self.classes, counts, strict=False))

    def label_of(self, word: object, where: str = "label") -> int:
        """The label of the class that a person calls `word` ("Trouser", "3", 3): `sde_gen.data.label_of`."""
        return self.description.label_of(word, where)

    def to_dict(self) -> dict[str, object]:
        """What is stored with a model, as plain JSON values: `Description.from_dict` reads it."""
        return self.description.to_dict()
