"""The Fréchet distance of samples from stored statistics, and which numbers may be called FID."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sde_gen.data import Dataset
from sde_gen.errors import ConfigError, DataError
from sde_gen.metrics import Features, Statistics
from sde_gen.metrics.inception import INCEPTION

#: Samples that a protocol draws.
PROTOCOLS = {"fid-50k": 50_000}


@dataclass(frozen=True)
class Reference:
    """What samples are compared with, moment by moment.

    Args:
        path: a file of statistics; None: the training data.
        protocol: one of `PROTOCOLS`, or None.
    """

    path: str | None = None
    protocol: str | None = None

    def statistics(self, data: Dataset, features: Features) -> Statistics:
        """Those of the file, or of the training data.

        Raises:
            MissingInputError, DataError: no such file, another one, or training data that are streamed.
        """
        found = training_statistics(data, features) if self.path is None else Statistics.read(self.path, features.name)
        if self.protocol and self.path and found.mean.numel() != 2048:
            raise DataError(f"protocol={self.protocol} needs statistics of 2,048 features of Inception, not of "
                            f"{found.mean.numel()} as in {self.path}")  # fmt: skip
        return found

    def compared(self, samples: Tensor, data: Dataset, features: Features) -> dict[str, Any]:
        """The distance under its name, as plain data: that of a protocol, else FD and the features."""
        reference, mine = self.statistics(data, features), Statistics.of(features(samples), features.name)
        title = f"FD-{features.name}"
        if self.protocol is not None and features.name == INCEPTION and mine.count == PROTOCOLS[self.protocol]:
            title = self.protocol.upper().replace("K", "k")
        return {
            "name": "fid_50k" if title == "FID-50k" else "frechet_distance_reference",
            "title": f"{title} from {'the training data' if self.path is None else Path(self.path).name}",
            "value": mine.distance(reference),
            "n": mine.count,
            "features": features.name,
            "reference": self.path or "training data",
            "reference_features": reference.features or "not said",
            "reference_count": reference.count or None,
        }


def training_statistics(data: Dataset, features: Features) -> Statistics:
    """Those of all training data.

    Raises:
        DataError: they are streamed, and a part of them alone is held in memory.
    """
    if data.source is not None:
        raise DataError(f"{data.name} are streamed, so that their statistics are not known here; give reference=FILE")
    return Statistics.of(features(data.train), features.name)


def check_protocol(protocol: str, features: str, asked: Callable[[str], bool], num_samples: int) -> None:
    """Refuse a number that a protocol would not call by its name.

    Raises:
        ConfigError: other features, or another number of samples.
    """
    wanted = PROTOCOLS[protocol]
    if asked("num_samples") and num_samples != wanted:
        raise ConfigError(f"protocol={protocol} draws {wanted:,} samples, not {num_samples:,}; leave num_samples out, "
                          "or the protocol")  # fmt: skip
    if asked("features") and not features.endswith(".inception"):
        raise ConfigError(f"protocol={protocol} looks at features=inception; leave features out, or the protocol")
