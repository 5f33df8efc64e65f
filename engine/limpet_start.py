"""Where the programs `limpet` and `limpet-store` begin: Ctrl-C ends them without a traceback from the first line on.

Importing the packages takes a tenth of a second or more, and an interrupt in it would be a traceback out of the middle
of somebody's import. So this module is no part of them, imports next to nothing, and has the signal end the process at
once until the command itself takes over. Nothing is open by then, and so there is nothing to close. The same holds
when the command is done and the interpreter takes itself down.

An interrupt that the caller has switched off (`nohup`, or `&` in a script) stays off. What comes before this module,
the start of the interpreter itself, is out of reach.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130  # what a shell reports of a program that SIGINT ended


def limpet() -> NoReturn:
    """The program `limpet`."""
    _run(_limpet)


def limpet_store() -> NoReturn:
    """The program `limpet-store`."""
    _run(_limpet_store)


def _limpet() -> Callable[[], int]:
    from limpet.cli import main

    return main


def _limpet_store() -> Callable[[], int]:
    from limpet_store.cli import main

    return main


def _run(find: Callable[[], Callable[[], int]]) -> NoReturn:
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_ours:
        signal.signal(signal.SIGINT, _leave)
    main = find()
    try:
        try:
            if is_ours:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            code = main()
        finally:
            if is_ours:
                signal.signal(signal.SIGINT, _leave)
    except KeyboardInterrupt:  # in the few steps around `main`, which answers for its own
        code = INTERRUPTED
    sys.exit(code)


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    os._exit(INTERRUPTED)
