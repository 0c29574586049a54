"""Headless Chromium, and a page in a frame of any width: a window itself is at least 500 pixels wide."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WITHOUT = "needs Chromium: apt-get install chromium"
_FRAME = """<!doctype html><body><script>
window.addEventListener("message", function (e) {
  var note = document.createElement("pre");
  note.id = "found"; note.textContent = e.data;
  document.body.appendChild(note);
});
</script><iframe src="%s" style="border:0;width:%dpx;height:900px"></iframe>"""


def framed(folder: Path, page: str, width: int, *options: str, profile: Path, wait: int, timeout: int) -> Any:
    """What a page in `folder` posts to the window around it, without a network.

    Args:
        page: its name, perhaps with a query.
        options: more, of the browser.
        profile: folder of the browser's own files.
        wait: milliseconds, of virtual time.
        timeout: seconds.
    """
    frame = folder / "frame.html"
    frame.write_text(_FRAME % (page, width))
    done = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND",
         f"--user-data-dir={profile}", *options, f"--virtual-time-budget={wait}", "--window-size=1300,900",
         "--dump-dom", frame.as_uri()],
        capture_output=True, text=True, timeout=timeout, check=True,
    )  # fmt: skip
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert match, done.stderr[-2000:]
    return json.loads(html.unescape(match[1]))
