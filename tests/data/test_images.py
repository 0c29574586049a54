"""Image folders: colours, sizes, classes, and every way a folder can be wrong."""

import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sde_gen.data import image_folder
from sde_gen.errors import ConfigError, DataError, MissingInputError


def save(path: Path, size: tuple[int, int] = (6, 4), mode: str = "RGB", seed: int = 0, **options: object) -> np.ndarray:
    """A random image of (width, height); the pixels as stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    Image.fromarray(pixels, mode if mode == "LA" else None).save(path, **options)  # type: ignore[arg-type]
    return pixels


def test_colour_images(tmp_path: Path) -> None:
    pixels = [save(tmp_path / f"{i}.png", seed=i) for i in range(5)]
    data = image_folder(tmp_path, held_out=2)
    assert data.kind == "image"
    assert data.shape == (3, 4, 6)
    assert data.train.shape[0] == 3
    assert data.num_classes == 0
    assert data.transform.levels == 256
    found = data.transform.quantise(torch.cat([data.train, data.test])).permute(0, 2, 3, 1).byte().numpy()
    assert sorted(f.tobytes() for f in found) == sorted(p.tobytes() for p in pixels)


def test_grey_images_stay_grey_until_one_has_colour(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"{i}.png", mode="L", seed=i)
    assert image_folder(tmp_path).shape == (1, 4, 6)
    assert image_folder(tmp_path, channels=3).shape == (3, 4, 6)
    save(tmp_path / "3.JPG", seed=3)
    assert image_folder(tmp_path).shape == (3, 4, 6)
    assert image_folder(tmp_path, channels=1).shape == (1, 4, 6)


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    for name, count in (("cat", 3), ("ant", 2)):
        for i in range(count):
            save(tmp_path / name / f"{i}.jpeg", seed=i)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "notes.txt").write_text("not an image")
    data = image_folder(str(tmp_path), held_out=1)
    assert data.num_classes == 2
    assert data.train_labels is not None
    assert data.test_labels is not None
    assert sorted(data.train_labels.tolist() + data.test_labels.tolist()) == [0, 0, 1, 1, 1]


def test_sizes_are_made_equal_on_request(tmp_path: Path) -> None:
    save(tmp_path / "a.png", (10, 30))
    save(tmp_path / "b.png", (40, 7))
    with pytest.raises(DataError, match=r"a\.png is 10 x 30 and .*b\.png is 40 x 7; set image_size"):
        image_folder(tmp_path)
    assert image_folder(tmp_path, image_size=8).shape == (3, 8, 8)


def test_crop_is_central_and_keeps_proportions(tmp_path: Path) -> None:
    pixels = np.zeros((8, 24), np.uint8)
    pixels[:, 8:16] = 255
    for name in "ab":
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    data = image_folder(tmp_path, image_size=8)
    assert torch.equal(data.train, torch.ones_like(data.train))


def test_stored_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in "ab":
        save(tmp_path / f"{name}.jpg", (8, 16), exif=exif)
    assert image_folder(tmp_path).shape == (3, 8, 16)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    for name, mode in (("a", "RGBA"), ("b", "LA")):
        Image.new(mode, (4, 4), 0).save(tmp_path / f"{name}.png")
    data = image_folder(tmp_path)
    assert torch.equal(data.train, torch.ones(1, 3, 4, 4))
    assert torch.equal(data.test, torch.ones(1, 3, 4, 4))


def test_folder_that_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no such folder"):
        image_folder(tmp_path / "none")
    with pytest.raises(DataError, match="no images found"):
        image_folder(tmp_path)
    save(tmp_path / "a" / "1.png")
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="b: no images in this class folder"):
        image_folder(tmp_path)
    save(tmp_path / "1.png")
    with pytest.raises(DataError, match=r"both directly \(1.png\) and in sub-folders \(a/\)"):
        image_folder(tmp_path)


def test_no_picture_is_passed_over_in_silence(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / name / "1.png")
    save(tmp_path / "b" / "more" / "2.png")
    with pytest.raises(DataError, match=r"more: has images in a folder within a folder.*give data.path=.*b$"):
        image_folder(tmp_path)
    shutil.rmtree(tmp_path / "b" / "more")
    (tmp_path / "b" / "notes.txt").touch()
    assert image_folder(tmp_path).num_classes == 2
    for name in ("x.HEIC", "y.gif"):
        (tmp_path / "b" / name).touch()
    with pytest.raises(DataError, match=r"b: x\.HEIC and 1 more like it cannot be read, but \.png, .* can"):
        image_folder(tmp_path)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for file in sorted(tmp_path.rglob("*.*")):
            if file.suffix != ".zip":
                archive.write(file, file.relative_to(tmp_path))
    with pytest.raises(DataError, match=r"all\.zip: b/x\.HEIC cannot be read"):
        image_folder(tmp_path / "all.zip")


def test_several_broken_images_are_named_at_once(tmp_path: Path) -> None:
    for i in range(30):
        save(tmp_path / f"{i:02}.png", (16, 16), seed=i)
    for i in (3, 7, 8):
        file = tmp_path / f"{i:02}.png"
        file.write_bytes(file.read_bytes()[:-200])  # the headers are sound
    with pytest.raises(DataError, match=r"03\.png: the image cannot be decoded .*; so too .*07\.png, .*08\.png$"):
        image_folder(tmp_path)
    for i in range(12, 27):
        (tmp_path / f"{i:02}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"12\.png: not a PNG.*; so too .*13\.png, .*21\.png$"):
        image_folder(tmp_path)


def test_a_single_image_is_too_few(tmp_path: Path) -> None:
    save(tmp_path / "1.png")
    with pytest.raises(DataError, match="needs at least 2 samples"):
        image_folder(tmp_path)


def huge_png() -> bytes:
    """The header of a PNG that claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("damage", ["empty", "text", "half", "huge", "gif", "sixteen"])
def test_a_broken_image_is_named(tmp_path: Path, suffix: str, damage: str) -> None:
    for i in range(3):
        save(tmp_path / f"{i}.{suffix}", (32, 32), seed=i)
    bad = tmp_path / f"1.{suffix}"
    content = bad.read_bytes()
    if damage == "gif":
        Image.new("L", (32, 32)).save(bad, format="GIF")
    elif damage == "sixteen":
        Image.fromarray(np.zeros((32, 32), np.uint16)).save(bad, format="PNG")
    else:
        bad.write_bytes(
            {"empty": b"", "text": b"hello", "half": content[: len(content) // 2], "huge": huge_png()}[damage]
        )
    with pytest.raises(DataError, match=rf"1\.{suffix}: "):
        image_folder(tmp_path)


def test_any_flipped_byte_gives_images_or_a_clear_error(tmp_path: Path) -> None:
    for i in range(2):
        save(tmp_path / f"{i}.png", (5, 5), seed=i)
    bad = tmp_path / "1.png"
    content = bad.read_bytes()
    for place in range(len(content)):
        bad.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        message = "1.png"
        try:
            assert torch.isfinite(image_folder(tmp_path).train).all()
        except DataError as error:
            message = str(error)
        assert "1.png" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size must be a whole number"),
        ({"image_size": 8.0}, "image_size must be a whole number"),
        ({"channels": 2}, "channels must be 1"),
        ({"held_out": 5}, "held_out must be"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_refuses_bad_arguments(tmp_path: Path, options: dict, message: str) -> None:
    for i in range(3):
        save(tmp_path / f"{i}.png", seed=i)
    with pytest.raises(ConfigError, match=message):
        image_folder(tmp_path, **options)


@pytest.mark.parametrize("suffix", [".bmp", ".webp", ".tif", ".TIFF", ".png"])
def test_lossless_formats_give_the_pixels_that_were_stored(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == ".webp" else {}
    pixels = [save(tmp_path / f"{i}{suffix}", seed=i, **options) for i in range(3)]
    data = image_folder(tmp_path, held_out=1)
    found = data.transform.quantise(torch.cat([data.train, data.test])).permute(0, 2, 3, 1).byte().numpy()
    assert sorted(f.tobytes() for f in found) == sorted(p.tobytes() for p in pixels)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif"])
def test_every_format_is_turned_as_the_camera_was(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    for i in range(2):
        image = Image.new("RGB", (6, 4), "black")
        image.paste("white", (0, 0, 3, 4))
        image.save(tmp_path / f"{i}{suffix}", exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    data = image_folder(tmp_path)
    assert data.shape == (3, 6, 4)
    assert float(data.train[0, :, 0].min()) > 0.8 > -0.8 > float(data.train[0, :, -1].max())


@pytest.mark.parametrize("kind", ["16 bits", "float", "pages", "frames"])
def test_what_eight_bits_do_not_hold_is_refused(tmp_path: Path, kind: str) -> None:
    save(tmp_path / "0.png")
    two = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    if kind == "16 bits":
        Image.fromarray(np.zeros((4, 6), np.uint16)).save(tmp_path / "1.tif")
    elif kind == "float":
        Image.fromarray(np.zeros((4, 6), np.float32)).save(tmp_path / "1.tiff")
    else:
        two[0].save(tmp_path / ("1.tif" if kind == "pages" else "1.webp"), save_all=True, append_images=two[1:])
    with pytest.raises(DataError, match=r"1\.\w+: .*(more than 8 bits a channel|holds 2 pictures)"):
        image_folder(tmp_path)
