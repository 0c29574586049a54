"""CIFAR-10 in the formats that people download."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sde_gen.data import cifar10
from sde_gen.errors import DataError, MissingInputError

NAMES = (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")


def content(name: str, count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(NAMES.index(name))
    return rng.integers(0, 256, (count, 3072), dtype=np.uint8), rng.integers(0, 10, count)


def binary(name: str) -> bytes:
    pixels, labels = content(name)
    return b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels.tolist(), pixels, strict=True))


def short(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text  # as Python 2 wrote a str


def python_two(name: str) -> bytes:
    """What Python 2's pickle.dump(..., protocol=2) wrote of {"data": array, "labels": [...], ...}."""
    pixels, labels = content(name)
    raw = pixels.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short(b"b") + b"\x87R(K\x01K"
        + bytes([len(pixels)]) + b"M\x00\x0c\x86cnumpy\ndtype\n" + short(b"u1") + b"K\x00K\x01\x87R(K\x03" + short(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    )  # fmt: skip
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels.tolist()) + b"e"
    files = b"](" + b"".join(short(b"a.png") for _ in labels) + b"e"
    return (b"\x80\x02}(" + short(b"data") + array + short(b"labels") + listed + short(b"batch_label")
            + short(b"training batch 1 of 5") + short(b"filenames") + files + b"u.")  # fmt: skip


def python_three(name: str) -> bytes:
    pixels, labels = content(name)
    return pickle.dumps(
        {b"batch_label": b"x", b"labels": labels.tolist(), b"data": pixels, b"filenames": [b"a.png"] * 3}
    )


WRITERS = {"bin": binary, "py": python_two, "py3": python_three}


def written(path: Path, kind: str, packed: bool = False) -> Path:
    inside, end = f"cifar-10-batches-{kind[:2] if kind != 'bin' else kind}", ".bin" if kind == "bin" else ""
    if not packed:
        (path / inside).mkdir(parents=True)
        for name in NAMES:
            (path / inside / (name + end)).write_bytes(WRITERS[kind](name))
        return path
    path.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path / "cifar-10.tar.gz", "w:gz") as file:
        for name in NAMES:
            info = tarfile.TarInfo(f"{inside}/{name}{end}")
            info.size = len(WRITERS[kind](name))
            file.addfile(info, io.BytesIO(WRITERS[kind](name)))
    return path / "cifar-10.tar.gz"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_holds_the_same(kind: str, packed: bool, tmp_path: Path) -> None:
    data = cifar10(written(tmp_path / "files", kind, packed))
    pixels = np.concatenate([content(name)[0] for name in NAMES]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([content(name)[1] for name in NAMES])
    raw = torch.cat([data.transform.inverse(part) for part in (data.train, data.test)])
    assert torch.equal(raw.round().to(torch.uint8), torch.from_numpy(pixels))
    assert torch.equal(torch.cat([data.train_labels, data.test_labels]), torch.from_numpy(labels))
    assert (len(data.train), len(data.test), data.classes[3]) == (15, 3, "cat")
    assert cifar10(written(tmp_path / "again", "bin")).fingerprint == data.fingerprint


def test_python_two_is_a_pickle_indeed() -> None:
    read = pickle.loads(python_two("data_batch_1"), encoding="bytes")  # noqa: S301 - made here
    assert np.array_equal(read[b"data"], content("data_batch_1")[0])
    assert read[b"labels"] == content("data_batch_1")[1].tolist()


class Payload:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("ran"),)


def test_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = written(tmp_path / "files", "py")
    pixels, labels = content("data_batch_1")
    hostile = {b"labels": labels.tolist(), b"data": pixels, b"more": Payload()}
    (place / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(hostile))
    cifar10(place)
    assert not Path("ran").exists()


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"data\.path"):
        cifar10(tmp_path / "nowhere.tar.gz")
    place = written(tmp_path / "files", "bin")
    folder = place / "cifar-10-batches-bin"
    whole = (folder / "data_batch_2.bin").read_bytes()
    (folder / "data_batch_2.bin").write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"data_batch_2.*no whole number of images"):
        cifar10(place)
    (folder / "data_batch_2.bin").write_bytes(bytes([77]) + whole[1:])
    with pytest.raises(DataError, match="CIFAR-100 is another data set"):
        cifar10(place)
    (folder / "data_batch_2.bin").unlink()
    with pytest.raises(DataError, match="holds no data_batch_2"):
        cifar10(place)
    (tmp_path / "x.tar.gz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot be read as an archive"):
        cifar10(tmp_path / "x.tar.gz")
    (written(tmp_path / "more", "py") / "cifar-10-batches-py" / "test_batch").write_bytes(
        python_two("test_batch")[:5000]
    )
    with pytest.raises(DataError, match="test_batch: cannot be read as a batch"):
        cifar10(tmp_path / "more")
