"""`python -m limpet`: the same as the command `limpet`."""

import sys

from .cli import main

sys.exit(main())
