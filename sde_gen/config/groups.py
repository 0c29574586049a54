"""Configuration files completed from signatures, as Hydra reads them: whoever composes meets every setting.

A file of a group states its `_target_` and what differs from the defaults in the target's signature. `_settings_` names
dataclasses whose defaults a node has. Each class of a group is a choice of its own, `sampler=StochasticHeun`, with or
without a file.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Self

import yaml
from hydra._internal.core_plugins import structured_config_source
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader

from sde_gen.config.folder import config_dir as _config_dir
from sde_gen.config.signatures import GROUPS, MISSING, defaults, group_of, member, members

config_dir = cache(_config_dir)


def complete(node: Any) -> Any:
    """`node`, plain data of a configuration file, with the defaults of all that it names."""
    if isinstance(node, list):
        return [complete(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    node = {key: complete(value) for key, value in node.items()}
    target, settings = node.get("_target_"), node.pop("_settings_", [])
    chosen = {str(key) for item in node.get("defaults", ()) if isinstance(item, Mapping) for key in item}
    for name in [settings] if isinstance(settings, str) else settings:
        own = {key: value for key, value in defaults(name).items() if value != MISSING and key not in chosen}
        node = own | node
    if isinstance(target, str) and group_of(target) and "defaults" not in node:
        node = {"_target_": target, **defaults(target)} | node
    return node


@cache
def choices(group: str) -> list[str]:
    """The packaged files of a group, and the classes of it that no file names."""
    files = sorted(Path(config_dir(), group).glob("*.yaml"))
    named = {name for file in files for name in re.findall(r"^_target_: (\S+)", file.read_text("utf-8"), re.MULTILINE)}
    classes = members(group).items() if group in GROUPS else ()
    # What imports bring along is built from a stored configuration, and is not for choosing.
    listed = [name for name, target in classes if target not in named and not target.startswith("sde_gen.interop.")]
    return sorted([file.stem for file in files] + listed)


def settings_of(group: str, choice: str) -> set[str]:
    """The names of the settings that a packaged choice of a group has."""
    return set(_Completed("main", config_dir()).load_config(f"{group}/{choice}").config)


@contextmanager
def completed_files() -> Iterator[None]:
    """Hydra reads files as `complete` sees them, as long as the context is open."""
    Plugins.instance()  # which registers Hydra's own sources
    types = SourcesRegistry.instance().types
    before = dict(types)
    types |= {"file": _Completed, "structured": StructuredConfigSource}
    try:
        yield
    finally:
        types |= before


class _Shared:
    """Not copied: Hydra copies its sources, and all that they hold, for each group that --help lists."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class StructuredConfigSource(_Shared, structured_config_source.StructuredConfigSource):
    """Hydra's own, which it knows by this name."""


class _Completed(_Shared, FileConfigSource):
    def load_config(self, config_path: str) -> ConfigResult:
        target, text = self._class(config_path), ""
        if target is None:
            text = Path(self.path, self._normalize_file_name(config_path)).read_text("utf-8")
        plain = {"_target_": target} if target else yaml.load(text, Loader=get_yaml_loader()) or {}
        config: Any = OmegaConf.create(complete(plain))
        return ConfigResult(self.provider, self.full_path(), config, self._get_header_dict(text[:512]))

    def is_group(self, config_path: str) -> bool:
        return super().is_group(config_path) or (config_path in GROUPS and self.path == config_dir())

    def is_config(self, config_path: str) -> bool:
        return super().is_config(config_path) or self._class(config_path) is not None

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        packaged = self.path == config_dir()
        if packaged and config_path in GROUPS:  # which hold no groups
            return choices(config_path) if results_filter != ObjectType.GROUP else []
        more = GROUPS if packaged and not config_path and results_filter != ObjectType.CONFIG else ()
        return sorted({*super().list(config_path, results_filter), *more})

    def _class(self, config_path: str) -> str | None:
        """The target of a choice such as sampler/StochasticHeun, where there is no such file."""
        group, _, name = config_path.removesuffix(".yaml").rpartition("/")
        if group not in GROUPS or self.path != config_dir() or super().is_config(config_path):
            return None
        return member(group, name)
