"""`python -m sde_gen.sample`: draw samples from a trained run, with a picture and a report.

The work is done by `sde_gen.jobs.sampling`.
"""

import sys

from sde_gen.config.launch import Command

_command = Command("sample", "sde_gen.jobs.sampling")
run, main = _command.run, _command.main

if __name__ == "__main__":
    sys.exit(main())
