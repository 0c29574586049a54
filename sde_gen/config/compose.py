"""Composing a configuration with Hydra, and saying in one sentence what was wrong with it."""

import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sde_gen._conf import config_dir as packaged_config_dir
from sde_gen.config.check import nearest
from sde_gen.errors import ConfigError, MissingInputError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def load_config(
    name: str, overrides: Sequence[str] = (), config_dir: str | os.PathLike[str] | None = None
) -> "DictConfig":
    """Compose the configuration of a command, for notebooks and scripts: the same that the command line would use.

    Args:
        name: "train", "sample" or "evaluate".
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
        raise explained(error, name) from error


def reject_additions(overrides: Sequence[str]) -> None:
    """Refuse `+key=value`: every setting has its place, so a key that has to be added is a misspelt one.

    Raises:
        ConfigError: naming the argument. Keys below `hydra.` and groups may be added.
    """
    for override in overrides:
        match = re.match(r"\+{1,2}([^=]*)", override)
        if match and not match[1].startswith("hydra"):
            raise ConfigError(
                f"{override!r} adds a key that no setting has; write {match[1]}=VALUE for a setting that exists "
                "(--help lists them)"
            )


def explained(error: Exception, name: str) -> Exception:
    """`error` as a `ConfigError` of one sentence if it comes from Hydra or OmegaConf, else `error` itself."""
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, MissingConfigException):
        return _missing(error, name)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return ConfigError(_sentence(error, name))
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
        f"there is no configuration named {wanted!r}; use train, sample or evaluate, or --config-dir for your own"
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
        top = sorted({k.split(".")[0] for k in known})
        return f"{key} is not a setting{nearest(key, known)}; the groups and settings are {', '.join(top)} (see --help)"
    return f"the configuration cannot be composed: {_first_line(error)}"


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
