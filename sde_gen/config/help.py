"""What `--help` says: the command, examples, its groups, and every setting with its value and a few words."""

import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import DictConfig, OmegaConf

from sde_gen.config.commands import COMMANDS, GROUP_WORDS
from sde_gen.config.compose import chosen_groups, load_config
from sde_gen.config.folder import config_dir as packaged
from sde_gen.config.groups import choices
from sde_gen.config.words import Meaning, first_sentence, meanings, summary

#: Groups of what a choice of another group holds.
_WITHIN = {"sampler": ("grid", "corrector"), "parameterization": ("convention",)}
_KEY, _VALUE = 30, 60  # columns of a key and its value, and most of a value


class Row(NamedTuple):
    """A setting: its key, its value as one types it, its type, and its words."""

    key: str
    value: str
    kind: str
    words: str


class Section(NamedTuple):
    """Settings that belong together: those of a choice, or of the command itself."""

    title: str
    words: str
    rows: list[Row]


def command_help(name: str, overrides: Sequence[str] = (), config_dir: str | None = None) -> str:
    """The text of `--help` of a command with these arguments."""
    about, width = COMMANDS[name], min(110, shutil.get_terminal_size((100, 24)).columns)
    command = f"python -m sde_gen.{name}"
    lines = [about.does, "", f"  {command} [GROUP=CHOICE ...] [KEY=VALUE ...]", "", "Examples:", ""]
    for arguments, does in about.examples:
        lines += [f"  {command} {arguments}".rstrip(), f"      {does}"]
    chosen = chosen_groups(name, overrides, config_dir)
    lines += ["", "Groups (GROUP=CHOICE; [ ] marks what is taken now):", ""]
    for group in _groups(chosen):
        now = {choice for key, choice in chosen.items() if key == group}
        listed = ", ".join(f"[{choice}]" if choice in now else choice for choice in choices(group))
        lines += _wrapped(f"  {group}: ", f"{listed}", width, 6)
        lines += _wrapped("      ", f"({GROUP_WORDS.get(group, '')})", width, 6) if group in GROUP_WORDS else []
    lines += ["", "Settings (KEY=VALUE):"]
    for section in _sections(name, chosen, load_config(name, overrides, config_dir)):
        words = f": {section.words}" if section.words else ""
        lines += ["", *_wrapped("", section.title + words, width, 4)]
        for row in section.rows:
            words = row.words + (f" ({row.kind})" if row.kind and not _says(row) else "")
            value = row.value if len(row.value) <= _VALUE else f"{row.value[:_VALUE]} ..."
            lines += _beside(f"  {row.key}={value}", words, width)
    more = "Your own configurations: --config-dir FOLDER. Other options: --multirun, --cfg job, --version."
    return "\n".join([*lines, "", *_wrapped("", f"{about.more} {more}".strip(), width, 0)])


def overview() -> str:
    """What `python -m sde_gen` says: the commands."""
    lines = ["Score-based generative models: NCSN, DDPM and score SDEs, one network under all of them.", ""]
    for name, about in COMMANDS.items():
        lines += [f"  python -m sde_gen.{name}", f"      {about.does}"]
    return "\n".join([*lines, "", "--help after any of them lists its settings, with a few words for each."])


def sections(name: str, overrides: Sequence[str] = (), config_dir: str | None = None) -> Iterator[Section]:
    """The settings of a command: first its own, then those of each group as it is chosen."""
    chosen = chosen_groups(name, overrides, config_dir)
    return _sections(name, chosen, load_config(name, overrides, config_dir))


def _sections(name: str, chosen: Mapping[str, str | None], composed: DictConfig) -> Iterator[Section]:
    config: Any = OmegaConf.to_container(composed, resolve=False)
    primary = yaml.safe_load(Path(packaged(), f"{name}.yaml").read_text("utf-8"))
    own: dict[str, Meaning] = {}
    for target in _targets(primary):
        own |= meanings(target)
    nested = {key: node for key, node in config.items() if isinstance(node, Mapping) and node}
    plain = [_row(key, value, own) for key, value in config.items() if key not in nested and key[0] != "_"]
    yield Section("the command", "", plain)
    for key, node in nested.items():
        choice, of_group = chosen.get(key), {}
        stated, words = primary.get(key), first_sentence(_of(own, key).words)
        if choice is not None and (file := Path(packaged(), key, f"{choice}.yaml")).is_file():
            text = file.read_text("utf-8")
            stated, words = yaml.safe_load(text), " ".join(re.findall(r"^# ?(.*)", text, re.MULTILINE))
        for target in [*_targets(stated), *_targets(node, "_target_")]:
            of_group |= meanings(target)
        title = f"{key}={choice}" if choice is not None else key
        yield Section(title, words or summary(str(node.get("_target_", ""))), list(_rows(key, node, of_group)))


def _rows(prefix: str, node: Mapping[str, Any], known: Mapping[str, Meaning]) -> Iterator[Row]:
    for key, value in node.items():
        if str(key).startswith("_"):
            continue
        if isinstance(value, Mapping) and value:
            target = str(value.get("_target_", ""))
            if target:
                words = _of(known, key).words or summary(target)
                yield Row(f"{prefix}.{key}", target.rpartition(".")[2], "", first_sentence(words))
            yield from _rows(f"{prefix}.{key}", value, meanings(target))
        else:
            row = _row(str(key), value, known)
            yield row._replace(key=f"{prefix}.{key}")


def _row(key: str, value: Any, known: Mapping[str, Meaning]) -> Row:
    meaning = _of(known, key)
    return Row(key, _typed(value), meaning.kind, first_sentence(meaning.words))


def _of(known: Mapping[str, Meaning], key: object) -> Meaning:
    return known.get(str(key), Meaning("", ""))


def _says(row: Row) -> bool:
    """Whether the words name the type, or the values, as well."""
    return all(value in row.words for value in re.findall(r"\w+", row.kind) if value not in ("or", "null"))


def _typed(value: Any) -> str:
    """A value as it stands on a command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
    return str(value) if value != "" else "''"


def _targets(node: Any, key: str = "_settings_") -> list[str]:
    found = node.get(key, []) if isinstance(node, Mapping) else []
    return [found] if isinstance(found, str) else list(found)


def _groups(chosen: Mapping[str, Any]) -> list[str]:
    found = dict.fromkeys(key.partition("@")[0] for key in chosen)
    more = [inner for group in found for inner in _WITHIN.get(group, ())]
    return [group for group in GROUP_WORDS if group in found or group in more]


def _wrapped(first: str, text: str, width: int, indent: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=" " * indent, break_long_words=False)


def _beside(key: str, words: str, width: int) -> list[str]:
    """A key, and its words beside it, or below where it is long."""
    if not words:
        return [key]
    lines = textwrap.wrap(words, max(30, width - _KEY - 2))
    first = [f"{key:<{_KEY}}  {lines[0]}"] if len(key) <= _KEY else [key, " " * (_KEY + 2) + lines[0]]
    return first + [" " * (_KEY + 2) + line for line in lines[1:]]
