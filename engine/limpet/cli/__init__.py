"""The command `limpet`: looking into files, and the few things that are done to whole files.

One module a verb, each with `add(verbs)` for its arguments and `run(arguments)` for its work, which
returns the exit code. What they share is in terminal.py.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from importlib import metadata

from ..console import Parser, run
from ..errors import BusyError, CorruptError, FormatError, LimpetError, LockedError, NoSuchCommitError, NoSuchTableError
from ..format import FORMAT_VERSION
from . import backup, check, compact, dump, get, info, page, pages, path, tables, trim, upgrade
from .terminal import DAMAGED, NOT_OURS, REFUSED, USAGE, WARNINGS, UsageError, emit, note

_VERBS = (info, check, tables, get, dump, pages, page, path, backup, compact, trim, upgrade)

_EPILOG = """\
info, check, tables, get, dump, pages, page and path only read. They take no lock, so they work beside
a live writer, and they work on damaged files, as far as there is anything left to read.

exit codes
   0  fine                                   4  the system or a lock refused
   1  warnings, or nothing found            64  wrong usage
   2  damaged                              130  interrupted
   3  not a Limpet file, or a newer one    141  whoever read the output went away

examples
  limpet info app.limpet
  limpet check app.limpet || echo "something is wrong"
  limpet get app.limpet users ada
  limpet dump app.limpet users | jq .value
  limpet pages app.limpet --state damaged
  limpet dump --commit older app.limpet > rows.jsonl

`limpet VERB --help` says more. With --json every verb prints JSON, one object a line; every object
but the rows of `dump` has "v", the version of its form, and "type".
"""


class _Parser(Parser):
    wrong_usage = USAGE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code.

    argv     the arguments; None: those of the process
    raises   SystemExit for --help and for wrong usage
    """
    return run("limpet", functools.partial(_main, argv), refused=REFUSED)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = _Parser(
        prog="limpet",
        description="Look into Limpet files, and care for them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in _VERBS:
        verb.add(verbs)
    return parser


def _main(argv: Sequence[str] | None) -> int:
    arguments = build_parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        return code
    except BrokenPipeError:
        raise
    except (LimpetError, UsageError, OSError) as error:
        return _fail(error, as_json=arguments.json)


def _fail(error: Exception, *, as_json: bool) -> int:
    code = _exit_code(error)
    if as_json:
        emit("failure", {"error": type(error).__name__, "message": str(error), "exit": code})
    else:
        note(str(error))
    return code


def _exit_code(error: Exception) -> int:
    if isinstance(error, UsageError):
        return USAGE
    if isinstance(error, NoSuchTableError | NoSuchCommitError):
        return WARNINGS
    if isinstance(error, FormatError):
        return NOT_OURS
    if isinstance(error, CorruptError):
        return DAMAGED
    if isinstance(error, LockedError | BusyError | OSError):
        return REFUSED
    return DAMAGED


def _version() -> str:
    try:
        version = metadata.version("limpet")
    except metadata.PackageNotFoundError:
        version = "(a copy)"
    return f"limpet {version}, file format {FORMAT_VERSION}"
