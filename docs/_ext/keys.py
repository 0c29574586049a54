"""Two pages of the reference: the keys of every command, and every choice of every group with its settings.

Names, types, ranges and defaults are read from the dataclasses and signatures that the commands themselves are built
from, and meanings are the words that `--help` shows, so that neither page can say what the code does not do.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from hydra.core.plugins import Plugins

Plugins.instance()  # before OmegaConf's loader
from omegaconf._utils import get_yaml_loader  # noqa: E402

from sde_gen.config.commands import COMMANDS, GROUP_WORDS  # noqa: E402
from sde_gen.config.groups import choices, complete, config_dir  # noqa: E402
from sde_gen.config.signatures import GROUPS, MISSING, defaults, members  # noqa: E402
from sde_gen.config.words import Meaning, meanings, summary  # noqa: E402

if TYPE_CHECKING:
    from sphinx.application import Sphinx

Row = tuple[str, str, str, str]
#: What Hydra itself reads.
_HYDRA = {"defaults", "hydra", "_target_", "_settings_"}
_PLAIN = {int: "whole number", float: "number", str: "text", bool: "true, false", type(None): "null", Any: "any"}


def kind(annotation: Any, rule: Mapping[str, Any] | None = None) -> str:
    """A type in words, with its range."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if rule and rule["choices"]:
        optional = " or null" if type(None) in inner else ""
        return ", ".join(f"`{choice}`" for choice in rule["choices"]) + optional
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is Union or type(annotation).__name__ == "UnionType":
        return " or ".join(dict.fromkeys(kind(part, rule) for part in inner))
    if annotation in _PLAIN:
        return _PLAIN[annotation] + (_range(annotation, rule) if rule and annotation in (int, float) else "")
    name = getattr(origin or annotation, "__name__", str(annotation))
    if name in ("list", "tuple", "Sequence"):
        each = [member for member in inner if member is not Ellipsis]
        return f"list of {kind(each[0])}" if each else "list"
    return "group" if name in ("dict", "Mapping") else f"`{name}`"


def _range(annotation: Any, rule: Mapping[str, Any]) -> str:
    low = 1 if annotation is int and rule["low"] is None else rule["low"]
    parts = [(low, "≥"), (rule["above"], ">"), (rule["high"], "≤"), (rule["below"], "<")]
    found = [f"{sign} {value:g}" for value, sign in parts if value is not None]
    return f" {', '.join(found)}" if found else ""


def object_of(target: str) -> Any:
    """What a target names."""
    module, _, name = target.rpartition(".")
    return getattr(import_module(module), name)


def types(thing: Any) -> dict[str, str]:
    """The parameters of a class or function and their types in words."""
    is_data = dataclasses.is_dataclass(thing)
    try:
        hints = get_type_hints(thing.__init__ if inspect.isclass(thing) and not is_data else thing)
    except (NameError, TypeError):
        hints = {}
    rules = {f.name: f.metadata.get("checked") for f in dataclasses.fields(thing)} if is_data else {}
    return {name: kind(hint, rules.get(name)) for name, hint in hints.items()}


def shown(value: Any) -> str:
    """A default as it would be typed."""
    if value == MISSING:
        return "must be given"
    if isinstance(value, Mapping):
        return f"`{value['_target_'].rpartition('.')[2]}`" if "_target_" in value else "`{}`"
    text = {None: "null", True: "true", False: "false"}[value] if isinstance(value, bool | None) else str(value)
    return f"`{text}`" if text else '`""`'


def cell(text: str) -> str:
    """Words that fit into a table of Markdown."""
    text = re.sub(r"(?<!`)(_target_)", r"`\1`", " ".join(text.split()))
    for sign, kept in (("|", "\\|"), ("*", "\\*"), ("<", "&lt;"), ("](", "]\\(")):
        text = text.replace(sign, kept)
    return text


def table(rows: list[Row]) -> list[str]:
    """A table of keys."""
    if not rows:
        return ["No settings.", ""]
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def rows_of(targets: list[str], given: Mapping[str, Any], prefix: str = "") -> Iterator[Row]:
    """A row for each value of `given`, with what the targets say of it."""
    kinds: dict[str, str] = {}
    words: dict[str, Meaning] = {}
    for target in targets:
        kinds |= types(object_of(target))
        words |= meanings(target)
    for key, value in given.items():
        if key not in _HYDRA:
            said = words.get(str(key), Meaning("", ""))
            yield f"`{prefix}{key}`", cell(kinds.get(key) or said.kind), shown(value), cell(said.words)


def read(name: str) -> dict[str, Any]:
    """A packaged file as plain data."""
    return yaml.load(Path(config_dir(), f"{name}.yaml").read_text("utf-8"), Loader=get_yaml_loader()) or {}


def _settings(node: Any) -> list[str]:
    names = node.get("_settings_", []) if isinstance(node, Mapping) else []
    return [names] if isinstance(names, str) else list(names)


def keys_page() -> str:
    """The keys of every command."""
    lines = [
        "# Commands and their keys", "",
        "`python -m sde_gen.COMMAND key=value ...`; `--help` says the same in the terminal. A key of a group is",
        "`group.key=value`; choices with their settings are [on a page of their own](choices.md).", "",
    ]  # fmt: skip
    for command, about in COMMANDS.items():
        given = read(command)
        lines += [f"## {command}", "", f"`python -m sde_gen.{command}`: {about.does} {about.more}".rstrip(), ""]
        lines += ["| example | |", "|---|---|"]
        lines += [
            f"| `{f'python -m sde_gen.{command} {words}'.strip()}` | {cell(does)} |" for words, does in about.examples
        ]
        chosen = {str(k): v for item in given["defaults"] if isinstance(item, dict) for k, v in item.items()}
        chosen = {group: choice for group, choice in chosen.items() if not group.startswith("override")}
        if chosen:
            lines += ["", "| group | what it is | default | choices |", "|---|---|---|---|"]
            for group, choice in chosen.items():
                listed = ", ".join(f"`{name}`" for name in choices(group))
                what = GROUP_WORDS.get(group, "")
                lines.append(f"| [`{group}`](choices.md#{group}) | {what} | {shown(choice)} | {listed} |")
        whole = {key: value for key, value in complete(given).items() if key not in chosen}
        nested = {key: value for key, value in whole.items() if _settings(given.get(key))}
        plain = {key: value for key, value in whole.items() if key not in nested}
        rows = list(rows_of(_settings(given), plain))
        for key, node in nested.items():
            rows += rows_of(_settings(given[key]), node, f"{key}.")
        lines += ["", *table(rows)]
    return "\n".join(lines)


def choices_page() -> str:
    """Every choice of every group."""
    lines = [
        "# Groups, their choices and settings", "",
        "`group=choice group.key=value`. A choice with a capital letter is a class under its own name; the others are",
        "files of `conf/`, which state what differs from the defaults of the class they name.", "",
    ]  # fmt: skip
    for group in dict.fromkeys((*GROUP_WORDS, *GROUPS)):
        lines += [f"({group})=", f"## {group}", "", f"{GROUP_WORDS.get(group, '')}", ""]
        for choice in choices(group):
            file = Path(config_dir(), group, f"{choice}.yaml")
            given = read(f"{group}/{choice}") if file.is_file() else {"_target_": members(group)[choice]}
            said = [line[1:].strip() for line in _comments(file)]
            lines += [f"### `{group}={choice}`", "", *([cell(" ".join(said)), ""] if said else [])]
            target = str(given.get("_target_", ""))
            if target.startswith("sde_gen."):
                lines += [f"`{target}`: {cell(summary(target))}.", ""]
                lines += table(list(rows_of([target], defaults(target) | given)))
            elif _settings(given):
                lines += table(list(rows_of(_settings(given), complete(given))))
    return "\n".join(lines)


def _comments(file: Path) -> list[str]:
    """The lines at the head of a file that say what it is."""
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    return [line for line in lines if line.startswith("# ") and "@package" not in line]


def write(app: "Sphinx") -> None:
    """Write the pages where they changed."""
    for name, text in (("keys", keys_page()), ("choices", choices_page())):
        path = Path(app.srcdir, "reference", f"{name}.md")
        if not path.is_file() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")


def setup(app: "Sphinx") -> dict[str, Any]:
    """Sphinx's entry."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
