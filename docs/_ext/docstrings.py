"""Docstrings of the package as Sphinx reads them: their ASCII formulas stay as they are, their names become links.

They are written for a person at a prompt: `x_s = a x_t + b z`, |y - A x|^2, g**2. What reStructuredText would take for
markup is escaped, except in blocks of code and of maths, which are meant.
"""

import re
from typing import TYPE_CHECKING, Any

from sde_gen.register import homes

if TYPE_CHECKING:
    from sphinx.application import Sphinx

#: What stands as it is: literals, roles, and names in single backticks.
_KEPT = re.compile(r"(``.+?``|:\w+:`[^`]+`|`[^`]+`|\*\*[^*\s][^*]*\*\*|\*[A-Za-z][\w' -]*\*(?!\w))")
_SECTIONS = r"Args|Attributes|Raises|Returns|Yields|Shapes|Note|Example"


def escaped(lines: list[str]) -> list[str]:
    """The lines of a docstring with what is no markup escaped; blocks that are indented after `::` are left alone."""
    found: list[str] = []
    block: int | None = None  # the indent of the line that began a block
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if block is not None and (not line.strip() or indent > block):
            found.append(line)
            continue
        block = indent if line.rstrip().endswith("::") or line.lstrip().startswith(".. math::") else None
        if block is not None and line.lstrip().startswith(".."):
            found.append(line)
            continue
        parts = _KEPT.split(line)
        parts[::2] = [re.sub(r"(?<!\\)([*|])|(?<=\w)(_)(?!\w)", r"\\\1\2", part) for part in parts[::2]]
        # A name in backticks is a link where it is one and code elsewhere; a text with spaces or signs is code.
        parts[1::2] = [_code(part) for part in parts[1::2]]
        found.append("".join(parts))
    return found


def _code(part: str) -> str:
    plain = re.fullmatch(r"`([^`]+)`", part)
    return part if plain is None or re.fullmatch(r"[A-Za-z_][\w.]*(\(\))?", plain[1]) else f"``{plain[1]}``"


def laid_out(lines: list[str]) -> list[str]:
    """The same with a blank line before lists and blocks of code, which a person does not need and Sphinx does."""
    found: list[str] = []
    for line in lines:
        before = found[-1] if found else ""
        starts = re.match(r"\s*(- |\d+\. )", line) and not re.match(r"\s*(- |\d+\. )", before)
        deeper = len(before) - len(before.lstrip()) <= len(line) - len(line.lstrip())
        if starts and before.strip() and deeper and not re.match(rf"({_SECTIONS}):$", before.strip()):
            found.append("")
        found.append(line)
    return found


def _code_blocks(lines: list[str]) -> list[str]:
    """Paragraphs that are indented by four spaces without a reason are code."""
    found: list[str] = []
    for k, line in enumerate(lines):
        before, last = lines[k - 1] if k else "", next((x for x in reversed(lines[:k]) if x.strip()), "")
        begins = line.startswith("    ") and not before.strip() and last and not last.startswith("    ")
        if begins and not re.match(rf"({_SECTIONS}):$|\.\. |- |.*::$", last):
            found += ["::", ""]
        found.append(line)
    return found


def process(app: "Sphinx", what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Before napoleon reads the sections."""
    lines[:] = laid_out(escaped(_code_blocks(lines)))


def resolve(app: "Sphinx", env: Any, node: Any, text: Any) -> Any:
    """A public name in backticks is a link to `sde_gen.NAME`."""
    name = node.get("reftarget", "").removeprefix("sg.").removesuffix("()").removeprefix("sde_gen.")
    if node.get("refdomain") != "py":
        return None
    head = name.partition(".")[0]
    if head not in homes() and f"sde_gen.{name}" not in env.get_domain("py").objects:
        return None
    target = f"sde_gen.{name}"
    return env.get_domain("py").resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, text)


def setup(app: "Sphinx") -> dict[str, Any]:
    """Sphinx's entry."""
    app.connect("autodoc-process-docstring", process, priority=100)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
