"""`python -m sde_gen.report`: one table of several runs, their results and what their settings differ in.

The work is done by `sde_gen.jobs.reporting`.
"""

import sys

from sde_gen.config.launch import Command

_command = Command("report", "sde_gen.jobs.reporting")
run, main = _command.run, _command.main

if __name__ == "__main__":
    sys.exit(main())
