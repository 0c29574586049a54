"""`python -m sde_gen.evaluate`: likelihood of held-out data and distances of samples from it.

The work is done by `sde_gen.jobs.evaluating`.
"""

import sys

from sde_gen.config.launch import Command

_command = Command("evaluate", "sde_gen.jobs.evaluating")
run, main = _command.run, _command.main

if __name__ == "__main__":
    sys.exit(main())
