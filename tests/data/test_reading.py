"""Files as people have them: tables of other programs, awkward paths, pipes and devices, damage."""

import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sde_gen.data import Dataset, array_file, csv_file, fashion_mnist, hub, image_folder
from sde_gen.data.decoding import Decoder, Encoded
from sde_gen.errors import ConfigError, DataError, MissingInputError, SDEGenError

READERS = pytest.mark.parametrize(
    "read", [csv_file, array_file, image_folder, fashion_mnist, hub], ids=lambda read: read.__name__
)
NAMES = (
    "x",
    "x (1)",
    "a=1",
    "a,b",
    "#2",
    "it's",
    "gr\u00fc\u00dfe",
    "[x]",
    "{x}",
    "a&b;c",
    "$x ${y}",
    " x ",
    "-x",
    "\u6570",
)


def table(folder: Path, text: str, encoding: str = "utf-8", name: str = "x.csv") -> Path:
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


def rows(data: Dataset) -> list[list[float]]:
    return sorted(data.transform.inverse(torch.cat([data.train, data.test])).round().tolist())


EXPECTED = [[1, 4], [2, 9], [3, 16]]


@pytest.mark.parametrize("mark", ["\t", ";", "|", " "])
@pytest.mark.parametrize("header", ["", "a{}b\n", '"a"{}"b, c"\n'])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_another_delimiter_is_found_where_only_one_fits(tmp_path: Path, mark: str, header: str, end: str) -> None:
    text = (header.format(mark) + f"1{mark}4\n2{mark}9\n3{mark}16\n").replace("\n", end)
    if "," not in header:
        assert rows(csv_file(table(tmp_path, text))) == EXPECTED
    assert rows(csv_file(table(tmp_path, text), delimiter=mark)) == EXPECTED


@pytest.mark.parametrize("spelled", ["\t", "\\t", "tab"])
def test_a_tab_can_be_spelled(tmp_path: Path, spelled: str) -> None:
    assert rows(csv_file(table(tmp_path, "1\t4\n2\t9\n3\t16\n"), delimiter=spelled)) == EXPECTED


@pytest.mark.parametrize("delimiter", ["", ",,", '"', "\n", "\r", "\0", "\\n", "tabs"])
def test_what_is_no_delimiter(tmp_path: Path, delimiter: str) -> None:
    with pytest.raises(ConfigError, match="delimiter must be one character"):
        csv_file(table(tmp_path, "1,4\n2,9\n"), delimiter=delimiter)


@pytest.mark.parametrize(
    "text",
    ["1;2|3\n4;5|6\n", "a;b\n1,5;2,5\n3,5;4,5\n", "1,5;2\n3,5;4\n", "height cm\n1\n2;3\n", "1 2\t3\n4 5\t6\n"],
)
def test_nothing_is_guessed_where_more_than_one_or_none_fits(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"is not a finite number; is .* the delimiter|columns"):
        csv_file(table(tmp_path, text))


GERMAN = "".join(f"{k},5;20.618,{k}\n" for k in range(9))


def test_numbers_with_a_decimal_comma(tmp_path: Path) -> None:
    text = "a;b\n" + "".join(f"{k},5;-1,{k}e2\n" for k in range(9))
    with pytest.raises(DataError, match=r"'0,5' is not a finite number; .* a decimal comma \(data.decimal=\",\"\)"):
        csv_file(table(tmp_path, text), delimiter=";")
    for content in (text, text.removeprefix("a;b\n")):
        data = csv_file(table(tmp_path, content), decimal=",")
        found = data.transform.inverse(torch.cat([data.train, data.test]).double())
        torch.testing.assert_close(found[found[:, 0].argsort()], torch.tensor(
            [[k + 0.5, -100.0 - 10 * k] for k in range(9)], dtype=torch.float64), rtol=1e-5, atol=1e-5)  # fmt: skip
    for text, what in ((GERMAN, r"'20\.618,0'"), (GERMAN.replace("618,", "61"), r"'20\.610'")):
        with pytest.raises(DataError, match=rf"{what} is not a finite number.* thousands are not read"):
            csv_file(table(tmp_path, text), decimal=",")
    with pytest.raises(ConfigError, match=r"decimal must be one of '\.', ','"):
        csv_file(table(tmp_path, text), decimal=";")


def test_columns_are_left_out_and_so_is_an_index(tmp_path: Path) -> None:
    lines = [f"{k},{k * k},2024-01-{k + 1:02},{'ab'[k % 2]}" for k in range(20)]
    text = ",x,date,y\n" + "\n".join(lines) + "\n"
    with pytest.raises(DataError, match=r"'2024-01-01' is not .* left out by data.ignore=\[date\]"):
        csv_file(table(tmp_path, text))
    data = csv_file(table(tmp_path, text), ignore=["date"])
    assert [column.name for column in data.columns] == ["x", "y"]
    assert [c.name for c in csv_file(table(tmp_path, text), ignore=[2, "y"]).columns] == ["x"]
    assert csv_file(table(tmp_path, text.replace("\n3,", "\n7,")), ignore=["date"]).columns[0].name == ""
    assert [c.name for c in csv_file(table(tmp_path, "k" + text), ignore=["date"]).columns] == ["k", "x", "y"]
    with pytest.raises(ConfigError, match="ignore names no column 'z'"):
        csv_file(table(tmp_path, text), ignore=["z"])
    with pytest.raises(ConfigError, match="leave no column"):
        csv_file(table(tmp_path, text), ignore=["x", "date", "y"])


def test_another_encoding(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes("Größe,Stadt\n1,Köln\n2,Köln\n3,Bonn\n4,Bonn\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"in UTF-8 \(.*\); a file of Windows may be data.encoding=cp1252"):
        csv_file(file)
    first, second = csv_file(file, encoding="cp1252").columns
    assert (first.name, second.values) == ("Größe", ("Bonn", "Köln"))
    with pytest.raises(ConfigError, match="encoding must be one that Python knows"):
        csv_file(file, encoding="cp99999")
    file.write_bytes("ä,b\n1,2\n3,4\n".encode("utf-8-sig"))
    assert csv_file(file, encoding="cp1252").columns[0].name == "ä", "a byte order mark says what it is"


@pytest.mark.parametrize(("content", "what"), [
    (b"MATLAB 5.0 MAT-file", r"a MATLAB file.*scipy.io.loadmat"), (b"MATLAB 7.3 MAT-file", "which is HDF5"),
    (b"\x89HDF\r\n\x1a\n", r"an HDF5 file.*h5py"), (b"PAR1\x15\x04", r"a Parquet file.*read_parquet"),
    (b"\x1f\x8b\x08", "gunzip"), (b"\x80\x04\x95", "a pickle"), (b"\x89PNG", "image_folder"),
    ("xl/workbook.xml", r"a workbook of Excel.*CSV UTF-8"), ("x/data.pkl", r"torch\.load"),
])  # fmt: skip
def test_files_of_other_programs_are_told_by_their_names(tmp_path: Path, content: bytes | str, what: str) -> None:
    file = tmp_path / "x"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(content, "x")
    for read in (csv_file, array_file):
        with pytest.raises(DataError, match=rf"x: is {what}" if what[:2] in ("a ", "an") else what):
            read(file)


@pytest.mark.parametrize("first", ["PAR1", "MATLAB 2024", "ARROW1", "€ net"])
def test_words_that_begin_alike_are_none_of_those(tmp_path: Path, first: str) -> None:
    columns = csv_file(table(tmp_path, f"{first},b\n1,2\n3,4\n", encoding="cp1252"), encoding="cp1252").columns
    assert columns[0].name == first


def test_a_table_is_no_array(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"it begins as neither\); a table is data=csv_file"):
        array_file(table(tmp_path, "1,2\n3,4\n"))


def test_one_column_stays_one_column(tmp_path: Path) -> None:
    assert csv_file(table(tmp_path, "height cm\n1\n2\n")).shape == (1,)
    assert csv_file(table(tmp_path, "1\n2\n")).shape == (1,)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("big", [False, True])
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, encoding: str, big: bool) -> None:
    text, code = "gr\u00f6\u00dfe\tb\n1\t4\n2\t9\n3\t16\n", encoding
    if big and encoding in ("utf-16", "utf-32"):
        text, code = "\ufeff" + text, f"{encoding}-be"
    assert rows(csv_file(table(tmp_path, text, code))) == EXPECTED


@pytest.mark.parametrize("name", NAMES)
def test_awkward_names(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / name
    folder.mkdir()
    path = table(folder, "1,4\n2,9\n3,16\n", name=f"{name}.csv")
    first = csv_file(path)
    assert first.name == name
    for other in (str(path), f"~/{name}/{name}.csv", f"./{name}/{name}.csv", Path(name) / f"{name}.csv"):
        assert csv_file(other).fingerprint == first.fingerprint
    np.save(folder / f"{name}.npy", np.arange(6.0).reshape(3, 2))
    assert array_file(f"~/{name}/{name}.npy").name == name
    for i in range(2):
        Image.new("L", (3, 3)).save(folder / f"{name}{i}.png")
    assert image_folder(f"~/{name}").name == name


@READERS
def test_what_is_no_file_is_never_opened(tmp_path: Path, read: Callable) -> None:
    """Opening the pipe would wait for ever; the test would be stopped by its time limit."""
    if read is hub:
        pytest.importorskip("datasets")
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    for path in (pipe, "/dev/zero", "/dev/null", "/dev/stdin"):
        if not Path(path).is_file():
            with pytest.raises((DataError, MissingInputError)) as caught:
                read(path)
            assert path == "/dev/stdin" or isinstance(caught.value, DataError)


@pytest.mark.parametrize("place", ["1.png", "class/1.JPG"])
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_a_pipe_or_a_link_to_nothing_among_images_is_named(tmp_path: Path, place: str, kind: str) -> None:
    for i in range(2, 5):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.new("L", (3, 3)).save((tmp_path / place).parent / f"{i}.png")
    if kind == "pipe":
        os.mkfifo(tmp_path / place)
    else:
        (tmp_path / place).symlink_to(tmp_path / "none")
    with pytest.raises((DataError, MissingInputError), match=place.split("/")[-1]):
        image_folder(tmp_path)


def test_a_pipe_among_idx_files_and_in_a_folder_for_the_hub(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises((DataError, MissingInputError)):
        fashion_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"")
    with pytest.raises(DataError, match="a pipe, device or socket is not data"):
        fashion_mnist(tmp_path)
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match="a pipe, device or socket is not data"):
        hub(tmp_path)


@READERS
@pytest.mark.parametrize(
    "path", ["~nobody-of-this-name/x.csv", "./none.csv", "/none/" + "a" * 300, "/a\0b", 5, b"x.csv"]
)
def test_no_such_place(read: Callable, path: object) -> None:
    if read is hub:
        pytest.importorskip("datasets")
    error = MissingInputError if isinstance(path, str) else ConfigError
    with pytest.raises(error) as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@READERS
def test_a_place_that_may_not_be_looked_at(tmp_path: Path, read: Callable) -> None:
    (tmp_path / "shut").mkdir(mode=0)
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "shut" / "x.csv")


@pytest.mark.parametrize("kind", ["npy", "npz", "csv"])
def test_any_damage_is_one_sentence(tmp_path: Path, kind: str) -> None:
    """Bytes cut off, changed or put in, 300 times a format: a data set or one of our errors, on one line."""
    values = np.random.default_rng(0).normal(size=(12, 2))
    path = tmp_path / f"x.{kind}"
    if kind == "npy":
        np.save(path, values)
    elif kind == "npz":
        np.savez_compressed(path, x=values, y=np.arange(12) % 3)
    else:
        path.write_text("a,b\n" + "".join(f"{a},{b}\n" for a, b in values))
    content, draws = path.read_bytes(), random.Random(0)
    for _ in range(300):
        place, end = draws.randrange(len(content)), draws.randrange(len(content) + 1)
        piece = draws.choice([b"", bytes([draws.randrange(256)]), b"\0" * 8, b"\xff" * 4, content[:end]])
        path.write_bytes(content[:place] + piece + content[place + draws.choice([1, 8, 10**6]) :])
        said = "x: fine"
        try:
            (csv_file if kind == "csv" else array_file)(path)
        except SDEGenError as error:
            said = str(error)
        assert "\n" not in said
        assert "x" in said.split(":", maxsplit=1)[0]


def test_an_archive_of_other_things_is_no_data(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "x.pt")
    with pytest.raises(SDEGenError):
        array_file(tmp_path / "x.pt")
    with pytest.raises(DataError, match=r"is a file of torch\.save"):
        array_file(tmp_path / "x.pt", key="x/version")


@pytest.mark.parametrize("mode", ["I;16", "RGB", "RGBA", "LA"])
def test_sixteen_bits_a_channel_are_refused_in_grey_and_in_colour(tmp_path: Path, mode: str) -> None:
    """Pillow cannot write 48 bits a pixel, so the depth in the header is set by hand."""
    for i in range(3):
        Image.new(mode, (4, 4)).save(tmp_path / f"{i}.png")
    content = bytearray((tmp_path / "1.png").read_bytes())
    assert content[24] == (16 if mode == "I;16" else 8)
    content[24] = 16
    (tmp_path / "1.png").write_bytes(content)
    if mode == "I;16":
        for i in (0, 2):
            Image.new("L", (4, 4)).save(tmp_path / f"{i}.png")
    with pytest.raises(DataError, match=r"1\.png: .*16 bits a channel"):
        image_folder(tmp_path)


def test_the_fingerprint_is_of_what_was_read(tmp_path: Path) -> None:
    path = table(tmp_path, "1,4\n2,9\n3,16\n")
    data, before = csv_file(path), csv_file(path).fingerprint
    table(tmp_path, "5,4\n2,9\n3,16\n")
    assert data.fingerprint == before
    assert csv_file(path).fingerprint != before
    np.save(tmp_path / "x.npy", PICTURES)
    first, again = array_file(tmp_path / "x.npy"), array_file(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", 255 - PICTURES)
    assert first.fingerprint == again.fingerprint
    path.unlink()
    assert data.fingerprint == before


PICTURES = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)


def test_images_that_change_while_they_are_read(tmp_path: Path) -> None:
    for i in range(2):
        Image.new("L", (4, 4)).save(tmp_path / f"{i}.png")

    def change(opened: list[int]) -> Encoded:
        def look() -> object:
            opened[0] += 1
            if opened[0] == 2:
                Image.new("L", (5, 4)).save(tmp_path / "1.png")
            return (tmp_path / "1.png").open("rb")

        return Encoded("1.png", look)  # type: ignore[arg-type]

    sources = [Encoded("0.png", lambda: (tmp_path / "0.png").open("rb")), change([0])]
    with pytest.raises(DataError, match=r"1\.png: was changed while it was read"):
        Decoder.of(sources, None, None)(sources)


@pytest.mark.parametrize("label", [1, -1, np.int64(1), np.int8(-1)])
def test_a_place_of_numpy_names_the_labels(tmp_path: Path, label: int) -> None:
    assert csv_file(table(tmp_path, "1,4\n2,9\n3,9\n"), label=label).classes == ("4", "9")


def test_a_truth_value_is_no_place_of_the_labels(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no column True"):
        csv_file(table(tmp_path, "1,4\n2,9\n3,9\n"), label=True)


@pytest.mark.parametrize("name", ["a\0b", "a" * 300, "no/such/" + "b" * 300])
def test_a_name_that_no_hub_can_have(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError(name)))
    with pytest.raises(MissingInputError, match="no such file, folder or data set"):
        hub(name)


@pytest.mark.filterwarnings("ignore")  # the library and its own dependencies warn at will
def test_classes_that_the_hub_states_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    named = datasets.ClassLabel(names=["dog", "ant", "cat"])
    features = datasets.Features({"v": datasets.Value("float64"), "y": named})
    columns = {"v": [float(i) for i in range(8)], "y": [0, 1, -1, 0, 1, 0, 1, -1]}
    parquet.write_table(pa.table(columns, schema=features.arrow_schema), tmp_path / "x.parquet")
    data = hub(tmp_path / "x.parquet", held_out=2)
    assert data.classes == ("dog", "ant", "cat")
    assert data.train_labels is not None
    x = data.transform.inverse(data.train)[:, 0].round().long().tolist()
    assert data.train_labels.tolist() == [3 if columns["y"][i] < 0 else columns["y"][i] for i in x]
    with pytest.raises(ConfigError, match="'cat' never occurred in training; choose one of dog, ant"):
        data.label_of("cat")
