"""IDX files: read right, and every way they can be wrong."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from sde_gen.data import fashion_mnist
from sde_gen.data.idx import DEBIAN_FOLDER, read_idx
from sde_gen.errors import ConfigError, DataError, MissingInputError


def encode(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write(folder: Path, zipped: bool = False, train: int = 5, test: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", train), ("t10k", test)):
        arrays[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 4, 6), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = rng.integers(0, 10, count, dtype=np.uint8)
    for name, array in arrays.items():
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(encode(array)))
        else:
            (folder / name).write_bytes(encode(array))
    return arrays


@pytest.mark.parametrize("zipped", [False, True])
def test_reads_the_four_files(tmp_path: Path, zipped: bool) -> None:
    arrays = write(tmp_path, zipped)
    data = fashion_mnist(tmp_path)
    assert data.kind == "image"
    assert data.shape == (1, 4, 6)
    assert data.num_classes == 10
    assert data.transform.levels == 256
    raw = data.transform.quantise(data.train)
    assert torch.equal(raw[:, 0], torch.from_numpy(arrays["train-images-idx3-ubyte"]).float())
    assert data.test_labels is not None
    assert data.test_labels.tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()
    assert data.train.min() >= -1
    assert data.train.max() <= 1


def test_limit(tmp_path: Path) -> None:
    write(tmp_path)
    data = fashion_mnist(str(tmp_path), limit=2)
    assert len(data.train) == len(data.test) == 2
    assert torch.equal(data.train, fashion_mnist(tmp_path).train[:2])
    with pytest.raises(ConfigError, match="limit must be a whole number"):
        fashion_mnist(tmp_path, limit=0)


@pytest.mark.skipif(
    not Path(DEBIAN_FOLDER).is_dir(), reason="the Debian package dataset-fashion-mnist is not installed"
)
def test_finds_the_debian_package() -> None:
    data = fashion_mnist(limit=100)
    assert data.name == "fashion_mnist"
    assert data.shape == (1, 28, 28)
    assert data.train_labels is not None
    assert data.train_labels[:5].tolist() == [9, 0, 0, 3, 0]


def test_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sde_gen.data.idx.DEBIAN_FOLDER", str(tmp_path / "none"))
    with pytest.raises(MissingInputError, match=r"apt-get install dataset-fashion-mnist.*data\.root"):
        fashion_mnist()
    with pytest.raises(MissingInputError, match="no such folder; root"):
        fashion_mnist(tmp_path / "none")
    with pytest.raises(MissingInputError, match="holds neither train-images-idx3-ubyte nor train-images-idx3-ubyte"):
        fashion_mnist(tmp_path)


GOOD = encode(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"\x89PNG\r\n", "not an IDX file"),
        (b"\0\0\x0d\x01" + GOOD[4:], "not an IDX file of unsigned bytes"),
        (b"\0\0\x08\0", "not an IDX file"),
        (b"\0\0\x08\x09" + GOOD[4:], "not an IDX file"),
        (GOOD[:9], "cut short inside its header"),
        (GOOD[:-1], "promises 24 bytes .* but there are only 23"),
        (GOOD + b"x", "promises 24 bytes .* but there are more"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "empty or too large"),
        (b"\0\0\x08\x02" + b"\0\0\x7f\xff\0\0\xff\xff", "but there are only 0"),
        (b"\0\0\x08\x01" + b"\0" * 4, "empty or too large"),
        (gzip.compress(GOOD, mtime=0)[:-9], "gzip data is damaged or cut short"),
        (gzip.compress(GOOD, mtime=0)[:-8] + b"\0" * 8, "gzip data is damaged or cut short"),
        (gzip.compress(GOOD[:-1], mtime=0), "but there are only 23"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_refuses_damaged_files(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "broken"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(file)
    assert str(file) in str(caught.value)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "cut"
    for content in (GOOD, gzip.compress(GOOD)):
        for length in range(len(content)):
            file.write_bytes(content[:length])
            with pytest.raises(DataError):
                read_idx(file)


def test_refuses_files_that_do_not_fit_each_other(tmp_path: Path) -> None:
    write(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte"
    kept = labels.read_bytes()
    labels.write_bytes(encode(np.zeros(4, np.uint8)))
    with pytest.raises(DataError, match=r"holds 5 images, but .* 4 labels"):
        fashion_mnist(tmp_path)
    labels.write_bytes(encode(np.zeros((5, 1), np.uint8)))
    with pytest.raises(DataError, match="images must have 3 dimensions and labels 1, got 3 and 2"):
        fashion_mnist(tmp_path)
    labels.write_bytes(kept)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(encode(np.zeros((3, 4, 4), np.uint8)))
    with pytest.raises(DataError, match="must have one shape"):
        fashion_mnist(tmp_path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no such file"):
        read_idx(tmp_path / "none")
