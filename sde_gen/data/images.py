"""Images from folders, and from zip and tar files."""

import glob
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sde_gen.data.archives import ARCHIVES, Members, is_archive
from sde_gen.data.dataset import Dataset
from sde_gen.data.decoding import SUFFIXES, UNREAD, Decoder, Encoded, Images
from sde_gen.data.labels import encode, order_of
from sde_gen.data.making import from_raw, streamed
from sde_gen.data.reading import located, sentence
from sde_gen.data.streams import PIXELS, Pictures, streams
from sde_gen.errors import ConfigError, DataError, MissingInputError

_ENDINGS = tuple(map(str.encode, SUFFIXES))
_WHAT = "path (data.path) must be a folder of images, or a .zip or .tar file of them"


def image_folder(
    path: str | Path,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    random_flip: bool = False,
    random_crop: int | None = None,
    stream: bool | None = None,
    workers: int = 2,
    held_out: int | float = 0.1,
    seed: int = 0,
) -> Dataset:
    """The images of a folder, a .zip or a .tar file, or of its sub-folders, which then are the classes.

    PNG, JPEG, WebP, BMP and TIFF, of 8 bits a channel. Files are taken in the order of their names; class folders too,
    those that are numbers by their value. The rotation that a camera stored is applied; transparent pixels are laid on
    white. Archives are read where they lie, never unpacked; a folder of them, or a pattern, is one set in several
    shards, in which the classes may also be members `0001.cls` beside `0001.png`, as WebDataset has them.

    Args:
        path: folder with images, or with one sub-folder of images for each class; or an archive of the like, a folder
            of archives, or a pattern such as "shards/train-*.tar".
        image_size: scale the shorter side to this, by Lanczos' filter (antialiased), and cut out the central square;
            None: keep the size, which then must be the same for all.
        channels: 1 (grey) or 3 (colour); None: 1 where all images are grey, else 3.
        random_flip: exchange left and right of a training image with probability 1/2, anew each time it is used.
        random_crop: side of a square window that is cut out of a training image at a place drawn anew each time, and of
            a held-out one in the middle: image_size=40 random_crop=32; None: no window.
        stream: whether images stay on the disk and are decoded batch by batch, in the same order; None: where they
            would take more than 4 GiB of memory.
        workers: threads that decode batches before they are wanted, of streamed images; 0: none.
        held_out: fraction in (0, 1), or number of samples, to hold out.
        seed: picks the held-out samples.

    Raises:
        MissingInputError: no such folder or archive.
        DataError: no images in it, a file that cannot be decoded, has 16 bits a channel or several pictures, mixed
            sizes, a pipe or a link among the images; the file is named. A damaged or hostile archive.
        ConfigError: another argument outside its range, an archive that is compressed as a whole.
    """
    name, images, labels, classes = listed(path)
    decoder, augment = (
        Decoder.of(images, image_size, channels),
        {"random_flip": random_flip, "random_crop": random_crop},
    )
    if streams(stream, (len(images), *decoder.shape)):
        source = Pictures(images, decoder, labels, workers)
        return streamed(name, source, PIXELS, held_out, seed, classes, **augment)
    return from_raw(name, "image", decoder(images), labels, PIXELS, held_out, seed, classes, **augment)


def listed(path: str | Path) -> tuple[str, Images, Tensor | None, tuple[str, ...]]:
    """A name, the images, their labels and the names of the classes."""
    archives = _archives(path)
    if archives is None:
        folder = located(path, _WHAT, folder=True)
        return folder.name, *_in_folder(folder)
    members, place = Members(archives), str(path)
    name = (archives[0] if len(archives) == 1 else Path(place.partition("*")[0])).stem or "shards"
    if not len(members):
        raise DataError(f"{place}: no images found; it must hold {', '.join(SUFFIXES)} files, or folders of them")
    folders = sorted(set(members.folders), key=order_of)
    if folders == [""]:
        if members.labels is None:
            return name, members, None, ()
        return name, members, *encode(place, members.labels)
    numbers = {folder: number for number, folder in enumerate(folders)}
    keys = np.array([numbers[folder] for folder in members.folders])
    members.sorted_by(keys)
    return name, members, torch.from_numpy(np.sort(keys, kind="stable")), tuple(folders)


def _archives(path: str | Path) -> list[Path] | None:
    """The archives that a path means: itself, those in a folder of nothing else, or what a pattern finds."""
    text = os.path.expanduser(path) if isinstance(path, str) else path
    if isinstance(text, str) and "*" in text and not os.path.lexists(text):
        found = [Path(match) for match in sorted(glob.glob(text))]
        if not found:
            raise MissingInputError(f"{path}: no file matches; {_WHAT}")
    elif isinstance(text, str | Path) and is_archive(Path(text)) and not Path(text).is_dir():
        found = [Path(text)]
    else:
        folder = Path(text) if isinstance(text, str | Path) else None
        inside = _visible(folder) if folder is not None and folder.is_dir() else []
        shards = sorted(file for file in inside if file.suffix.lower() in ARCHIVES and not file.is_dir())
        if not shards or any(file.is_dir() or file.suffix.lower() in SUFFIXES for file in inside):
            return None
        found = shards
    for file in found:
        if not is_archive(file):
            raise ConfigError(f"{file}: a pattern must match .zip or .tar files alone; {_WHAT}")
    return [located(file, _WHAT) for file in found]


class Files(Images):
    """Image files of some folders, in order; of each only its name is kept."""

    def __init__(self, folders: Sequence[Path], names: Sequence[NDArray[np.bytes_]]) -> None:
        self._folders, self._names = list(folders), np.concatenate(names)
        self._of = np.repeat(np.arange(len(names)), [len(part) for part in names])

    def __len__(self) -> int:
        """See `Images`."""
        return len(self._names)

    def __getitem__(self, index: int) -> Encoded:
        """See `Images`."""
        file = self._folders[self._of[index]] / os.fsdecode(bytes(self._names[index]))
        return Encoded(str(file), partial(file.open, "rb"))


def _in_folder(folder: Path) -> tuple[Files, Tensor | None, tuple[str, ...]]:
    """The image files of a folder, their labels, and the names of the classes."""
    files = _images(folder)
    folders = [f for f in _visible(folder) if f.is_dir()]
    folders.sort(key=lambda f: order_of(f.name))
    members = [_images(f) for f in folders]
    if len(files) and any(map(len, members)):
        raise DataError(
            f"{folder}: has images both directly ({os.fsdecode(bytes(files[0]))}) and in sub-folders "
            f"({folders[[bool(len(m)) for m in members].index(True)].name}/); keep one of the two"
        )
    if len(files):
        return Files([folder], [files]), None, ()
    deeper = next((f for name in folders for f in _visible(name) if f.is_dir() and len(_images(f))), None)
    if deeper is not None:
        raise DataError(f"{deeper}: has images in a folder within a folder, and one level of them is one class each; "
                        f"move them up, or give data.path={deeper.parent}")  # fmt: skip
    if not any(map(len, members)):
        raise DataError(f"{folder}: no images found; it must hold {', '.join(SUFFIXES)} files, or sub-folders of them")
    for name, inside in zip(folders, members, strict=True):
        if not len(inside):
            raise DataError(f"{name}: no images in this class folder; fill it or remove it")
    labels = np.repeat(np.arange(len(members)), [len(inside) for inside in members])
    return Files(folders, members), torch.from_numpy(labels), tuple(f.name for f in folders)


def _images(folder: Path) -> NDArray[np.bytes_]:
    """Names of the images in a folder, in their order, as the system writes them."""
    try:
        with os.scandir(os.fsencode(folder)) as entries:  # a million of them are bytes, and never all of them objects
            names = np.array([entry.name for entry in entries if entry.name.lower().endswith(_ENDINGS)
                              and entry.name[:1] != b"." and not entry.is_dir()], dtype=np.bytes_)  # fmt: skip
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({sentence(error)})") from None
    names.sort()
    for name in names:
        located(folder / os.fsdecode(bytes(name)), "images must be files; remove it")
    return names


def _visible(folder: Path) -> list[Path]:
    """What is in a folder beside images and hidden files.

    Raises:
        DataError: it cannot be listed, or has pictures of a kind that would be passed over in silence.
    """
    try:
        with os.scandir(folder) as entries:
            found = [Path(entry.path) for entry in entries if not entry.name.lower().endswith(SUFFIXES)
                     and not entry.name.startswith(".")]  # fmt: skip
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({sentence(error)})") from None
    if others := sorted(f.name for f in found if f.suffix.lower() in UNREAD):
        more = f" and {len(others) - 1} more like it" if others[1:] else ""
        raise DataError(f"{folder}: {others[0]}{more} cannot be read, but {', '.join(SUFFIXES)} can; convert or remove")
    return found
