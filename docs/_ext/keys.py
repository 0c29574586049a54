"""Two pages of the reference: the keys of every command, and every choice of every group with its settings.

Names, types, ranges and defaults are read from the dataclasses and signatures that the commands themselves are built
from, so that neither page can say what the code does not do. Meanings are the words beside each key: its entry in
`--help`, the comment at its field, or its line under "Args:" in the docstring.
"""

import ast
import dataclasses
import importlib.util
import inspect
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from hydra.core.plugins import Plugins

Plugins.instance()  # before OmegaConf's loader
from omegaconf._utils import get_yaml_loader  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402

from sde_gen.config.groups import choices, complete, config_dir  # noqa: E402
from sde_gen.config.signatures import GROUPS, MISSING, defaults, members  # noqa: E402

COMMANDS = ("train", "sample", "evaluate", "compare", "report", "import_weights")
#: What Hydra itself reads.
_HYDRA = {"defaults", "hydra", "_target_", "_settings_"}
_SECTION = re.compile(r"^(Args|Attributes):$")


def described(thing: Any) -> dict[str, str]:
    """The lines under "Args:" or "Attributes:" of a docstring, of a class its parents' too: name to meaning."""
    found: dict[str, str] = {}
    for cls in reversed(inspect.getmro(thing)) if inspect.isclass(thing) else (thing,):
        names: list[str] = []
        inside = False
        for line in inspect.cleandoc(cls.__doc__ or "").splitlines():
            if line and not line.startswith(" "):
                inside, names = bool(_SECTION.match(line)), []
            elif inside and (new := re.match(r"    ([\w, *]+?)(?: \([^)]*\))?: (.*)", line)):
                names = [name.strip(" *") for name in new[1].split(",")]
                found |= dict.fromkeys(names, new[2])
            elif names:
                found |= {name: f"{found[name]} {line.strip()}".strip() for name in names}
    return found


def comments(cls: type) -> dict[str, str]:
    """What stands in a comment at each field of a dataclass, its parents' too: name to meaning."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        text = inspect.getsource(base)
        lines = text.splitlines()
        for item in ast.parse(inspect.cleandoc(text)).body[0].body:  # type: ignore[attr-defined]
            if isinstance(item, ast.AnnAssign):
                own = " ".join(lines[item.lineno - 1 : item.end_lineno])
                _, sign, words = own.partition("  # ")
                if sign and not words.startswith("pyright"):
                    found[item.target.id] = words if "(" in words else words.rstrip(" )")  # type: ignore[union-attr]
    return found


def words() -> Mapping[str, str]:
    """The words of `--help`, key by key, where the package has them."""
    if importlib.util.find_spec("sde_gen.config.words") is None:
        return {}
    module = import_module("sde_gen.config.words")
    return next((value for value in vars(module).values() if isinstance(value, Mapping) and len(value) > 10), {})


def kind(annotation: Any, rule: Mapping[str, Any] | None = None) -> str:
    """A type in words, with its range."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if rule and rule["choices"]:
        optional = " or null" if type(None) in inner else ""
        return ", ".join(f"`{choice}`" for choice in rule["choices"]) + optional
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is not None and (origin is Union or type(annotation).__name__ == "UnionType"):
        parts = [kind(part, rule) for part in inner]
        return " or ".join(dict.fromkeys(parts))
    plain = {int: "whole number", float: "number", str: "text", bool: "true, false", type(None): "null", Any: "any"}
    if annotation in plain:
        return plain[annotation] + (_range(annotation, rule) if rule and annotation in (int, float) else "")
    name = getattr(origin or annotation, "__name__", str(annotation))
    if name in ("list", "tuple", "Sequence"):
        members_ = [member for member in inner if member is not Ellipsis]
        return f"list of {kind(members_[0])}" if members_ else "list"
    if name in ("dict", "Mapping"):
        return "group"
    return f"`{name}`"


def _range(annotation: Any, rule: Mapping[str, Any]) -> str:
    low, high = rule["low"], rule["high"]
    if annotation is int and low is None:
        low = 1
    parts = [(low, "≥"), (rule["above"], ">"), (high, "≤"), (rule["below"], "<")]
    found = [f"{sign} {value:g}" for value, sign in parts if value is not None]
    return f" {', '.join(found)}" if found else ""


def types(thing: Any) -> dict[str, str]:
    """The parameters of a class or function and their types in words."""
    try:
        hints = get_type_hints(
            thing.__init__ if inspect.isclass(thing) and not dataclasses.is_dataclass(thing) else thing
        )
    except (NameError, TypeError):
        hints = {}
    rules = (
        {f.name: f.metadata.get("checked") for f in dataclasses.fields(thing)}
        if dataclasses.is_dataclass(thing)
        else {}
    )
    return {name: kind(hint, rules.get(name)) for name, hint in hints.items()}


def shown(value: Any) -> str:
    """A default as it would be typed."""
    if value == MISSING:
        return "must be given"
    if isinstance(value, Mapping):
        return f"`{value['_target_'].rpartition('.')[2]}`" if "_target_" in value else "{}"
    text = {None: "null", True: "true", False: "false"}.get(value) if isinstance(value, bool | None) else str(value)
    return f"`{text}`" if text else '`""`'


def cell(text: str) -> str:
    """Words that fit into a table of Markdown."""
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;").strip()


def table(rows: list[tuple[str, str, str, str]], name: str = "key") -> list[str]:
    """A table of keys."""
    if not rows:
        return ["No settings.", ""]
    lines = [f"| {name} | type | default | meaning |", "|---|---|---|---|"]
    return [*lines, *(f"| {a} | {b} | {c} | {d} |" for a, b, c, d in rows), ""]


def rows_of(target: str, given: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """A row for each setting of a target."""
    module, _, name = target.rpartition(".")
    thing = getattr(import_module(module), name)
    meanings, kinds = described(thing), types(thing)
    for key, value in (defaults(target) | given).items():
        if key not in _HYDRA:
            yield f"`{key}`", cell(kinds.get(key, "")), shown(value), cell(meanings.get(key, ""))


def read(name: str) -> dict[str, Any]:
    """A packaged file as plain data."""
    return yaml.load(Path(config_dir(), f"{name}.yaml").read_text("utf-8"), Loader=get_yaml_loader()) or {}


def keys_page() -> str:
    """The keys of every command."""
    lines = [
        "# Commands and their keys", "",
        "`python -m sde_gen.COMMAND key=value ...`; `--help` prints the same. A key of a group is `group.key=value`,",
        "and the groups' choices with their settings are [on a page of their own](choices.md). Null is `null`.", "",
    ]  # fmt: skip
    say = words()
    for command in COMMANDS:
        given = read(command)
        names = given.get("_settings_", [])
        header = given["hydra"]["help"]["header"].partition("${")[0].strip().rstrip(":")
        lines += [f"## {command}", "", f"`python -m sde_gen.{command}`. {header}", ""]
        groups = [(str(k), v) for item in given["defaults"] if isinstance(item, dict) for k, v in item.items()]
        groups = [(k, v) for k, v in groups if not k.startswith("override")]
        meanings: dict[str, str] = {}
        kinds: dict[str, str] = {}
        for name in [names] if isinstance(names, str) else names:
            module, _, leaf = name.rpartition(".")
            cls = getattr(import_module(module), leaf)
            kinds |= types(cls)
            meanings |= described(cls) | comments(cls)
        if groups:
            lines += ["| group | default | choices |", "|---|---|---|"]
            for group, default in groups:
                listed = [f"`{choice}`" for choice in choices(group)]
                lines.append(f"| [`{group}`](choices.md#{group}) | {shown(default)} | {', '.join(listed)} |")
            lines.append("")
        taken = dict(groups)
        rows = []
        for key, value in complete(given).items():
            if key in _HYDRA or key in taken:
                continue
            if isinstance(value, dict) and isinstance(given.get(key), dict) and "_settings_" in given[key]:
                module, _, leaf = given[key]["_settings_"].rpartition(".")
                cls = getattr(import_module(module), leaf)
                inner, said = types(cls), described(cls) | comments(cls)
                for name, default in value.items():
                    full = f"{key}.{name}"
                    rows.append(
                        (f"`{full}`", cell(inner[name]), shown(default), cell(say.get(full, said.get(name, ""))))
                    )
                continue
            comment = next((line.partition("  # ")[2] for line in _text(command) if line.startswith(f"{key}:")), "")
            meaning = say.get(key) or meanings.get(key) or comment
            rows.append((f"`{key}`", cell(kinds.get(key, "")), shown(value), cell(meaning)))
        lines += table(rows)
    return "\n".join(lines)


def _text(command: str) -> list[str]:
    return Path(config_dir(), f"{command}.yaml").read_text("utf-8").splitlines()


def choices_page() -> str:
    """Every choice of every group."""
    lines = [
        "# Groups, their choices and settings", "",
        "`group=choice group.key=value`. A choice with a capital letter is a class under its own name; the others are",
        "files of `conf/`, which state what differs from the defaults of the class they name.", "",
    ]  # fmt: skip
    for group in (*GROUPS, "trainer", "logger", "experiment"):
        listed = choices(group) if Path(config_dir(), group).is_dir() or group in GROUPS else []
        if not listed:
            continue
        lines += [f"({group})=", f"## {group}", ""]
        for choice in listed:
            file = Path(config_dir(), group, f"{choice}.yaml")
            given = read(f"{group}/{choice}") if file.is_file() else {"_target_": members(group)[choice]}
            target = given.get("_target_", "")
            lines += [f"### `{group}={choice}`", ""]
            if group == "experiment":
                lines += [str(given.get("question", "")), ""]
                continue
            settings = given.get("_settings_")
            if target.startswith("sde_gen."):
                module, _, name = target.rpartition(".")
                thing = getattr(import_module(module), name)
                lines += [f"`{target}`: {cell(inspect.getdoc(thing).splitlines()[0])}", ""]
                lines += table(list(rows_of(target, given)))
            elif settings:
                lines += table(list(rows_of(settings, {k: v for k, v in given.items() if k not in _HYDRA})))
            else:
                said = [line[1:].strip() for line in file.read_text("utf-8").splitlines() if line.startswith("# ")]
                lines += [" ".join(said) or ", ".join(f"`{k}: {v}`" for k, v in given.items()), ""]
    return "\n".join(lines)


def write(app: Sphinx) -> None:
    """Write the pages where they changed."""
    for name, text in (("keys", keys_page()), ("choices", choices_page())):
        path = Path(app.srcdir, "reference", f"{name}.md")
        if not path.is_file() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx's entry."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
