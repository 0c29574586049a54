"""The page of a run."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

import sde_gen as sg
from sde_gen import metrics
from sde_gen.config import load_model
from sde_gen.data import mixture
from sde_gen.jobs import training_report
from sde_gen.pictures import training_page
from sde_gen.pictures.training_page import chart
from sde_gen.training import RunDirectory, read_metrics
from tests.commands.helpers import TINY, Command


def test_it_is_rewritten_while_the_run_goes_on(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write = training_report.write_text

    def keep(path: Path, text: str, what: str) -> Path:
        if path.name == "training.html":
            written.append(text)
        return write(path, text, what)

    monkeypatch.setattr(training_report, "write_text", keep)
    clock = iter(range(0, 10**6, 1000))
    monkeypatch.setattr(training_report.time, "monotonic", lambda: float(next(clock)))
    assert command("train", *TINY, "run=a", "trainer.preview_samples=4", "trainer.preview_every=2").code == 0
    assert len(written) == 2, "at the row of step 2, and at the end"
    assert [re.search(r"<td>(\d+) of 4</td>", text)[1] for text in written] == ["2", "4"]  # type: ignore[index]
    assert ['http-equiv="refresh"' in text for text in written] == [True, False]
    page = Path("runs/a/training.html").read_text("utf-8")
    assert page == written[-1]
    sources = re.findall(r'<img src="([^"]+)"', page)
    assert sources == ["samples/step_00000002.png", "samples/step_00000004.png"]
    assert all((Path("runs/a") / source).is_file() for source in sources)
    for title in ("loss", "gradient norm", "learning rate", "loss by half log-SNR, from noise to data",
                  "gradient norm by block"):  # fmt: skip
        assert f"<figcaption>{title}</figcaption>" in page


def _polylines(text: str) -> list[list[tuple[float, float]]]:
    found = ET.fromstring(re.search("<svg.*</svg>", text, re.DOTALL)[0])  # type: ignore[index]
    return [
        [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]  # type: ignore[misc]
        for line in found.iter("polyline")
    ]


def test_a_chart_places_its_points() -> None:
    line, other = _polylines(chart("a < b", {"x": [(0, 1.0), (5, 10.0), (10, 100.0)], "y & z": [(0, 10.0)]}))
    assert [y for _, y in line] == pytest.approx([206, 108, 10]), "on a logarithmic axis"
    assert [x for x, _ in line] == pytest.approx([62, 236, 410])
    assert other == [(62.0, 108.0)]
    ((_, first), (_, last)) = _polylines(chart("t", {"": [(0, -1.0), (1, 3.0)]}))[0]
    assert (first, last) == (206, 10)


def test_a_chart_is_small_and_leaves_out_what_is_not_finite() -> None:
    (line,) = _polylines(chart("t", {"": [(k, 1.0 + k) for k in range(100_000)]}))
    assert len(line) <= 301
    assert line[-1][0] == 410
    (line,) = _polylines(chart("t", {"": [(0, 1.0), (1, float("nan")), (2, 2.0)]}))
    assert len(line) == 2
    assert chart("t", {"": [(0, float("inf"))]}) == ""
    assert "<svg" in chart("one point", {"": [(3, 0.0)]})


def test_names_stand_below_the_axes_and_blocks_are_numbered() -> None:
    text = chart("t", {"a & b": [(0, 1.0), (1, 2.0)], "c": [(0, 2.0)]}, note="1 <x>")
    drawn, below = text.split("</svg>")
    assert "a &amp; b" not in drawn
    assert re.findall(r'background:(#\w+)"></i>(.*?)</span>', below) == [("#0b7fc7", "a &amp; b"), ("#d1520a", "c")]
    assert re.findall(r'stroke="(#\w{6})"', drawn) == ["#0b7fc7", "#d1520a"]
    assert "1 &lt;x&gt;" in below
    rows: Any = [{"step": k, "stem": 1.0, "down.0": k + 1.0} for k in (1, 2, 3)]
    page = training_page("t", {}, {"blocks": rows, "weighting": [{"step": 1, "-1.00": 0.5, "-2.00": 0.0}]}, [], False)
    assert "1 stem, 2 down.0" in page
    assert [f"up to step {k}</span>" in page for k in (1, 2, 3)] == [True] * 3
    (learned,) = _polylines(page[page.index("learned u by half log-SNR") : page.index("gradient norm by block")])
    assert [x for x, _ in learned] == [62, 410], "from noise to data"


def test_names_are_escaped_and_a_long_run_makes_a_small_page() -> None:
    rows: Any = [{"step": k, "loss": 1 / (k + 1), "grad_norm": 1.0} for k in range(20_000)]
    page = training_page("<b>", {"a<": "b&"}, {"metrics": rows}, ["samples/<x>.png"], running=True)
    assert "<b>" not in page
    assert "<x>" not in page
    assert "a&lt;" in page
    assert len(page) < 50_000


def test_a_file_that_is_gone_does_not_end_the_run(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_report, "read_metrics", lambda *given: read_metrics(Path("gone.csv")))
    monkeypatch.setattr(training_report.pictures, "has_matplotlib", lambda: False)
    assert command("train", *TINY, "run=a").code == 0
    assert not Path("runs/a/training.html").exists()


def test_samples_are_compared_at_every_evaluation(command: Command) -> None:
    settings = (*TINY, "run=a", "trainer.eval_samples=16", "trainer.preview_steps=2", "trainer.eval_every=2")
    result = command("train", *settings)
    assert result.code == 0, result.err
    assert "each evaluation draws 16 samples, the work of about 1 steps of training" in result.out
    rows = read_metrics(Path("runs/a/quality.csv"), None)
    assert [row["step"] for row in rows] == [2, 4]
    assert rows[0]["seconds"] <= rows[1]["seconds"]
    page = Path("runs/a/training.html").read_text("utf-8")
    for title in ("Fréchet distance", "precision and recall", "energy distance"):
        assert f"<figcaption>{title}</figcaption>" in page
    assert "seconds of training" in page

    run, model = RunDirectory("runs/a"), load_model(Path("runs/a"))
    data = mixture(n=64, n_test=64)
    x = sg.DDIM(steps=2)(model, (16, 2), seed=0).x
    assert rows[1]["frechet_distance"] == pytest.approx(metrics.frechet_distance(x, data.test), rel=1e-5)
    assert rows[1]["energy_distance"] == pytest.approx(metrics.energy_distance(x, data.test), rel=1e-5)
    shares = metrics.precision_recall(x, data.test)
    assert (rows[1]["precision"], rows[1]["recall"]) == (shares.precision, shares.recall)
    for name in ("frechet_distance_real", "energy_distance_real"):
        assert rows[0][name] == rows[1][name] < rows[1][name.removesuffix("_real")]
    assert run.quality.is_file()
    assert command("train", "resume=a", "trainer.steps=6", "device=cpu").code == 0
    assert [row["step"] for row in read_metrics(run.quality, None)] == [2, 4, 6]


def test_too_few_to_compare_are_refused_before_training(command: Command) -> None:
    result = command("train", *TINY, "run=a", "trainer.eval_samples=3")
    assert result.code != 0
    assert "precision needs at least 4 points in each set" in result.err
    assert not list(Path("runs/a/checkpoints").glob("step_*"))
