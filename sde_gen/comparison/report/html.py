"""A page as one HTML file that needs nothing else; `page.html` says how each kind of block looks."""

import base64
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from sde_gen.comparison.report.blocks import Page, Picture
from sde_gen.files import write_text


def write_html(page: Page, folder: Path) -> Path:
    """Write report.html in `folder`; every word from outside is escaped, also in the data of the script."""
    env = Environment(
        autoescape=True, loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    env.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    env.filters |= {"code": _code, "inside": _inside, "kind": lambda block: type(block).__name__}
    return write_text(folder / "report.html", env.get_template("page.html").render(page=page) + "\n", "the report")


def _code(text: object) -> Markup:
    """Text with what is in backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _inside(picture: Picture) -> Markup | str:
    """A drawing as markup, which we drew ourselves; other pictures as an address that holds them."""
    if picture.kind == "svg":
        label = f'<svg role="img" aria-label="{escape(picture.alt)}" '
        return Markup(picture.data.decode().replace("<svg ", label, 1))
    return f"data:image/png;base64,{base64.b64encode(picture.data).decode()}"
