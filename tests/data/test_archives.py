"""Images in zip and tar files: the same as unpacked, in shards too, and nothing hostile is believed or written."""

import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sde_gen.data import image_folder
from sde_gen.errors import ConfigError, DataError, MissingInputError


def png(seed: int = 0, size: tuple[int, int] = (5, 4)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


FLAT = {f"{i}.png": png(i) for i in range(5)}
CLASSES = {f"photos/{name}/{i}.png": png(10 * k + i) for k, name in enumerate(("10", "9", "cat")) for i in range(3)}


def packed(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """An archive of members, of the kind that its name says; directories and other files are added."""
    members = {**members, "notes.txt": b"no image", "__MACOSX/._0.png": b"x", ".hidden.png": b"x"}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", method) as file:
            file.writestr("photos/", b"")
            for name, content in members.items():
                file.writestr(name, content)
        return path
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def unpacked(folder: Path, members: dict[str, bytes]) -> Path:
    for name, content in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("kind", ["zip", "tar", "stored"])
@pytest.mark.parametrize("members", [FLAT, CLASSES], ids=["flat", "classes"])
def test_an_archive_holds_what_it_holds_unpacked(kind: str, members: dict[str, bytes], tmp_path: Path) -> None:
    method = zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED
    path = packed(tmp_path / f"some.{'tar' if kind == 'tar' else 'zip'}", dict(reversed(members.items())), method)
    before = sorted(tmp_path.rglob("*"))
    data = image_folder(path)
    assert sorted(tmp_path.rglob("*")) == before
    folder = unpacked(tmp_path / "u", members)
    same = image_folder(folder / "photos" if members is CLASSES else folder)
    assert data.fingerprint == same.fingerprint
    assert data.name == "some"
    assert data.classes == same.classes == (("9", "10", "cat") if members is CLASSES else ())


def test_shards_are_one_set_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    names = sorted(FLAT)
    packed(tmp_path / "shards/train-1.tar", {n: FLAT[n] for n in names[3:]})
    packed(tmp_path / "shards/train-0.zip", {n: FLAT[n] for n in names[:3]})
    whole = image_folder(unpacked(tmp_path / "u", FLAT))
    assert image_folder(tmp_path / "shards").fingerprint == whole.fingerprint
    assert image_folder(str(tmp_path / "shards/train-*")).fingerprint == whole.fingerprint
    with pytest.raises(MissingInputError, match="no file matches"):
        image_folder(str(tmp_path / "shards/test-*.tar"))
    with pytest.raises(ConfigError, match=r"must match \.zip or \.tar files"):
        image_folder(str(tmp_path / "u/*.png"))


def test_webdataset_keeps_the_class_beside_the_image(tmp_path: Path) -> None:
    for shard in range(2):
        members = {f"{shard}{i}.png": png(10 * shard + i) for i in range(4)}
        classes = {f"{shard}{i}.cls": str((shard + i) % 3).encode() for i in range(4)}
        packed(tmp_path / f"{shard}.tar", members | classes)
    data = image_folder(tmp_path)
    assert data.classes == ("0", "1", "2")
    assert data.train_labels is not None
    assert data.test_labels is not None
    assert sorted([*data.train_labels.tolist(), *data.test_labels.tolist()]) == [0, 0, 0, 1, 1, 1, 2, 2]
    packed(tmp_path / "2.tar", {"x.png": png()})
    with pytest.raises(DataError, match=r"2\.tar: x\.png has no \.cls beside it, and others have"):
        image_folder(tmp_path)


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", ["/etc/a.png", "../a.png", "a/../../b.png", "C:/a.png"])
def test_names_that_lead_out_are_refused(kind: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leads out of the archive; make the archive anew"):
        image_folder(packed(tmp_path / f"a.{kind}", FLAT | {name: png()}))


@pytest.mark.parametrize("what", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_file_are_refused(what: bytes, tmp_path: Path) -> None:
    path = packed(tmp_path / "a.tar", FLAT)
    with tarfile.open(path, "a") as file:
        info = tarfile.TarInfo("z.png")
        info.type, info.linkname = what, "/etc/passwd"
        file.addfile(info)
    with pytest.raises(DataError, match=r"z\.png is a link or no plain file"):
        image_folder(path)


def test_a_link_in_a_zip_file_is_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", FLAT)
    with zipfile.ZipFile(path, "a") as file:
        info = zipfile.ZipInfo("z.png")
        info.external_attr = 0o120777 << 16
        file.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match=r"z\.png is a link"):
        image_folder(path)


def _patched(path: Path, record: bytes, offset: int, value: bytes) -> None:
    """Change bytes of the first central (PK12) or local (PK34) record of a zip file."""
    content = bytearray(path.read_bytes())
    place = content.index(record) + offset
    content[place : place + len(value)] = value
    path.write_bytes(content)


CENTRAL, LOCAL = b"PK\x01\x02", b"PK\x03\x04"
LIES = {
    "encrypted": (CENTRAL, 8, b"\x01\x00", "is encrypted"),
    "method": (CENTRAL, 10, struct.pack("<H", 12), "packed by method 12"),
    "huge": (CENTRAL, 24, struct.pack("<I", 2**31), "more than the limit"),
    "longer": (CENTRAL, 24, struct.pack("<I", 10**6), "damaged here"),
    "shorter": (CENTRAL, 24, struct.pack("<I", 10), "damaged here"),
    "crc": (CENTRAL, 16, b"\0\0\0\0", "damaged here"),
    "header": (LOCAL, 0, b"XXXX", "damaged here"),
    "offset": (CENTRAL, 42, struct.pack("<I", 10**8), "damaged here"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_a_zip_file_says_is_not_believed(lie: str, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in FLAT.items():
            file.writestr(name, content)
    record, offset, value, message = LIES[lie]
    _patched(path, record, offset, value)
    with pytest.raises(DataError, match=message):
        image_folder(path)


def test_a_bomb_is_not_unpacked_beyond_what_it_states(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("0.png", bytes(2**28 + 1))  # 260 kB in the archive
    assert path.stat().st_size < 2**19
    with pytest.raises(DataError, match=r"0\.png has 268435457 bytes, more than the limit"):
        image_folder(path)
    _patched(path, CENTRAL, 24, struct.pack("<I", 100))
    with pytest.raises(DataError, match="damaged here"):
        image_folder(path)


def test_any_truncation_or_flipped_byte_gives_images_or_one_sentence(tmp_path: Path) -> None:
    few = {name: FLAT[name] for name in ("0.png", "1.png")}
    for kind in ("zip", "tar"):
        path = packed(tmp_path / f"a.{kind}", few)
        content = path.read_bytes()
        rng = np.random.default_rng(0)
        for place in rng.choice(min(len(content), 4000), 120, replace=False):
            for changed in (content[:place], content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]):
                path.write_bytes(changed)
                message = path.name
                try:
                    assert torch.isfinite(image_folder(path).train).all()
                except DataError as error:
                    message = str(error)
                assert path.name in message or "needs at least 2 samples" in message


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_what_no_set_of_images_is(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    with pytest.raises(MissingInputError, match="no such file"):
        image_folder(path)
    for members, message in [
        ({}, "no images found"),
        (FLAT | {"cat/1.png": png()}, "both directly and in the folder cat/"),
        (CLASSES | {"photos/cat/deep/1.png": png()}, "both directly|folders within folders"),
        ({"a/b/1.png": png(), "c/d/1.png": png()}, "folders within folders"),
        ({"0.png": b"text", "1.png": png()}, r"0\.png: not a PNG"),
        (FLAT | {"big.png": png(size=(9, 9))}, r"images of mixed sizes: .*0\.png is 5 x 4 and .*big\.png is 9 x 9"),
    ]:
        with pytest.raises(DataError, match=message):
            image_folder(packed(path, members))
    os.remove(path)
    os.mkfifo(path)
    with pytest.raises(DataError, match="a pipe, device or socket is not data"):
        image_folder(path)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar.xz", "a.7z"])
def test_archives_that_are_compressed_as_a_whole_are_told_apart(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"decompress it to \.tar, or unpack it"):
        image_folder(tmp_path / name)


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.tar", FLAT)
    with tarfile.open(path, "a") as file:
        info = tarfile.TarInfo("0.png")
        info.size = len(png(7))
        file.addfile(info, io.BytesIO(png(7)))
    with pytest.raises(DataError, match=r"holds 0\.png twice"):
        image_folder(path)
