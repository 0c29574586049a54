"""The site in a browser without a network, and its links: `make test-docs` builds it and runs this.

Formulas are drawn, pictures load, search finds a class, nothing is cut off on a phone. Skipped without Chromium, or
where the site has not been built.
"""

import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.browser import BROWSER, WITHOUT, framed

BUILT = Path(__file__).parents[2] / "docs" / "_build" / "html"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BUILT / "index.html").is_file(), reason="needs the site: make docs"),
]
in_a_browser = pytest.mark.skipif(BROWSER is None, reason=WITHOUT)

#: Waits until formulas are drawn, and tells what is there.
PROBE = """
<script>
window.setTimeout(function () {
  function all(what) { return Array.prototype.slice.call(document.querySelectorAll(what)); }
  function scrolls(e) {
    for (; e && e !== document.body; e = e.parentElement)
      if (["auto", "scroll", "hidden"].indexOf(getComputedStyle(e).overflowX) >= 0) return true;
    return false;
  }
  var width = document.documentElement.clientWidth;
  var cut = all("article *").filter(function (e) {
    var r = e.getBoundingClientRect();
    return r.width > 0 && (r.right > width + 1 || r.left < -1) && !scrolls(e);
  });
  window.parent.postMessage(JSON.stringify({
    errors: window.__errors, width: width, title: document.title,
    images: all("article img").map(function (i) { return i.naturalWidth; }),
    formulas: all(".math").length, drawn: all("article mjx-container").length, bad: all("mjx-merror").length,
    wide: document.documentElement.scrollWidth - width,
    cut: cut.map(function (e) { return e.tagName + "." + e.className + ": " + e.textContent.slice(0, 60); }),
    results: all("#search-results li a").map(function (a) { return a.textContent; }),
    outside: performance.getEntriesByType("resource").map(function (r) { return r.name; })
      .filter(function (n) { return /^https?:/.test(n); })
  }), "*");
}, 6000);
</script>"""
WATCH = """<script>window.__errors = [];
window.addEventListener("error", function (e) { window.__errors.push(String(e.message)); });</script>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that may be written into."""
    return Path(shutil.copytree(BUILT, tmp_path_factory.mktemp("site") / "html"))


def look(site: Path, page: str, width: int, query: str = "") -> dict[str, Any]:
    """What the probe found on a page of this width."""
    path = site / page
    probed = path.with_name(f"probed-{path.name}")
    text = path.read_text("utf-8")
    probed.write_text(text.replace("<head>", f"<head>{WATCH}", 1).replace("</body>", f"{PROBE}</body>"), "utf-8")
    return framed(path.parent, probed.name + query, width, "--allow-file-access-from-files",
                  profile=site.parent / "profile", wait=12_000, timeout=180)  # fmt: skip


@in_a_browser
@pytest.mark.parametrize("width", [1200, 390], ids=["desk", "phone"])
@pytest.mark.parametrize(
    ("page", "formulas", "images"),
    [
        ("index.html", 0, 1),
        ("tutorials/one_kernel.html", 15, 6),
        ("tutorials/conditions.html", 4, 3),
        ("maths.html", 60, 0),
        ("samplers.html", 10, 0),
        ("reference/api/samplers.html", 8, 0),
        ("reference/keys.html", 0, 0),
    ],
)
def test_a_page_is_whole(site: Path, page: str, formulas: int, images: int, width: int) -> None:
    found = look(site, page, width)
    assert 0 <= width - found["width"] <= 20, "but for a scroll bar"
    assert found["errors"] == []
    assert found["outside"] == [], "nothing is asked of a network"
    assert found["drawn"] == found["formulas"] >= formulas
    assert found["bad"] == 0
    assert len(found["images"]) >= images
    assert min(found["images"], default=100) > 50
    assert found["wide"] <= 0
    assert found["cut"] == []


@in_a_browser
@pytest.mark.parametrize("name", ["PredictorCorrector", "TwistedSMC", "log_likelihood"])
def test_search_finds(site: Path, name: str) -> None:
    found = look(site, "search.html", 1200, f"?q={name}")
    assert found["errors"] == []
    assert any(name in result for result in found["results"])


class Links(HTMLParser):
    """Addresses that a page names, and the anchors that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {value for key in ("id", "name") if (value := given.get(key))}
        self.links += [value for key in ("href", "src") if (value := given.get(key))]


def test_links_lead_somewhere() -> None:
    pages: dict[Path, Links] = {}
    for path in BUILT.rglob("*.html"):
        pages[path] = parsed = Links()
        parsed.feed(path.read_text("utf-8"))

    def broken(path: Path) -> Iterator[str]:
        for link in pages[path].links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                yield f"{path.relative_to(BUILT)}: {link} is not there"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{path.relative_to(BUILT)}: {link} has no such place"

    assert len(pages) > 50
    assert [line for path in pages for line in broken(path)] == []
