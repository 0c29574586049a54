"""Classes by the names that people have for them, from the data to the samples."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sde_gen as sg
from sde_gen.data import Description
from sde_gen.errors import ConfigError
from sde_gen.jobs.classes import Labels, chosen, columns_for, cycled
from tests.commands.helpers import TINY, Command

QUICK = ("sampler=ddim", "sampler.steps=2", "device=cpu", "run=c")
SMALL = ("run=c", "class_conditional=true", "trainer.steps=4", "trainer.batch_size=8", "trainer.preview_samples=0",
         "device=cpu")  # fmt: skip


@pytest.fixture
def clothes(command: Command) -> Command:
    """A run trained on three named classes far apart; of the last only a few."""
    rng = np.random.default_rng(0)
    names = ["Coat"] * 60 + ["Trouser"] * 60 + ["Bag"] * 12
    centre = {"Coat": 0.0, "Trouser": 50.0, "Bag": 100.0}
    rows = [f"{centre[n] + rng.normal()},{centre[n] + rng.normal()},{n}" for n in names]
    Path("clothes.csv").write_text("a,b,kind\n" + "\n".join(rows) + "\n")
    arguments = ("data=csv_file", "data.path=clothes.csv", "data.label=kind", "network=mlp", "network.hidden=8",
                 "network.layers=1")  # fmt: skip
    result = command("train", *arguments, *SMALL)
    assert result.code == 0, result.err
    assert "Bag (11), Coat (" in result.out
    return command


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("Trouser", [2]),
        ("trouser", [2]),
        ("2", [2]),
        ("[0,2]", [0, 2]),
        ("[Trouser,Bag]", [2, 0]),
        ("cycle", [0, 1, 2]),
    ],
)
def test_a_class_by_its_name(clothes: Command, label: str, expected: list[int]) -> None:
    result = clothes("sample", *QUICK, "num_samples=7", f"label={label}", "out=o", "metrics=false")
    assert result.code == 0, result.err
    np.testing.assert_array_equal(np.load("o/samples.npz")["label"], np.resize(expected, 7))
    names = ["Bag", "Coat", "Trouser"]
    assert json.loads(Path("o/report.json").read_text())["label"] == [names[k] for k in expected]


@pytest.mark.parametrize("label", ["Trousers", "3", "[Coat,Hat]", "[]", "none", "1.5", "true"])
def test_no_such_class(clothes: Command, label: str) -> None:
    result = clothes("sample", *QUICK, f"label={label}", "out=o")
    assert (result.code, result.err.count("\n"), Path("o").exists()) == (2, 1, False)


def test_one_class_is_compared_with_that_class(clothes: Command) -> None:
    kinds = {}
    for label in ("Coat", "Trouser", "cycle"):
        assert clothes("sample", *QUICK, "num_samples=40", f"label={label}", f"out={label}").code == 0
        kinds[label] = json.loads(Path(label, "report.json").read_text())
    # Within one class real data are alike; between them a class is far from the whole.
    assert kinds["Coat"]["compared"][1] < kinds["cycle"]["compared"][1]
    assert kinds["Coat"]["sliced_wasserstein_real"] < 0.1 < kinds["cycle"]["sliced_wasserstein"]


def test_a_class_with_too_few_held_out(clothes: Command) -> None:
    result = clothes("sample", *QUICK, "num_samples=40", "label=Bag", "out=o")
    assert (result.code, "fewer than two" in result.out) == (0, True)
    assert "energy_distance" not in json.loads(Path("o/report.json").read_text())


def about(counts: tuple[int, ...], unlabelled: int | None) -> Description:
    whole = sg.data.mixture(n=8, n_test=8).description
    names = tuple(f"class {k}" for k in range(len(counts)))
    return Description("x", "vector", (2,), whole.transform, names, counts, "", unlabelled)


def test_which_labels_are_asked_for() -> None:
    seen = about((5, 0, 7), 0)
    assert chosen(None, seen, True) is None, "training dropped labels: none is the usual one"
    for dropped in (False, None):
        assert chosen(None, seen, dropped) == Labels((0, 2), ("class 0", "class 2"), all=True)
    assert chosen("none", seen, None) == chosen("none", about((5, 0, 7), 3), False) == Labels((3,), ())
    for wrong in ("class 1", ["class 0", 1]):
        with pytest.raises(ConfigError, match="never occurred"):
            chosen(wrong, seen, True)
    assert chosen(None, about((), 0), None) is None
    with pytest.raises(ConfigError, match="without labels"):
        chosen(0, about((), 0), None)
    assert cycled((4, 9), 3, 4).tolist() == [9, 4, 9, 4]


@pytest.mark.parametrize(("classes", "count"), [(2, 4), (3, 64), (10, 100), (10, 30), (16, 64), (20, 100)])
def test_columns_hold_one_class_each(classes: int, count: int) -> None:
    columns = columns_for(classes, count)
    assert columns in range(classes, 21, classes)
    grid = torch.arange(count // columns * columns).remainder(classes).reshape(-1, columns)
    assert bool((grid == grid[0]).all())
    assert columns_for(1, count) is columns_for(21, count) is None


def test_grids_line_up(command: Command) -> None:
    Path("pictures").mkdir()
    for k in range(3):
        Path("pictures", f"kind {k}").mkdir()
        for i in range(6):
            Image.new("L", (4, 4), 80 * k + i).save(f"pictures/kind {k}/{i}.png")
    network = ("network=unet", "network.width=8", "network.multipliers=[1]", "network.blocks=1")
    data = ("data=image_folder", "data.path=pictures")
    result = command("train", *data, *network, *SMALL[:-2], "device=cpu", "trainer.preview_samples=7")
    assert result.code == 0, result.err
    assert command("sample", *QUICK, "num_samples=12", "out=o").code == 0
    widths = []
    for path in ("o/samples.png", next(Path("runs/c/samples").glob("*.png"))):
        with Image.open(path) as picture:
            widths.append(picture.width)
    assert {width % (3 * 5 + 1) for width in widths} == {0}, "three columns of 4 pixels and a gap"
    assert command("sample", *QUICK, "num_samples=2", "label=kind 1", "out=p").code == 0


def test_the_data_of_a_strangers_checkpoint_are_not_opened(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.csv").write_text("a,b\n" + "\n".join(f"{i},{i * i % 7}" for i in range(40)) + "\n")
    tiny = tuple(a for a in TINY if not a.startswith("data"))
    assert command("train", *tiny, "data=csv_file", "data.path=mine.csv", "run=c").code == 0
    quick = ("sample", *QUICK, "num_samples=20")
    here = command(*quick, "out=here")
    assert (here.code, "no comparison" in here.out) == (0, False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("another").resolve()))  # another person's machine
    opened = command(*quick, "out=there")
    assert opened.code == 0
    assert "data=csv_file data.path=..." in opened.out
    assert command("evaluate", "run=c", "device=cpu").code == 66
    said = ("data=csv_file", "data.path=mine.csv")
    assert "no comparison" not in command(*quick, "out=said", *said).out
    monkeypatch.chdir("here")
    again = command(*quick, "out=again", "runs_dir=../runs")
    assert (again.code, "no comparison" in again.out) == (0, False), "what was said once is known from anywhere"
    Path("other.csv").write_text("a,b\n1,2\n3,4\n5,6\n")
    assert command(*quick, "runs_dir=../runs", "data=csv_file", "data.path=other.csv").code == 65


@pytest.mark.parametrize(("key", "value"), [("hidden", 10**9), ("layers", 10**7), ("hidden", 4000), ("hidden", 1e300)])
def test_a_stored_network_may_not_ask_for_more_than_its_weights(trained: Command, key: str, value: float) -> None:
    folder = Path("runs/tiny/checkpoints/step_00000004")
    model = sg.load(folder)
    sg.save(model, "saved")
    for place in (folder / "config.json", Path("saved/config.json")):
        config = json.loads(place.read_text())
        config["network"][key] = value
        place.write_text(json.dumps(config))
    manifest = json.loads((folder / "manifest.json").read_text())
    content = (folder / "config.json").read_bytes()
    manifest["files"]["config.json"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    result = trained("sample", f"checkpoint={folder}", "num_samples=2", "metrics=false")
    assert (result.code, result.err.count("\n")) == (65, 1), result.err
    with pytest.raises(sg.CheckpointError, match="the configuration in saved"):
        sg.load("saved")
