"""Flips and windows of training images: which there are, how often, and that each depends on (seed, epoch, sample)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

import sde_gen as sg
from sde_gen.data import Augment, array_file, batch_indices, batch_words, digits, image_folder
from sde_gen.training.batches import Batches


def batches(data: sg.data.Dataset, share: slice = slice(0, 64), accumulate: int = 1, seed: int = 3) -> Batches:
    model = sg.ScoreModel(sg.UNet(data.shape[0]), sg.VP())
    options = {"size": 64, "seed": seed, "device": torch.device("cpu"), "conditional": True, "channels_last": False}
    return Batches(data, sg.DenoisingScoreMatching(), model, share=share, accumulate=accumulate, **options)


def test_every_flip_and_window_is_as_likely_as_any_other() -> None:
    count, (height, width), side = 60_000, (3, 5), 2
    image = torch.arange(height * width).reshape(1, 1, height, width).expand(count, 2, -1, -1)
    words = batch_words(count, count, 0, seed=1)
    assert bool((words >= 0).all())
    found = Augment(flip=True, crop=side)(image, words)
    assert found.shape == (count, 2, side, side)
    assert torch.equal(found[:, 0], found[:, 1])  # all channels alike
    kinds = {}
    for top in range(height - side + 1):
        for left in range(width - side + 1):
            window = image[0, 0, top : top + side, left : left + side]
            kinds |= {str(window.tolist()): 0, str(window.flip(-1).tolist()): 0}
    for one in found[:, 0].tolist():
        kinds[str(one)] += 1  # a KeyError is a window that there is not
    assert len(kinds) == 16
    assert stats.chisquare(list(kinds.values())).pvalue > 1e-6


def test_a_word_depends_on_seed_epoch_and_sample_alone() -> None:
    count = 50
    by_sample: dict[tuple[int, int], int] = {}
    for size in (50, 8, 73):  # other batches, the same epochs
        for step in range(200 // size):
            indices, words = batch_indices(count, size, step, 5), batch_words(count, size, step, 5)
            for place, (i, word) in enumerate(zip(indices.tolist(), words.tolist(), strict=True)):
                assert by_sample.setdefault(((step * size + place) // count, i), word) == word
    assert len(set(by_sample.values())) == len(by_sample) == 4 * count
    assert not torch.equal(batch_words(count, 50, 0, 5).sort()[0], batch_words(count, 50, 0, 6).sort()[0])


def test_batches_hold_the_images_or_their_mirror_images() -> None:
    plain, flipped = digits(), digits(random_flip=True)
    assert plain.fingerprint != flipped.fingerprint
    assert torch.equal(plain.test, flipped.test)
    a, b = batches(plain), batches(flipped)
    turned = []
    for step in range(3):
        (x,), (y,) = a.parts(step), b.parts(step)
        same = (x.x0 == y.x0).flatten(1).all(1)
        mirror = (x.x0.flip(-1) == y.x0).flatten(1).all(1)
        assert bool((same | mirror).all())
        assert torch.equal(x.noise, y.noise)
        assert torch.equal(x.condition["label"], y.condition["label"])
        turned.append(~same)
    assert 40 < int(torch.cat(turned).sum()) < 152  # of 192; outside with probability 1e-15
    assert not torch.equal(turned[0], turned[1])


def test_rows_do_not_depend_on_how_the_batch_is_shared() -> None:
    data = digits(image_size=10, random_flip=True, random_crop=8)
    (whole,) = batches(data).parts(25)  # across the end of an epoch
    (part,) = batches(data, share=slice(20, 33)).parts(25)
    assert torch.equal(whole.x0[20:33], part.x0)
    assert torch.equal(torch.cat([p.x0 for p in batches(data, accumulate=5).parts(25)]), whole.x0)
    (other,) = batches(data, seed=4).parts(25)
    assert not torch.equal(whole.x0, other.x0)


def test_windows_are_cut_from_the_larger_images_and_in_the_middle_of_held_out_ones() -> None:
    wide, data = digits(image_size=12), digits(image_size=12, random_crop=7)
    assert data.shape == (1, 7, 7)
    assert data.size == len(data.train) == len(wide.train)
    assert torch.equal(data.test, wide.test[:, :, 2:9, 2:9])
    assert torch.equal(data.train, wide.train[:, :, 2:9, 2:9])
    assert data.class_counts() == wide.class_counts()
    source = batches(data)
    (part,) = source.parts(0)
    for image, index in zip(part.x0, source.indices(0), strict=True):
        there = wide.train[index].unfold(1, 7, 1).unfold(2, 7, 1)[0]
        assert bool((there == image).flatten(2).all(2).any())


def test_a_trained_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    data = digits(image_size=10, random_flip=True, random_crop=8)

    def trainer(folder: Path, steps: int) -> sg.Trainer:
        torch.manual_seed(0)
        model = sg.ScoreModel(sg.UNet(1, width=8, multipliers=(1,), blocks=1), sg.VP())
        settings = sg.TrainerSettings(steps=steps, batch_size=16, schedule="constant", warmup=0, keep_best=0)
        return sg.Trainer(model, data, settings=settings, checkpoints=folder)

    whole, first = trainer(tmp_path / "a", 4), trainer(tmp_path / "b", 2)
    whole.train()
    first.train()
    second = trainer(tmp_path / "b", 4)
    second.resume()
    second.train()
    a, b = whole.network.state_dict(), second.network.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"random_crop": 9}, r"random_crop must be at most the sides of the images, 8 x 8, got 9; make them larger"),
        ({"random_crop": 0}, r"crop must be a whole number, at least 1, got 0"),
        ({"random_flip": 1}, r"flip must be True or False"),
        ({"image_size": 0}, r"image_size must be a whole number, between 1 and 16384, got 0"),
    ],
)
def test_refusals(options: dict, message: str) -> None:
    with pytest.raises(sg.ConfigError, match=message):
        digits(**options)


@pytest.mark.parametrize("options", [{"random_flip": True}, {"random_crop": 2}, {"image_size": 4}])
def test_vectors_are_no_images(options: dict, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(20, 3)))
    with pytest.raises(sg.ConfigError, match=r"(are|is) for images"):
        array_file(tmp_path / "v.npy", **options)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_an_array_is_resized_as_the_pictures_of_a_folder_are(dtype: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 20, 30, 3), dtype=np.uint8)
    (tmp_path / "folder").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"folder/{i}.png")
    stored = pixels if dtype == "uint8" else (pixels / np.float32(255)).astype(np.float32)
    np.save(tmp_path / "a.npy", stored)
    a = array_file(tmp_path / "a.npy", image_size=8)
    b = image_folder(tmp_path / "folder", image_size=8)
    assert a.shape == b.shape == (3, 8, 8)
    assert float((a.train - b.train).abs().max()) <= (0 if dtype == "uint8" else 4.01 * 2 / 255)  # bytes round twice
    assert a.transform.levels == 256
    assert torch.allclose(a.transform.forward(a.transform.quantise(a.train)), a.train, atol=1e-6)


def test_what_is_finer_than_the_new_pixels_is_averaged_away(tmp_path: Path) -> None:
    stripes = np.zeros((4, 64, 64), np.float32)
    stripes[:, :, ::2] = 1.0
    stripes[0, 0, 0] = 0.1234  # or there were levels
    np.save(tmp_path / "s.npy", stripes)
    data = array_file(tmp_path / "s.npy", image_size=16, low=-1.0, high=2.0)
    inner = data.transform.inverse(torch.cat([data.train, data.test]))[:, :, 2:-2, 2:-2]
    assert float((inner - 0.5).abs().max()) < 0.05  # aliasing would leave 0 or 1


def test_levels_stay_levels() -> None:
    raw = digits(image_size=12).transform.inverse(digits(image_size=12).train)
    assert torch.allclose(raw, raw.round(), atol=1e-5)
    assert float(raw.min()) >= -1e-5
    assert float(raw.max()) <= 16 + 1e-5
