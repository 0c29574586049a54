"""`python -m sde_gen.train`: train a network, or continue a run.

The work is done by `sde_gen.jobs.training`.
"""

import sys

from sde_gen.config.launch import Command

_command = Command("train", "sde_gen.jobs.training")
run, main = _command.run, _command.main

if __name__ == "__main__":
    sys.exit(main())
