"""The pictures of docs/compare.md: those of the report of an experiment, and the report itself as a browser shows it.

    python benchmarks/compare_pictures.py [--experiment oracle_2d] [--out docs/pictures/compare] [--workers auto]

Runs `python -m sde_gen.compare` (what its cache holds is not computed again) and copies pictures of the report. Where
Chromium is installed, it also photographs the page, on a desk and on a phone, and the particles half-way.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

COPIED = {
    "calls_legend.svg": "legend.svg",
    "calls_vp.svg": "calls_vp.svg",
    "calls_ve.svg": "calls_ve.svg",
    "forward_vp.png": "forward_vp.png",
    "forward_ve.png": "forward_ve.png",
    "samples_vp_pc.png": "samples_pc.png",
    "samples_vp_dpmpp2m.png": "samples_dpmpp2m.png",
}
HALF_WAY = """<script>
Array.from(document.getElementById("sampler").options).forEach(function (o) {{ o.selected = o.text === "{sampler}"; }});
document.getElementById("sampler").dispatchEvent(new Event("change"));
document.getElementById("time").value = 720;
document.getElementById("time").dispatchEvent(new Event("input"));
document.querySelectorAll("header, nav, h2, section > p, .wide").forEach(function (e) {{ e.remove(); }});
document.querySelectorAll("section").forEach(function (s) {{ if (!s.querySelector("canvas")) s.remove(); }});
window.dispatchEvent(new Event("resize"));
</script>"""


#: A browser's window is at least 500 pixels wide; a frame in it is as narrow as a phone.
FRAME = '<body style="margin:0"><iframe src="{name}" style="border:0;width:{width}px;height:{height}px"></iframe>'


def photograph(browser: str, page: Path, target: Path, width: int, height: int) -> None:
    """The top of a page, in few colours."""
    if width < 500:
        frame = page.with_name("frame.html")
        frame.write_text(FRAME.format(name=page.name, width=width, height=height), encoding="utf-8")
        photograph(browser, frame, target, 500, height)
        frame.unlink()
        Image.open(target).crop((0, 0, width, height)).save(target, optimize=True)
        return
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}",
             "--virtual-time-budget=3000", f"--window-size={width},{height}", f"--screenshot={target}", page.as_uri()],
            check=True, capture_output=True,
        )  # fmt: skip
    Image.open(target).convert("RGB").quantize(128).save(target, optimize=True)


def main() -> None:
    """Run, copy, photograph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="oracle_2d")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/compare"))
    parser.add_argument("--workers", default="auto")
    args = parser.parse_args()
    command = [sys.executable, "-m", "sde_gen.compare", f"experiment={args.experiment}", f"workers={args.workers}"]
    subprocess.run(command, check=True)
    home = (Path("runs/comparisons") / args.experiment).resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, target in COPIED.items():
        shutil.copy(home / "pictures" / name, args.out / target)
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        print("no Chromium: the photographs of the page stay as they are")
        return
    photograph(browser, home / "report.html", args.out / "page.png", 1100, 1500)
    photograph(browser, home / "report.html", args.out / "phone.png", 390, 900)
    text = (home / "report.html").read_text(encoding="utf-8")
    for sampler, name in (("EulerMaruyama", "stochastic"), ("DDIM", "deterministic")):
        page = home / "half_way.html"
        page.write_text(text.replace("</body>", HALF_WAY.format(sampler=sampler) + "</body>"), encoding="utf-8")
        photograph(browser, page, args.out / f"particles_{name}.png", 1100, 440)
        page.unlink()
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
