"""Composing a configuration with Hydra, and saying in one sentence what was wrong with it."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from sde_gen.checks import nearest
from sde_gen.config.folder import config_dir as packaged_config_dir
from sde_gen.config.groups import choices, completed_files, settings_of
from sde_gen.config.objects import ARGUMENTS
from sde_gen.config.typed import did_you_mean
from sde_gen.errors import ConfigError, MissingInputError


def load_config(
    name: str, overrides: Sequence[str] = (), config_dir: str | os.PathLike[str] | None = None
) -> DictConfig:
    """Compose the configuration of a command, for notebooks and scripts: the same that the command line would use.

    Args:
        name: "train", "sample", "evaluate", "compare" or "import_weights".
        overrides: what would follow the command, such as ["sde=ve", "trainer.steps=100"].
        config_dir: a folder of your own configurations, searched before the packaged one.

    Returns:
        The composed configuration; `sde_gen.config.build(config.sde)` makes an object of a group.

    Raises:
        ConfigError: an unknown name, group choice or key, or an override that cannot be read.
    """
    overrides = without_nulls(name, readable(overrides))
    check_experiment(name, overrides)
    search = []
    if config_dir is not None:
        folder = os.path.abspath(config_dir)
        if not os.path.isdir(folder):
            raise MissingInputError(f"no folder {folder}; config_dir must be a folder of configurations")
        search = [f"hydra.searchpath=[file://{folder}]"]
    try:
        config = _composed(name, search + overrides)
    except Exception as error:
        raise explained(error, name, overrides) from error
    return with_arguments(config, [*(f"--config-dir={config_dir}" for _ in search), *overrides])


def with_arguments(config: DictConfig, arguments: Sequence[str]) -> DictConfig:
    """`config` with the arguments that it was composed with, which say what of it was asked for.

    Raises:
        ConfigError: a file names modules to trust, which would let it run code of its own; only a command may.
    """
    if config.get("trust") and not any(argument.startswith("trust=") for argument in arguments):
        modules = ",".join(map(str, config.trust))
        raise ConfigError(f"trust counts on the command line only, not in a file; add trust=[{modules}] to the command")
    with open_dict(config):
        config[ARGUMENTS] = list(arguments)
    return config


@contextmanager
def _apart() -> Iterator[None]:
    """Hydra without what a program around us may have initialised, which is put back."""
    state = GlobalHydra.instance()
    before, state.hydra = state.hydra, None
    try:
        yield
    finally:
        state.hydra = before
        GlobalHydra.set_instance(state)


def _composed(name: str, overrides: Sequence[str] = (), whole: bool = False) -> DictConfig:
    with _apart(), completed_files(), initialize_config_dir(packaged_config_dir(), version_base="1.3"):
        return compose(name, overrides=list(overrides), return_hydra_config=whole)


def readable(overrides: Sequence[str]) -> list[str]:
    """Arguments as Hydra can read them: text that its grammar refuses, as ~/x (1).csv, is taken as it is, in lists too.

    Raises:
        ConfigError: an argument that cannot be read, or `+key=value`: every setting has its place, so a key that has to
            be added is a misspelt one. Keys below `hydra.` may be added, and a group put where it is wanted, such as
            `+sampler@samplers.Mine=dpmpp3m`.
    """
    result = []
    for override in overrides:
        match = re.match(r"\+{1,2}([^=]*)", override)
        if match and not match[1].startswith("hydra") and "@" not in match[1]:
            raise ConfigError(
                f"{override!r} adds a key that no setting has; write {match[1]}=VALUE for a setting that exists "
                "(--help lists them)"
            )
        key, sign, value = override.partition("=")
        quoted = key + sign + (_quoted_within(value) if value[:1] in ("[", "{") else _quoted(value))
        result.append(override if _parses(override) or value[:1] in ("", "'", '"') else quoted)
        if not _parses(result[-1]):
            advice = "names before a : within { } may have letters from a to z, digits, blanks and - _ . /"
            if value[:1] != "{":
                text = key + sign + _quoted(value)
                advice = f"write key=value, and text with , [ ] {{ }} in two kinds of quotes: '{text}'"
            raise ConfigError(f"cannot read the argument {override!r}; {advice}")
    return result


def without_nulls(name: str, arguments: Sequence[str]) -> list[str]:
    """`arguments` without GROUP=null where that is the command's default, which Hydra does not take for a choice."""
    file = Path(packaged_config_dir(), f"{name}.yaml")
    nulls = re.findall(r"^  - (\w+): null$", file.read_text("utf-8"), re.MULTILINE) if file.is_file() else []
    return [argument for argument in arguments if argument not in {f"{group}=null" for group in nulls}]


_COMPARES = re.compile(r"^(formulations|posteriors):", re.MULTILINE)


def check_experiment(name: str, arguments: Sequence[str]) -> None:
    """Refuse a packaged experiment of another command: `compare` has those of formulations or posteriors, else `train`.

    Raises:
        ConfigError: saying which command it is for.
    """
    for experiment in (argument.partition("=")[2] for argument in arguments if argument.startswith("experiment=")):
        file = Path(packaged_config_dir(), "experiment", f"{experiment}.yaml")
        compares = bool(_COMPARES.search(file.read_text("utf-8"))) if file.is_file() else name == "compare"
        if name in ("train", "compare") and compares != (name == "compare"):
            other = "compare" if compares else "train"
            raise ConfigError(f"experiment={experiment} is for python -m sde_gen.{other} experiment={experiment}")


def _parses(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


_WITHIN = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|[^\[\]{},:"'\s][^\[\]{},:"']*""")


def _quoted_within(value: str) -> str:
    """A list or a group in which each text that the grammar refuses, as é, is in quotes."""
    return _WITHIN.sub(lambda m: m[0] if m[1] or _parses(f"x={m[0]}") else _quoted(m[0].rstrip()), value)


def explained(error: Exception, name: str, overrides: Sequence[str] = ()) -> Exception:
    """`error` as a `ConfigError` of one sentence if it comes from Hydra or OmegaConf, else `error` itself.

    Args:
        error: what was raised.
        name: of the command.
        overrides: its arguments, among which the one is looked for that Hydra does not name.
    """
    if isinstance(error, MissingConfigException):
        return _missing(error, name)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return ConfigError(_sentence(error, name, overrides))
    # Hydra tells of a group that is given null or a number in a bare ValueError that names no group.
    if type(error) is ValueError and str(error).startswith("Config group override"):
        return ConfigError(_not_a_choice(name, overrides) or _first_line(error))
    return error


def _missing(error: Exception, name: str) -> ConfigError:
    wanted = str(getattr(error, "missing_cfg_file", "") or "")
    group, _, choice = wanted.rpartition("/")
    if group:
        # Some paths of Hydra put the choices into the text only.
        options = list(getattr(error, "options", None) or re.findall(r"^\t(.+)$", str(error), flags=re.MULTILINE))
        known = f"choose one of {', '.join(options)}" if options else f"there are none for {group}"
        return ConfigError(f"{group}={choice} is not a choice{did_you_mean(choice, options)}; {known}")
    if not wanted:
        return ConfigError(_first_line(error))
    return ConfigError(
        f"there is no configuration named {wanted!r}; use train, sample, evaluate, compare, report or import_weights"
    )


def _sentence(error: Exception, name: str, overrides: Sequence[str]) -> str:
    text = str(error)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is missing; give {error.full_key}=VALUE"
    if isinstance(error, OverrideParseException):
        return f"cannot read the argument {error.override!r}; write key=value"
    for override in overrides if "sweep" in text.lower() else ():
        if OverridesParser.create().parse_override(override).is_sweep_override():
            key, _, value = override.partition("=")
            return (
                f"{override} holds several values; add --multirun for a job for each, or write it in two kinds of "
                f"quotes, '{key}={_quoted(value)}'"
            )
    if match := re.search(r"Could not (?:override|append to config|add|delete from config|set)[^']*'([^']+)'", text):
        key = match[1].split("=")[0].split("@")[0]
        if key in _known_keys(name) and error.__cause__ is not None:
            return f"{key}: {_first_line(error.__cause__)}"
        return _no_setting(key, name, overrides)
    return f"the configuration cannot be composed: {_first_line(error)}"


def _not_a_choice(name: str, overrides: Sequence[str]) -> str | None:
    """The sentence for the first argument that gives a group what no file can be named; None: there is none."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        several = override.is_sweep_override() and override.is_discrete_sweep()
        values = list(override.sweep_iterator()) if several else [override.value()]
        bad = ["null" if v is None else str(v).lower() for v in values if not isinstance(v, str | list | dict)]
        bad += ["null"] if several and "null" in values else []
        key = str(override.get_key_element()).lstrip("+~")
        group = key.partition("@")[0]
        there = choices(group)
        is_group = bool(there) or group.startswith("hydra/")
        if not is_group or not bad or (override.is_delete() and values == [None]):
            continue
        given = _default_choices(name)
        if key not in given and "@" not in key:
            return _no_setting(key, name)
        known = f"choose one of {', '.join(there)}" if there else "name one of its files"
        usual = f" for {given[key]}" if given.get(key) else ""
        none = f" (~{key} for none)" if key == "experiment" and usual else ""
        return f"{override.get_key_element()}={bad[0]} is not a choice; {known}, or leave it out{usual}{none}"
    return None


def _default_choices(name: str) -> dict[str, str | None]:
    """The groups of a command, and what is chosen without overrides."""
    return dict(_composed(name, whole=True).hydra.runtime.choices)


def chosen_groups(
    name: str, overrides: Sequence[str] = (), config_dir: str | os.PathLike[str] | None = None
) -> dict[str, str | None]:
    """The groups of a command, and what is chosen of them with these arguments, as `load_config` takes them."""
    search = [] if config_dir is None else [f"hydra.searchpath=[file://{os.path.abspath(config_dir)}]"]
    composed = _composed(name, search + without_nulls(name, readable(overrides)), whole=True)
    return {key: value for key, value in composed.hydra.runtime.choices.items() if not key.startswith("hydra/")}


def _no_setting(key: str, name: str, overrides: Sequence[str] = ()) -> str:
    groups = _default_choices(name)
    chosen = [o for o in overrides if (pair := o.partition("="))[0] in groups and pair[2] in choices(pair[0])]
    known = _known_keys(name, chosen)
    placed = [group for group in _default_choices(name) if group.startswith(f"{key}@")]
    if placed:
        return f"{key} is not a setting of its own here; write {placed[-1]}=CHOICE, or another place (see --help)"
    group, _, rest = key.partition(".")
    setting = rest.partition(".")[0]
    having = [choice for choice in choices(group) if setting in settings_of(group, choice)] if setting else []
    if setting and any(k.startswith(f"{key.rpartition('.')[0]}.") for k in known):
        group, _, setting = key.rpartition(".")  # of an object within the group
    beside = {k.rpartition(".")[2]: k for k in known if setting and k.rpartition(".")[0] == group}
    short = setting or key  # lr for learning_rate
    alike = [k for k in (beside.values() if setting else known) if len(short) > 1 and _initials(k) == short]
    alike += [k for k in known if not setting and len(key) > 2 and k.rpartition(".")[2].startswith(f"{key}_")]
    alike += [k for last, k in beside.items() if last.startswith(setting) or setting.startswith(last)]
    having = [choice for choice in having if choice.islower()] or having  # files before classes
    if having and not alike:
        first = "unet" if "unet" in having else having[0]  # which auto takes for images
        return f"{key} is a setting of {group}={', '.join(having)}, not of what is chosen here; add {group}={first}"
    top = sorted({k.split(".")[0] for k in known})
    if near := nearest(setting, beside):
        alike.append(beside[near])
    hint = f" (did you mean {alike[0]}?)" if alike else did_you_mean(key, known) if not setting else ""
    among = f"settings of {group} are {', '.join(beside)}" if beside else f"groups and settings are {', '.join(top)}"
    return f"{key or 'nothing'} is not a setting{hint}; the {among} (see --help)"


def _initials(key: str) -> str:
    return "".join(word[:1] for word in key.rpartition(".")[2].split("_"))


def _known_keys(name: str, overrides: Sequence[str] = ()) -> list[str]:
    """All dotted keys of the configuration, and its groups."""
    found, pending = [], [("", OmegaConf.to_container(_composed(name, overrides), resolve=False))]
    while pending:
        prefix, node = pending.pop()
        for key, value in node.items() if isinstance(node, dict) else ():
            if not str(key).startswith("_"):
                found.append(f"{prefix}{key}")
                pending.append((f"{prefix}{key}.", value))
    return found


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
