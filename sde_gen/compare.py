"""`python -m sde_gen.compare`: compare formulations, samplers and budgets, and write one report.

The work is done by `sde_gen.jobs.comparing`.
"""

import sys

from sde_gen.config.launch import Command

_command = Command("compare", "sde_gen.jobs.comparing")
run, main = _command.run, _command.main

if __name__ == "__main__":
    sys.exit(main())
