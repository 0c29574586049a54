"""What was measured once, kept as JSON under a name that depends on all that decided it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sde_gen.digests import digest
from sde_gen.errors import ConfigError
from sde_gen.files import make_folder, read_text, write_json


def kept(where: str, folder: str | Path | None, name: str, about: Any, measure: Callable[[], dict[str, Any]]) -> Any:
    """What `measure` returned for equal `about`, read from `folder`, or measured now and written there.

    A file that is damaged, was changed, or was written about something else is not believed: it is measured again.

    Args:
        where: how messages name the caller.
        folder: None to measure.
        about: all that decides the result, the model included.

    Raises:
        ConfigError: if `about` has no content that can be told from others, such as a network with a lock in it.
    """
    if folder is None:
        return measure()
    try:
        key = digest(name, torch.__version__, about)
    except ConfigError as error:
        raise ConfigError(
            f"{where}: a result for this model and condition cannot be kept, leave folder out; {error}"
        ) from error
    path = Path(folder) / f"{name}-{key[:32]}.json"
    try:
        body = json.loads(read_text(path))
        if body.pop("digest") == digest(key, body):
            return body
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass
    body = measure()
    make_folder(path.parent)
    write_json(path, {**body, "digest": digest(key, body)}, "a measured choice")
    return body
