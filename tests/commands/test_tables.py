"""Tables of text and numbers: columns keep their names and values from the file to the samples."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sde_gen.data import csv_file
from sde_gen.data.columns import Column, feature_names
from sde_gen.data.dataset import Description
from sde_gen.data.rows import decoded, write_csv
from sde_gen.errors import ConfigError, DataError
from sde_gen.evaluation.columns_compared import compared_columns
from sde_gen.pictures import pairs
from tests.commands.helpers import Command

COLOURS = ("red", "green", "blue")


def rows(count: int = 90) -> list[list[str]]:
    rng = np.random.default_rng(0)
    return [
        [f"{rng.normal(1e5, 3):.6f}", COLOURS[int(rng.choice(3, p=[0.6, 0.3, 0.1]))], "SML"[i % 3], str(i % 2)]
        for i in range(count)
    ]


def write(path: Path, table: list[list[str]], header: str = "weight,colour,size,sold") -> Path:
    path.write_text(header + "\n" + "\n".join(map(",".join, table)) + "\n")
    return path


def test_every_value_comes_back(tmp_path: Path) -> None:
    table = rows()
    data = csv_file(
        write(tmp_path / "t.csv", table), categories=["sold"], ordinal={"size": ["S", "M", "L"]}, held_out=10
    )  # fmt: skip
    assert [(c.name, c.kind, c.width) for c in data.columns] == [
        ("weight", "number", 1), ("colour", "category", 3), ("size", "ordinal", 1), ("sold", "category", 2)
    ]  # fmt: skip
    assert feature_names(data.columns)[1:4] == ["colour=blue", "colour=green", "colour=red"]
    flags = torch.cat([data.train[:, 1:4], data.train[:, 5:]], 1)
    assert set(flags.unique().tolist()) == {-1.0, 1.0}, "a rare category is not stretched"
    raw = data.transform.inverse(torch.cat([data.train, data.test])).numpy()
    back = list(zip(*(values for _, values in decoded(data.columns, raw)), strict=True))
    assert Counter(row[1:] for row in back) == Counter((c, s, w) for _, c, s, w in table)
    np.testing.assert_allclose(sorted(row[0] for row in back), sorted(float(row[0]) for row in table), rtol=1e-9)
    assert Description.from_dict(json.loads(json.dumps(data.to_dict()))) == data.description


def test_noise_on_the_features_is_forgiven() -> None:
    colour, size = Column("colour", "category", COLOURS), Column("size", "ordinal", ("S", "M", "L"))
    assert colour.decode(np.array([[0.4, 0.3, 0.2], [-3.0, 0.1, 9.0]])) == ["red", "blue"]
    assert size.decode(np.array([[-7.0], [0.4], [1.6], [40.0]])) == ["S", "S", "L", "L"]


@pytest.mark.parametrize(("fields", "kind"), [
    (["a", "b"] * 5, "category"), (["1", "2"] * 5, "number"), (["a", "", "b"] * 4, None), (["1", "a"] * 5, None),
    ([f"name {i}" for i in range(10)], None), (["1,5", "2,5", "3,5"], None), (["1", "nan"] * 5, None),
])  # fmt: skip
def test_what_is_taken_for_categories(tmp_path: Path, fields: list[str], kind: str | None) -> None:
    path = tmp_path / "t.csv"
    path.write_text("n;x\n" + "".join(f"{i};{field}\n" for i, field in enumerate(fields)))
    if kind is None:
        with pytest.raises(DataError, match=r"line \d+, column 2 \(x\)"):
            csv_file(path, delimiter=";")
    else:
        assert csv_file(path, delimiter=";").columns[1].kind == kind


def test_missing_fields_are_imputed_where_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [["1", "a"], ["", "a"], ["3", ""], ["8", "b"]] * 4, "x,y")
    for impute, value in (("mean", 4.0), ("median", 3.0)):
        data = csv_file(path, impute=impute)
        raw = data.transform.inverse(torch.cat([data.train, data.test])).double().numpy()
        numbers, texts = (values for _, values in decoded(data.columns, raw))
        np.testing.assert_allclose(sorted(numbers), sorted([1, value, 3, 8] * 4), rtol=1e-5)
        assert Counter(texts) == {"a": 12, "b": 4}
    with pytest.raises(DataError, match=r"line 3, column 1 \(x\): '' is not a finite number; fill it, or say"):
        csv_file(path)
    with pytest.raises(ConfigError, match=r"impute must be one of"):
        csv_file(path, impute="zero")


@pytest.mark.parametrize(("options", "message"), [
    ({"categories": ["colr"]}, "categories names no column 'colr'; the columns are weight, colour"),
    ({"categories": [9]}, "categories names no column 9"), ({"ordinal": {"siz": ["S"]}}, "ordinal names no column"),
    ({"ordinal": {"size": ["S", "M"]}}, r"'L' is not one of S, M \(data.ordinal\)"),
])  # fmt: skip
def test_columns_that_are_not_there(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        csv_file(write(tmp_path / "t.csv", rows()), **options)


def test_three_lines(command: Command) -> None:
    write(Path("t.csv"), rows())
    quick = ("network.hidden=8", "network.layers=1", "trainer.steps=3", "trainer.batch_size=8", "device=cpu",
             "trainer.preview_samples=4", "run=t", "data.categories=[sold]", "data.ordinal={size:[S,M,L]}")  # fmt: skip
    trained = command("train", "data=csv_file", "data.path=t.csv", "network=mlp", *quick)
    assert trained.code == 0, trained.err
    sampled = command("sample", "run=t", "num_samples=30", "sampler=ddim", "sampler.steps=2", "out=o", "chunk=11")
    assert sampled.code == 0, sampled.err
    with Path("o/samples.csv").open(newline="") as stream:
        read = list(csv.DictReader(stream))
    assert list(read[0]) == ["weight", "colour", "size", "sold"]
    assert len(read) == 30
    assert {row["colour"] for row in read} <= set(COLOURS)
    assert {row["size"] for row in read} <= set("SML")
    np.testing.assert_allclose([float(row["weight"]) for row in read], np.load("o/samples.npz")["x"][:, 0], rtol=1e-12)
    with Image.open("o/samples.png") as picture:
        assert picture.width >= 600
    evaluated = command("evaluate", "run=t", "sampler=ddim", "sampler.steps=2", "num_samples=20", "likelihood=none",
                        "metrics=[energy_distance]", "out=e")  # fmt: skip
    assert evaluated.code == 0, evaluated.err
    assert "column colour: " in evaluated.out
    found = json.loads(Path("e/evaluation.json").read_text())["columns"]
    assert [row["name"] for row in found] == ["weight", "colour", "size", "sold"]


def test_the_distance_of_each_column() -> None:
    columns = (Column("n"), Column("c", "category", ("a", "b")), Column("o", "ordinal", ("x", "y")))
    real = np.array([[0.0, 1, 0, 0], [2.0, 0, 1, 1]])
    shifted = real + [3.0, 0, 0, 0]
    shifted[0, 1:3] = shifted[1, 1:3]
    n, c, o = compared_columns(columns, shifted, real)
    assert n["wasserstein"] == pytest.approx(3.0)
    assert c["total_variation"] == pytest.approx(0.5)
    assert (o["wasserstein"], o["mean"]) == (0.0, 0.5)


def test_classes_stand_in_a_column_of_their_own(tmp_path: Path) -> None:
    parts = [(np.array([[1.0], [2.0]]), ["a", "b"]), (np.array([[3.0]]), ["a"])]
    path = write_csv(tmp_path / "s.csv", (Column("x"),), parts)
    assert path.read_text() == "x,class\n1.0,a\n2.0,b\n3.0,a\n"
    assert write_csv(tmp_path / "n.csv", (), [(np.array([[1.0, 2.0]]), [])]).read_text() == "x0,x1\n1.0,2.0\n"


def test_pairs_say_what_they_leave_out() -> None:
    real = {"x": list(range(100)), "y": ["a", "b"] * 50}
    assert pairs({"samples": {"x": [1e9, 5.0], "y": ["a", "c"]}, "data": real}).width >= 600
    with pytest.raises(DataError, match="column x holds NaN"):
        pairs({"samples": {"x": [float("nan")]}, "data": {"x": [1.0, 2.0]}})
