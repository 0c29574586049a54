"""Where the configuration folder is: inside the installed package, or beside it in a checkout."""

from pathlib import Path

from sde_gen.errors import MissingInputError


def config_dir() -> str:
    """Absolute path of the folder that holds `train.yaml`, `sample.yaml` and their groups.

    A wheel carries `conf/` inside the package; a checkout (and so an editable install) has it at the top level, beside
    the package. The inner one wins, because beside an installed package any other project's `conf/` may lie.

    Raises:
        MissingInputError: neither place holds it; the installation is damaged.
    """
    package = Path(__file__).resolve().parents[1]
    candidates = (package / "conf", package.parent / "conf")
    for folder in candidates:
        if (folder / "train.yaml").is_file():
            return str(folder)
    raise MissingInputError(
        f"the configuration folder of sde_gen is missing: no train.yaml in {candidates[0]} or {candidates[1]}; "
        "install the package again"
    )
