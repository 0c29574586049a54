"""What the settings mean, read from the source without importing it: docstrings, comments beside fields, types."""

import ast
import re
from functools import cache
from typing import NamedTuple

from sde_gen.config.signatures import Source, find
from sde_gen.register import homes


class Meaning(NamedTuple):
    """What a parameter is: its type as it is written, and its words."""

    kind: str
    words: str


def summary(target: str) -> str:
    """The first sentence of the docstring of a class or function; "" outside the package."""
    source = _source(target)
    return "" if source is None else first_sentence(ast.get_docstring(source.node) or "")


@cache
def meanings(target: str) -> dict[str, Meaning]:
    """The parameters of a class or function, those of its bases included, each with its type and words."""
    source = _source(target)
    return {} if source is None else _meanings(source)


def first_sentence(text: str) -> str:
    """Up to the first full stop, on one line, without marks of reStructuredText."""
    text = re.sub(r":\w+:`([^`]*)`", r"\1", " ".join(text.split()))
    return re.split(r"(?<=[\w)\]])\.(?:\s|$)", text, maxsplit=1)[0].replace("`", "")


def _source(target: str) -> Source | None:
    module, _, name = target.rpartition(".")
    return find(homes().get(name, module) if module == "sde_gen" else module, name)


def _meanings(source: Source) -> dict[str, Meaning]:
    node = source.node
    found: dict[str, Meaning] = {}
    for base in reversed(source.bases) if isinstance(node, ast.ClassDef) else ():
        parent = find(source.module, base)
        found |= _meanings(parent) if parent else {}
    kinds = dict(_kinds(source))
    words = _sections(ast.get_docstring(node) or "") | _comments(source)
    for name in kinds | words:
        before = found.get(name, Meaning("", ""))
        found[name] = Meaning(kinds.get(name, before.kind), words.get(name, before.words))
    return found


def _kinds(source: Source) -> list[tuple[str, str]]:
    node = source.node
    items = [node] if isinstance(node, ast.FunctionDef) else node.body
    found = []
    for item in items:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            found.append((item.target.id, _kind(item.annotation)))
        elif isinstance(item, ast.FunctionDef) and (item is node or item.name == "__init__"):
            given = [*item.args.posonlyargs, *item.args.args, *item.args.kwonlyargs]
            found += [(a.arg, _kind(a.annotation)) for a in given if a.arg != "self" and a.annotation is not None]
    return found


def _kind(annotation: ast.expr) -> str:
    """A type as a person reads it: Literal["a", "b"] | None is "a, b, or null"."""
    if isinstance(annotation, ast.BinOp):
        left, right = _kind(annotation.left), _kind(annotation.right)
        return f"{left} or {right}" if left and right else left or right
    if isinstance(annotation, ast.Subscript):
        if ast.unparse(annotation.value) == "Literal":
            values = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
            return ", ".join(str(ast.literal_eval(value)) for value in values)
        return {"dict": "", "Mapping": ""}.get(ast.unparse(annotation.value), "list")
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return "null"
    names = {"int": "whole number", "float": "number", "str": "text", "bool": "true, false", "Name": "text"}
    return names.get(ast.unparse(annotation), "path" if ast.unparse(annotation) == "Path" else "")


def _sections(doc: str) -> dict[str, str]:
    """The entries of the sections Args and Attributes of a docstring."""
    found: dict[str, str] = {}
    for section in re.findall(r"^(?:Args|Attributes):\n((?:[ ]{4}.*\n?|\n)+)", doc, re.MULTILINE):
        for names, text in re.findall(r"^[ ]{4}([\w, ]+?): (.*(?:\n[ ]{8}.*)*)", section, re.MULTILINE):
            found |= {name.strip(): str(text) for name in names.split(",")}
    return found


def _comments(source: Source) -> dict[str, str]:
    """The comments at the ends of the lines of fields."""
    lines = source.text.splitlines()
    found: dict[str, str] = {}
    for item in source.node.body if isinstance(source.node, ast.ClassDef) else ():
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            after = lines[(item.end_lineno or 1) - 1][item.end_col_offset or 0 :]
            if comment := re.match(r"\s*# (?!pyright|type|noqa)(.*)", after):
                found[item.target.id] = str(comment[1])
    return found
