"""Pictures: what is where, and nothing hidden."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sde_gen as sg
from sde_gen import pictures
from sde_gen.errors import ConfigError, DataError, MissingInputError, OutputError
from sde_gen.pictures import animated, figures, plots


def test_a_grid_puts_each_image_in_its_place() -> None:
    images = torch.full((5, 1, 3, 2), -1.0)
    images[4] = 1.0
    images[1, 0, 0, 1] = 0.0
    picture = np.asarray(pictures.image_grid(images, columns=2, zoom=1))
    assert picture.shape == (3 * 4 + 1, 2 * 3 + 1)
    assert (picture == 255).sum() == 6
    assert (picture[9:12, 1:3] == 255).all()
    assert picture[1, 5] == 128
    assert (picture > 0).sum() == 7


def test_colour_many_channels_and_values_outside() -> None:
    assert pictures.image_grid(torch.zeros(4, 3, 8, 8)).mode == "RGB"
    assert pictures.image_grid(torch.zeros(1, 5, 8, 8)).mode == "L"
    picture = np.asarray(pictures.image_grid(torch.tensor([[[[9.0]]], [[[-9.0]]]]), columns=2, zoom=1, gap=0))
    assert picture.tolist() == [[255, 0]]
    assert pictures.image_grid(torch.zeros(64, 1, 8, 8)).size == ((8 * 9 + 1) * 9, (8 * 9 + 1) * 9)


def test_a_picture_hides_no_nan() -> None:
    with pytest.raises(DataError, match="NaN"):
        pictures.image_grid(torch.tensor([[[[float("nan")]]]]))
    with pytest.raises(DataError, match="NaN"):
        pictures.scatter({"samples": torch.tensor([[0.0, float("nan")]]), "data": torch.randn(9, 2)})
    wrong = (torch.uint8, torch.int64, torch.complex64)
    for bad in (torch.zeros(0, 1, 8, 8), torch.zeros(4, 8, 8), *(torch.ones(1, 1, 2, 2, dtype=d) for d in wrong)):
        with pytest.raises(DataError, match="must be"):
            pictures.image_grid(bad)
    with pytest.raises(ConfigError, match=r"columns must be .* at least 1, got 0"):
        pictures.image_grid(torch.zeros(1, 1, 2, 2), columns=0)


@pytest.mark.parametrize("features", [1, 2, 5])
def test_points_are_drawn_beside_data(features: int) -> None:
    points = torch.randn(200, features)
    picture = pictures.picture_of(points, points)
    assert picture.size == ((900, 900) if features == 5 else (800, 400))
    assert len(np.unique(np.asarray(picture))) > 10
    assert pictures.picture_of(points).size == ((900, 900) if features == 5 else (400, 400))


@pytest.mark.parametrize("features", [1, 2, 5])
def test_points_outside_are_counted_and_drawn_at_the_edge(features: int) -> None:
    x, box = torch.zeros(50, features), (-1.0, 1.0, -1.0, 1.0)
    x[:3, 0] = torch.tensor([9.0, -1e30, 1e30])
    if features > 1:
        x[3, 1] = 7.0
    outside = 3 if features == 1 else 4
    figure = plots.new_figure(4.0, 4.0)
    axes = figure.add_subplot()
    plots.draw_points(axes, "samples", x, box)
    assert axes.get_title() == f"samples (50, {outside} outside)"
    if features == 1:
        shares = [float(bar.get_height()) * 2 / 80 for bar in axes.patches]
        assert shares[0] == pytest.approx(1 / 50)
        assert shares[-1] == pytest.approx(2 / 50)
        return
    inside, edge = (np.asarray(drawn.get_offsets()) for drawn in axes.collections)
    assert len(inside) == 46
    assert edge.tolist() == [[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    assert (axes.get_xlim(), axes.get_ylim()) == (box[:2], box[2:])


def test_limits_are_of_all_sets() -> None:
    left, right, bottom, top = pictures.limits_of([torch.zeros(60_000, 2), torch.full((60_000, 2), 3.0)])
    assert left < 0 < 3 < right
    assert (bottom, top) == (left, right)
    assert pictures.limits_of([torch.zeros(4, 1)]) == (-1.0, 1.0, -1.0, 1.0)


def test_density_curve_and_strip(tmp_path: Path) -> None:
    points = torch.randn(500, 2)
    assert pictures.density({"samples": points, "data": points}).size == (800, 400)
    rows = [{"step": 1.0, "loss": 1.0}, {"step": 2.0, "loss": 0.5, "held_out_loss": 0.6}]
    path = pictures.loss_curve(rows, tmp_path / "loss.png")
    with Image.open(path) as picture:
        assert picture.size == (600, 400)
    assert pictures.loss_curve([], tmp_path / "empty.png").is_file()
    images = torch.rand(9, 1, 8, 8) * 2 - 1
    for perturbation in (sg.VP(), sg.VE(), sg.DDPM(steps=50), sg.FlowMatching()):
        strip = pictures.forward_strip(perturbation, images, columns=4)
        assert strip.size == ((4 * 9 + 1) * 17, (6 * 9 + 1) * 17)
        assert pictures.forward_strip(perturbation, points, columns=3).size == (1200, 400)
    with pytest.raises(ConfigError, match=r"columns must be .* at least 2, got 1"):
        pictures.forward_strip(sg.VP(), images, columns=1)


def test_the_terms_of_bounds() -> None:
    law = sg.GaussianMixture([1.0], [[0.5, 0.0]], [torch.eye(2).tolist()])
    x = law.sample(20)
    bounds = {
        "chain": sg.variational_bound(law.model(sg.DDPM(50)), x),
        "some": sg.variational_bound(law.model(sg.DDPM(50)), x, terms=5),
        "sde": sg.variational_bound(law.model(sg.VP()), x),
    }
    assert pictures.bound_terms(bounds).size == (1000, 400)
    for bound in bounds.values():  # what is drawn adds up to the bound
        first, ends, terms = plots.mean_terms(bound)
        total = float(terms.sum() + bound.reconstruction.mean() + bound.prior.mean())
        assert total == pytest.approx(-float(bound.log_prob.mean()), rel=1e-9)
        assert [first, *ends] == sorted({first, *ends})
        assert len(ends) == len(terms) > 1
    with pytest.raises(ConfigError, match="at least one"):
        pictures.bound_terms({})


def test_an_animation_has_its_frames(tmp_path: Path) -> None:
    frames = [pictures.image_grid(torch.full((1, 1, 4, 4), v)) for v in (-1.0, 0.0, 1.0)]
    path = pictures.save_animation(frames, tmp_path / "a.gif")
    with Image.open(path) as animation:
        assert animation.n_frames == 3
        assert animation.info["loop"] == 0
    with pytest.raises(ConfigError, match="one frame"):
        pictures.save_animation([], path)
    with pytest.raises(ConfigError, match=r"\.gif or \.mp4, got a\.avi"):
        pictures.save_animation(frames, tmp_path / "a.avi")


def test_an_mp4_holds_the_same_pictures(tmp_path: Path) -> None:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    frames = [pictures.image_grid(torch.full((1, 1, 4, 4), v), zoom=10, gap=0).crop((0, 0, 39, 37))
              for v in (-1.0, 0.0, 1.0)]  # fmt: skip
    path = pictures.save_animation(frames, tmp_path / "a.mp4", seconds=1.5)
    show = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(show, capture_output=True, check=True)
    assert all(word in done.stderr.decode() for word in ("h264", "yuv420p", "40x38", "30 fps")), "sides are even"
    grey = np.frombuffer(done.stdout, np.uint8).reshape(-1, 38, 40, 3)[:, 10, 10, 0].astype(int).tolist()
    assert len(grey) == 75, "half a second each, and the last one for a second more"
    for first, last, value in ((0, 15, 0), (15, 30, 128), (30, 75, 255)):
        assert max(abs(found - value) for found in grey[first:last]) <= 3
    with pytest.raises(OutputError, match="cannot create the animation"):
        pictures.save_animation(frames, tmp_path / "none" / "a.mp4")


def test_an_mp4_that_ffmpeg_cannot_write_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\ncat >/dev/null\necho one >&2\necho the encoder is gone >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(animated, "ffmpeg", lambda: str(program))
    with pytest.raises(OutputError, match=r"a\.mp4: the encoder is gone"):
        pictures.save_animation([pictures.image_grid(torch.zeros(1, 1, 4, 4))], tmp_path / "a.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["ffmpeg"]


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(figures, "has_matplotlib", lambda: False)
    with pytest.raises(MissingInputError, match=r"sde_gen\[plot\]"):
        pictures.scatter({"x": torch.zeros(3, 2)})
    pictures.save_image(pictures.image_grid(torch.zeros(1, 1, 2, 2)), tmp_path / "x.png")


def test_pyplot_is_never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)  # another library may have loaded it
    pictures.scatter({"x": torch.randn(9, 2)})
    assert "matplotlib.pyplot" not in sys.modules
