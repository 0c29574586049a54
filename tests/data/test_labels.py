"""Labels: every way they are written becomes 0..K-1, their names are kept, and a word finds its class again."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sde_gen.data import Affine, Dataset, Description, array_file, csv_file, digits, image_folder, label_of, two_moons
from sde_gen.data.labels import encode
from sde_gen.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("values", "labels", "classes"),
    [
        ([0, 1, 0], [0, 1, 0], ("0", "1")),
        ([2, 0, 7], [1, 0, 2], ("0", "2", "7")),
        ([1, 2, 3], [0, 1, 2], ("1", "2", "3")),
        ([30, 10, 20], [2, 0, 1], ("10", "20", "30")),
        ([0, -1, 2], [0, 2, 1], ("0", "2")),
        ([1, -1, 1], [1, 0, 1], ("-1", "1")),
        ([-5, -1, 3], [0, 2, 1], ("-5", "3")),
        ([2**62, -(2**62), 0], [2, 0, 1], (str(-(2**62)), "0", str(2**62))),
        ([True, False], [1, 0], ("False", "True")),
        (["cat", "ant", "cat"], [1, 0, 1], ("ant", "cat")),
        (["10", "9", "1"], [2, 1, 0], ("1", "9", "10")),
        (["1.5", "10.0", "-2"], [1, 2, 0], ("-2", "1.5", "10.0")),
        (["b", "10", "a", "9"], [3, 1, 2, 0], ("9", "10", "a", "b")),
        (["-1", "x"], [1, 0], ("x",)),
        (["+1", "-1"], [1, 0], ("-1", "+1")),
        ([b"\xc3\xa9", b"e"], [1, 0], ("e", "\u00e9")),
        ([" a", "b "], [0, 1], ("a", "b")),
    ],
)
@pytest.mark.parametrize("big", [False, True])
def test_the_distinct_values_are_the_classes(values: list, labels: list, classes: tuple, big: bool) -> None:
    array = np.array(values)
    if big:
        array = array.astype(array.dtype.newbyteorder(">"))
    found, names = encode("x", array)
    assert found.dtype == torch.int64
    assert found.tolist() == labels
    assert names == classes


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_every_type_of_whole_number(dtype: str) -> None:
    assert encode("x", np.array([7, 0, 7], dtype))[0].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([0.5, 1.0]), "labels must be"),
        (np.array([0.0, np.nan]), "labels must be"),
        (np.zeros((2, 2), int), "labels must be"),
        (np.array([1j, 2]), "labels must be"),
        (np.array(["a", "", "b"]), "label of sample 1 is empty"),
        (np.array(["a", "b", "  "]), "label of sample 2 is empty"),
        (np.array([-1, -1]), "every label is -1"),
        (np.array([], int), "every label is -1"),
    ],
)
def test_refuses_what_is_no_label(values: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode("x", values)


@given(st.lists(st.integers(-3, 40), min_size=2, max_size=30))
def test_each_label_names_the_value_it_stands_for(values: list[int]) -> None:
    if set(values) == {-1}:
        return
    labels, classes = encode("x", np.array(values))
    again = [int((*classes, "-1")[label]) for label in labels.tolist()]
    assert again == values
    assert encode("x", np.array(list(map(str, values))))[1] == classes


@pytest.mark.parametrize(
    ("classes", "word", "label"),
    [
        (("T-shirt/top", "Trouser"), "Trouser", 1),
        (("T-shirt/top", "Trouser"), "trouser", 1),
        (("T-shirt/top", "Trouser"), 1, 1),
        (("T-shirt/top", "Trouser"), "1", 1),
        (("T-shirt/top", "Trouser"), np.int64(0), 0),
        (("10", "20", "30"), 20, 1),
        (("10", "20", "30"), "20", 1),
        (("01", "02", "10"), 2, 1),
        (("01", "02", "10"), "10", 2),
        (("a", "A"), "A", 1),
        (("-1", "1"), -1, 0),
        (("9", "cat"), 9, 0),
        (("1.0", "2.0"), 2, 1),
        (("False", "True"), True, 1),
    ],
)
def test_a_word_finds_its_class(classes: tuple, word: object, label: int) -> None:
    assert label_of(classes, word) == label


@pytest.mark.parametrize(
    ("classes", "word", "message"),
    [
        (("T-shirt/top", "Trouser"), "Trousers", "one of the classes T-shirt/top, Trouser, .*did you mean 'Trouser'"),
        (("T-shirt/top", "Trouser"), 2, "one of the classes .* got 2"),
        (("T-shirt/top", "Trouser"), -1, "one of the classes .* got -1"),
        (("T-shirt/top", "Trouser"), True, "got True"),
        (("10", "20", "30"), 7, "one of the classes 10, 20, 30, got 7"),
        (("10", "20", "30"), 1, "got 1"),
        (("9", "cat"), 1, "got 1"),
        (("a", "A"), "b", "got 'b'"),
        (("a",), None, "got None"),
        (("a",), "nan", "got 'nan'"),
        (tuple(map(str, range(100))), "x", r"\.\.\. \(100 in all\)"),
        ((), "x", "no classes"),
    ],
)
def test_another_word_is_refused_with_the_classes(classes: tuple, word: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        label_of(classes, word)


def test_a_class_that_never_occurred_in_training_is_refused() -> None:
    with pytest.raises(ConfigError, match="'b' never occurred in training; choose one of a, c"):
        label_of(("a", "b", "c"), "b", (3, 0, 1))


def csv(folder: Path, labels: list) -> Path:
    path = folder / "y.csv"
    path.write_text("a,y\n" + "".join(f"{i},{label}\n" for i, label in enumerate(labels)))
    return path


def npz(folder: Path, labels: list) -> Path:
    np.savez(folder / "y.npz", x=np.arange(len(labels), dtype=float)[:, None], y=np.array(labels))
    return folder / "y.npz"


@pytest.mark.parametrize("labels", [[10, 20, 30], [0, 2, 7], [1, 2], [-1, 0, 5], ["b", "10", "a"], ["x", "y"]])
@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_rows_keep_their_labels_through_a_file(tmp_path: Path, labels: list, kind: str) -> None:
    rows = labels * 8
    data = csv_file(csv(tmp_path, rows), label="y") if kind == "csv" else array_file(npz(tmp_path, rows))
    assert data.num_classes == len(data.classes)
    for x, numbers in ((data.train, data.train_labels), (data.test, data.test_labels)):
        assert numbers is not None
        places = data.transform.inverse(x)[:, 0].round().long().tolist()
        named = [(*data.classes, "-1")[label] for label in numbers.tolist()]
        assert named == [str(rows[place]) for place in places]
    counts = data.class_counts()
    assert tuple(counts) == data.classes
    unlabelled = sum(label == data.num_classes for label in data.train_labels.tolist())  # type: ignore[union-attr]
    assert sum(counts.values()) + unlabelled == len(data.train)
    assert [data.label_of(name) for name in data.classes] == list(range(data.num_classes))


def test_an_empty_cell_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 7, column 2 \(y\): the label is empty; write -1"):
        csv_file(csv(tmp_path, ["9", "10", "9", "10", "9", " ", "9"]), label="y")


def test_numbers_of_class_folders_sort_as_numbers(tmp_path: Path) -> None:
    for number in range(1, 13):
        (tmp_path / str(number)).mkdir()
        for i in range(2):
            Image.fromarray(np.full((2, 2), number, np.uint8)).save(tmp_path / str(number) / f"{i}.png")
    data = image_folder(tmp_path)
    assert data.classes == tuple(map(str, range(1, 13)))
    assert torch.equal(data.transform.quantise(data.train)[:, 0, 0, 0].long(), data.train_labels + 1)


def test_rows_without_a_label_have_the_label_that_networks_take_for_none() -> None:
    labels = torch.tensor([0, -1, 1])
    data = Dataset("x", "vector", torch.zeros(3, 2), torch.zeros(3, 2), Affine(), labels, labels, 2)
    assert data.train_labels is not None
    assert data.train_labels.tolist() == [0, 2, 1]
    assert labels.tolist() == [0, -1, 1]
    assert data.class_counts() == {"0": 1, "1": 1}


@pytest.mark.parametrize("make", [digits, lambda: two_moons(n=16, n_test=4)], ids=["digits", "two_moons"])
def test_a_description_survives_json(make: object) -> None:
    data = make()  # type: ignore[operator]
    stored = json.loads(json.dumps(data.to_dict()))
    assert Description.from_dict(stored) == data.description
    assert data.description.num_classes == data.num_classes
    assert data.description.label_of("1") == 1
    for name in ("classes", "counts", "fingerprint"):  # as it was stored once
        stored.pop(name)
    assert Description.from_dict(stored).classes == data.classes


@pytest.mark.parametrize(
    "change",
    [
        {"num_classes": 2**40, "classes": []},
        {"num_classes": -1},
        {"num_classes": 3},
        {"num_classes": True},
        {"classes": ["a", "a"]},
        {"classes": [1, 2]},
        {"classes": 5},
        {"counts": [1]},
        {"counts": [-1, 2]},
        {"counts": "ab"},
        {"shape": [2, 2]},
        {"shape": []},
        {"shape": "2"},
        {"shape": [0]},
        {"kind": "sound"},
        {"name": 3},
        {"fingerprint": None},
        {"transform": {}},
        {"transform": None},
    ],
    ids=str,
)
def test_a_damaged_description_is_refused(change: dict) -> None:
    stored = two_moons(n=4, n_test=4).to_dict()
    with pytest.raises(DataError, match="description of the data cannot be used"):
        Description.from_dict(stored | change)
    stored.pop(next(iter(change)), None)
    if next(iter(change)) in ("num_classes", "shape", "kind", "name", "transform"):
        with pytest.raises(DataError, match="description of the data cannot be used"):
            Description.from_dict(stored)


@pytest.mark.parametrize("nothing", [None, [], "text", 3, {}])
def test_what_is_no_description_is_refused(nothing: object) -> None:
    with pytest.raises(DataError, match="description of the data cannot be used"):
        Description.from_dict(nothing)  # type: ignore[arg-type]
