"""The pages of the reference that are written by the code: a page for each room, from its `__all__`."""

import inspect
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sde_gen.register import ROOMS, exports

if TYPE_CHECKING:
    from sphinx.application import Sphinx

#: Title and rooms of each page, in the order of the table of contents.
PAGES = {
    "perturbations": ("Perturbations", ["perturbations"]),
    "model": ("Models", ["model", "parameterizations", "conventions", "conditions", "loading", "hub", "diagnosis"]),
    "networks": ("Networks", ["networks"]),
    "codecs": ("Codecs and latents", ["codecs"]),
    "oracles": ("Exact models", ["oracles"]),
    "objectives": ("Objectives and weightings", ["objectives", "weightings"]),
    "samplers": ("Samplers", ["samplers"]),
    "tuning": ("Tuning", ["tuning"]),
    "likelihood": ("Likelihoods", ["likelihood"]),
    "guidance": ("Guidance", ["guidance"]),
    "inverse": ("Inverse problems", ["inverse"]),
    "data": ("Data", ["data"]),
    "metrics": ("Metrics", ["metrics"]),
    "training": ("Training", ["training", "streaming"]),
    "comparison": ("Comparing", ["comparison"]),
    "interop": ("Networks of other libraries", ["interop", "interop.diffusers"]),
    "pictures": ("Pictures", ["pictures", "evaluation"]),
    "errors": ("Errors", ["errors"]),
    "ground": ("The ground: checks, random numbers, digests", ["checks", "rng", "digests", "shapes", "config"]),
}


def entry(room: str, name: str) -> list[str]:
    """Directives of one public name."""
    thing = getattr(import_module(f"sde_gen.{room}"), name)
    full = f"sde_gen.{name}" if room in ROOMS else f"sde_gen.{room}.{name}"
    if inspect.isclass(thing):
        return [f".. autoclass:: {full}", "   :members:", "   :show-inheritance:", ""]
    if callable(thing):
        return [f".. autofunction:: {full}", ""]
    return [f".. py:data:: {full}", "", f"   A mapping with {', '.join(f'``{key}``' for key in thing)}.", ""]


def page(title: str, rooms: list[str]) -> str:
    """A page: every name of the rooms, below the file that defines it, whose docstring has the formulas."""
    lines = [title, "=" * len(title), ""]
    seen: set[int] = set()
    for room in rooms:
        module = import_module(f"sde_gen.{room}")
        files: dict[str, list[str]] = {}
        for name in exports(room):
            thing = getattr(module, name)
            if id(thing) not in seen:
                seen.add(id(thing))
                own = getattr(thing, "__module__", "")
                files.setdefault(own if own.startswith("sde_gen.") else f"sde_gen.{room}", []).append(name)
        for file, names in files.items():
            is_room = hasattr(import_module(file), "__path__")
            heading = f"``{file}``" if is_room else f"``{file.replace('.', '/')}.py``"
            about = [] if is_room else [f".. automodule:: {file}", "   :no-members:", "   :no-index:", ""]
            lines += [heading, "-" * len(heading), "", *about]
            lines += [line for name in names for line in entry(room, name)]
    return "\n".join(lines)


def write(app: "Sphinx") -> None:
    """Write the pages that changed, so that an unchanged one is not read again."""
    folder = Path(app.srcdir, "reference", "api")
    folder.mkdir(exist_ok=True)
    pages = {name: page(title, rooms) for name, (title, rooms) in PAGES.items()}
    for name, text in pages.items():
        path = folder / f"{name}.rst"
        if not path.is_file() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")


def setup(app: "Sphinx") -> dict[str, Any]:
    """Sphinx's entry."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
