"""`python -m limpet`: the same as the command `limpet`."""

import sys

try:
    from .cli import main

    code = main()
except KeyboardInterrupt:  # while importing: `main` answers for the rest
    code = 130
sys.exit(code)
