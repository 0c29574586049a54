"""Arrays from .npy and .npz, vectors from CSV: layouts, ranges, labels, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sde_gen.data import Dataset, array_file, csv_file
from sde_gen.errors import ConfigError, DataError, MissingInputError

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (10, 5, 7, 3), dtype=np.uint8)


def npy(folder: Path, array: object) -> Path:
    np.save(folder / "data.npy", np.asarray(array))
    return folder / "data.npy"


def npz(folder: Path, **arrays: object) -> Path:
    np.savez(folder / "data.npz", **{name: np.asarray(array) for name, array in arrays.items()})
    return folder / "data.npz"


def everything(data: Dataset) -> torch.Tensor:
    return torch.cat([data.train, data.test])


def test_byte_images_in_both_layouts(tmp_path: Path) -> None:
    last = array_file(npy(tmp_path, BYTES))
    first = array_file(npy(tmp_path, BYTES.transpose(0, 3, 1, 2)))
    assert last.kind == "image"
    assert last.shape == (3, 5, 7)
    assert last.fingerprint == first.fingerprint
    assert last.transform.levels == 256
    assert sorted(last.transform.quantise(everything(last)).flatten().tolist()) == sorted(BYTES.flatten().tolist())
    assert array_file(npy(tmp_path, BYTES[..., 0])).shape == (1, 5, 7)


def test_layout_that_is_not_plain(tmp_path: Path) -> None:
    for array in (BYTES[:, :3], RNG.integers(0, 9, (4, 5, 6, 7), dtype=np.uint8)):
        path = npy(tmp_path, array)
        with pytest.raises(ConfigError, match="may be NHWC or NCHW or NDHW; set layout"):
            array_file(path)
        assert array_file(path, layout="NCHW").shape == array.shape[1:]
        assert array_file(path, layout="NHWC").shape == (array.shape[3], *array.shape[1:3])
    with pytest.raises(ConfigError, match=r"layout must be one of .*NHWC.*NCHW.*, got 'HWC'"):
        array_file(path, layout="HWC")
    with pytest.raises(ConfigError, match="layout is for images"):
        array_file(npy(tmp_path, np.zeros((4, 2))), layout="NHWC")


@pytest.mark.parametrize(
    ("images", "low", "high", "levels"),
    [
        (RNG.random((4, 3, 3)), 0, 1, None),
        (2 * RNG.random((4, 3, 3)).astype(np.float32) - 1, -1, 1, None),
        (RNG.random((4, 3, 3)) > 0.5, 0, 1, 2),
    ],
)
def test_plain_ranges(tmp_path: Path, images: np.ndarray, low: float, high: float, levels: int | None) -> None:
    data = array_file(npy(tmp_path, images))
    assert (data.transform.low, data.transform.high, data.transform.levels) == (low, high, levels)
    assert everything(data).abs().max() <= 1


def test_other_ranges_are_asked_for(tmp_path: Path) -> None:
    path = npy(tmp_path, RNG.integers(0, 4096, (4, 3, 3), dtype=np.uint16))
    with pytest.raises(ConfigError, match="set low and high"):
        array_file(path)
    data = array_file(path, low=0, high=4095)
    assert data.transform.levels == 4096
    with pytest.raises(DataError, match=r"outside \[low, high\] = \[0, 100\]"):
        array_file(path, low=0, high=100)
    with pytest.raises(ConfigError, match="low must be below high"):
        array_file(path, low=5, high=5)
    with pytest.raises(ConfigError, match="low and high go together"):
        array_file(path, low=5)
    with pytest.raises(ConfigError, match=r"high must be a (finite )?number"):
        array_file(path, low=5, high="x")  # type: ignore[arg-type]


def test_vectors_are_standardised_or_scaled(tmp_path: Path) -> None:
    path = npy(tmp_path, 5 + 3 * RNG.random((200, 3)))
    data = array_file(path)
    assert data.kind == "vector"
    torch.testing.assert_close(data.train.std(0, correction=0), torch.ones(3))
    assert data.transform.levels is None
    scaled = array_file(path, low=5, high=8)
    assert everything(scaled).abs().max() <= 1
    torch.testing.assert_close(scaled.transform.inverse(scaled.train), data.transform.inverse(data.train))


def test_keys_of_npz(tmp_path: Path) -> None:
    x, y = RNG.random((20, 2)), RNG.integers(0, 3, 20)
    data = array_file(npz(tmp_path, x=x, y=y))
    assert data.num_classes == 3
    assert array_file(npz(tmp_path, anything=x)).num_classes == 0
    assert array_file(npz(tmp_path, anything=x, y=y)).num_classes == 3
    path = npz(tmp_path, train=x, other=x, names=np.array(["a", "b"] * 10))
    assert array_file(path, key="train", label_key="names").num_classes == 2
    with pytest.raises(ConfigError, match=r"key must name one of its arrays, train, other, names; got None"):
        array_file(path)
    with pytest.raises(ConfigError, match=r"key must name one of its arrays.*got 'x'"):
        array_file(path, key="x")
    with pytest.raises(ConfigError, match=r"label_key must name one of its arrays.*got 'z'"):
        array_file(path, key="train", label_key="z")
    with pytest.raises(ConfigError, match=r"are for .npz files"):
        array_file(npy(tmp_path, x), key="x")


def test_labels_stay_with_their_samples(tmp_path: Path) -> None:
    y = np.arange(20) % 4
    data = array_file(npz(tmp_path, x=np.stack([y, y], 1).astype(float), y=y), held_out=5)
    for x, labels in ((data.train, data.train_labels), (data.test, data.test_labels)):
        assert labels is not None
        assert torch.equal(data.transform.inverse(x)[:, 0].round().long(), labels)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_value_that_is_not_finite_is_named(tmp_path: Path, bad: float) -> None:
    images = np.zeros((6, 4, 4))
    images[2, 1, 3] = images[4, 0, 0] = bad
    with pytest.raises(DataError, match=rf"index \[2, 1, 3\] is {bad}; remove or repair sample 2"):
        array_file(npy(tmp_path, images))
    vectors = np.zeros((6, 2), np.float16)
    vectors[5, 1] = bad
    with pytest.raises(DataError, match=r"index \[5, 1\]"):
        array_file(npz(tmp_path, x=vectors))


def test_wrong_shapes_and_types(tmp_path: Path) -> None:
    for array in (np.zeros(5), np.zeros((2, 3, 4, 5, 6, 7)), np.zeros((0, 3)), np.zeros((4, 0)), np.array(1.0)):
        with pytest.raises(DataError, match="samples must be vectors"):
            array_file(npy(tmp_path, array))
    for array in (np.array(["a", "b"]), np.zeros((4, 2), complex)):
        with pytest.raises(DataError, match="samples must be real numbers"):
            array_file(npy(tmp_path, array))
    with pytest.raises(DataError, match="20 samples need"):
        array_file(npz(tmp_path, x=np.zeros((20, 2)), y=np.zeros(19, int)))
    with pytest.raises(DataError, match="labels must be"):
        array_file(npz(tmp_path, x=np.zeros((20, 2)), y=np.zeros(20)))
    with pytest.raises(DataError, match="needs at least 2 samples"):
        array_file(npy(tmp_path, np.zeros((1, 2))))


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "objects.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="without pickle"):
        array_file(path)
    np.savez(tmp_path / "objects.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="without pickle"):
        array_file(tmp_path / "objects.npz")


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_damaged_files(tmp_path: Path, kind: str) -> None:
    path = npy(tmp_path, BYTES) if kind == "npy" else npz(tmp_path, x=BYTES)
    content = path.read_bytes()
    for cut in (0, 4, 60, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"cannot be read as .npy or .npz"):
            array_file(path)
    path.write_bytes(b"hello, this is text")
    with pytest.raises(DataError, match="cannot be read"):
        array_file(path)
    with pytest.raises(MissingInputError, match="no such file"):
        array_file(tmp_path / "none.npy")


def text(folder: Path, content: str | bytes) -> Path:
    path = folder / "data.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    ["a,b\n1,2\n3,4\n5,6\n", "1,2\n3,4\n5,6", "\ufeffa,b\r\n1, 2\r\n\r\n3,4\r\n5,6\r\n", '"a","b"\n"1",2\n3,4\n5,6\n'],
)
def test_csv_with_and_without_header(tmp_path: Path, content: str) -> None:
    data = csv_file(text(tmp_path, content), held_out=1)
    assert data.kind == "vector"
    raw = data.transform.inverse(everything(data))
    assert sorted(raw.round().tolist()) == [[1, 2], [3, 4], [5, 6]]


def test_csv_header_can_be_forced(tmp_path: Path) -> None:
    path = text(tmp_path, "1,2\n3,4\n5,6\n")
    assert len(everything(csv_file(path, header=True))) == 2
    assert len(everything(csv_file(path, header=False))) == 3
    with pytest.raises(DataError, match=r"line 1, column 1 \(#0\): 'a' is not a finite number"):
        csv_file(text(tmp_path, "a,b\n1,2\n3,4\n"), header=False)


def test_csv_labels(tmp_path: Path) -> None:
    path = text(tmp_path, "x,kind,y\n1,cat,2\n3,ant,4\n5,cat,6\n")
    for label in ("kind", 1, -2):
        data = csv_file(path, label=label)
        assert data.shape == (2,)
        assert data.num_classes == 2
        assert data.train_labels is not None
    assert csv_file(text(tmp_path, "1,0\n2,1\n3,1\n"), label=1).num_classes == 2
    assert csv_file(text(tmp_path, "1,a\n2,b\n3,b\n"), label=1).train.shape[1:] == (1,)
    for label in ("colour", 2, -3):
        with pytest.raises(ConfigError, match=f"no column {label!r} for the labels"):
            csv_file(text(tmp_path, "x,kind\n1,a\n2,b\n"), label=label)
    with pytest.raises(DataError, match="labels are its only column"):
        csv_file(text(tmp_path, "kind\na\nb\n"), label="kind")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n3,x\n", r"line 3, column 2 \(b\): 'x' is not a finite number"),
        ("a,b\n1,2\n3,\n", r"line 3, column 2 \(b\): '' is not a finite number"),
        ("a,b\n1,nan\n3,4\n", r"line 2, column 2 \(b\): 'nan' is not a finite number"),
        ("1,2\n3,inf\n", r"line 2, column 2 \(#1\): 'inf' is not a finite number"),
        ("1,2\n3,1_0\n", r"line 2, column 2 \(#1\): '1_0' is not a finite number"),
        ("1,x\n3,4\n", r"line 1, column 2 \(#1\): 'x' is not a finite number"),
        ("1,2\n3\n", "line 2: has 1 columns, but the first line has 2"),
        ("1,2\n3,4,5\n", "line 2: has 3 columns, but the first line has 2"),
        ("", "holds no data"),
        ("\n\n", "holds no data"),
        ("a,b\n", "holds a header, but no data"),
        ("1,2\n", "needs at least 2 samples"),
        (b"\xff\xfe1,2", "cannot be read as CSV in UTF-8"),
        (b"1,\xe9\n", "cannot be read as CSV in UTF-8"),
    ],
)
def test_bad_csv(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        csv_file(text(tmp_path, content))
    assert "data" in str(caught.value)


def test_csv_arguments(tmp_path: Path) -> None:
    assert csv_file(text(tmp_path, "1;2\n3;4\n"), delimiter=";").shape == (2,)
    with pytest.raises(ConfigError, match="delimiter must be one character"):
        csv_file(text(tmp_path, "1;2\n3;4\n"), delimiter="")
    with pytest.raises(MissingInputError, match="no such file"):
        csv_file(tmp_path / "none.csv")
