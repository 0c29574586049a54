"""Where this person's data lie: what the commands were told, kept under the fingerprint of the data.

A checkpoint may come from a stranger. Opening a file, or asking a hub, because a checkpoint names it would let the
stranger choose what a command opens; so a checkpoint is asked only *which* data it was trained on, and where these are
was said on this machine, on a command line.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sde_gen.config.signatures import defaults, group_of
from sde_gen.errors import SDEGenError
from sde_gen.files import make_folder, read_text, write_json

_MOST = 10**7  # samples that a checkpoint may have drawn
_PLACES = ("path", "root", "name", "codec")  # arguments that lead out of the package


def remember(node: Mapping[str, Any], fingerprint: str) -> None:
    """Keep where the data of a fingerprint lie; a cache that cannot be written is left as it is."""
    node = dict(node)
    for key in ("path", "root", "codec", "source"):
        text = node.get(key)
        if isinstance(text, str) and (key in ("path", "root") or os.path.exists(os.path.expanduser(text))):
            node[key] = os.path.abspath(os.path.expanduser(text))
    try:
        write_json(make_folder(_folder()) / f"{fingerprint}.json", node)
    except (SDEGenError, TypeError):
        return


def place_of(fingerprint: object) -> dict[str, Any] | None:
    """The configuration that a person once gave for the data of this fingerprint; None: not on this machine."""
    if not isinstance(fingerprint, str) or not re.fullmatch(r"[0-9a-f]{64}", fingerprint):
        return None
    try:
        found = json.loads(read_text(_folder() / f"{fingerprint}.json"))
    except (OSError, ValueError, SDEGenError):
        return None
    return found if isinstance(found, dict) else None


def made_on_the_spot(node: Any) -> bool:
    """Whether data come with the package or are drawn, and are small: a checkpoint's word may make them."""
    target = str(node.get("_target_")) if isinstance(node, Mapping) else ""
    if group_of(target) != "data":
        return False
    given = {**defaults(target), **node}
    sizes = [size for key in ("n", "n_test") if isinstance(size := given.get(key), int | float)]
    return all(given.get(place) is None for place in _PLACES) and all(0 < size < _MOST for size in sizes)


def _folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "sde_gen" / "data"
