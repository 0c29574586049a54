"""A page as one HTML file that needs nothing else: style, script, pictures and data are inside it."""

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

from sde_gen.comparison.report.blocks import Badge, Code, Fold, Gallery, Page, Picture, Player, Section, Table, Text
from sde_gen.files import write_text

_HERE = Path(__file__).parent


def write_html(page: Page, folder: Path) -> Path:
    """Write report.html in `folder`."""
    style, script = (_HERE.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    sections = "\n".join(_section(i, section) for i, section in enumerate(page.sections))
    contents = "".join(f'<a href="#s{i}">{_escape(s.title)}</a>' for i, s in enumerate(page.sections))
    text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'">
<title>{_escape(page.title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{_escape(page.title)}</h1>
<p class="lead">{_inline(page.lead)}</p>
</header>
<nav aria-label="Contents">{contents}</nav>
<main>
{sections}
</main>
<script>
{script}</script>
</body>
</html>
"""
    return write_text(folder / "report.html", text, "the report")


def _section(number: int, section: Section) -> str:
    inner = "\n".join(_block(block) for block in section.blocks)
    head = f'<h2 id="h{number}">{_escape(section.title)}</h2>'
    return f'<section id="s{number}" aria-labelledby="h{number}">\n{head}\n{inner}\n</section>'


def _block(block: Any) -> str:
    if isinstance(block, Text):
        return f"<p>{_inline(block.words)}</p>"
    if isinstance(block, Code):
        return f'<pre tabindex="0"><code>{_escape(block.text)}</code></pre>'
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Picture):
        return _figure(block)
    if isinstance(block, Gallery):
        columns = f' style="--columns:{block.columns}"' if block.columns else ""
        return f'<div class="{block.layout}"{columns}>{"".join(map(_figure, block.pictures))}</div>'
    if isinstance(block, Fold):
        inner = "\n".join(_block(b) for b in block.blocks)
        return f"<details><summary>{_escape(block.title)}</summary>\n{inner}\n</details>"
    if isinstance(block, Player):
        return _player(block)
    raise TypeError(f"not a block of a report: {block!r}")


def _table(table: Table) -> str:
    def cell(i: int, value: str | Badge, tag: str) -> str:
        inner = f'<span class="badge {value.word.split()[0]}">{_escape(value.word)}</span>' \
            if isinstance(value, Badge) else _inline(value)  # fmt: skip
        kind = ' class="n"' if i in table.numbers else ""
        return f"<{tag}{kind}>{inner}</{tag}>"

    head = "".join(cell(i, title, "th") for i, title in enumerate(table.header))
    body = "".join(
        f"<tr{' class=faint' if r in table.faint else ''}>"
        + "".join(cell(i, value, "td") for i, value in enumerate(row))
        + "</tr>\n"
        for r, row in enumerate(table.rows)
    )
    # Not a caption element, which is no wider than its table.
    caption = f'<p class="caption">{_inline(table.caption)}</p>\n' if table.caption else ""
    label = f' aria-label="{_escape(table.caption)}"' if table.caption else ""
    inner = f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>"
    return f'{caption}<div class="scroll" tabindex="0"><table{label}>{inner}</table></div>'


def _figure(picture: Picture) -> str:
    if picture.kind == "svg":
        label = f'role="img" aria-label="{_escape(picture.alt)}" '
        drawn = picture.data.decode().replace("<svg ", f"<svg {label}", 1)
    else:
        data = base64.b64encode(picture.data).decode()
        sharp = ' class="sharp"' if picture.sharp else ""
        drawn = f'<img{sharp} alt="{_escape(picture.alt)}" src="data:image/png;base64,{data}">'
    caption = f"<figcaption>{_inline(picture.caption)}</figcaption>" if picture.caption else ""
    return f"<figure>{caption}{drawn}</figure>"


def _player(player: Player) -> str:
    data = json.dumps(player.data, separators=(",", ":")).replace("</", "<\\/")
    options = "".join(f'<option value="{i}">{_escape(s)}</option>' for i, s in enumerate(player.data["samplers"]))
    canvases = "".join(
        f'<figure><figcaption>{_escape(f)}</figcaption>'
        f'<canvas role="img" width="320" height="320" data-formulation="{i}" '
        f'aria-label="Particles on their way from noise to data under {_escape(f)}"></canvas>'
        f'<p class="where" aria-live="off"></p></figure>'
        for i, f in enumerate(player.data["formulations"])
    )  # fmt: skip
    return f"""<div class="player" id="player">
<div class="controls">
<label>Sampler <select id="sampler">{options}</select></label>
<button type="button" id="play" aria-pressed="false">Play</button>
<label class="slide">Noise <input type="range" id="time" min="0" max="1000" value="1000" step="1" \
aria-label="Progress of the run, from noise to data" aria-valuetext="data"> Data</label>
</div>
<div class="grid">{canvases}</div>
<noscript><p>The moving particles need JavaScript; the strips below show the same run.</p></noscript>
<script type="application/json" id="trajectories">{data}</script>
</div>"""


def _escape(text: str) -> str:
    return html.escape(str(text), quote=True)


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _escape(text))
