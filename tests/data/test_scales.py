"""Columns of any offset and spread, images in every storage, series: scaled right and led back without loss."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sde_gen.data import Affine, Dataset, array_file, csv_file
from sde_gen.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 6, 6))


def save(folder: Path, array: np.ndarray) -> Path:
    np.save(folder / "data.npy", array)
    return folder / "data.npy"


def raw(data: Dataset) -> np.ndarray:
    return data.transform.inverse(torch.cat([data.train, data.test])).double().numpy()


COLUMNS = {
    "milliseconds": (1.7e12, 6e4),
    "seconds": (1.7e9, 50),
    "nanoseconds": (1.7e18, 1e9),
    "julian dates": (2.46e6, 1e-3),
    "utm metres": (5.4e6, 0.5),
    "unit": (0, 1),
    "far": (-1e15, 3),
    "tiny": (0, 1e-38),
    "tiny beside": (1e-30, 1e-38),
    "below float32": (0, 1e-200),
    "denormal": (0, 1e-310),
    "huge": (0, 1e150),
    "past the square": (1e300, 1e299),
    "widest": (0, 3e307),
}


@pytest.mark.parametrize("reader", ["npy", "csv"])
@pytest.mark.parametrize(("offset", "spread"), COLUMNS.values(), ids=list(COLUMNS))
def test_any_offset_and_spread(tmp_path: Path, offset: float, spread: float, reader: str) -> None:
    values = np.stack([offset + spread * RNG.uniform(-1, 1, 400), RNG.normal(size=400)], 1)
    if reader == "npy":
        data = array_file(save(tmp_path, values))
    else:
        (tmp_path / "data.csv").write_text("".join(f"{a!r},{b!r}\n" for a, b in values.tolist()))
        data = csv_file(tmp_path / "data.csv")
    own = np.spacing(np.abs(values[:, 0]).max())  # what the data itself can tell apart
    slack = 1e-5 + 2 * own / spread
    torch.testing.assert_close(data.train.std(0, correction=0), torch.ones(2), rtol=slack, atol=0)
    assert data.train.mean(0).abs().max() < slack
    assert np.abs(np.sort(raw(data)[:, 0]) - np.sort(values[:, 0])).max() <= 1e-6 * spread + 2 * own
    assert Affine.from_dict(data.transform.to_dict()) == data.transform


@pytest.mark.parametrize("value", [0.0, 5.0, -1e8, 1e-300, 0.1, 1e300])
def test_a_column_that_does_not_vary_is_only_shifted(tmp_path: Path, value: float) -> None:
    values = np.stack([np.full(50, value), RNG.normal(size=50)], 1)
    data = array_file(save(tmp_path, values))
    assert isinstance(data.transform.scale, tuple)
    assert data.transform.scale[0] == 1.0
    assert torch.equal(data.train[:, 0], torch.zeros(45))
    np.testing.assert_allclose(raw(data)[:, 0], value, rtol=1e-7)


def test_a_sample_out_of_all_proportion_is_named(tmp_path: Path) -> None:
    values = RNG.normal(size=(20, 2))
    path = save(tmp_path, values)
    kept = raw(array_file(path, held_out=1, seed=2))[-1]
    row = int(np.abs(values - kept).sum(1).argmin())
    values[row, 1] = 1e60
    with pytest.raises(DataError, match=rf"value 1e\+60 of sample {row} is too far from the training samples"):
        array_file(save(tmp_path, values), held_out=1, seed=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_raw_values_far_from_zero_go_both_ways(dtype: torch.dtype) -> None:
    transform = Affine((1.7e9, 0.0), (50.0, 1.0))
    values = torch.tensor([[1.7e9, 0], [1.7e9 + 128, 3]], dtype=torch.float64).to(dtype)
    x = transform.forward(values)
    assert x.dtype == (dtype if dtype.is_floating_point else torch.float32)
    torch.testing.assert_close(x.double(), torch.tensor([[0, 0], [2.56, 3]], dtype=torch.float64), atol=1e-6, rtol=0)
    back = transform.inverse(x)
    assert back.dtype == torch.float64
    torch.testing.assert_close(back, values.double(), atol=1e-4, rtol=0)


FLOATS = {
    "k/255 float32": ((PIXELS / 255).astype(np.float32), (0, 1, 256)),
    "k/255 float64": (PIXELS / 255, (0, 1, 256)),
    "k/255 float16": ((PIXELS / 255).astype(np.float16), (0, 1, 256)),
    "float32 times 1/255": (PIXELS.astype(np.float32) * np.float32(1 / 255), (0, 1, 256)),
    "normalised": ((PIXELS.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5), (-1, 1, 256)),
    "k/127.5 - 1": (PIXELS.astype(np.float32) / np.float32(127.5) - 1, (-1, 1, 256)),
    "0..255 floats": (PIXELS.astype(np.float32), (0, 255, 256)),
    "0..255 int64": (PIXELS, (0, 255, 256)),
    "two values": ((PIXELS > 99).astype(np.float32), (0, 1, 2)),
    "k/65535": ((RNG.integers(0, 65536, (40, 6, 6)) / 65535).astype(np.float32), (0, 1, 65536)),
    "continuous": (RNG.random((40, 6, 6)).astype(np.float32), (0, 1, None)),
    "continuous half": (RNG.random((40, 6, 6)).astype(np.float16), (0, 1, None)),
    "continuous double": (2 * RNG.random((40, 6, 6)) - 1, (-1, 1, None)),
}


@pytest.mark.parametrize(("images", "expected"), FLOATS.values(), ids=list(FLOATS))
@pytest.mark.parametrize("colour", [False, True])
def test_levels_are_seen_however_they_are_stored(
    tmp_path: Path, images: np.ndarray, expected: tuple, colour: bool
) -> None:
    data = array_file(save(tmp_path, np.stack([images] * 3, -1) if colour else images))
    assert data.kind == "image"
    assert (data.transform.low, data.transform.high, data.transform.levels) == expected


def test_levels_of_a_stated_range(tmp_path: Path) -> None:
    grey = RNG.integers(0, 17, (30, 4, 4))
    for dtype in (np.float32, np.float64, np.int64, np.uint16, np.uint8):
        assert array_file(save(tmp_path, grey.astype(dtype)), low=0, high=16).transform.levels == 17
    assert array_file(save(tmp_path, grey + 0.25), low=0, high=17).transform.levels is None
    with pytest.raises(ConfigError, match="is not plain; set low and high"):
        array_file(save(tmp_path, grey.astype(float)))


@pytest.mark.parametrize("channels", [(), (3,)])
def test_sixteen_bits_of_grey_and_of_colour_are_alike(tmp_path: Path, channels: tuple) -> None:
    images = RNG.integers(0, 65536, (20, 5, 5, *channels)).astype(np.uint16)
    with pytest.raises(ConfigError, match="set low and high"):
        array_file(save(tmp_path, images))
    data = array_file(save(tmp_path, images), low=0, high=65535)
    assert data.transform.levels == 65536
    assert sorted(data.transform.quantise(torch.cat([data.train, data.test])).flatten().tolist()) == sorted(
        images.flatten().tolist()
    )


SERIES = {
    "channels first": (RNG.normal(size=(40, 3, 64)), None, (3, 64)),
    "channels last": (RNG.normal(size=(40, 64, 3)), None, (3, 64)),
    "one channel": (RNG.integers(0, 256, (40, 1, 64), dtype=np.uint8), None, (1, 64)),
    "one channel last": (RNG.random((40, 64, 1)), None, (1, 64)),
    "within -1..1": (2 * RNG.random((40, 2, 64)) - 1, None, (2, 64)),
    "whole numbers": (RNG.integers(-3000, 3000, (40, 2, 64), dtype=np.int16), None, (2, 64)),
    "said": (RNG.random((40, 6, 7)), "NCL", (6, 7)),
    "said last": (RNG.random((40, 6, 7)), "NLC", (7, 6)),
    "bytes, said": (RNG.integers(0, 256, (40, 8, 64), dtype=np.uint8), "NCL", (8, 64)),
}


@pytest.mark.parametrize(("values", "layout", "shape"), SERIES.values(), ids=list(SERIES))
def test_series_are_no_pictures(tmp_path: Path, values: np.ndarray, layout: str | None, shape: tuple) -> None:
    data = array_file(save(tmp_path, values), layout=layout)
    assert (data.kind, data.shape) == ("series", shape)
    x = data.train.transpose(1, 2).flatten(0, 1).double()
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(shape[0], dtype=torch.float64), rtol=1e-5, atol=0)
    np.testing.assert_allclose(np.sort(raw(data).flatten()), np.sort(values.flatten()), atol=1e-3, rtol=1e-5)
    assert Affine.from_dict(data.transform.to_dict()) == data.transform
    scales = np.log(np.asarray(data.transform.scale))
    assert data.transform.log_scale(shape) == pytest.approx(scales.sum() * shape[1])


@pytest.mark.parametrize(
    "images",
    [PIXELS.astype(np.uint8), PIXELS[:, :1].repeat(4, 1).repeat(4, 2).astype(np.uint8), RNG.random((9, 8, 8))],
)
def test_pictures_stay_pictures(tmp_path: Path, images: np.ndarray) -> None:
    assert array_file(save(tmp_path, images)).kind == "image"
    assert array_file(save(tmp_path, images), layout="NHW").shape == (1, *images.shape[1:])


def test_a_transform_of_channels_needs_series() -> None:
    transform = Affine((0.0, 1.0), (1.0, 2.0), axis=-2)
    assert transform.forward(torch.zeros(5, 2, 7)).shape == (5, 2, 7)
    for shape in ((5, 7), (5, 7, 2), (2,)):
        with pytest.raises(DataError, match="has 2 features, but the data has shape"):
            transform.forward(torch.zeros(shape))
    for axis in (0, -5, True, "C"):
        with pytest.raises(DataError, match="axis must be -1, -2, -3 or -4"):
            Affine(axis=axis)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [np.float32(2), np.float64(2), np.int64(2), np.uint8(2), torch.tensor(2.0)])
def test_numbers_of_numpy_are_numbers(number: object) -> None:
    assert Affine(number, number, 0, number).scale == 2.0  # type: ignore[arg-type]
    assert Affine(0, 1, 0, 1, levels=np.int64(2)).levels == 2  # type: ignore[arg-type]
    assert Affine(np.array([1, 2]), torch.tensor([1.0, 2.0])).shift == (1.0, 2.0)  # type: ignore[arg-type]
