"""`python -m sde_gen.import_weights`: make a run of weights that come from somewhere else.

The work is done by `sde_gen.jobs.importing`.
"""

import sys

from sde_gen.config.launch import Command

_command = Command("import_weights", "sde_gen.jobs.importing")
run, main = _command.run, _command.main

if __name__ == "__main__":
    sys.exit(main())
