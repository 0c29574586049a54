"""Images that stay on the disk: the same batches as from memory, bit for bit, whoever reads them and when."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sde_gen as sg
from sde_gen.data import Dataset, array_file, image_folder, making, streams
from sde_gen.errors import ConfigError, DataError
from sde_gen.training.ahead import Ahead
from sde_gen.training.batches import Batches

COUNT, SIDE = 30, 9


def pixels(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, channels), dtype=np.uint8)


def folder(path: Path) -> Path:
    for k, image in enumerate(pixels()):
        place = path / "photos" / ("cat" if k % 3 else "dog") / f"{k:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
    return path / "photos"


def zipped(path: Path) -> Path:
    inside = folder(path)
    with zipfile.ZipFile(path / "photos.zip", "w") as file:
        for image in sorted(inside.rglob("*.png")):
            file.write(image, image.relative_to(inside).as_posix())
    return path / "photos.zip"


def bytes_nhwc(path: Path) -> Path:
    np.save(path / "x.npy", pixels())
    return path / "x.npy"


def bytes_nchw_labelled(path: Path) -> Path:
    np.savez(path / "x.npz", x=pixels(1).transpose(0, 3, 1, 2), y=np.arange(COUNT) % 4)
    return path / "x.npz"


def grey(path: Path) -> Path:
    np.save(path / "x.npy", pixels(1)[..., 0])
    return path / "x.npy"


def floats(path: Path) -> Path:
    np.save(path / "x.npy", np.random.default_rng(1).random((COUNT, SIDE, SIDE, 3), dtype=np.float32))
    return path / "x.npy"


KINDS = {
    "folder": (folder, image_folder, {}),
    "zip": (zipped, image_folder, {"image_size": 6}),
    "NHWC": (bytes_nhwc, array_file, {}),
    "NCHW": (bytes_nchw_labelled, array_file, {"image_size": 6}),
    "NHW": (grey, array_file, {}),
    "float": (floats, array_file, {"low": 0.0, "high": 1.0}),
}


def batches(data: Dataset, share: slice = slice(0, 7)) -> Batches:
    model = sg.ScoreModel(sg.UNet(data.shape[0]), sg.VP())
    labelled = data.train_labels is not None
    options = {"size": 7, "seed": 3, "device": torch.device("cpu"), "conditional": labelled, "channels_last": False}
    return Batches(data, sg.DenoisingScoreMatching(), model, share=share, accumulate=2, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_those_from_memory(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, read, options = KINDS[kind]
    place, more = make(tmp_path), {**options, "random_flip": True, "random_crop": 5, "held_out": 6}
    held = read(place, **more, stream=False)
    monkeypatch.setattr(making, "_MOST", 4)  # of each part in memory
    for workers in (0, 2):
        streamed = read(place, **more, stream=True, workers=workers)
        assert (streamed.size, len(streamed.train), len(streamed.test)) == (held.size, 4, 4)
        assert (streamed.shape, streamed.transform, streamed.classes) == (held.shape, held.transform, held.classes)
        assert bool(torch.isin(streamed.test.flatten(1)[:, 0], held.test.flatten(1)[:, 0]).all())
        one, two = batches(held), batches(streamed)
        for step in (0, 1, 2, 9, 5, 6):  # on into other epochs, and back, as a resumed run does
            for a, b in zip(one.parts(step), two.parts(step), strict=True):
                assert torch.equal(a.x0, b.x0)
                assert torch.equal(a.noise, b.noise)
                assert all(torch.equal(a.condition[name], b.condition[name]) for name in a.condition)


def test_training_is_the_same_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    place = folder(tmp_path)

    def weights(stream: bool, *, stop_at: int | None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = sg.ScoreModel(sg.UNet(3, width=8, multipliers=(1,), blocks=1), sg.VP())
        data = image_folder(place, random_flip=True, stream=stream, held_out=6)
        runs = tmp_path / f"{stream}-{stop_at}"
        settings = sg.TrainerSettings(steps=4, batch_size=5, warmup=0, checkpoint_every=1, preview_samples=0)
        trainer = sg.Trainer(model, data, settings=settings, checkpoints=runs)
        if stop_at is not None:
            trainer.stop = lambda: trainer.step >= stop_at
            trainer.train()
            torch.manual_seed(1)
            fresh = sg.ScoreModel(sg.UNet(3, width=8, multipliers=(1,), blocks=1), sg.VP())
            trainer = sg.Trainer(fresh, data, settings=settings, checkpoints=runs)
            trainer.resume(sg.training.newest_checkpoint(runs)[0])
        trainer.train()
        return {name: p.detach().clone() for name, p in trainer.network.named_parameters()}

    expected = weights(False, stop_at=None)
    for stop_at in (None, 2):
        found = weights(True, stop_at=stop_at)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_content_decides_the_fingerprint(tmp_path: Path) -> None:
    place = folder(tmp_path)
    before = image_folder(place, stream=True).fingerprint
    assert image_folder(place, stream=True, workers=0).fingerprint == before
    Image.fromarray(255 - pixels()[0]).save(place / "dog" / "00.png")
    assert image_folder(place, stream=True).fingerprint != before


def test_what_is_large_is_streamed_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = bytes_nhwc(tmp_path)
    assert array_file(place).source is None
    monkeypatch.setattr(streams, "_IN_MEMORY", 4 * COUNT * SIDE * SIDE * 3 - 1)
    assert array_file(place).source is not None
    assert array_file(place, stream=False).source is None


def compressed(path: Path) -> None:
    np.savez_compressed(path, x=pixels())


def unbounded(path: Path) -> None:
    np.savez(path, x=pixels() / 255.0)


def points(path: Path) -> None:
    np.savez(path, x=np.zeros((9, 2), np.uint8))


@pytest.mark.parametrize("write", [compressed, unbounded, points])
def test_what_cannot_be_streamed(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "x.npz")
    with pytest.raises(ConfigError, match="stream=true reads images of bytes"):
        array_file(tmp_path / "x.npz", stream=True)
    assert array_file(tmp_path / "x.npz").source is None


def test_values_outside_the_range_are_named(tmp_path: Path) -> None:
    wrong = (pixels() / 255).astype(np.float32)
    wrong[17, 2, 3, 1] = 1.5
    np.save(tmp_path / "x.npy", wrong)
    with pytest.raises(DataError, match=r"1\.5 of sample 17 is outside"):
        array_file(tmp_path / "x.npy", low=0, high=1, stream=True)


def epochs(of: Batches) -> None:
    for step in range(COUNT):
        list(of.parts(step))


def test_a_file_that_is_gone_or_shorter_ends_training_with_its_name(tmp_path: Path) -> None:
    place = folder(tmp_path)
    from_folder = batches(image_folder(place, stream=True, workers=2))
    (place / "cat" / "01.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"01\.png"):
        epochs(from_folder)
    array = bytes_nhwc(tmp_path)
    from_array = batches(array_file(array, stream=True))
    array.write_bytes(array.read_bytes()[:2000])
    with pytest.raises(DataError, match="is shorter than its header says"):
        epochs(from_array)


def test_reading_ahead_changes_nothing_but_the_wait() -> None:
    made: list[int] = []

    def make(step: int) -> torch.Tensor:
        made.append(step)
        return torch.tensor(step)

    ahead = Ahead(make, 1)
    assert [int(ahead(step)) for step in (0, 1, 2, 40, 3)] == [0, 1, 2, 40, 3]
    assert set(made) <= {*range(6), 40, 41, 42}
    assert [int(Ahead(make, 0)(step)) for step in (5, 4)] == [5, 4]


@pytest.mark.parametrize("workers", [-1, 1.5, 1000])
def test_workers_are_counted(workers: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="workers"):
        array_file(bytes_nhwc(tmp_path), stream=True, workers=workers)
