"""The report: one file that needs nothing else, and its twin."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

import sde_gen as sg
from sde_gen.comparison.ranking import mean_of
from sde_gen.comparison.report import page_of
from sde_gen.comparison.report.blocks import Table
from sde_gen.pictures import curves as plots
from sde_gen.pictures.embedded import cloud
from tests.comparison.helpers import small

SVG = "{http://www.w3.org/2000/svg}"


class Read(HTMLParser):
    """What a browser would load or read aloud."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input", "path", "use", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "use"):
            assert self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every section, of a comparison with skipped cells and a name that needs escaping."""
    place = tmp_path_factory.mktemp("report")
    comparison = small(
        name="a <b> & c",
        question="Which | is `better`?",
        samplers={"DDIM": sg.DDIM(), "PC": sg.PredictorCorrector(), "EM": sg.EulerMaruyama()},
        budgets=(1, 4, 9),
        orders=True,
        trajectories=True,
        likelihood=4,
        findings=[
            {"claim": "More calls are better", "better": {"budget": 9}, "than": {"budget": 4}},
            {"claim": "Orders", "order_of": {}},
            {"claim": "Nothing", "better": {"sampler": "DDIM", "budget": 7}, "than": {"sampler": "PC", "budget": 7}},
        ],
    )
    comparison.run(place / "cache").report(place / "out")
    return place / "out"


@pytest.fixture(scope="module")
def html(folder: Path) -> Read:
    read = Read((folder / "report.html").read_text(encoding="utf-8"))
    assert read.open == [], "every tag is closed"
    return read


def test_everything_is_inside(folder: Path, html: Read) -> None:
    for tag, attrs in html.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = attrs.get(name)
            assert value is None or value.startswith(("#", "data:image/png;base64,")), (tag, name, value)
        assert tag not in ("link", "iframe", "object", "embed", "base")
    text = (folder / "report.html").read_text()
    assert set(re.findall(r"https?://[^\s\"'<>]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"url\(|@import", text)
    assert "default-src 'none'" in text
    assert len(text) < 3e6


def test_pictures_are_there_and_say_what_they_show(html: Read) -> None:
    images = html.all("img")
    assert len(images) == 1 + 2 * 3 + 2 + 2  # samples, forward and reverse strips
    for image in images:
        assert len(image["alt"] or "") > 10
        data = base64.b64decode((image["src"] or "").partition(",")[2])
        picture = Image.open(io.BytesIO(data))
        picture.load()
        assert np.asarray(picture)[..., -1].std() > 0, "not blank"
    drawings = html.all("svg")
    assert len(drawings) == 3
    assert all(d["role"] == "img" and len(d["aria-label"] or "") > 10 for d in drawings)


def test_the_player_is_labelled_and_holds_its_data(html: Read) -> None:
    slider = next(i for i in html.all("input") if i["type"] == "range")
    assert slider["aria-label"]
    assert len(html.all("canvas")) == 2
    assert all(c["aria-label"] for c in html.all("canvas"))
    data = json.loads(next(t for t in html.text["script"] if t.startswith('{"formulations"')))
    assert (data["formulations"], data["samplers"]) == (["VP", "VE"], ["DDIM", "PC", "EM"])
    run = data["runs"][0][0]
    xy = np.frombuffer(base64.b64decode(run["xy"]), "<i2").reshape(len(run["t"]), data["count"], 2) / data["scale"]
    assert run["t"][0] == 1.0
    assert run["t"][-1] == 0.0
    assert 0.8 < xy[0].std() < 1.2, "the prior, by the size of the process"
    real = np.frombuffer(base64.b64decode(data["real"]), "<i2") / data["scale"]
    assert np.abs(xy[-1]).max() < np.abs(real).max() + 1.0


def test_it_is_escaped(folder: Path, html: Read) -> None:
    assert "A <b> & c" in html.text["h1"]
    assert "A <b>" not in (folder / "report.html").read_text()
    assert "better" in html.text["code"]


def test_verdicts_ranks_reasons_and_commands_are_said(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    said = ("**no data**", "**pass**", "no seed has both", "below the 2 that one step needs", "real samples")
    said += (
        "Without an order: PC (claims no order",
        "python -m sde_gen.compare",
        "comparison.json",
        " cell=",
        "VE(sigma_min=0.01",
    )
    assert [words for words in said if words not in text] == []


def test_the_twin_has_the_same_sections_and_all_its_pictures(folder: Path, html: Read) -> None:
    text = (folder / "report.md").read_text()
    assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == html.text["h2"]
    linked = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", text)
    assert {path for _, path in linked} == {f"pictures/{p.name}" for p in (folder / "pictures").iterdir()}
    assert len(linked) == len(html.all("img")) + len(html.all("svg"))
    columns = None
    for line in text.splitlines():  # every row of a table has as many cells as its head
        if line.startswith("|"):
            cells = len(re.findall(r"(?<!\\)\|", line))
            assert columns in (None, cells), line
            columns = cells
        else:
            columns = None


def test_standalone_drawings_are_well_formed() -> None:
    series = [plots.Series("a & $b", [(8, 0.1, 0.01), (16, 0.01, None)], 0), plots.Series("_c", [(8, 5.0, 9.0)], 7)]
    x, y = plots.limits(series, [0.02])
    panel = plots.panel(series, "x", "y", x, y, 0.02)
    assert panel == plots.panel(series, "x", "y", x, y, 0.02), "the same drawing twice"
    for drawn in (panel, plots.legend([("a & b", 0), ("c" * 40, 7)] * 3, "real"),
                  plots.panel([], "x", "y", *plots.limits([]))):  # fmt: skip
        root = ET.fromstring(drawn)
        assert root.tag.endswith("svg")
        numbers = [float(v) for v in re.findall(r"(?<![\w#.-])-?\d+(?:\.\d+)?(?![\w%])", drawn.decode())]
        assert max(map(abs, numbers)) < 3000, "nothing is drawn far outside"
    titles = [e.text for e in ET.fromstring(panel).iter(f"{SVG}title")]
    assert {"a & $b", "_c", "a & $b: 0.1 ± 0.01 at 8", "a & $b: 0.01 at 16"} <= set(titles)
    for colour in ("--ink", "--soft", "--line", "--paper"):
        assert f"var({colour}," in panel.decode(), "it follows the page, in the light and in the dark"


def test_points_are_drawn_where_they_are() -> None:
    picture = np.asarray(Image.open(io.BytesIO(cloud(np.array([[0.9, 0.9], [5.0, np.nan]]), 1.0, 40))))
    rows, columns = np.nonzero(picture[..., 3])
    assert rows.max() < 8, "up is up"
    assert columns.min() > 32


def test_values_far_above_are_drawn_hollow_at_the_edge() -> None:
    low = [plots.Series(str(i), [(8, 0.1, 0.01), (16, 0.05, None)], i) for i in range(4)]
    far = plots.Series("far", [(8, 50.0, 1.0), (16, 0.05, None)], 4)
    x, y = plots.limits([*low, far])
    assert 0.5 < y[1] < 5, "the others keep their room"
    groups = {e.findtext(f"{SVG}title"): e for e in ET.fromstring(plots.panel([far], "x", "y", x, y)).iter(f"{SVG}g")}
    marks = {told: next(groups[told].iter(f"{SVG}use")) for told in ("far: 50 ± 1 at 8", "far: 0.05 at 16")}
    high, usual = (mark.get("style") or "" for mark in marks.values())
    colour = plots.COLOURS[4]
    assert ("fill: var(--paper" in high, f"stroke: {colour}" in high) == (True, True), "hollow"
    assert (f"fill: {colour}" in usual, "stroke: var(--paper" in usual) == (True, True)
    tops = [float(mark.get("y") or "nan") for mark in marks.values()]
    assert tops[0] == pytest.approx(12.0), "at the edge"
    assert tops[1] > 100
    assert plots.limits(low)[1] == pytest.approx((0.05 / 1.5, 0.1 * 1.5))


def test_colours_and_shapes_tell_thirteen_series_apart() -> None:
    assert len(set(plots.COLOURS)) == len(plots.COLOURS) >= 13


def test_the_calls_needed_are_those_of_the_first_budget_that_is_as_good_as_real(tmp_path: Path) -> None:
    results = small(
        samplers={"2M": sg.DPMSolverPP2M(), "EM": sg.EulerMaruyama(), "own": sg.DDIM(steps=1)}, budgets=(1, 4, 16, 64)
    ).run(tmp_path)
    real = [row["energy_distance"] for row in results.real]
    bound = mean_of(real).mean + 2 * (mean_of(real).error or 0.0)
    table = next(b for b in page_of(results).sections[0].blocks if isinstance(b, Table) and "as good as" in b.caption)
    assert f"{bound:.2g}" in table.caption
    assert [row[0] for row in table.rows] == ["2M", "EM", "own"]
    found = set()
    for s, *cells in table.rows:
        for f, told in zip(("VP", "VE"), cells, strict=True):
            means: dict[int, list[float]] = {}
            for row in results.rows:
                if (row["formulation"], row["sampler"]) == (f, s):
                    means.setdefault(row["nfe"], []).append(row["energy_distance"])
            good = [n for n, values in means.items() if mean_of(values).mean <= bound]
            assert told == (str(min(good)) if good else f"over {max(means)}")
            found.add(str(told).split()[0])
    assert "over" in found
    assert len(found) > 1


def test_two_names_for_one_thing_are_two_entries(tmp_path: Path) -> None:
    results = small(samplers={"A": sg.DDIM(), "B": sg.DDIM()}, budgets=(4,), trajectories=True).run(tmp_path)
    section = next(s for s in page_of(results).sections if s.title == "Samples from the same noise")
    assert [p.caption for p in section.blocks[2].pictures] == [f"{f}, {s}, 4 calls" for s in "AB" for f in ("VP", "VE")]


def test_every_picture_of_samples_is_there_sampler_by_sampler(html: Read) -> None:
    named = [i["alt"] or "" for i in html.all("img")]
    shown = [alt.partition(": ")[2].rpartition(",")[0] for alt in named if "points in the plane: " in alt]
    assert shown[1:] == [f"{f}, {s}" for s in ("DDIM", "PC", "EM") for f in ("VP", "VE")]
    assert "--columns:2" in [d.get("style") for d in html.all("div")]


def test_what_a_budget_could_not_buy_is_said(tmp_path: Path) -> None:
    results = small(formulations={"NCSN": sg.NCSN(levels=5)}, samplers={"DDIM": sg.DDIM()}, budgets=(4, 9)).run(
        tmp_path
    )
    left = next(section for section in page_of(results).sections if section.title == "What was left out")
    (row,) = left.blocks[0].rows
    assert row[1:] == ["NCSN", "DDIM", "9", "all 5 times there are; the budget allows more calls"]


def test_the_budget_that_tells_most_apart_is_open(tmp_path: Path) -> None:
    results = small(samplers={"2M": sg.DPMSolverPP2M(), "DDIM": sg.DDIM()}, budgets=(4, 64), seeds=(0, 1, 2)).run(
        tmp_path
    )
    ranking = next(section for section in page_of(results).sections if section.title == "Ranking")
    ties = {b: sum(r.behind is not None and r.behind.sign == 0 for r in results.ranking(b)) for b in (4, 64)}
    assert ties[4] < ties[64]
    assert [b.caption for b in ranking.blocks if isinstance(b, Table)] == ["At most 4 network calls"]


def test_a_report_of_nothing_but_skipped_rows(tmp_path: Path) -> None:
    results = small(budgets=(1,), samplers={"PC": sg.PredictorCorrector()}).run(tmp_path / "cache")
    text = results.report(tmp_path / "out").read_text()
    assert "below the 2 that one step needs" in text


def test_images_and_one_seed(tmp_path: Path) -> None:
    data = {"_target_": "sde_gen.data.digits", "held_out": 12}
    samplers = {"DDIM": sg.DDIM()}
    comparison = small(data=data, num_samples=8, seeds=(3,), samplers=samplers, budgets=(4,), trajectories=True)
    results = comparison.run(tmp_path / "cache")
    page = page_of(results)
    assert "From data to noise and back" in [section.title for section in page.sections]
    assert "which a perfect sampler repeats" in page.sections[0].blocks[0].words
    read = Read(results.report(tmp_path / "out").read_text())
    assert len(read.all("img")) == 1 + 2 + 2 + 2
    assert not read.all("canvas")


HOSTILE = [
    "<!--<script>",
    "</script><b>",
    "<img src=x onerror=alert(1)>",
    "$\\frac$ [a](javascript:b) | `c` {{ 7 * 7 }}",
    "_\u6f22",
]


def test_names_are_words_wherever_they_stand(tmp_path: Path) -> None:
    formulations = {name: sg.VE(sigma_max=6.0 + i) for i, name in enumerate(HOSTILE)}
    first, second = HOSTILE[2], HOSTILE[3]
    results = small(
        formulations=formulations, samplers={"DDIM": sg.DDIM(), HOSTILE[1]: sg.EulerMaruyama()}, budgets=(1, 4),
        question=first, name=first, trajectories=True, likelihood=4,
        findings=[{"claim": second, "better": {"formulation": first}, "than": {"formulation": second}}],
    ).run(tmp_path / "cache")  # fmt: skip
    page = results.report(tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    read = Read(text)
    assert read.open == []
    assert len(read.all("script")) == 2
    assert "b" not in [tag for tag, _ in read.tags]
    assert not [attrs for _, attrs in read.tags if "onerror" in attrs]
    assert "<!--" not in text
    assert "{{ 7 * 7 }}" in text
    data = json.loads(next(t for t in read.text["script"] if t.startswith('{"formulations"')))
    assert (data["formulations"], data["samplers"]) == (HOSTILE, ["DDIM", HOSTILE[1]])
    assert set(HOSTILE) <= {*read.text["figcaption"], *read.text["option"]}
    for drawing in (page.parent / "pictures").glob("*.svg"):
        ET.fromstring(drawing.read_bytes())
    words = (page.parent / "report.md").read_text(encoding="utf-8")
    assert not re.search(r"<[a-z!/]", words)
    assert "](javascript" not in re.sub(r"^```$.*?^```$", "", words, flags=re.MULTILINE | re.DOTALL)
    linked = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", words)
    assert len(set(linked)) == len(linked) == len(read.all("img")) + len(read.all("svg")), "each a file of its own"


def test_a_report_without_matplotlib_has_all_but_its_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sde_gen.comparison.report import views

    monkeypatch.setattr(views, "has_matplotlib", lambda: False)
    read = Read(small(trajectories=True).run(tmp_path / "cache").report(tmp_path / "out").read_text())
    assert not read.all("svg")
    assert read.all("img")
    assert "pip install matplotlib" in read.text["code"]
