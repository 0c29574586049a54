"""Samples that were drawn before, from every kind of file."""

from pathlib import Path

import numpy as np
import pytest

from sde_gen.data import Dataset, array_file, digits
from sde_gen.errors import DataError, MissingInputError
from sde_gen.evaluation import read_samples, write_arrays


@pytest.fixture(scope="module")
def data() -> Dataset:
    return digits()


def test_files_of_ours_and_raw_ones(tmp_path: Path, data: Dataset) -> None:
    x = data.test[:7]
    raw = data.transform.inverse(x).numpy()
    write_arrays(tmp_path / "samples.npz", x, data.transform, [])
    np.savez(tmp_path / "raw.npz", x=raw)
    np.save(tmp_path / "raw.npy", raw)
    np.save(tmp_path / "whole.npy", raw.round().astype(np.uint8))
    for name in (".", "samples.npz", "raw.npz", "raw.npy", "whole.npy"):
        read = read_samples(str(tmp_path / name), data)
        np.testing.assert_allclose(read.numpy(), x.numpy(), atol=1e-6)


def test_raw_values_are_as_fine_as_the_files(tmp_path: Path) -> None:
    moments = 1.7e12 + np.arange(64.0)[:, None] * [1.0, 3.0]  # milliseconds since 1970; float32 is 131,072 apart there
    np.save(tmp_path / "moments.npy", moments)
    data = array_file(tmp_path / "moments.npy")
    read = read_samples(str(tmp_path / "moments.npy"), data)
    assert read.dtype == data.train.dtype
    assert len(read[:, 0].unique()) == 64
    np.testing.assert_allclose(
        np.diff(read.numpy(), axis=0), np.diff(moments, axis=0) / data.transform.scale, rtol=1e-3
    )


def test_what_cannot_be_used(tmp_path: Path, data: Dataset) -> None:
    np.savez(tmp_path / "other.npz", y=np.zeros(3))
    np.savez(tmp_path / "shape.npz", x=np.zeros((3, 5)))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "none.npy", np.zeros((0, 1, 8, 8)))
    (tmp_path / "text.npz").write_text("no array")
    for name, message in (
        ("other.npz", "neither x nor model_x, but y"),
        ("shape.npz", r"shape \(N, 1, 8, 8\), got float64 \(3, 5\)"),
        ("object.npy", "cannot be read as an array"),
        ("none.npy", "must be numbers of shape"),
        ("text.npz", "cannot be read as an array"),
    ):
        with pytest.raises(DataError, match=message):
            read_samples(str(tmp_path / name), data)
    with pytest.raises(MissingInputError, match=r"no samples at .*samples\.npz"):
        read_samples(str(tmp_path), data)
