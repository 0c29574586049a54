r"""Mean and covariance of features, in files that others read and write, and the Fréchet distance of two of them.

.. math:: |m_1 - m_2|^2 + \mathrm{tr}\left(S_1 + S_2 - 2 (S_1 S_2)^{1/2}\right)

pytorch-fid and EDM write .npz files of `mu` and `sigma`, ADM of `mu`, `sigma` and those of spatial features, `mu_s` and
`sigma_s`, which are left where they are; EDM2 a pickle of both for each features, {"fid": {"mu", "sigma"}, "fd_dinov2":
{...}}, of which nothing is run. The files written here hold besides which features they are of and how many
samples, and are read by all of them.
"""

import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_gen.errors import DataError, MissingInputError
from sde_gen.files import publish
from sde_gen.metrics.jackknife import points
from sde_gen.pickles import read_numbers


@dataclass(frozen=True, eq=False)
class Statistics:
    """Moments of features.

    Args:
        mean: (d,), float64.
        covariance: unbiased, symmetric, (d, d), float64.
        features: their name, "" where a file does not say.
        count: samples, 0 where a file does not say.

    Raises:
        DataError: other shapes, NaN or infinite values, a matrix that is not symmetric.
    """

    mean: Tensor
    covariance: Tensor
    features: str = ""
    count: int = 0

    def __post_init__(self) -> None:
        d = self.mean.numel()
        if self.mean.shape != (d,) or self.covariance.shape != (d, d) or not d:
            raise DataError(f"statistics need a mean (d,) and a covariance (d, d), got {tuple(self.mean.shape)} and "
                            f"{tuple(self.covariance.shape)}")  # fmt: skip
        if not bool(self.mean.isfinite().all() and self.covariance.isfinite().all()):
            raise DataError("statistics hold NaN or infinity")
        apart, size = (self.covariance - self.covariance.T).abs().max(), self.covariance.abs().max()
        if float(apart) > 1e-4 * float(size):
            raise DataError("statistics: the covariance is not symmetric")

    @classmethod
    def of(cls, found: Any, features: str = "") -> "Statistics":
        """Those of features (n, d), n at least 2."""
        x = points(found)
        if len(x) < 2:
            raise DataError("statistics need at least 2 samples")
        mean = x.mean(0)
        return cls(mean, (x - mean).T @ (x - mean) / (len(x) - 1), features, len(x))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any], where: str) -> "Statistics":
        """Those of a file's `mu` and `sigma`.

        Raises:
            DataError: they are not there, or no numbers of these shapes.
        """
        if not {"mu", "sigma"} <= set(arrays):
            raise DataError(f"{where} holds {', '.join(map(str, arrays)) or 'nothing'}, and no mu and sigma")
        try:
            mean, covariance = (torch.as_tensor(np.asarray(arrays[k], np.float64)) for k in ("mu", "sigma"))
            return cls(mean, covariance, str(arrays.get("features", "")), int(arrays.get("count", 0)))
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: {error}") from error

    @classmethod
    def read(cls, path: str | os.PathLike[str], features: str = "") -> "Statistics":
        """Those of a .npz file of pytorch-fid, EDM, ADM or `write`, or of a .pkl file of EDM2.

        Args:
            path: the file.
            features: name of the features wanted, of those in a .pkl: DINOv2's, else Inception's.

        Raises:
            MissingInputError: no such file.  DataError: it holds something else.
        """
        place = Path(path).expanduser()
        if not place.is_file():
            raise MissingInputError(f"no statistics at {place}; give a .npz with mu and sigma, or write one with "
                                    "reference_out=")  # fmt: skip
        if place.suffix == ".pkl":
            return cls._of_pickle(place, features)
        try:
            with np.load(place, allow_pickle=False) as read:
                names = [n for n in read.files if n in ("mu", "sigma", "features", "count")] if hasattr(read, "files") \
                    else []  # fmt: skip
                arrays = {name: read[name] for name in names}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
            raise DataError(f"{place} cannot be read as a .npz of mu and sigma") from error
        return cls.from_arrays(arrays, str(place))

    @classmethod
    def _of_pickle(cls, place: Path, features: str) -> "Statistics":
        entry = "fd_dinov2" if "dinov2" in features else "fid"
        try:
            found = read_numbers(place)
        except (OSError, pickle.UnpicklingError) as error:
            raise DataError(f"{place} cannot be read as statistics: {error}") from error
        if not isinstance(found, dict) or not isinstance(found.get(entry), dict):
            held = ", ".join(map(str, found)) if isinstance(found, dict) else f"a {type(found).__name__}"
            raise DataError(f"{place} holds {held or 'nothing'}, and no {entry} with mu and sigma")
        return cls.from_arrays(
            {name: found[entry][name] for name in found[entry] if name in ("mu", "sigma")}, str(place)
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write a .npz that pytorch-fid, EDM and ADM read; its folder must be there.

        Raises:
            OutputError, WriteError: it cannot be written.
        """
        mu, sigma, place = self.mean.numpy(), self.covariance.numpy(), Path(path).expanduser()
        return publish(place, lambda temporary: np.savez(
            temporary, mu=mu, sigma=sigma, features=np.array(self.features), count=np.array(self.count)
        ), "the statistics")  # fmt: skip

    def distance(self, other: "Statistics") -> float:
        """The squared Fréchet distance of the Gaussians with these moments.

        Dowson and Landau (1982); Heusel et al. (2017), arXiv:1706.08500. tr (S_1 S_2)^(1/2) is the sum of the singular
        values of R_1 R_2 for the symmetric roots R, so that a singular S is no special case.

        Raises:
            DataError: features of another number, or of another name.
        """
        if self.mean.shape != other.mean.shape:
            raise DataError(f"statistics of {self.mean.numel()} and {other.mean.numel()} features do not compare")
        if self.features and other.features and self.features != other.features:
            raise DataError(f"statistics of {self.features} and of {other.features} do not compare")
        across = torch.linalg.svdvals(_root(self.covariance) @ _root(other.covariance)).sum()
        spread = self.covariance.trace() + other.covariance.trace() - 2 * across
        return float((self.mean - other.mean).square().sum() + spread)


def _root(symmetric: Tensor) -> Tensor:
    """The symmetric root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh((symmetric + symmetric.T) / 2)
    least = len(values) * torch.finfo(values.dtype).eps * values.abs().max()  # what is below it is rounding
    return (vectors * torch.where(values > least, values, 0.0).sqrt()) @ vectors.T
