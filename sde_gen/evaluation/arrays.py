"""The arrays of an evaluation: samples that were drawn before, and what it leaves behind."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_gen.data import Affine, Dataset
from sde_gen.errors import DataError, MissingInputError
from sde_gen.evaluation.likelihood import HeldOutLikelihood
from sde_gen.files import publish


def read_samples(given: str, data: Dataset) -> Tensor:
    """Samples that were drawn before, on the model's scale.

    Args:
        given: the folder of a sample run, or a .npz (of which `model_x` is taken, else the raw `x`) or a .npy (raw).
        data: of which they are samples.

    Raises:
        MissingInputError: no such file.  DataError: no numbers of the data's shape in it.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        path = path / "samples.npz"
    if not path.is_file():
        raise MissingInputError(f"no samples at {path}; samples= must be the folder of a sample run, or a .npz or .npy")
    try:
        with path.open("rb") as stream:
            read = np.load(stream, allow_pickle=False)
            arrays = {"x": read} if isinstance(read, np.ndarray) else {key: read[key] for key in read.files}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path} cannot be read as an array ({error}); give a .npz with x or model_x, or a .npy"
        ) from error
    name = "model_x" if "model_x" in arrays else "x"
    if name not in arrays:
        raise DataError(f"{path} holds neither x nor model_x, but {', '.join(arrays) or 'nothing'}")
    array = arrays[name]
    if array.dtype.kind not in "iuf" or array.shape[1:] != data.shape or len(array) == 0:
        raise DataError(f"{path}: {name} must be numbers of shape (N, {', '.join(map(str, data.shape))}), got "
                        f"{array.dtype} {array.shape}")  # fmt: skip
    x = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    return x if name == "model_x" else data.transform.forward(x)


def write_arrays(path: Path, x: Tensor | None, transform: Affine, likelihoods: Sequence[HeldOutLikelihood]) -> None:
    """Write the samples, and the likelihood of every held-out sample, to `path`, a .npz."""
    arrays: dict[str, Any] = {}
    if x is not None:
        arrays |= {"x": transform.inverse(x).numpy(), "model_x": x.numpy()}
    for found in likelihoods:
        arrays |= {f"{found.kind}_{name}": value.numpy() for name, value in found.arrays.items()}
        arrays[f"{found.kind}_index"] = found.indices.numpy()
        arrays[f"{found.kind}_log_prob"] = found.log_prob.double().numpy()
        arrays[f"{found.kind}_bits_per_dim"] = found.each_bits_per_dim.double().numpy()

    def save(temporary: Path) -> None:
        savez: Any = np.savez_compressed
        with temporary.open("wb") as stream:
            savez(stream, **arrays)

    publish(path, save, "the arrays")
