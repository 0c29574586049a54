"""`python -m sde_gen`: which commands there are; with the name of one, that command."""

import sys
from importlib import import_module

from sde_gen.config.commands import COMMANDS
from sde_gen.config.launch import say


def main(argv: list[str] | None = None) -> int:
    """List the commands, or run `argv[0]` with the arguments after it."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and arguments[0] in COMMANDS:
        return import_module(f"sde_gen.{arguments[0]}").main(arguments[1:])
    say(import_module("sde_gen.config.help").overview())
    return 0 if not arguments or arguments[0] in ("-h", "--help") else 2


if __name__ == "__main__":
    sys.exit(main())
