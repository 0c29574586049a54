"""Series and volumes: trained, sampled and evaluated as images are, and drawn as what they are."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sde_gen as sg
from sde_gen import pictures
from sde_gen.data import array_file
from sde_gen.data.transform import standardising
from sde_gen.pictures.lines import draw_series, slices
from tests.commands.helpers import Command

QUICK = ("network=unet", "network.width=8", "network.multipliers=[1,1]", "trainer.steps=3", "trainer.batch_size=8",
         "trainer.preview_samples=4", "device=cpu", "run=r")  # fmt: skip


def waves(count: int = 60) -> np.ndarray:
    """Two-channel series, the second of another offset and spread."""
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 6.28, (count, 1))
    place = np.arange(32) / 5
    return np.stack([np.sin(place + phase), 1e6 + 300 * np.cos(place + phase)], 1)


@pytest.mark.parametrize("kind", ["series", "volume"])
def test_three_lines(command: Command, kind: str) -> None:
    x = waves() if kind == "series" else np.random.default_rng(0).normal(5.0, 2.0, (40, 1, 5, 6, 7))
    np.save("x.npy", x)
    data = ("data=array_file", "data.path=x.npy")
    trained = command("train", *data, *QUICK)
    assert trained.code == 0, trained.err
    state = json.loads(Path("runs/r/checkpoints/step_00000003/state.json").read_text())["data"]
    assert (state["kind"], state["shape"]) == (kind, list(x.shape[1:]))
    sampled = command("sample", "run=r", "sampler=ddim", "sampler.steps=2", "num_samples=5", "out=o", "animation=true",
                      "forward=true")  # fmt: skip
    assert sampled.code == 0, sampled.err
    assert np.load("o/samples.npz")["x"].shape == (5, *x.shape[1:])
    drawn = ["o/samples.png", "o/samples_forward.png", next(Path("runs/r/samples").glob("*.png"))]
    for path in drawn:
        with Image.open(path) as picture:
            assert picture.width >= 600, path
    evaluated = command("evaluate", "run=r", "sampler=ddim", "sampler.steps=2", "num_samples=20", "nll.samples=2",
                        "nll.steps=6", "metrics=[energy_distance]", "out=e")  # fmt: skip
    assert evaluated.code == 0, evaluated.err
    assert Path("e/evaluation.png").is_file()


def test_each_channel_is_standardised(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", waves())
    data = array_file(tmp_path / "x.npy")
    assert data.train.mean((0, 2)).abs().max() < 1e-5
    torch.testing.assert_close(data.train.std((0, 2), correction=0), torch.ones(2), rtol=1e-4, atol=0)
    volumes = torch.from_numpy(np.random.default_rng(0).normal([[[[[3.0]]], [[[-40.0]]]]], 2.0, (20, 2, 3, 4, 5)))
    transform = standardising(volumes, -4)
    x = transform.forward(volumes)
    torch.testing.assert_close(x.mean((0, 2, 3, 4)), torch.zeros(2, dtype=x.dtype), rtol=0, atol=1e-12)
    torch.testing.assert_close(transform.inverse(x), volumes)
    assert transform.log_scale((2, 3, 4, 5)) == pytest.approx(60 * sum(np.log(transform.scale)))
    assert type(transform).from_dict(transform.to_dict()) == transform


@pytest.mark.parametrize(("layout", "shape", "expected"), [
    (None, (9, 1, 4, 5, 6), (1, 4, 5, 6)), (None, (9, 4, 5, 6, 3), (3, 4, 5, 6)), ("NDHW", (9, 4, 5, 6), (1, 4, 5, 6)),
    ("NDHWC", (9, 3, 4, 5, 3), (3, 3, 4, 5)),
])  # fmt: skip
def test_layouts_of_volumes(
    tmp_path: Path, layout: str | None, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=shape))
    data = array_file(tmp_path / "x.npy", layout=layout)
    assert (data.kind, data.shape) == ("volume", expected)


@pytest.mark.parametrize("dimensions", [1, 3])
def test_one_network_in_any_number_of_dimensions(dimensions: int) -> None:
    """An image of height 1 is a series, a volume of depth 1 an image: the middle of its kernels alone meets it."""
    torch.manual_seed(0)
    arguments = {"width": 8, "multipliers": (1, 2), "attention": (0, -1), "num_classes": 3}
    less, more = (sg.UNet(2, dimensions=d, **arguments).double() for d in sorted((2, dimensions)))  # type: ignore[arg-type]
    for p in less.parameters():
        torch.nn.init.normal_(p, std=0.3)
    tensors = more.state_dict()
    for name, value in less.state_dict().items():
        if value.shape != tensors[name].shape:
            middle = torch.tensor([tensors[name].shape[2] // 2])
            value = torch.randn_like(tensors[name]).index_copy(2, middle, value.unsqueeze(2))
        tensors[name] = value
    more.load_state_dict(tensors)
    x = torch.randn(3, 2, *(5, 7)[: min(dimensions, 2)], dtype=torch.float64)
    t, label = torch.tensor([0.1, 2.0, -1.0]), torch.tensor([0, 3, 1])
    torch.testing.assert_close(more(x.unsqueeze(2), t, label).squeeze(2), less(x, t, label), rtol=1e-9, atol=1e-9)


def test_what_a_picture_shows() -> None:
    volumes = torch.arange(2 * 9.0).reshape(2, 1, 9, 1, 1).expand(2, 1, 9, 4, 4)
    images, count = slices(volumes)
    assert count == 6
    assert images[:, 0, 0, 0].tolist() == [0, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17]
    figure = pictures.figures.new_figure(4, 4)
    axes = figure.add_subplot()
    x = torch.randn(50, 2, 30)
    x[3, 1, 4] = 99.0
    draw_series(axes, "samples", x, (-5.0, 5.0))
    assert axes.get_title() == "samples (50, 1 leave the picture)"
    np.testing.assert_allclose(axes.lines[0].get_ydata(), x[0, 0])
    assert len(axes.lines) == 16
