"""The report in a browser: it opens without errors, the slider moves the particles, the pictures are there.

`make test-report` runs this; it needs Chromium (Debian's package `chromium`), and is skipped without it.
"""

import subprocess
from pathlib import Path
from typing import Any

import pytest

import sde_gen as sg
from tests.browser import BROWSER, WITHOUT, framed
from tests.comparison.helpers import small

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason=WITHOUT),
]

#: Acts like a person, and writes down what it finds; the page's own policy allows no more than inline scripts.
PROBE = """
<script>
(function () {
  var found = { errors: window.__errors, reports: window.__reports };
  function pixels(canvas) {
    var d = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data, sum = 0;
    for (var i = 0; i < d.length; i++) sum = (sum * 31 + d[i]) % 2147483647;
    return sum;
  }
  var images = Array.prototype.slice.call(document.images);
  found.images = images.map(function (i) { return i.naturalWidth; });
  found.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  found.drawings = document.querySelectorAll("svg path").length;
  var slider = document.getElementById("time"), sampler = document.getElementById("sampler");
  if (slider) {
    var canvas = document.querySelector("canvas");
    found.end = pixels(canvas);
    slider.value = 0; slider.dispatchEvent(new Event("input"));
    found.begin = pixels(canvas); found.begins = slider.getAttribute("aria-valuetext");
    found.where = canvas.parentNode.querySelector(".where").textContent;
    sampler.value = 1; sampler.dispatchEvent(new Event("change"));
    slider.value = 500; slider.dispatchEvent(new Event("input"));
    found.other = pixels(canvas);
    document.getElementById("play").click();
    found.playing = document.getElementById("play").getAttribute("aria-pressed");
    document.getElementById("play").click();
  }
  found.width = document.documentElement.clientWidth;
  window.parent.postMessage(JSON.stringify(found), "*");
})();
</script>
"""
WATCH = """<script>
window.__errors = []; window.__reports = [];
window.addEventListener("error", function (e) { window.__errors.push(String(e.message)); }, true);
document.addEventListener("securitypolicyviolation", function (e) { window.__reports.push(e.violatedDirective); });
</script>"""


def look(report: Path, width: int) -> dict[str, Any]:
    """What the probe found in a browser without network, on a page of this width."""
    text = report.read_text(encoding="utf-8")
    probed = report.with_name("probed.html")
    probed.write_text(text.replace("<style>", WATCH + "<style>", 1).replace("</body>", PROBE + "</body>"))
    return framed(report.parent, probed.name, width, profile=report.parent / "profile", wait=3_000, timeout=120)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("browser")
    comparison = small(trajectories=True, samplers={"DDIM": sg.DDIM(), "EM": sg.EulerMaruyama()})
    return comparison.run(place / "cache").report(place / "out")


@pytest.mark.parametrize("width", [1200, 390, 320], ids=["desk", "phone", "small phone"])
def test_the_report_works(report: Path, width: int) -> None:
    found = look(report, width)
    assert 0 <= width - found["width"] <= 20, "but for a scroll bar"
    assert found["errors"] == []
    assert found["reports"] == []
    assert len(found["images"]) == 1 + 2 * 2 + 2 + 2
    assert min(found["images"]) > 50
    assert found["drawings"] > 30
    assert found["wide"] <= 0, "nothing but tables scrolls sideways"
    assert found["begins"] == "noise"
    assert found["where"].startswith("t = 1.000")
    assert found["playing"] == "true"
    assert len({found["end"], found["begin"], found["other"]}) == 3


def test_it_prints(report: Path) -> None:
    target = report.with_name("report.pdf")
    subprocess.run([str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--print-to-pdf={target}",
                    f"--user-data-dir={report.parent / 'profile'}", report.as_uri()],
                   capture_output=True, timeout=120, check=True)  # fmt: skip
    assert target.read_bytes()[:5] == b"%PDF-"
    assert target.stat().st_size > 20_000
