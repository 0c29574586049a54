"""Composing a configuration with Hydra, and saying in one sentence what was wrong with it."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sde_gen.config.folder import config_dir as packaged_config_dir
from sde_gen.config.typed import nearest
from sde_gen.errors import ConfigError, MissingInputError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def load_config(
    name: str, overrides: Sequence[str] = (), config_dir: str | os.PathLike[str] | None = None
) -> "DictConfig":
    """Compose the configuration of a command, for notebooks and scripts: the same that the command line would use.

    Args:
        name: "train", "sample", "evaluate" or "compare".
        overrides: what would follow the command, such as ["sde=ve", "trainer.steps=100"].
        config_dir: a folder of your own configurations, searched before the packaged one.

    Returns:
        The composed configuration; `sde_gen.config.build(config.sde)` makes an object of a group.

    Raises:
        ConfigError: an unknown name, group choice or key, or an override that cannot be read.
    """
    from hydra import compose, initialize_config_dir

    overrides = list(overrides)
    reject_additions(overrides)
    search = []
    if config_dir is not None:
        folder = os.path.abspath(config_dir)
        if not os.path.isdir(folder):
            raise MissingInputError(f"no folder {folder}; config_dir must be a folder of configurations")
        search = [f"hydra.searchpath=[file://{folder}]"]
    try:
        with initialize_config_dir(packaged_config_dir(), version_base="1.3"):
            return compose(name, overrides=search + overrides)
    except Exception as error:
        raise explained(error, name, overrides) from error


def reject_additions(overrides: Sequence[str]) -> None:
    """Refuse `+key=value`: every setting has its place, so a key that has to be added is a misspelt one.

    Raises:
        ConfigError: naming the argument. Keys below `hydra.` may be added, and a group put where it is wanted, such as
            `+sampler@samplers.Mine=dpmpp3m`.
    """
    for override in overrides:
        match = re.match(r"\+{1,2}([^=]*)", override)
        if match and not match[1].startswith("hydra") and "@" not in match[1]:
            raise ConfigError(
                f"{override!r} adds a key that no setting has; write {match[1]}=VALUE for a setting that exists "
                "(--help lists them)"
            )


def explained(error: Exception, name: str, overrides: Sequence[str] = ()) -> Exception:
    """`error` as a `ConfigError` of one sentence if it comes from Hydra or OmegaConf, else `error` itself.

    Args:
        error: what was raised.
        name: of the command.
        overrides: its arguments, among which the one is looked for that Hydra does not name.
    """
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, MissingConfigException):
        return _missing(error, name)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return ConfigError(_sentence(error, name))
    # Hydra tells of a group that is given null or a number in a bare ValueError that names no group.
    if type(error) is ValueError and str(error).startswith("Config group override"):
        return ConfigError(_not_a_choice(name, overrides) or _first_line(error))
    return error


def _missing(error: Exception, name: str) -> ConfigError:
    wanted = str(getattr(error, "missing_cfg_file", "") or "")
    options = [str(option) for option in getattr(error, "options", None) or []]
    if not options:  # some paths of Hydra put the choices into the text only
        options = re.findall(r"^\t(.+)$", str(error), flags=re.MULTILINE)
    group, _, choice = wanted.rpartition("/")
    if group:
        known = f"choose one of {', '.join(options)}" if options else f"there are none for {group}"
        return ConfigError(f"{group}={choice} is not a choice{nearest(choice, options)}; {known}")
    if not wanted:
        return ConfigError(_first_line(error))
    return ConfigError(
        f"there is no configuration named {wanted!r}; use train, sample, evaluate or compare, or --config-dir for one "
        "of your own"
    )


def _sentence(error: Exception, name: str) -> str:
    from hydra.errors import OverrideParseException
    from omegaconf.errors import MissingMandatoryValue

    text = str(error)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is missing; give {error.full_key}=VALUE"
    if isinstance(error, OverrideParseException):
        return (
            f"cannot read the argument {error.override!r}; write key=value, and quote text with spaces or , [ ] {{ }}"
        )
    if match := re.search(r"Could not (?:override|append to config|add|delete from config|set)[^']*'([^']+)'", text):
        key = match[1].split("=")[0].split("@")[0]
        known = list(_known_keys(name))
        if key in known and error.__cause__ is not None:
            return f"{key}: {_first_line(error.__cause__)}"
        return _no_setting(key, name)
    return f"the configuration cannot be composed: {_first_line(error)}"


def _not_a_choice(name: str, overrides: Sequence[str]) -> str | None:
    """The sentence for the first argument that gives a group what no file can be named; None: there is none."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for override in OverridesParser.create().parse_overrides(list(overrides)):
        several = override.is_sweep_override() and override.is_discrete_sweep()
        values = list(override.sweep_iterator()) if several else [override.value()]
        bad = ["null" if v is None else str(v).lower() for v in values if not isinstance(v, str | list | dict)]
        bad += ["null"] if several and "null" in values else []
        key = str(override.get_key_element()).lstrip("+~")
        group = key.partition("@")[0]
        choices = sorted(path.stem for path in Path(packaged_config_dir(), group).glob("*.yaml"))
        is_group = bool(choices) or group.startswith("hydra/")
        if not is_group or not bad or (override.is_delete() and values == [None]):
            continue
        given = _default_choices(name)
        if key not in given and "@" not in key:
            return _no_setting(key, name)
        known = f"choose one of {', '.join(choices)}" if choices else "name one of its files"
        usual = f" for {given[key]}" if given.get(key) else ""
        none = f" (~{key} for none)" if key == "experiment" and usual else ""
        return f"{override.get_key_element()}={bad[0]} is not a choice; {known}, or leave it out{usual}{none}"
    return None


def _default_choices(name: str) -> dict[str, str | None]:
    """The groups of a command, and what is chosen without overrides."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(packaged_config_dir(), version_base="1.3"):
        return dict(compose(name, return_hydra_config=True).hydra.runtime.choices)


def _no_setting(key: str, name: str) -> str:
    known = list(_known_keys(name))
    placed = [group for group in _default_choices(name) if group.startswith(f"{key}@")]
    if placed:
        return f"{key} is not a setting of its own here; write {placed[-1]}=CHOICE, or another place (see --help)"
    group, _, rest = key.partition(".")
    if rest and (having := _choices_with(group, rest.split(".")[0])):
        return f"{key} is a setting of {group}={', '.join(having)}, not of what is chosen here; add {group}={having[0]}"
    top = sorted({k.split(".")[0] for k in known})
    return f"{key} is not a setting{nearest(key, known)}; the groups and settings are {', '.join(top)} (see --help)"


def _choices_with(group: str, setting: str) -> list[str]:
    """The choices of a group that have a setting of this name."""
    from omegaconf import OmegaConf

    files = sorted(Path(packaged_config_dir(), group).glob("*.yaml"))
    return [path.stem for path in files if setting in (OmegaConf.load(path) or {})]


def _known_keys(name: str) -> Iterator[str]:
    """All dotted keys of the configuration without overrides, and its groups."""
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    config = load_config(name)
    pending = [("", OmegaConf.to_container(config, resolve=False))]
    while pending:
        prefix, node = pending.pop()
        if isinstance(node, dict):
            for key, value in node.items():
                full = f"{prefix}{key}"
                if not str(key).startswith("_"):
                    yield full
                    pending.append((f"{full}.", value))


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
